"""Cells of a benchmark, each in a process of its own, or all on a Ray cluster."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.bench import Cell, Looked, Opened, finished


class Task(Protocol):
    """What ends in one JSON: a cell of a benchmark."""

    @property
    def file(self) -> str:
        """Its file name."""
        ...

    def run(self, out: Path, work: Path) -> object:
        """Do what is missing of it."""
        ...


@dataclass(frozen=True)
class Failed:
    """A cell that died twice."""

    cell: Task
    why: str


def run_all(
    cells: Sequence[Cell], out: Path, work: Path, ray: str | None = None, jobs: int = 1
) -> list[Failed]:
    """Run what is missing, each cell in a process of its own; a cell that dies is tried once more.

    Args:
        ray: address of a Ray cluster, or ``local`` for one on this machine; None: here.
        jobs: how many cells at a time, here.

    Returns:
        The cells that failed twice.

    Raises:
        UserError: a model, judge, protocol or setting or folder that cannot be.
    """
    ready(cells, out, work)
    return on_ray(cells, out, work, ray) if ray is not None else each(cells, out, work, jobs)


def ready(cells: Sequence[Cell], out: Path, work: Path) -> None:
    """Say once, before any work, what cannot be opened, set or written.

    Raises:
        UserError: as :func:`run_all`.
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


def each(cells: Sequence[Task], out: Path, work: Path, jobs: int) -> list[Failed]:
    """Run cells in processes of their own, ``jobs`` at a time; gives those that failed twice."""
    with ThreadPoolExecutor(jobs) as pool:
        ends = pool.map(lambda cell: twice(cell, out, work), cells)
        return [end for end in ends if end is not None]


def twice(cell: Task, out: Path, work: Path) -> Failed | None:
    """Run a cell in a process of its own, and once more where that dies; None: it is done."""
    for attempt in (1, 2):
        why = in_a_process(cell, out, work)
        if not why:
            return None
        warnings.warn(f"{cell.file}: {why} (attempt {attempt})", stacklevel=2)
    return Failed(cell, why)


def in_a_process(cell: Task, out: Path, work: Path) -> str:
    """Run a cell in a fresh process, so that its peak memory is its own; why it died, or ""."""
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=alone, args=(cell, out, work))
    process.start()
    process.join()
    return "" if process.exitcode == 0 else f"exit code {process.exitcode}"


def alone(cell: Task, out: Path, work: Path) -> None:
    """Run a cell in this process, which ends with one line where that cannot be."""
    try:
        cell.run(out, work)
    except UserError as e:
        sys.exit(f"efface: {e}")


SHARDS = 4
"""Parts that the pictures of a cell are split into on a cluster."""


def on_ray(cells: Sequence[Cell], out: Path, work: Path, address: str) -> list[Failed]:
    """Run cells on a Ray cluster, the pictures of each in parts; results come back to ``out``.

    Each task is tried once more where it, or its process, dies.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: pip install 'efface[ray]'.") from None
    ray.init(None if address == "local" else address, ignore_reinit_error=True, log_to_driver=False)
    again = ray.remote(max_retries=1, retry_exceptions=True)
    erase, look = again(_erase), again(_look)
    waiting: list[tuple[Opened, Any, list[Any]]] = []
    for cell in cells:
        opened = Opened(cell)
        if finished(cell, out, opened.identity) is None:
            edit = erase.remote(cell, work)
            parts = [look.remote(cell, edit, work, i, SHARDS) for i in range(SHARDS)]
            waiting.append((opened, edit, parts))
    failed = []
    for opened, edit, parts in waiting:
        try:
            opened.conclude(out, ray.get(edit), ray.get(parts))
        except ray.exceptions.RayError as e:
            failed.append(Failed(opened.cell, str(e).strip().splitlines()[-1]))
    return failed


def _erase(cell: Cell, work: Path) -> Edit | None:
    return Opened(cell).erase(work, progress=False)


def _look(cell: Cell, edit: Edit | None, work: Path, part: int, parts: int) -> Looked:
    return Opened(cell).look(edit, work, part, parts, progress=False)
