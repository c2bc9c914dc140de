"""Methods under one protocol: a cell is a method, a split and a seed, and one JSON file."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import pick
from efface.evaluation import answers
from efface.evaluation.evaluate import drawn, judge_for, of_ones_own, pictures, sampler_of
from efface.evaluation.judges import Judge
from efface.evaluation.judges import named as judge_named
from efface.evaluation.metrics import Seen, perceived, psr, see, table, worst_tenth_score
from efface.evaluation.metrics.perceived import Sees
from efface.evaluation.metrics.worst import by_concept
from efface.evaluation.permitted import shown, usable
from efface.evaluation.protocols import Protocol
from efface.evaluation.protocols import load as load_protocol
from efface.evaluation.standing import standing
from efface.methods import METHODS
from efface.models import DiffusionModel, load
from efface.names import among, apart
from efface.scores import Score, grouped_mean
from efface.settings import read_json, to_json
from efface.storage import VERSION, write_text
from efface.training import EDIT, Entry, Method, Run, Tuning
from efface.training.anchors import AUTO

SPENT = "spent.json"
"""What an edit took to make: no part of its file."""
UNEDITED = "unedited"
"""What every method is compared to."""


STEERED, SEVERAL, PROMPTS = "@auto", "@prompts", 16
"""What the name of a line ends in that is another one with anchors that are searched for, and with
so many prompts for each erased name (arXiv:2603.18767)."""


def lineup() -> dict[str, Entry | None]:
    """What is compared, by its name in tables: the unedited model, then what each method enters.

    All fine-tuned ones get the same number of weight updates, or their entry says how many times
    as many. What goes to the null prompt by itself can be had with AP's searched anchors as well,
    since they are no property of AP: ``esd@auto``. And everything in several prompts:
    ``esd@prompts``, ``esd@auto@prompts``.
    """
    found: dict[str, Entry | None] = {UNEDITED: None}
    for kind in METHODS.values():
        for name, entry in kind.lineup().items():
            found[name] = entry
            if not entry.method.anchor and not kind.seeks:
                method = replace(entry.method, anchor=AUTO)
                said = f"{entry.label}, anchors searched for"
                found[name + STEERED] = entry._replace(label=said, method=method)
    for name, one in list(found.items()):
        if one is not None and getattr(one.method, "diversify", None) == 0:
            method = replace(one.method, diversify=PROMPTS)  # type: ignore[call-arg]
            said = f"{one.label}, in {PROMPTS} prompts"
            found[name + SEVERAL] = one._replace(label=said, method=method)
    return found


def plain() -> tuple[str, ...]:
    """The lines as their methods enter them."""
    return tuple(n for n in lineup() if not n.endswith((STEERED, SEVERAL)))


def entry(name: str) -> Entry | None:
    """A line of the benchmark; None: the unedited model.

    Raises:
        UserError: there is none of that name.
    """
    found = lineup()
    plainly = {n: found[n] for n in plain()}
    return found[name] if name in found else pick(plainly, name, "method of the benchmark")


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
    dtype: str = "fp32"
    device: str | None = None
    size: int = 0

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{Path(self.protocol).stem}-{self.split}-{self.method}-{self.seed}.json"

    @property
    def made(self) -> int:
        """Updates of its method's weights, of all concepts together."""
        one = entry(self.method)
        return round(self.updates * one.times) if one else self.updates

    def config(self, known: Sequence[str] | None = None) -> Method | None:
        """The method with its settings; None: unedited.

        Args:
            known: as of :func:`~efface.evaluation.permitted.usable`.
        """
        protocol = load_protocol(self.protocol)
        n = len(protocol.erased(self.split))
        one = entry(self.method)
        method = shown(one.method, protocol, self.split, known) if one else None
        if not isinstance(method, Tuning):
            return method
        updates = max(self.made // n if method.apart else self.made, 1)
        return replace(method, updates=updates, seed=self.seed)

    def __str__(self) -> str:
        return self.file

    def there(self, out: Path, opened: Opened | None = None) -> bool:
        """Whether its result is there.

        Args:
            opened: a cell of the same protocol and model, opened so; None: this one is.
        """
        opened = opened or Opened(self)
        return finished(self, out, opened.identity_of(self)) is not None

    @property
    def edited(self) -> Cell:
        """The cell whose edit is looked at: this one."""
        return self

    def check(self, opened: Opened, out: Path) -> None:
        """Refuse a result of other settings in its file.

        Raises:
            UserError: says which.
        """
        finished(self, out, opened.identity_of(self))

    def run(self, out: Path, work: Path) -> dict[str, Any]:
        """As :func:`run_cell`."""
        return run_cell(self, out, work)

    def concepts(self, model: DiffusionModel) -> list[Concept]:
        """What is erased."""
        protocol = load_protocol(self.protocol)
        return [Concept(c, kind=protocol.kind) for c in protocol.erased(self.split)]

    def identity(
        self, model: DiffusionModel, judge: str, known: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """All that decides its result but the code.

        Args:
            judge: version and hash.
            known: as of :func:`~efface.evaluation.permitted.usable`.
        """
        method, protocol = self.config(known), load_protocol(self.protocol)
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
            **of_ones_own(model),
            **({"dtype": self.dtype} if self.dtype != "fp32" else {}),
            **({"size": self.size} if self.size else {}),
        }


def finished(cell: Cell, out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a cell that is there already; None where it is missing.

    Raises:
        UserError: one of other settings is there.
    """
    return standing(answers.Cell, out / cell.file, identity)


class Opened:
    """A cell with its model, protocol and judge: what it does, step by step."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.model = load(cell.model, cell.dtype, cell.device, cell.size)
        self.protocol = load_protocol(cell.protocol)
        self.judge = judge_for(self.model, self.protocol)
        witness = self.protocol.witness
        self.witness = judge_named(witness) if witness else None
        self.identity = self.identity_of(cell)
        self.erased = self.protocol.erased(cell.split)

    def identity_of(self, cell: Cell) -> dict[str, Any]:
        """All that decides the result of a cell of this model and protocol but the code."""
        judges = [f"{j.version} {j.sha256}".strip() for j in self.judges]
        return cell.identity(self.model, " and ".join(judges), self.judge.concept_names)

    def folder(self, work: Path) -> Path:
        """Its own part of ``work``; a cell of other settings has another one."""
        own = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]
        return work / f"{self.cell.file.removesuffix('.json')}-{own}"

    def erase(self, work: Path, progress: bool = True) -> Edit | None:
        """Its edit, made once, with the peak memory of its process; None: unedited."""
        known = self.judge.concept_names
        method, folder = self.cell.config(known), self.folder(work)
        if method is None:
            return None
        if (folder / EDIT).exists():
            if not (folder / SPENT).exists():  # killed once it was saved: what it took is not known
                with Run(folder).alone():
                    Run(folder).forget()
                    write_text(folder / SPENT, "{}\n")
            spent = read_json(folder / SPENT, "record")
            return replace(Edit.load(folder), spent=spent)
        folder.mkdir(parents=True, exist_ok=True)
        concepts = self.cell.concepts(self.model)
        words = usable(self.protocol, self.cell.split, known)
        edit = method.erase(self.model, concepts, Run(folder, progress=progress, words=words))
        spent = {**edit.spent, "peak_memory_mb": peak_memory(self.model.device)}
        write_text(folder / SPENT, json.dumps(spent) + "\n")
        return replace(edit, spent=spent)

    def look(self, edit: Edit | None, work: Path, progress: bool = True) -> Looked:
        """Make and judge its pictures."""
        others = self.protocol.others(self.erased, self.judge.concept_names)
        wanted = [
            w
            for kind, names in (("erased", self.erased), ("preserved", others))
            for w in pictures(self.protocol, names, self.protocol.seeds(kind, self.cell.seed))
        ]
        where = None if edit is None else self.folder(work) / "samples"
        began, p = perf_counter(), self.protocol
        samples = drawn(self.model, edit, where, wanted, p, progress=progress)
        looks = {j.version: see(samples, j, p.head, p.labels) for j in self.judges}
        moved = None
        if edit is not None and "perceived" in p.metrics:
            before = drawn(self.model, None, None, wanted, p, progress=progress)
            moved = perceived(samples.images(), before.images(), cast(Sees, self.judge))
        return Looked(looks, moved, perf_counter() - began)

    @property
    def judges(self) -> list[Judge]:
        """The protocol's, and its second one."""
        return [j for j in (self.judge, self.witness) if j is not None]

    def conclude(self, out: Path, edit: Edit | None, looked: Looked) -> dict[str, Any]:
        """Scores of all its pictures, kept as its JSON."""
        seen, moved = looked.seen[self.judge.version], looked.moved
        scores = scores_of(seen, moved, self.erased, self.protocol)
        row = dict(self.identity)
        if edit is not None:
            row |= {"cost": {**edit.meta["cost"], **edit.spent}, "edit": edit.digest}
            anchors = {c["name"]: c["anchor"] for c in edit.meta["concepts"] if c["anchor"]}
            row |= {"anchors": anchors} if anchors else {}
        row |= {
            "efface": VERSION,
            "torch": torch.__version__,
            "machine": machine_of(self.model.device),
            "updates": self.cell.made,
            "scores": {k: s.to_json() for k, s in scores.items()},
            "hits": {c: seen.of([c]).packed() for c in dict.fromkeys(seen.concepts)},
            **self.more(looked.seen, moved),
            "evaluation_seconds": round(looked.seconds, 1),
        }
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(row) + "\n"
        write_text(out / self.cell.file, text)
        return row

    def more(self, whole: Mapping[str, Seen], moved: Tensor | None) -> dict[str, Any]:
        """What the second judge saw, and how far each picture moved, by concept."""
        seen, found = whole[self.judge.version], dict[str, Any]()
        names = list(dict.fromkeys(seen.concepts))
        if self.witness is not None:
            other = whole[self.witness.version]
            found["witness"] = {c: other.of([c]).packed() for c in names}
        if moved is not None:
            at = torch.tensor([names.index(c) for c in seen.concepts])
            found["moved"] = {
                c: [round(float(x), 3) for x in moved[at == i]] for i, c in enumerate(names)
            }
        return found


def scores_of(
    seen: Seen, moved: Tensor | None, erased: Sequence[str], protocol: Protocol
) -> dict[str, Score]:
    """A cell's scores; where some names are held out, PSR of both halves and the worst tenth."""
    scores = table(seen, erased, protocol.near(erased))
    halves = {"": apart(dict.fromkeys(seen.concepts), erased)}
    if protocol.held_out:
        halves = {
            " shown": apart(halves[""], protocol.held_out),
            " held out": among(halves[""], protocol.held_out),
        }
    for suffix, names in halves.items():
        kept = seen.of(names)
        if protocol.held_out:
            scores[f"PSR-1{suffix}"] = psr(seen, names, 1)
        if "worst-tenth" in protocol.metrics:
            values = 100 * by_concept(kept.top1, kept.concepts)
            scores[f"worst tenth{suffix}"] = worst_tenth_score(values)
        if moved is not None:
            mine = torch.tensor([c in set(names) for c in seen.concepts])
            far = by_concept(moved[mine], kept.concepts)
            scores[f"drift{suffix}"] = grouped_mean(
                far.flatten(),
                torch.arange(len(far)).repeat_interleave(far.shape[1]),
                "concepts",
            )
            scores[f"drift of the worst tenth{suffix}"] = -worst_tenth_score(-far)
    return scores


def machine_of(device: torch.device) -> str:
    """What computes, in words."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {kind}"


class Looked(NamedTuple):
    """What the judges saw in a cell's pictures."""

    seen: Mapping[str, Seen]
    """By the judge's version."""
    moved: Tensor | None
    """How far each picture moved (:func:`~efface.evaluation.metrics.perceived.perceived`)."""
    seconds: float


def run_cell(cell: Cell, out: Path, work: Path, progress: bool = True) -> dict[str, Any]:
    """Erase, make pictures, judge them, and keep one JSON; what is there is not done again.

    Args:
        out: folder of the results.
        work: folder of edits and pictures.

    Raises:
        UserError: a result of other settings is in its file, or whatever its method cannot.
    """
    opened = Opened(cell)
    known = finished(cell, out, opened.identity)
    if known is not None:
        return known
    edit = opened.erase(work, progress)
    return opened.conclude(out, edit, opened.look(edit, work, progress))


def peak_memory(device: torch.device) -> int | None:
    """The largest memory so far, in MB: of the GPU, or of this process; None where unknown.

    Linux' ``ru_maxrss`` is not asked: a new program begins there with the peak of the process that
    started it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) >> 10
    if sys.platform != "darwin":
        return None
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss >> 20
