"""How often must each word be drawn before a search is worth nothing? Draws per word, by search."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from efface.concepts import Concept
from efface.errors import UserError
from efface.evaluation.metrics import worst_tenth
from efface.evaluation.protocols import load as load_protocol
from efface.methods.ap import AP
from efface.models import DiffusionModel
from efface.names import normal
from efface.scores import Score, within
from efface.seeds import generator
from efface.settings import read_json
from efface.storage import write_text
from efface.studies import covered, grid
from efface.studies.lab import Lab
from efface.training import Bank, provenance
from efface.training.anchors import AUTO, steered
from efface.training.search import Exact, Forecast, Gumbel, Online, Random, Search
from efface.vocabularies import INLINE
from efface.vocabularies import load as load_vocabulary
from efface.vocabulary import Vocabulary, distances

RANDOM = "random"
"""What a search has to beat."""
SEARCHES: Mapping[str, Search] = {
    RANDOM: Random(),
    "nearest words": Random(),
    "forecast": Forecast(),
    "online": Online(),
    "Gumbel": Gumbel(tau=0.5, lr=0.3, mixture=8),
    "exact": Exact(refresh=30, probes=2, top=0),
}
"""What is compared; the nearest words are random ones of the nearest tenth."""
BASE = AP(updates=100, batch=2, reuse=0, latents=Bank(trajectories=2))
MOST = 48
"""Preserved words in an update, at most."""
STYLES = tuple(load_protocol("emoji-styles").preserved)
"""With which each name makes a prompt more."""
PAIRS = 1900
"""Prompts of two names each."""
DRAWS = 200
"""Of the bootstrap over held-out words and seeds."""
QUICK: Mapping[str, Any] = {
    "kinds": ("names", "pairs"),
    "draws": (0.1, 0.3, 1.0, 3.0),
    "seeds": 1,
    "gone": 2,
    "some": 75,
}
"""About an hour on one core."""


@dataclass(frozen=True)
class Point:
    """One training of the study."""

    vocabulary: str
    search: str
    draws: float
    """How often each word is drawn, on average."""
    seed: int
    pool: tuple[str, ...]
    """What may be preserved."""
    rows: int
    """Preserved words in an update."""


def vocabularies(
    model: DiffusionModel, names: Sequence[str], hidden: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """What may be preserved, by kind.

    Args:
        names: those that a method may see.
        hidden: those that it may not: erased or held out.
    """
    away = {normal(h) for h in hidden}
    tags = [t for t in load_vocabulary("tags", model).words if normal(t) not in away]
    g = generator(0, "coverage", "pairs")
    most, pairs = min(PAIRS, len(names) * (len(names) - 1)), dict[str, None]()
    while len(pairs) < most:
        i, j = torch.randint(len(names), (2,), generator=g).tolist()
        if i != j:
            pairs[f"a {names[i]} and a {names[j]}"] = None
    return {
        "names": tuple(names),
        "tags": tuple(dict.fromkeys(tags)),
        "names in styles": tuple(f"{w}, {s}" for s in STYLES for w in names),
        "pairs": tuple(pairs),
    }


def sized(words: Sequence[str], draws: float, updates: int) -> tuple[tuple[str, ...], int]:
    """So many words, evenly chosen, and so many in an update, that each is drawn ``draws`` times.

    Nearly all words, in whole rows; none where that is no such vocabulary any more.
    """
    n = min(int(draws * len(words) / updates + 1e-9), MOST)
    k = min(round(updates * n / draws), len(words))
    if n < 1 or 2 * k < len(words):
        return (), 0
    return tuple(words[round(i * (len(words) - 1) / max(k - 1, 1))] for i in range(k)), n


def run(
    lab: Lab,
    kinds: Sequence[str] = ("names", "tags", "names in styles", "pairs"),
    draws: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
    seeds: int = 3,
    erased: Sequence[str] = grid.ERASED,
    gone: int = 8,
    kept: int = 2,
    some: int = 0,
) -> dict[str, Any]:
    """Erase by AP with every search, and judge names that no vocabulary holds.

    The updates are the same everywhere; a word is drawn more often where more are preserved in an
    update. What ended is not done again.

    Args:
        kinds: vocabularies.
        gone: pictures of each erased name.
        kept: pictures of each held-out name, two or more.
        some: so many of the held-out names, evenly chosen; 0: all.
    """
    held = [n for n in held_out(lab) if n not in erased]
    names = [n for n in lab.names if n not in {*held, *erased}]
    judged = held[:: max(len(held) // some, 1)] if some else held
    concepts = anchored(lab, erased, names)
    words = vocabularies(lab.model, names, (*held, *erased))
    points = []
    for kind in kinds:
        clean = Vocabulary(words[kind], kind).without(concepts, lab.model.tokenizer)
        for d in draws:
            pool, rows = sized(clean.words, d, BASE.updates)
            points += [
                Point(kind, search, d, seed, pool, rows)
                for seed in range(seeds if rows else 0)
                for search in SEARCHES
            ]
    if not points:
        raise UserError(
            "no vocabulary is so large, and none so small, that its words are drawn so often."
        )
    shown = gone * len(erased) + kept * len(judged)
    likely = [evaluations(p, shown * 2 * (lab.protocol.steps or lab.model.steps)) for p in points]
    tell(lab, f"{len(points)} trainings, about {sum(likely):,} evaluations in all")
    found = []
    for point, about in zip(points, likely, strict=True):
        told = (
            f"{point.vocabulary}, {point.search}, {point.draws:g} draws a word, seed {point.seed}"
        )
        tell(lab, f"{told}: about {about:,} evaluations")
        found.append(trained(lab, point, concepts, judged, gone, kept))
    return {
        **lab.about(),
        "erased": {c.name: c.anchor for c in concepts},
        "judged": len(judged),
        "updates": BASE.updates,
        "pictures": kept,
        "rows": found,
        "levels": [*summed(found, kept, paired=False)],
        "differences": [*summed(found, kept, paired=True)],
    }


def tell(lab: Lab, what: str) -> None:
    """A line on stderr."""
    if lab.progress:
        tqdm.write(f"efface: coverage: {what}", file=sys.stderr)


def held_out(lab: Lab) -> list[str]:
    """Names that no vocabulary may hold: the protocol's, or every second one."""
    known = set(lab.names)
    for protocol in (lab.protocol, load_protocol("emoji-objects-2")):
        found = [n for n in protocol.held_out if n in known]
        if found:
            return found
    return list(lab.names[1::2])


def anchored(lab: Lab, erased: Sequence[str], names: Sequence[str]) -> list[Concept]:
    """What is erased with what it becomes: searched for once, the same in every training."""
    source = f"{INLINE} {', '.join(names)}"
    about = {"base": lab.model.base, "erased": list(erased), "source": source}
    path = lab.place("coverage-anchors", about) / "anchors.json"
    if not path.exists():
        found = steered(lab.model, [Concept(e) for e in erased], AUTO, source, 0)
        write_text(path, json.dumps({c.name: c.anchor for c in found}) + "\n")
    return [Concept(e, anchor) for e, anchor in read_json(path, "record").items()]


def method_of(point: Point) -> AP:
    """AP as a point has it."""
    search = SEARCHES[point.search]
    return replace(BASE, search=search, preserve_batch=point.rows, seed=point.seed)


def evaluations(point: Point, pictures: int) -> int:
    """About how many evaluations a point takes, forward and backward.

    Args:
        pictures: of those that are drawn.
    """
    m, search = method_of(point), SEARCHES[point.search]
    update = 2 * (m.batch + point.rows) + point.rows
    more = 0
    if isinstance(search, Exact):
        more = len(point.pool) * (-(-m.updates // search.refresh) + search.probes)
    if isinstance(search, Gumbel):
        more = 4 * m.batch * (search.passes - 1) * m.updates
    return m.updates * update + more + pictures


def trained(
    lab: Lab,
    point: Point,
    concepts: Sequence[Concept],
    judged: Sequence[str],
    gone: int,
    kept: int,
) -> dict[str, Any]:
    """What came of a point, made once."""
    method = method_of(point)
    pools = [point.pool] * len(concepts)
    if point.search == "nearest words":
        k = min(max(len(point.pool) // 10, 8), len(point.pool))
        far = distances(lab.model, [c.name for c in concepts], point.pool)
        pools = [tuple(point.pool[i] for i in f.argsort(stable=True)[:k]) for f in far]
    own = [replace(c, pool=pool) for c, pool in zip(concepts, pools, strict=True)]
    about = {
        "run": provenance(method, lab.model, own),
        "judge": f"{lab.judge.version} {lab.judge.sha256}",
        "judged": list(judged),
        "pictures": [gone, kept],
    }
    path = lab.place("coverage", about) / "cell.json"
    if not path.exists():
        edit = lab.edit(method, own)
        row = {
            "vocabulary": point.vocabulary,
            "search": point.search,
            "draws": point.draws,
            "seed": point.seed,
            "words": len(point.pool),
            "preserved": point.rows,
            "cost": edit.meta["cost"],
            "gone": lab.seen(edit, [c.name for c in concepts], gone).packed(),
            "kept": lab.seen(edit, judged, kept).packed()[0],
        }
        write_text(path, json.dumps(row) + "\n")
    found: dict[str, Any] = read_json(path, "result")
    return found


def summed(rows: Sequence[Mapping[str, Any]], kept: int, paired: bool) -> Iterator[dict[str, Any]]:
    """Worst tenth and PSR-1 of each search and number of draws, over vocabularies and seeds.

    Args:
        kept: pictures of a name.
        paired: less those of random words in the same places.
    """
    at = {(r["search"], r["draws"], r["vocabulary"], r["seed"]): r for r in rows}
    for search in SEARCHES:
        for d in sorted({r["draws"] for r in rows}):
            here = [k for k in at if k[:2] == (search, d)]
            here = [k for k in here if not paired or (RANDOM, *k[1:]) in at]
            if not here or (paired and search == RANDOM):
                continue
            mine = table([at[k] for k in here], kept)
            other = table([at[(RANDOM, *k[1:])] for k in here], kept) if paired else None
            cost = [sum(at[k]["cost"].values()) for k in here]
            yield {
                "search": search,
                "draws": d,
                "cells": len(here),
                "evaluations": round(sum(cost) / len(cost)),
                "worst tenth": resampled(worst_tenth, mine, other).to_json(),
                "PSR-1": resampled(lambda x: float(x.mean()), mine, other).to_json(),
            }


def table(rows: Sequence[Mapping[str, Any]], kept: int) -> Tensor:
    """Hits in percent, (trainings, names, pictures)."""
    hits = torch.tensor([r["kept"] for r in rows], dtype=torch.float64)
    return 100 * hits.view(len(rows), -1, kept)


def resampled(ask: Callable[[Tensor], float], mine: Tensor, other: Tensor | None) -> Score:
    """The mean of a score over trainings, less that of ``other``; draws names and trainings."""

    def of(names: Tensor, trainings: Tensor) -> float:
        far = [
            ask(mine[i][names]) - (ask(other[i][names]) if other is not None else 0)
            for i in trainings.tolist()
        ]
        return sum(far) / len(far)

    cells, n, _ = mine.shape
    g = torch.Generator().manual_seed(0)
    value = of(torch.arange(n), torch.arange(cells))
    drawn = sorted(
        of(torch.randint(n, (n,), generator=g), torch.randint(cells, (cells,), generator=g))
        for _ in range(DRAWS)
    )
    low, high = drawn[round(0.025 * (DRAWS - 1))], drawn[round(0.975 * (DRAWS - 1))]
    return within(value, low, high, n, "concepts", "new concepts and trainings")


figure, words = covered.figure, covered.words
