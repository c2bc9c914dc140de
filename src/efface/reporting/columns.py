"""What a column of a benchmark of attacks says: a rate, a point of a curve, or a rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efface.evaluation.verdicts import along
from efface.reporting.tables import Row
from efface.scores import Score, concept_rate

DRAWS = 500
"""Of the bootstrap over concepts."""


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
    """Half point or area of a curve, of the mean over concepts."""

    def ask(some: Sequence[Trial], unedited: float) -> Score | None:
        points = sorted({float(x.row["at"]) for x in some})
        table = [
            [mean_at(own, p) for p in points] for own in by_concept(some) if covers(own, points)
        ]
        if len(points) < 2 or not table:
            return None

        def of(heights: Tensor) -> float:
            at: list[float] = heights.tolist()
            return along(list(zip(points, at, strict=True)), unedited).get(what, math.inf)

        return resampled(torch.tensor(table, dtype=torch.float64), of)

    return ask


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
    """The median rank of the erased words in the difference of the weights."""
    ranks = [[x.row["measured"]["rank"] for x in own] for own in by_concept(some)]
    if not ranks:
        return None
    means = torch.tensor([[sum(r) / len(r)] for r in ranks], dtype=torch.float64)
    return resampled(means, lambda x: float(x), torch.median)


def resampled(
    table: Tensor, statistic: Callable[[Tensor], float], middle: Callable[..., Any] = torch.mean
) -> Score:
    """A statistic of the mean over concepts, its interval by drawing concepts, one fewer.

    Args:
        table: (k, D), a row a concept.
        statistic: of (D,).
        middle: what is taken of the concepts, in place of the mean.

    Source: Rao & Wu, J. Am. Stat. Assoc. 83 (1988).
    """

    def of(rows: Tensor) -> float:
        return statistic(torch.stack([middle(c) for c in rows.T]))

    k, value = len(table), of(table)
    g = torch.Generator().manual_seed(0)
    picks = torch.randint(0, k, (DRAWS, max(k - 1, 1)), generator=g)
    ends = sorted(of(table[p]) for p in picks)
    low, high = ends[round(0.025 * (DRAWS - 1))], ends[round(0.975 * (DRAWS - 1))]
    if k == 1 or low == high:
        return Score(value, None, None, k, "concepts", "new concepts")
    return Score(value, low, high, k, "concepts", "new concepts")
