"""Whether the intervals of the tables of attacks hold the truth: what ``coverage.py`` is for rates.

A population is one method's concepts under one attack, as the cells in ``bench/results`` have
them. Of a rate they are drawn from beta distributions with the spread of concepts and, within a
concept, of artefacts; of curves and ranks, one of the method's own concepts at a time.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from efface.evaluation.bench import UNEDITED
from efface.reporting.besieged import read
from efface.reporting.columns import Ask, Trial, curve, proves, rank, rate, trials

RESULTS = Path(__file__).parent / "results"
REDRAWS = 4
"""Pictures of an artefact."""
FEWEST = 4
"""Concepts that a population needs."""
LAYOUTS = {
    "one split": (("1",), 1),
    "both splits": (("1", "2"), 1),
    "three seeds, both splits": (("1", "2"), 3),
}
"""Splits and seeds of the cells of a line."""


class Question(NamedTuple):
    """A column of the tables."""

    attack: str
    what: str
    """ "": the rate."""
    ask: Ask
    concepts: int
    """Of the five of a cell; with other seeds the next ones."""
    artefacts: int = 1
    """Of a concept."""

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"{self.attack}{self.what and f', {self.what}'}"


QUESTIONS = (
    Question("rephrase", "", rate(), 5, 6),
    Question("ring-a-bell", "", rate(), 5, 2),
    Question("inversion", "", rate(), 2, 3),
    Question("completion", "half point", curve("half point"), 5),
    Question("relearn", "half point", curve("half point"), 2),
    Question("relearn", "area", curve("area"), 2),
    Question("reading", "rank", rank, 5),
)


class Source(NamedTuple):
    """Concepts as a method's cells have them."""

    name: str
    truth: float
    concept: Callable[[random.Random], Callable[[str], list[dict[str, Any]]]]
    """Draws a concept, which draws its rows, by the name that it is given."""


@lru_cache
def cells() -> dict[str, list[Any]]:
    """The committed cells by method."""
    return read(RESULTS, "emoji-attacks")


def rows_of(method: str, attack: str) -> dict[str, list[Any]]:
    """What counts of an attack, by concept."""
    found = defaultdict(list)
    for x in trials(cells()[method], attack, "edited"):
        if proves(x.row):
            found[x.row["concept"]].append(x.row)
    return dict(found)


def beta(mean: float, spread: float, g: random.Random) -> float:
    """A draw of a beta distribution by its mean and the correlation of two draws under it."""
    mean, size = min(max(mean, 1e-6), 1 - 1e-6), 1 / spread - 1
    return g.betavariate(mean * size, (1 - mean) * size)


def correlations(rows: dict[str, list[Any]], mean: float) -> tuple[float, float]:
    """Of two pictures of a concept by different artefacts, and by the same one."""
    apart, same = [], []
    for own in rows.values():
        rates = [sum(r["hits"]) / len(r["hits"]) for r in own]
        apart += [a * b for i, a in enumerate(rates) for b in rates[i + 1 :]]
        counts = [(sum(r["hits"]), len(r["hits"])) for r in own if len(r["hits"]) > 1]
        same += [h * (h - 1) / (n * (n - 1)) for h, n in counts]
    one = (sum(same) / len(same) / mean - mean) / (1 - mean)
    other = (sum(apart) / len(apart) / mean - mean) / (1 - mean) if apart else one
    one = min(max(one, 0.01), 0.95)
    return min(max(other, 0.005), one - 0.004), one


def of_rate(method: str, q: Question) -> Source | None:
    """Where a rate is drawn from; None: it does not vary, or of too few concepts."""
    rows = rows_of(method, q.attack)
    hits = [h for own in rows.values() for r in own for h in r["hits"]]
    if len(rows) < FEWEST or sum(hits) in (0, len(hits)):
        return None
    mean = sum(hits) / len(hits)
    apart, same = correlations(rows, mean)
    within = (same - apart) / (1 - apart)

    def concept(g: random.Random) -> Callable[[str], list[dict[str, Any]]]:
        level = beta(mean, apart, g)

        def draw(name: str) -> list[dict[str, Any]]:
            rates = [beta(level, within, g) for _ in range(q.artefacts)]
            return [{"concept": name, "hits": shown(p, g)} for p in rates]

        return draw

    return Source(method, 100 * mean, concept)


def of_curve(method: str, q: Question) -> Source | None:
    """Where curves are drawn from: the method's own, each a little nearer to the middle."""
    curves = []
    for own in rows_of(method, q.attack).values():
        points = defaultdict(list)
        for r in own:
            points[r["at"]] += r["hits"]
        curves.append({k: (sum(h) + 0.25) / (len(h) + 0.5) for k, h in points.items()})
    if len(curves) < FEWEST:
        return None
    whole = [
        Trial({"concept": i, "at": k, "hits": [p]}, "1", 0)
        for i, c in enumerate(curves)
        for k, p in c.items()
    ]

    def concept(g: random.Random) -> Callable[[str], list[dict[str, Any]]]:
        own = g.choice(curves)
        return lambda name: [
            {"concept": name, "at": k, "hits": shown(p, g)} for k, p in own.items()
        ]

    return Source(method, value(q, whole), concept)


def of_rank(method: str, q: Question) -> Source | None:
    """Where ranks are drawn from: the method's own."""
    rows = rows_of(method, q.attack)
    ranks = [[r["measured"]["rank"] for r in own] for own in rows.values()]
    if len(ranks) < FEWEST:
        return None
    whole = [
        Trial({"concept": i, "measured": {"rank": r}}, "1", 0)
        for i, own in enumerate(ranks)
        for r in own
    ]

    def concept(g: random.Random) -> Callable[[str], list[dict[str, Any]]]:
        own = g.choice(ranks)
        return lambda name: [{"concept": name, "measured": {"rank": g.choice(own)}}]

    return Source(method, value(q, whole), concept)


def shown(p: float, g: random.Random) -> list[int]:
    """Pictures of an artefact."""
    return [int(g.random() < p) for _ in range(REDRAWS)]


def value(q: Question, some: Sequence[Trial]) -> float:
    """What a column says."""
    found = q.ask(some, 100.0)
    assert found is not None
    return found.value


def drawn(q: Question, layout: str, source: Source, g: random.Random) -> list[Trial]:
    """One try: a line's cells."""
    splits, seeds = LAYOUTS[layout]
    found = []
    for split in splits:
        known = [source.concept(g) for _ in range(5)]
        for seed in range(seeds):
            which = [(q.concepts * seed + i) % 5 for i in range(q.concepts)]
            found += [Trial(row, split, seed) for i in which for row in known[i](f"{split}, {i}")]
    return found


def of_attacks(
    q: Question, layout: str, tries: int
) -> Iterator[tuple[Source, list[tuple[tuple[float, float], float]]]]:
    """The interval of every try beside the truth, of every population."""
    make = of_rank if q.attack == "reading" else of_curve if q.what else of_rate
    g = random.Random(0)
    for method in cells():
        source = make(method, q) if method != UNEDITED else None
        if source is not None:
            found = []
            for _ in range(tries):
                s = q.ask(drawn(q, layout, source, g), 100.0)
                assert s is not None
                assert s.low is not None
                found.append((s.ends, source.truth))
            yield source, found
