"""Cells of a benchmark, each in a process of its own, or all on a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from efface.errors import UserError
from efface.evaluation.bench import Cell, Opened
from efface.evaluation.tasks import Crew, Failed
from efface.storage import write_text

ONE = Crew()
"""A cell at a time, here."""


class Task(Protocol):
    """What ends in one JSON: a cell of a benchmark."""

    @property
    def file(self) -> str:
        """Its file name."""
        ...

    def there(self, out: Path) -> bool:
        """Whether nothing of it is missing."""
        ...

    def run(self, out: Path, work: Path) -> Mapping[str, Any]:
        """Do what is missing of it; what its file holds."""
        ...


class Lost(NamedTuple):
    """A cell that came to nothing."""

    cell: Task
    why: str


@dataclass(frozen=True)
class Cells:
    """Where cells put their results, and their edits and pictures."""

    out: Path
    work: Path

    def open(self) -> Callable[[Task], Mapping[str, Any]]:
        """What runs a cell."""
        return lambda cell: cell.run(self.out, self.work)


def run_all(cells: Sequence[Task], out: Path, work: Path, crew: Crew = ONE) -> list[Lost]:
    """Run what is missing, each cell in a process of its own; a cell that dies is tried once more.

    On a cluster ``work`` is a folder of each machine, and the results come back to ``out``.

    Args:
        crew: how many at a time, and where.

    Returns:
        The cells that came to nothing.

    Raises:
        UserError: as :meth:`~efface.evaluation.tasks.Crew.done`.
    """
    desk = Cells(out.absolute(), work.absolute())
    lost = []
    rest = cells if crew.ray is None else [c for c in cells if not c.there(out)]
    for cell, found in replace(crew, fresh=True).done(desk, rest):
        if isinstance(found, Failed):
            lost.append(Lost(cell, found.why))
        elif crew.ray is not None:
            write_text(out / cell.file, json.dumps(found) + "\n")
    return lost


def ready(cells: Sequence[Cell], out: Path, work: Path) -> None:
    """Say once, before any work, what cannot be opened, set or written.

    Raises:
        UserError: a model, judge, protocol, setting or folder that cannot be.
    """
    for cell in {(c.protocol, c.model): c for c in cells}.values():
        Opened(cell)
    for cell in cells:
        cell.config()
    for folder in (out, work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make {str(folder)!r}: {e.strerror}.") from None
