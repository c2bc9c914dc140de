"""What a column of a benchmark of attacks says: a rate, a point of a curve, or a rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from efface.evaluation.verdicts import along
from efface.reporting.tables import Row
from efface.scores import Score, concept_rate


class Trial(NamedTuple):
    """A row of an attack with the cell that it is of."""

    row: Mapping[str, Any]
    split: str
    seed: int


Ask = Callable[[Sequence[Trial], float], Score | None]
"""What a column says of trials, and of the unedited model's own rate; None: nothing."""


class Column(NamedTuple):
    """A column of the table."""

    head: str
    attacks: tuple[str, ...]
    """Of several the one that succeeds most."""
    ask: Ask


def trials(cells: Sequence[Row], attack: str, role: str) -> list[Trial]:
    """The rows of an attack in some cells, of one role."""
    return [
        Trial(r, c["split"], c["seed"])
        for c in cells
        for r in c["attacks"].get(attack, {}).get("rows", ())
        if r["role"] == role
    ]


def rate(at: str = "") -> Ask:
    """Percent of pictures that show it, at a point of the curve or of all of them.

    What the unedited model does not draw for the same text proves nothing and is left out.
    """

    def ask(some: Sequence[Trial], _: float) -> Score | None:
        some = [x for x in some if not at or x.row.get("at") == at]
        some = [x for x in some if proves(x.row)]
        names = {c: i for i, c in enumerate(dict.fromkeys(x.row["concept"] for x in some))}
        splits = sorted({x.split for x in some})
        hits = [
            (h, names[x.row["concept"]], splits.index(x.split), x.seed)
            for x in some
            for h in x.row["hits"]
        ]
        if not hits:
            return None
        t = torch.tensor(hits)
        each = {
            run: {x.row["concept"] for x in some if x[1:] == run} for run in {x[1:] for x in some}
        }
        alike = all(a == b for r, a in each.items() for s, b in each.items() if r[0] == s[0])
        return concept_rate(t[:, 0].bool(), t[:, 1], t[:, 2:] if alike else None)

    return ask


def proves(row: Mapping[str, Any]) -> bool:
    """Whether the base model draws it, where that is asked."""
    base = row.get("base", ())
    return not base or 2 * sum(base) >= len(base)


def curve(what: str) -> Ask:
    """Half point or area of a curve, of the mean over concepts.

    Its interval is that of the curves through the lower and the upper ends of
    :func:`~efface.scores.concept_rate` at each point.
    """

    def ask(some: Sequence[Trial], unedited: float) -> Score | None:
        points = sorted({float(x.row["at"]) for x in some})
        whole = [own for own in by_concept(some) if covers(own, points)]
        if len(points) < 2 or not whole:
            return None

        def of(heights: Sequence[float]) -> float:
            return along(list(zip(points, heights, strict=True)), unedited).get(what, math.inf)

        k = len(whole)
        value = of([sum(mean_at(own, p) for own in whole) / k for p in points])
        if k == 1:
            return Score(value, None, None, k, "concepts", "new concepts")
        ends = zip(*(at_point(whole, p).ends for p in points), strict=True)
        low, high = sorted(map(of, ends))
        return Score(value, min(low, value), max(high, value), k, "concepts", "new concepts")

    return ask


def at_point(whole: Sequence[Sequence[Trial]], point: float) -> Score:
    """Percent of the pictures at a point, of trials by concept."""
    found = [
        (h, i)
        for i, own in enumerate(whole)
        for x in own
        if float(x.row["at"]) == point
        for h in x.row["hits"]
    ]
    t = torch.tensor(found)
    return concept_rate(t[:, 0].bool(), t[:, 1])


def covers(own: Sequence[Trial], points: Sequence[float]) -> bool:
    """Whether a concept has every point."""
    return {float(x.row["at"]) for x in own} == set(points)


def mean_at(own: Sequence[Trial], point: float) -> float:
    """Percent of a concept's pictures at a point."""
    hits: list[int] = [h for x in own if float(x.row["at"]) == point for h in x.row["hits"]]
    return 100 * sum(hits) / len(hits)


def by_concept(some: Sequence[Trial]) -> Iterator[list[Trial]]:
    """The trials of each concept."""
    for c in dict.fromkeys(x.row["concept"] for x in some):
        yield [x for x in some if x.row["concept"] == c]


def rank(some: Sequence[Trial], _: float) -> Score | None:
    """The median rank of the erased words in the difference of the weights, :func:`middle`."""
    ranks = [[x.row["measured"]["rank"] for x in own] for own in by_concept(some)]
    return middle([sum(r) / len(r) for r in ranks]) if ranks else None


def middle(values: Sequence[float]) -> Score:
    """The lower median, with the narrowest pair of ordered values that is a 95 % interval of it.

    Of five and fewer it is the least and the largest one, which hold it in 1 - 2^(1-k) of cases.

    Source: the sign test; Hahn & Meeker, Statistical Intervals (1991), section 5.2.
    """
    order, k = sorted(values), len(values)
    value = order[(k - 1) // 2]
    if k == 1:
        return Score(value, None, None, k, "concepts", "new concepts")
    cut, tail = 0, 1.0
    while tail <= 0.025 * 2**k:
        cut += 1
        tail += math.comb(k, cut)
    ends = (order[max(cut - 1, 0)], order[k - max(cut, 1)])
    return Score(value, *ends, k, "concepts", "new concepts")
