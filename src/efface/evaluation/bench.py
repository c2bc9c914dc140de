"""Methods under one protocol: a cell is a method, a split and a seed, and one JSON file."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.evaluation.evaluate import evaluate, judge_for, pictures, sampler_of
from efface.evaluation.metrics import Seen, table
from efface.evaluation.protocols import load as load_protocol
from efface.methods import METHODS
from efface.models import DiffusionModel, load
from efface.settings import to_json
from efface.storage import VERSION, write_text
from efface.training import EDIT, Entry, Method, Run, Tuning

UNEDITED = "unedited"
"""What every method is compared to."""


def lineup() -> dict[str, Entry | None]:
    """What is compared, by its name in tables: the unedited model, then what each method enters.

    All fine-tuned ones get the same number of weight updates.
    """
    entered = {n: e for m in METHODS.values() for n, e in m.lineup().items()}
    return {UNEDITED: None, **entered}


def label(name: str) -> str:
    """What tables call a line of the benchmark; one that is not known any more, by its name."""
    entry = lineup().get(name)
    return entry.label if entry else name


@dataclass(frozen=True)
class Cell:
    """One method on one split with one seed."""

    protocol: str
    """Name or path."""
    split: str
    method: str
    """A key of :func:`lineup`."""
    seed: int
    updates: int = 400
    model: str = "emoji"

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{Path(self.protocol).stem}-{self.split}-{self.method}-{self.seed}.json"

    def config(self) -> Method | None:
        """The method with its settings; None: unedited."""
        n = len(load_protocol(self.protocol).erased(self.split))
        entry = pick(lineup(), self.method, "method of the benchmark")
        method = entry and entry.method
        if not isinstance(method, Tuning):
            return method
        updates = max(self.updates // n, 1) if method.apart else self.updates
        return replace(method, updates=updates, seed=self.seed)

    def identity(self, model: DiffusionModel, judge: str) -> dict[str, Any]:
        """All that decides its result but the code."""
        method, protocol = self.config(), load_protocol(self.protocol)
        return {
            "protocol": f"{protocol.name} {protocol.digest}",
            "split": self.split,
            "method": self.method,
            "seed": self.seed,
            "config": None if method is None else to_json(method),
            "erased": list(protocol.erased(self.split)),
            "base": model.base,
            "judge": judge,
            "sampler": sampler_of(model, protocol),
        }


def finished(cell: Cell, out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a cell that is there already; None where it is missing or of other settings."""
    try:
        row: dict[str, Any] = json.loads((out / cell.file).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return row if all(row.get(k) == v for k, v in identity.items()) else None


class Opened:
    """A cell with its model, protocol and judge: what it does, step by step."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.model = cell, load(cell.model)
        self.protocol = load_protocol(cell.protocol)
        self.judge = judge_for(self.model, self.protocol)
        version = f"{self.judge.version} {self.judge.sha256}".strip()
        self.identity = cell.identity(self.model, version)
        self.erased = self.protocol.erased(cell.split)

    def folder(self, work: Path) -> Path:
        """Its own part of ``work``; a cell of other settings has another one."""
        own = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        return work / f"{self.cell.file.removesuffix('.json')}-{own}"

    def erase(self, work: Path, progress: bool = True) -> Edit | None:
        """Its edit, made once, with the peak memory of its process; None: unedited."""
        method, folder = self.cell.config(), self.folder(work)
        if method is None:
            return None
        if (folder / EDIT).exists():
            return Edit.load(folder)
        folder.mkdir(parents=True, exist_ok=True)
        concepts = [Concept(c, kind=self.protocol.kind) for c in self.erased]
        edit = method.erase(self.model, concepts, Run(folder, progress=progress))
        edit.meta["cost"]["peak_memory_mb"] = peak_memory(self.model.device)
        edit.save(folder / EDIT)
        return edit

    def look(
        self, edit: Edit | None, work: Path, part: int = 0, parts: int = 1, progress: bool = True
    ) -> Looked:
        """Make and judge the ``part``-th of ``parts`` of its pictures."""
        others = self.protocol.others(self.erased, self.judge.concept_names)
        wanted = [
            w
            for kind, names in (("erased", self.erased), ("preserved", others))
            for w in pictures(self.protocol, names, self.protocol.seeds(kind, self.cell.seed))
        ]
        some = wanted[len(wanted) * part // parts : len(wanted) * (part + 1) // parts]
        where = None if edit is None else self.folder(work) / "samples"
        began = perf_counter()
        seen = evaluate(self.model, edit, where, some, self.judge, self.protocol, progress=progress)
        machine = (
            f"{platform.machine()}, {torch.get_num_threads()} threads, {self.model.device.type}"
        )
        return Looked(seen, perf_counter() - began, machine)

    def conclude(self, out: Path, edit: Edit | None, looked: Sequence[Looked]) -> dict[str, Any]:
        """Scores of all its pictures, kept as its JSON."""
        seen = Seen(
            tuple(c for part in looked for c in part.seen.concepts),
            torch.cat([part.seen.top1 for part in looked]),
            torch.cat([part.seen.top5 for part in looked]),
        )
        scores = table(seen, self.erased, self.protocol.near(self.erased))
        row = dict(self.identity)
        if edit is not None:
            row |= {"cost": edit.meta["cost"], "edit": edit.digest}
        row |= {
            "efface": VERSION,
            "torch": torch.__version__,
            "machine": looked[0].machine,
            "updates": self.cell.updates,
            "scores": {k: s.to_json() for k, s in scores.items()},
            "hits": {c: seen.of([c]).packed() for c in dict.fromkeys(seen.concepts)},
            "evaluation_seconds": round(sum(part.seconds for part in looked), 1),
        }
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(row) + "\n"
        write_text(out / self.cell.file, text)
        return row


class Looked(NamedTuple):
    """What the judge saw in some of a cell's pictures."""

    seen: Seen
    seconds: float
    machine: str


def run_cell(cell: Cell, out: Path, work: Path, progress: bool = True) -> dict[str, Any]:
    """Erase, make pictures, judge them, and keep one JSON; what is there is not done again.

    Args:
        out: folder of the results.
        work: folder of edits and pictures.
    """
    opened = Opened(cell)
    known = finished(cell, out, opened.identity)
    if known is not None:
        return known
    edit = opened.erase(work, progress)
    return opened.conclude(out, edit, [opened.look(edit, work, progress=progress)])


def peak_memory(device: torch.device) -> int | None:
    """The largest memory so far, in MB: of the GPU, or of this process; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    if sys.platform == "win32":
        return None
    from resource import RUSAGE_SELF, getrusage

    most = getrusage(RUSAGE_SELF).ru_maxrss
    return most >> 20 if sys.platform == "darwin" else most >> 10


@dataclass(frozen=True)
class Failed:
    """A cell that died twice."""

    cell: Cell
    why: str


def run_all(cells: Sequence[Cell], out: Path, work: Path, ray: str | None = None) -> list[Failed]:
    """Run what is missing, each cell in a process of its own; a cell that dies is tried once more.

    Args:
        ray: address of a Ray cluster, or ``local`` for one on this machine; None: one after the
            other, here.

    Returns:
        The cells that failed twice.

    Raises:
        UserError: a model, judge, protocol or setting or folder that cannot be.
    """
    for cell in {(c.protocol, c.model): c for c in cells}.values():
        Opened(cell)  # what cannot be opened is said once, before any work
    for cell in cells:
        cell.config()
    for folder in (out, work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make {str(folder)!r}: {e.strerror}.") from None
    if ray is not None:
        return on_ray(cells, out, work, ray)
    failed = []
    for cell in cells:
        for attempt in (1, 2):
            why = in_a_process(cell, out, work)
            if not why:
                break
            warnings.warn(f"{cell.file}: {why} (attempt {attempt})", stacklevel=2)
        else:
            failed.append(Failed(cell, why))
    return failed


def in_a_process(cell: Cell, out: Path, work: Path) -> str:
    """Run a cell in a fresh process, so that its peak memory is its own; why it died, or ""."""
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=run_cell, args=(cell, out, work))
    process.start()
    process.join()
    return "" if process.exitcode == 0 else f"exit code {process.exitcode}"


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
