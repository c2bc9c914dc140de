"""Methods under one protocol: a cell is a method, a split and a seed, and one JSON file."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from efface import __version__
from efface.benchmark import evaluate, judge_for, pictures, sampler_of
from efface.concepts import Concept
from efface.edit import Edit, write
from efface.errors import UserError, pick
from efface.methods import AGE, AP, CA, ESD, PRESETS
from efface.metrics import Seen, table
from efface.models import DiffusionModel, load
from efface.protocols import load as load_protocol
from efface.runs import Run
from efface.search import Search
from efface.training import Tuning

UNEDITED = "unedited"


SEARCHED = {
    name: PRESETS[name]["searched"] for name in ("esd", "uce", "ca", "speed", "spm", "mace")
}
"""Settings found on split 4, where a method's own are not the best here."""


def _tuned(make: Callable[[Tuning], Any], **options: Any) -> Callable[[Tuning, int], Any]:
    return lambda tuning, _: make(replace(tuning, **options))


def _apart(own: Any) -> Callable[[Tuning, int], Any]:
    """A method with an adapter a concept: they share the updates."""

    def make(tuning: Tuning, n: int) -> Any:
        some = replace(own.tuning, updates=max(tuning.updates // n, 1), seed=tuning.seed)
        return replace(own, tuning=some)

    return make


LINEUP: Mapping[str, Callable[[Tuning, int], Any]] = {
    UNEDITED: lambda *_: None,
    "esd": _tuned(lambda t: ESD(tuning=t), lr=SEARCHED["esd"].tuning.lr),
    "esd-null": _tuned(lambda t: ESD(keep=("",), tuning=t), lr=SEARCHED["esd"].tuning.lr),
    "ap-random": _tuned(lambda t: AP(search=Search(kind="random"), tuning=t), batch=4),
    "ap": _tuned(lambda t: AP(tuning=t), batch=4),
    "ap-paper": _tuned(lambda t: replace(PRESETS["ap"]["paper"], tuning=t), batch=1),
    "ap-official": _tuned(lambda t: replace(PRESETS["ap"]["official"], tuning=t), batch=1),
    "uce": lambda *_: replace(SEARCHED["uce"], vocabulary="names"),
    "ca": _tuned(lambda t: CA(tuning=t), group="kv", lr=SEARCHED["ca"].tuning.lr),
    "age": _tuned(lambda t: AGE(tuning=t)),
    "lora": _tuned(lambda t: replace(PRESETS["esd"]["lora"], tuning=t), rank=4, lr=1e-4),
    "speed": lambda *_: SEARCHED["speed"],
    "spm": _apart(SEARCHED["spm"]),
    "mace": _apart(SEARCHED["mace"]),
}
"""What is compared, by its name in tables: a method from common tuning and the number of erased
concepts. All fine-tuned ones have the same number of weight updates; the authors' forms of AP have
their batch of 1."""

LABELS = {
    UNEDITED: "unedited",
    "esd": "ESD",
    "esd-null": 'ESD, "" preserved',
    "ap-random": "AP, random words instead of the search",
    "ap": "**AP, ours**",
    "ap-paper": "AP, the paper's formulas",
    "ap-official": "AP, as the authors' code",
    "uce": "UCE, keep list of all names",
    "ca": "CA",
    "age": "AGE",
    "lora": "ESD on LoRA",
    "speed": "SPEED (null space)",
    "spm": "SPM",
    "mace": "MACE",
}


@dataclass(frozen=True)
class Cell:
    """One method on one split with one seed."""

    protocol: str
    """Name or path."""
    split: str
    method: str
    """A key of :data:`LINEUP`."""
    seed: int
    updates: int = 400
    model: str = "emoji"

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{Path(self.protocol).stem}-{self.split}-{self.method}-{self.seed}.json"

    def config(self) -> Any:
        """The method with its settings; None: unedited."""
        erased = load_protocol(self.protocol).erased(self.split)
        make = pick(LINEUP, self.method, "method of the benchmark")
        return make(Tuning(updates=self.updates, seed=self.seed), len(erased))

    def identity(self, model: DiffusionModel, judge: str) -> dict[str, Any]:
        """All that decides its result but the code."""
        method, protocol = self.config(), load_protocol(self.protocol)
        return {
            "protocol": f"{protocol.name} {protocol.digest}",
            "split": self.split,
            "method": self.method,
            "seed": self.seed,
            "config": None if method is None else json.loads(json.dumps(asdict(method))),
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
        if (folder / "edit.safetensors").exists():
            return Edit.load(folder)
        folder.mkdir(parents=True, exist_ok=True)
        concepts = [Concept(c, kind=self.protocol.kind) for c in self.erased]
        edit: Edit = method.erase(self.model, concepts, Run(folder, progress=progress))
        edit.meta["cost"]["peak_memory_mb"] = peak_memory(self.model.device)
        edit.save(folder / "edit.safetensors")
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
            "efface": __version__,
            "torch": torch.__version__,
            "machine": looked[0].machine,
            "updates": self.cell.updates,
            "scores": {k: s.to_json() for k, s in scores.items()},
            "hits": {c: seen.of([c]).packed() for c in dict.fromkeys(seen.concepts)},
            "evaluation_seconds": round(sum(part.seconds for part in looked), 1),
        }
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(row) + "\n"
        write(out / self.cell.file, lambda p: p.write_text(text, encoding="utf8"))
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
