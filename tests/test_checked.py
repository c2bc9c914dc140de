"""What somebody wrote in a file: read right, or refused in one line that names the place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from efface.errors import UserError
from efface.methods import METHODS
from efface.settings import checked, from_json, read, to_json


@dataclass(frozen=True)
class Round:
    kind: ClassVar[str] = "round"
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    kind: ClassVar[str] = "square"
    side: int = 1


@dataclass(frozen=True)
class Told:
    name: str
    n: int = 1
    scale: float | None = None
    on: bool = False
    size: tuple[int, int] = (1, 2)
    words: tuple[str, ...] = ()
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"
    shape: Round | Square = Round()


def test_a_good_object_becomes_the_dataclass():
    found = checked(
        Told,
        {
            "name": "x",
            "scale": 2,
            "size": [3, 4],
            "words": ["a", "b"],
            "lists": {"k": ["c"]},
            "shape": {"kind": "square", "side": 3},
        },
        "it",
    )
    assert found == Told("x", 1, 2, False, (3, 4), ("a", "b"), {"k": ["c"]}, "a", Square(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "y"}, r"unknown field of it: 'nam'; did you mean 'name'\?"),
        ({"name": 3}, "it: name is 3; a text is needed"),
        ({"name": None}, "it: name is None; a text is needed"),
        ({"n": 1.5}, "it: n is 1.5; a whole number is needed"),
        ({"n": True}, "it: n is True; a whole number is needed"),
        ({"n": "3"}, "it: n is '3'; a whole number is needed"),
        ({"scale": "3"}, "it: scale is '3'; a finite number or null is needed"),
        ({"scale": float("nan")}, "it: scale is nan; a finite number or null is needed"),
        ({"scale": float("inf")}, "it: scale is inf"),
        ({"scale": 10**400}, "it: scale is 1000"),
        ({"scale": True}, "it: scale is True"),
        ({"on": 1}, "it: on is 1; true or false is needed"),
        ({"size": [1]}, r"it: size is \[1\]; a list of a whole number each is needed"),
        ({"size": [1, "x"]}, r"it: size\[1\] is 'x'"),
        ({"words": "chapel"}, "it: words is 'chapel'; a list of a text each is needed"),
        ({"words": ["a", 1]}, r"it: words\[1\] is 1; a text is needed"),
        ({"lists": ["a"]}, r"it: lists is \['a'\]; an object of a list of a text each"),
        ({"lists": {"k": "abc"}}, "it: lists.k is 'abc'; a list of a text each is needed"),
        ({"mode": "c"}, "it: mode is 'c'; one of 'a', 'b' is needed"),
        ({"shape": {"kind": "rond"}}, r"unknown kind of it: shape: 'rond'; did you mean 'round'"),
        ({"shape": {"kind": "square", "side": "x"}}, "it: shape: side is 'x'; a whole number"),
        ({"shape": 3}, "it: shape is 3; an object of kind 'round' or an object of kind 'square'"),
        ({"name": "x" * 500}, None),
        ({"words": "x" * 500}, "it: words is 'xxxx.*…; a list"),
    ],
)
def test_each_wrong_field_is_named(change, message):
    told = {"name": "x", **change}
    if message is None:
        assert checked(Told, told, "it").name
        return
    with pytest.raises(UserError, match=message) as e:
        checked(Told, told, "it")
    assert len(str(e.value)) < 200


def test_what_is_missing_or_no_object_is_said():
    with pytest.raises(UserError, match="it has no field 'name'"):
        checked(Told, {}, "it")
    with pytest.raises(UserError, match=r"it is \[1\]; an object with fields is needed"):
        checked(Told, [1], "it")


def test_files_are_read_in_any_encoding_that_says_what_it_is(tmp_path: Path):
    path, text = tmp_path / "a.json", json.dumps({"name": "café"}, ensure_ascii=False)
    for raw in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16")):
        path.write_bytes(raw)
        assert read(Told, path, "thing").name == "café"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{\n"name": }', "is broken JSON in line 2"),
        (b'{\n"name": "\xff"}', r"is no UTF-8 text: .* in line 2"),
        (b'{\n\n"name": "\0"}', "holds a NUL character, in line 3"),
        ('{"name": "a"}'.encode("utf-16")[:-1], "is no UTF-16 text"),
        ('{"name": "a"}'.encode("utf-16-le"), "holds a NUL character, in line 1"),
        (b"[" * 100000, "cannot be read"),
        (b'{"name": ' + b"1" * 5000 + b"}", "cannot be read|a text is needed"),
        (b"", "is broken JSON in line 1"),
        (b"null", "is None; an object"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, raw: bytes, message: str):
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message) as e:
        read(Told, path, "thing")
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read the thing .*: No such file"):
        read(Told, tmp_path / "b.json", "thing")
    with pytest.raises(UserError, match=r"cannot read the thing .*: Is a directory"):
        read(Told, tmp_path, "thing")


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_of_every_method_and_preset_survive_json(name):
    for method in (METHODS[name](), *METHODS[name].presets().values()):
        assert from_json(type(method), json.loads(json.dumps(to_json(method)))) == method
