"""Settings of AP and twofold, tried on split 4 in the open world of ``emoji-objects-2``.

Split 4 is never reported. ``bench/trials/*.json`` keeps every trial, as a cell of the benchmark;
twofold's are attacked as well. ``--table`` writes them into ``docs/benchmark.md``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import anchors
import torch
from size_tables import put
from torch import Tensor

from efface.concepts import Concept
from efface.evaluation.attack_bench import AttackCell
from efface.evaluation.attacks.completion import Completion
from efface.evaluation.attacks.inversion import Inversion
from efface.evaluation.attacks.relearn import Relearn
from efface.evaluation.bench import Cell
from efface.evaluation.cells import run_all
from efface.evaluation.judges import named
from efface.evaluation.permitted import shown
from efface.evaluation.protocols import load as load_protocol
from efface.evaluation.standing import completed
from efface.evaluation.tasks import Crew
from efface.methods.ap import AP
from efface.methods.twofold import Twofold
from efface.models import Conditioning, DiffusionModel, stack
from efface.seeds import generator
from efface.training import Bank, Job, Method
from efface.training.anchors import candidates, compare, half_made, searched
from efface.training.batches import encode, odds
from efface.training.closed_form import text_vectors
from efface.training.latents import Banked
from efface.training.minimax import seen_by
from efface.training.recall import Recall
from efface.training.search import Random
from efface.vocabulary import Vocabulary

HERE = Path(__file__).parent
PROTOCOL = HERE / "trials-protocol.json"
"""A small form of ``emoji-objects-2``: fewer pictures."""
OUT, WORK = HERE / "trials", HERE.parent / "runs" / "trials"


OWN = Bank(trajectories=2)
"""The concept's own trajectories, and no others."""


@dataclass(frozen=True, kw_only=True)
class Mixed(Bank):
    """A bank whose trajectories lead to several anchors: the concept dissolves into them."""

    kind: ClassVar[str] = "mixed"
    several: int = 2
    """Anchors of each concept: the one that is searched for, and the next ones."""

    def open(self, job: Job) -> Banked:
        """As many trajectories of each anchor."""
        share = Bank(
            trajectories=self.trajectories // self.several, anchored=self.anchored // self.several
        )
        parts = [
            Banked(job.model, concepts, share, job.generator(f"bank {i}"), job.run.progress)
            for i, concepts in enumerate(ranked(job, self.several))
        ]
        whole = parts[0]
        for field in ("z", "e_anchor", "e_concept", "row", "push"):
            setattr(whole, field, torch.cat([getattr(part, field) for part in parts]))
        whole.odds = odds(whole.encoded.of[whole.row])
        return whole


@dataclass(frozen=True, kw_only=True)
class Blend(Mixed):
    """A bank that leads to the mean of the text states of several anchors (as arXiv:2501.18950)."""

    kind: ClassVar[str] = "blend"

    def open(self, job: Job) -> Banked:
        """Trajectories of the mean."""
        rows = [encode(job.model, concepts).anchor for concepts in ranked(job, self.several)]
        whole = stack(rows).each(lambda x: x.view(len(rows), -1, *x.shape[1:]).mean(0))
        return Blended(job, self, whole)


class Blended(Banked):
    """Latents on the way to anchors that are no word."""

    def __init__(self, job: Job, config: Bank, anchor: Conditioning) -> None:
        self.anchor = anchor
        super().__init__(job.model, job.concepts, config, job.generator("bank"), job.run.progress)

    def _fill(self, rows: Tensor, g: torch.Generator) -> None:
        self.encoded = self.encoded._replace(anchor=self.anchor)
        super()._fill(rows, g)


def ranked(job: Job, several: int) -> list[tuple[Concept, ...]]:
    """The concepts with their anchors, with those that would be next, and so on."""
    method: Any = job.method
    found = [job.concepts]
    words = candidates(job.model, job.concepts[0], job.concepts, method.vocabulary)
    for _ in range(several - 1):
        taken = [{row[i].anchor for row in found} for i in range(len(job.concepts))]
        found.append(
            tuple(
                searched(job.model, c, less(words, some), method.seed)
                for c, some in zip(job.concepts, taken, strict=True)
            )
        )
    job.about["mixed"] = [[c.anchor for c in row] for row in found]
    return found


def less(words: Vocabulary, taken: Collection[str]) -> Vocabulary:
    """A vocabulary without some words."""
    return replace(words, words=tuple(w for w in words.words if w not in taken), seen=None)


def ap(eta: float = 1.0, **options: Any) -> AP:
    """AP with some of its settings changed; the trial brings the anchors."""
    return replace(AP.presets()["away"], eta=eta, **options)


def lean(**options: Any) -> AP:
    """AP at about the cost of ESD: what the frozen model predicts is kept, the search is free."""
    return replace(AP(anchor=""), **{"eta": 1.0, "latents": OWN, **options})


def ours(**options: Any) -> AP:
    """AP as it ships, which searches for its anchors itself, with some of its settings changed."""
    return replace(AP(), **{"latents": OWN, **options})


def twofold(against: float = 1.0, bank: Bank = OWN, **options: Any) -> Twofold:
    """Twofold with some settings changed: its own, or its recall's."""
    own = {k: options.pop(k) for k in ("preserve", "preserve_batch", "average") if k in options}
    recall = Recall(**{"eta": 1.5, **options})
    return Twofold(against=against, latents=bank, recall=recall, **own)


SEARCHED, FOUR, NEAREST = "searched for", "searched for on four pictures", "nearest"
"""The orders of a method that searches for its anchors itself: as it ships, on four half-made
pictures instead of two, and when all of the nearest would do."""
WEAK = 0.25
"""Share of the candidates that "clear" leaves out: those that change the prediction least."""
TRIALS: Mapping[str, tuple[Method, str, int]] = {
    "null-eta4": (ap(4), "", 0),
    "cosine-0": (ap(), "cosine", 0),
    "cosine-3": (ap(), "cosine", 3),
    "far-0": (ap(), "far", 0),
    "far-3": (ap(), "far", 3),
    "far-10": (ap(), "far", 10),
    "clear-3": (ap(), "clear", 3),
    "cosine-0-random": (ap(search=Random()), "cosine", 0),
    "clear-0": (ap(), "clear", 0),
    "clear-0-200": (ap(updates=200, decay=1.0, lr=6e-4), "clear", 0),
    "lean-4-4": (lean(batch=4, preserve_batch=4), "far", 0),
    "lean-3-5": (lean(batch=3, preserve_batch=5), "far", 0),
    "lean-2-6": (lean(batch=2, preserve_batch=6), "far", 0),
    "lean-3-5-random": (lean(batch=3, preserve_batch=5, search=Random()), "far", 0),
    "lean-3-5-eta1.5": (lean(batch=3, preserve_batch=5, eta=1.5), "far", 0),
    "lean-3-5-eta2": (lean(batch=3, preserve_batch=5, eta=2.0), "far", 0),
    "lean-2-6-eta1.5": (lean(batch=2, preserve_batch=6, eta=1.5), "far", 0),
    "lean-2-6-eta2": (lean(batch=2, preserve_batch=6, eta=2.0), "far", 0),
    "lean-2-6-eta2-random": (lean(batch=2, preserve_batch=6, eta=2.0, search=Random()), "far", 0),
    "lean-3-5-heavy": (lean(batch=3, preserve_batch=5, preserve=2.0), "far", 0),
    **{f"falling-eta{e:g}": (ours(eta=e, decay=0.5), NEAREST, 0) for e in (2.0, 3.0)},
    "ours": (ours(), NEAREST, 0),
    **{
        f"mean-{share:g}-eta{e:g}": (ours(eta=e, average=share), NEAREST, 0)
        for share, e in ((0.5, 1.5), (0.5, 2.0))
    },
    **{
        f"anchored-{own}-{other}-eta{e:g}": (
            ours(eta=e, latents=Bank(trajectories=own, anchored=other)),
            NEAREST,
            0,
        )
        for own, other, e in ((1, 1, 1.5), (1, 1, 2.0), (2, 2, 1.5), (2, 2, 2.0))
    },
    "cosine-3-200": (ap(updates=200, decay=1.0, lr=6e-4), "cosine", 3),
    **{
        f"least-{rank}": (lean(batch=2, preserve_batch=6, eta=1.5), "least", rank)
        for rank in (0, 3)
    },
    **{
        f"far{rank}-eta{e:g}": (lean(batch=2, preserve_batch=6, eta=e), "far", rank)
        for rank, e in ((3, 1.0), (3, 1.5), (10, 1.0), (10, 1.5))
    },
    "likelier": (AP(), SEARCHED, 0),
    "four": (AP(), FOUR, 0),
    **{
        f"mixed-{n}": (
            AP(latents=Mixed(trajectories=2 * k, anchored=2 * k, several=n)),
            SEARCHED,
            0,
        )
        for n, k in ((2, 1), (4, 2))
    },
    "blend-4": (AP(latents=Blend(trajectories=2, anchored=2, several=4)), SEARCHED, 0),
    "twofold": (twofold(), NEAREST, 0),
    "twofold-against0.3": (twofold(0.3), NEAREST, 0),
    "twofold-against0.1": (twofold(0.1), NEAREST, 0),
    "twofold-onto": (twofold(eta=0.0), NEAREST, 0),
    "twofold-onto-0.3": (twofold(0.3, eta=0.0), NEAREST, 0),
    "twofold-onto-0.1": (twofold(0.1, eta=0.0), NEAREST, 0),
    "twofold-onto-0.6": (twofold(0.6, eta=0.0), NEAREST, 0),
    "twofold-onto-preserve2": (twofold(eta=0.0, preserve=2.0), NEAREST, 0),
    "twofold-preserve3": (twofold(preserve=3.0), NEAREST, 0),
    "twofold-mean": (twofold(average=0.5), NEAREST, 0),
    "twofold-onto-mean": (twofold(eta=0.0, average=0.5), NEAREST, 0),
    "twofold-anchored": (
        twofold(bank=Bank(trajectories=1, anchored=1)),
        NEAREST,
        0,
    ),
    "twofold-tokens": (twofold(states=False, latents=False), NEAREST, 0),
}
"""A method, the order in which candidates are anchors, and which of them is taken."""


@dataclass(frozen=True)
class Trial(Cell):
    """A trial as a cell: its ``method`` is a key of :data:`TRIALS`."""

    @property
    def made(self) -> int:
        """Updates that its record has, as those of the methods' lines."""
        return self.updates

    def config(self, known: Sequence[str] | None = None) -> Method:
        """Its settings, with the vocabulary that the protocol lets it see."""
        found = shown(TRIALS[self.method][0], load_protocol(self.protocol), self.split, known)
        return replace(found, seed=self.seed)  # type: ignore[type-var]

    def concepts(self, model: DiffusionModel) -> list[Concept]:
        """What is erased, with its anchors."""
        plain, (_, order, rank) = super().concepts(model), TRIALS[self.method]
        if order == SEARCHED:
            return plain
        if order in (FOUR, NEAREST):
            source = self.config().vocabulary  # type: ignore[attr-defined]
            words = candidates(model, plain[0], plain, source)
            how = {"n": 4} if order == FOUR else {"least": 0}
            return [searched(model, c, words, self.seed, **how) for c in plain]
        return [replace(c, anchor=anchor(model, c, plain, order, rank)) for c in plain]


def anchor(
    model: DiffusionModel, concept: Concept, erased: list[Concept], order: str, rank: int
) -> str:
    """The candidate of a rank in an order."""
    if not order:
        return ""
    protocol = load_protocol("emoji-objects-2")
    names = [c.name for c in erased]
    words = protocol.usable(names, named(protocol.judge).concept_names)
    if order == "least":
        own = model.parameters()
        form = seen_by([own[n] for n in model.text_maps()])
        way = text_vectors(model, words) - text_vectors(model, [concept.name])
        return words[int(((way @ form) * way).sum(1).argsort()[rank])]
    z = half_made(
        model, model.embed([concept.name]).repeat(4), generator(0, "anchor", concept.name)
    )
    found = compare(model, concept.name, words, z)
    weak = found.strength < found.strength.quantile(WEAK)
    clear = found.far.masked_fill(weak, math.inf)
    by = {"cosine": -found.cosine, "far": found.far, "clear": clear}[order]
    return words[int(by.argsort()[rank])]


ATTACKS = (Inversion(), Completion(begun=(7, 10)), Relearn(points=(0, 50)))
"""What twofold's trials are attacked by."""


def attack(trial: Trial) -> AttackCell:
    """The attacks on a trial's edit."""
    return AttackCell(trial, ATTACKS, "attacked")


def chosen(told: Sequence[str]) -> list[Trial]:
    """The trials that are asked for, ``NAME`` or ``NAME@SEED``; none: all with the first seed.

    Raises:
        SystemExit: no such trial, or no seed.
    """
    found = []
    for name, mark, seed in (x.partition("@") for x in told or TRIALS):
        if name not in TRIALS:
            sys.exit(f"{name!r}: no such trial; there are {', '.join(TRIALS)}.")
        if mark and not (seed.isascii() and seed.isdigit()):
            sys.exit(f"{name}@{seed}: a seed is a whole number, 0 or more.")
        found.append(Trial(str(PROTOCOL), "4", name, int(seed or 0)))
    return found


DOCS = HERE.parent / "docs" / "benchmark.md"
SHOWN = {
    "ESR-1": "ESR-1",
    "ESR-5": "ESR-5",
    "PSR-1 shown": "PSR-1 shown",
    "PSR-1 held out": "PSR-1 held out",
    "worst tenth held out": "worst tenth",
    "drift held out": "drift",
    "drift of the worst tenth held out": "drift of the worst tenth",
}
BACK = {
    "inversion": ("inversion", ""),
    "completion at 10": ("completion", "10"),
    "relearning, 50": ("relearn", "50"),
}
"""Columns of the attacks on twofold's trials: an attack, and where on its curve."""


def results(name: str) -> list[dict[str, Any]]:
    """A trial's cells, seed by seed."""
    return [json.loads(p.read_text()) for p in sorted(OUT.glob(f"{PROTOCOL.stem}-4-{name}-?.json"))]


def anchors_table() -> str:
    """AP's trials, in Markdown, means over their seeds."""
    lines = ["| trial | anchors | seeds | " + " | ".join(SHOWN.values()) + " | evaluations |"]
    lines.append("|" + " --- |" * (len(SHOWN) + 4))
    for name, (method, order, rank) in TRIALS.items():
        if isinstance(method, AP) and (rows := results(name)):
            own = order in (SEARCHED, FOUR, NEAREST)
            what = order if own else f"{order}, place {rank + 1}"
            assert not own or rows[0]["config"]["anchor"] == "auto"
            cells = [said(method), what if order else "null prompt", str(len(rows)), *numbers(rows)]
            cost = f"{rows[0]['cost']['forward']} F + {rows[0]['cost']['backward']} B"
            lines.append(f"| {' | '.join([*cells, cost])} |")
    return "\n".join(lines)


def recalls_table() -> str:
    """Twofold's trials, in Markdown, means over their seeds, with what brings the concepts back."""
    lines = ["| trial | seeds | " + " | ".join([*SHOWN.values(), *BACK]) + " |"]
    lines.append("|" + " --- |" * (len(SHOWN) + len(BACK) + 2))
    for name, (method, *_) in TRIALS.items():
        if isinstance(method, Twofold) and (rows := results(name)):
            back = [brought_back(name, *at) for at in BACK.values()]
            cells = [differs(method), str(len(rows)), *numbers(rows), *back]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def four_table() -> str:
    """The reported splits with anchors that were searched for on four pictures, in Markdown.

    Beside those on two; of the first seed the anchors are the same.
    """
    lines = [
        "| split | seed | ESR-5, two | ESR-5, four | worst tenth, two | worst tenth, four |",
        "|" + " --- |" * 6,
    ]
    for path in sorted(OUT.glob("four-*.json")):
        four = json.loads(path.read_text())
        _, split, seed = path.stem.split("-")
        two = json.loads((HERE / "results" / f"emoji-objects-2-{split}-ap-{seed}.json").read_text())
        mine, had = four["config"], two["config"]
        assert completed(mine, had) == completed(had, mine)
        scores = [
            f"{row['scores'][k]['value']:.1f}"
            for k in ("ESR-5", "worst tenth held out")
            for row in (two, four)
        ]
        lines.append(f"| {' | '.join([split, seed, *scores])} |")
    return "\n".join(lines)


def numbers(rows: list[dict[str, Any]]) -> list[str]:
    """What is shown of a trial's scores."""
    return [f"{mean(row['scores'][k]['value'] for row in rows):.1f}" for k in SHOWN]


def brought_back(name: str, attack: str, at: str) -> str:
    """Percent of the pictures of an attack that show the concept; – where it was not attacked."""
    rows = [json.loads(p.read_text()) for p in sorted(OUT.glob(f"attacked-4-{name}-?.json"))]
    hits = [
        h
        for row in rows
        for r in row["attacks"].get(attack, {}).get("rows", ())
        if r["role"] == "edited" and r.get("at", "") == at
        for h in r["hits"]
    ]
    return f"{100 * mean(hits):.0f}" if hits else "–"


def differs(method: Twofold) -> str:
    """In which settings a trial differs from the first."""
    first, found = twofold(), []
    for mine, other in ((method, first), (method.recall, first.recall)):
        for f in fields(mine):
            value = getattr(mine, f.name)
            if isinstance(value, Bank) and value != OWN:
                found.append("half of the trajectories the anchor's")
            elif value != getattr(other, f.name) and f.name != "recall":
                found.append(f"{f.name} {value}")
    return ", ".join(found) or "against 1, eta 1.5, all channels"


def said(method: Any) -> str:
    """What sets a trial's method apart."""
    more = [f"eta {method.eta:g}", f"{method.updates} updates"]
    if method.reuse:
        more.append(f"held words, {method.batch} erased and {method.preserve_batch} preserved rows")
    more += ["random words"] if isinstance(method.search, Random) else []
    if method.decay:
        more += [
            f"rate falling over the last {100 * method.decay:.0f} %"
            + (f" from {method.lr:g}" if method.lr else "")
        ]
    if isinstance(method.latents, Bank) and method.latents.anchored:
        own, other = method.latents.trajectories, method.latents.anchored
        more.append(f"{own} of the concept's trajectories and {other} of the anchor's")
    if isinstance(method.latents, Mixed):
        of = "the mean of " if isinstance(method.latents, Blend) else ""
        more.append(f"{of}{method.latents.several} anchors of each concept")
    if method.average:
        more.append(f"mean of the last {100 * method.average:.0f} %")
    return ", ".join(more)


def write_tables() -> None:
    """Put the tables between their marks in the docs."""
    made_of = {"apart": anchors.table, "anchors": anchors_table, "recalls": recalls_table}
    made_of["four"] = four_table
    text = DOCS.read_text(encoding="utf8")
    for mark, table in made_of.items():
        text = put(text, mark, table())
    DOCS.write_text(text, encoding="utf8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        write_tables()
        sys.exit()
    cells = chosen(sys.argv[1:])
    after = [attack(cell) for cell in cells if isinstance(TRIALS[cell.method][0], Twofold)]
    two = Crew(2)
    for failed in run_all(cells, OUT, WORK, two) + run_all(after, OUT, WORK, two):
        print(failed.cell.file, failed.why)
