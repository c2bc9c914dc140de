"""What was measured, as files keep it: read in one place, of a declared shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.evaluation.bound import Forecast
from efface.scores import Score
from efface.settings import checked, read_json, shown

Table = Mapping[str, Score]
"""Scores by name."""


@dataclass(frozen=True)
class Answer:
    """What is read of a ``scores*.json``."""

    protocol: str
    judge: str = ""
    prompts: int = 0
    erased: Sequence[str] = ()
    edit: str = ""
    unedited: Table = field(default_factory=dict)
    edited: Table = field(default_factory=dict)
    difference: Table = field(default_factory=dict)
    scores: Table = field(default_factory=dict)


@dataclass(frozen=True)
class Instrument:
    """What is read of one instrument in a ``sensitivity.json``."""

    instrument: str
    unit: str
    words: Mapping[str, float]
    intervals: Table
    stability: Score | None = None
    draws: int = 0


@dataclass(frozen=True)
class Sensitivity:
    """What is read of a ``sensitivity.json``."""

    instruments: tuple[Instrument, ...]
    agreement: Table = field(default_factory=dict)
    forecast: Forecast | None = None
    edit: str = ""

    def __post_init__(self) -> None:
        if not self.instruments:
            raise UserError("it names no instrument.")


@dataclass(frozen=True)
class Cell:
    """What is read of a cell of the benchmark."""

    protocol: str
    split: str
    method: str
    seed: int
    erased: Sequence[str]
    hits: Mapping[str, tuple[Sequence[int], Sequence[int]]]
    scores: Table = field(default_factory=dict)
    config: dict[str, Any] | None = None
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackedCell:
    """What is read of a cell of a benchmark of attacks."""

    protocol: str
    split: str
    method: str
    seed: int
    erased: Sequence[str]
    attacks: Mapping[str, dict[str, Any]]
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class Siege:
    """What is read of an ``attacks*.json``."""

    about: dict[str, Any]
    units: dict[str, dict[str, Any]]
    lines: Sequence[dict[str, Any]] = ()
    verdicts: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def read(cls: type[Any], path: Path, what: str) -> dict[str, Any]:
    """A file that is of a shape, as it is; what the shape does not name is not looked at.

    Args:
        what: what the file is, for messages ("scores").

    Raises:
        UserError: it cannot be read, or is of another shape; names the file, and the field or line.
    """
    where, found = f"the {what} {str(path)!r}", read_json(path, what)
    if not isinstance(found, dict):
        raise UserError(f"{where} is {shown(found)}; an object with fields is needed.")
    known = {f.name for f in fields(cls)}
    checked(cls, {k: v for k, v in found.items() if k in known}, where)
    return found
