"""Numbers are checked against the range that their field names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from efface.errors import UserError
from efface.settings import Range, check_ranges, ranges, read_json


@dataclass(frozen=True)
class Numbers:
    count: Annotated[int, Range(1, 1000)] = 1
    scale: Annotated[float, Range(0)] = 0.0
    rate: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    steps: Annotated[int | None, Range(1)] = None
    many: tuple[Annotated[int, Range(0, 9)], ...] = ()
    name: str = ""


def test_every_range_of_a_dataclass_is_found():
    assert list(ranges(Numbers)) == ["count", "scale", "rate", "steps", "many"]


@pytest.mark.parametrize(
    "allowed",
    [{}, {"count": 1000}, {"scale": 1e300}, {"rate": 1}, {"steps": 1}, {"many": (0, 9)}],
)
def test_numbers_inside_pass(allowed):
    check_ranges(Numbers(**allowed))


INF = float("inf")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"count": 0}, "got 0 for count; 1 to 1,000 is needed."),
        ({"count": 1001}, "got 1001 for count; 1 to 1,000 is needed."),
        ({"count": True}, "got True for count"),
        ({"count": "3"}, "got 3 for count"),
        ({"scale": -0.1}, "got -0.1 for scale; 0 or more is needed."),
        ({"scale": float("nan")}, "got nan for scale; a finite number, 0 or more, is needed."),
        ({"scale": INF}, "got inf for scale; a finite number, 0 or more, is needed."),
        ({"rate": INF}, "got inf for rate; more than 0, up to 1 is needed."),
        ({"rate": 0}, "got 0 for rate; more than 0, up to 1 is needed."),
        ({"steps": 0}, "got 0 for steps; 1 or more is needed."),
        ({"many": (3, 10)}, "got 10 for many"),
    ],
)
def test_a_number_outside_is_refused(wrong, told):
    with pytest.raises(UserError, match="^" + told.replace(".", r"\.")):
        check_ranges(Numbers(**wrong))


@dataclass(frozen=True)
class Inner:
    one: int = 1


@dataclass(frozen=True)
class Typed:
    name: str = ""
    yes: bool = False
    count: int = 1
    scale: float = 1.0
    how: Literal["a", "b"] = "a"
    many: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)
    inner: Inner | Numbers = Inner()
    maybe: str | None = None
    where: Path | None = None


def test_values_of_the_declared_types_pass():
    check_ranges(Typed())
    check_ranges(Typed("a", True, 2, 3, "b", ["x"], (3, 4), Numbers(), "", Path("x")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": None},
        {"name": ["castle", "fox"]},
        {"name": Path("words.txt")},
        {"yes": "no"},
        {"yes": 1},
        {"count": 2.5},
        {"count": None},
        {"scale": "fast"},
        {"scale": INF},
        {"how": "c"},
        {"how": []},
        {"many": "letters"},
        {"many": (1,)},
        {"inner": "one"},
        {"inner": {"one": 1}},
        {"inner": Inner},
        {"maybe": 3},
    ],
)
def test_a_value_of_another_type_is_refused(wrong):
    with pytest.raises(UserError, match=f"^got .* for {next(iter(wrong))}, .* is needed"):
        check_ranges(Typed(**wrong))


@pytest.mark.parametrize("text", ["1e-400", "-0.01E-999", "0.0000000000000000000010e-310"])
def test_a_number_of_a_file_that_would_be_read_as_0_is_refused(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(f'{{"guidance": [{text}]}}')
    told = f"the protocol .*mine.json' cannot be read: the number {text} is too small, and would be"
    with pytest.raises(UserError, match=told):
        read_json(path, "protocol")


def test_every_other_number_of_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("[0, 0.0, -0.0, 0e5, 0.000E-400, 1e-300, 5e-324, -2.5]")
    assert read_json(path, "protocol") == [0, 0, 0, 0, 0, 1e-300, 5e-324, -2.5]
