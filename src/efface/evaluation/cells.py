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
from efface.names import among, apart
from efface.storage import write_text

ONE = Crew()
"""A cell at a time, here."""


class Task(Protocol):
    """What ends in one JSON: a cell of a benchmark."""

    @property
    def file(self) -> str:
        """Its file name."""
        ...

    @property
    def edited(self) -> Cell:
        """The cell whose edit is looked at."""
        ...

    def check(self, opened: Opened, out: Path) -> None:
        """Refuse a result of other settings in its file."""
        ...

    def there(self, out: Path, opened: Opened | None = None) -> bool:
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
    rest = unfinished(cells, out)
    for cell, found in replace(crew, fresh=True).done(desk, rest):
        if isinstance(found, Failed):
            lost.append(Lost(cell, found.why))
        elif crew.ray is not None:
            write_text(out / cell.file, json.dumps(found) + "\n")
    return lost


def unfinished(cells: Sequence[Task], out: Path) -> list[Task]:
    """The cells of which something is missing; each model is opened once to see it."""
    opened: dict[Cell, Opened] = {}
    rest = []
    for cell in cells:
        if not (out / cell.file).exists():
            rest.append(cell)
            continue
        alike = replace(cell.edited, split="", method="", seed=0, updates=0)
        if alike not in opened:
            opened[alike] = Opened(cell.edited)
        if not cell.there(out, opened[alike]):
            rest.append(cell)
    return rest


def ready(cells: Sequence[Task], out: Path, work: Path) -> None:
    """Say once, before any work, what cannot be opened, set or written.

    Raises:
        UserError: a model, judge, protocol, setting or folder that cannot be, a result of other
            settings that would be lost, or as :func:`judgeable`.
    """
    tasks: dict[tuple[str, str], list[Task]] = {}
    for task in cells:
        tasks.setdefault((task.edited.protocol, task.edited.model), []).append(task)
    for some in tasks.values():
        opened = Opened(some[0].edited)
        for split in dict.fromkeys(t.edited.split for t in some):
            judgeable(opened, split)
        for task in some:
            task.check(opened, out)
    for folder in (out, work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make {str(folder)!r}: {e.strerror}.") from None


def judgeable(opened: Opened, split: str) -> None:
    """Refuse before a training what could not be scored after it.

    Raises:
        UserError: a name that a judge does not know, a group without a concept, or too few pictures
            for a metric.
    """
    p, known = opened.protocol, opened.judge.concept_names
    erased = p.erased(split)
    others = p.others(erased, known)
    if p.held_out and not (p.preserved or known):
        raise UserError(
            f"{p.name!r} holds names out of all that its judge {p.judge!r} knows, which lists no "
            "names: list in preserved what is measured."
        )
    p.check_held_out(p.preserved or known)
    for judge in opened.judges:
        for name in (*erased, *others):
            judge.label(name, p.head, p.labels)
    groups = {"erased": erased}
    if p.held_out:
        groups |= {
            "preserved and shown": apart(others, p.held_out),
            "preserved and held out": among(others, p.held_out),
        }
    paired = [m for m in ("worst-tenth", "perceived") if m in p.metrics]
    groups |= {"preserved": others} if paired else {}
    for what, names in groups.items():
        if not names:
            raise UserError(f"no concept of split {split!r} of {p.name!r} is {what}.")
    if paired and p.pictures["preserved"] * len(p.prompts(others[0])) < 2:
        raise UserError(
            f"the metric {paired[0]!r} of {p.name!r} needs 2 pictures of each preserved concept or "
            "more: one half finds the worst, the other is scored."
        )
    if "perceived" in paired and not hasattr(opened.judge, "features"):
        raise UserError(f"the judge {opened.judge.version!r} does not show what it sees inside.")
