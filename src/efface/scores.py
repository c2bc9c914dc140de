"""Numbers with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

Z = 1.959964
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval and the number of independent draws behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return self.said(1)

    def said(self, digits: int) -> str:
        """Value and interval with so many digits."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def to_json(self) -> dict[str, float | int]:
        """The four numbers, rounded to what the interval carries."""
        return {k: v if isinstance(v, int) else round(v, 4) for k, v in asdict(self).items()}


def rate(hits: Sequence[bool] | Tensor) -> Score:
    """A share in percent with its Wilson interval.

    Args:
        hits: one truth value a draw, (N,).

    Raises:
        ValueError: no draws.

    Source: Wilson, JASA 22 (1927).
    """
    h = torch.as_tensor(hits, dtype=torch.float64)
    n = h.numel()
    if n == 0:
        raise ValueError("a rate over zero samples: generate some first.")
    p = float(h.mean())
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return Score(100 * p, 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0), n)


def resampled(values: Tensor, groups: Tensor, draws: int = 2000, seed: int = 0) -> Score:
    """The mean of ``values`` with a bootstrap interval that draws whole groups.

    Pictures of one prompt resemble each other; drawing prompts (groups) keeps the interval honest.

    Args:
        values: (N,), in the unit of the result.
        groups: (N,) integers, equal where draws belong together.
        draws: bootstrap replicates.

    Raises:
        ValueError: no values.

    Source: Davison & Hinkley (1997), section 3.8 (cluster bootstrap), percentile interval.
    """
    if values.numel() == 0:
        raise ValueError("a mean over zero samples: generate some first.")
    v = values.double()
    _, index = groups.unique(return_inverse=True)
    k = int(index.max()) + 1
    total = torch.zeros(k, dtype=torch.float64).index_add_(0, index, v)
    count = torch.zeros(k, dtype=torch.float64).index_add_(0, index, torch.ones_like(v))
    g = torch.Generator().manual_seed(seed)
    pick = torch.randint(0, k, (draws, k), generator=g)
    means = total[pick].sum(1) / count[pick].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(float(v.mean()), low, high, k)


def paired_difference(
    a: Tensor, b: Tensor, groups: Tensor, draws: int = 2000, seed: int = 0
) -> Score:
    """Mean of ``a - b`` in percentage points, the same draw (prompt, seed) on both sides.

    Args:
        a: (N,) truth values or numbers in [0, 1].
        b: (N,), in the order of ``a``.
        groups: (N,) integers; whole groups are drawn (see :func:`resampled`).

    Raises:
        ValueError: lengths differ, or nothing to compare.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"a paired difference needs the same draws on both sides, got {len(a)} and {len(b)}."
        )
    return resampled(100 * (a.double() - b.double()), groups, draws, seed)


def ranks(x: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean, double, (N,)."""
    _, index, counts = x.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean: Tensor = (last - (counts.double() + 1) / 2)[index]
    return mean


def rank_correlation(x: Tensor, y: Tensor, draws: int = 1000, seed: int = 0) -> Score:
    """Spearman's rank correlation with a bootstrap interval that draws pairs; 0 without spread.

    Args:
        x: (N,).
        y: (N,).

    Raises:
        ValueError: lengths differ, or fewer than three pairs.

    Source: Spearman, Am. J. Psychol. 15 (1904); ties by mean ranks.
    """
    if x.shape != y.shape or len(x) < 3:
        raise ValueError(
            f"a rank correlation of {len(x)} and {len(y)} values: three pairs or more."
        )

    def pearson(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
        spread = a.square().sum(-1) * b.square().sum(-1)
        return (a * b).sum(-1) / spread.sqrt().clamp(min=torch.finfo(a.dtype).tiny)

    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        pick = torch.randint(0, len(x), (len(x),), generator=g)
        found.append(pearson(ranks(x[pick]), ranks(y[pick])))
    ends = torch.quantile(torch.stack(found), torch.tensor([0.025, 0.975], dtype=torch.float64))
    low, high = ends.tolist()
    return Score(float(pearson(ranks(x), ranks(y))), low, high, len(x))


def jackknifed(
    statistic: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, groups: int = 20
) -> Score:
    """A distance between two sets with a delete-a-group jackknife interval.

    Args:
        statistic: of (N, D) and (M, D).
        x: features, (N, D).
        y: features, (M, D).
        groups: how many groups each set is dealt into; one of both is left out at a time.

    Raises:
        ValueError: fewer rows than groups on a side.

    Source: Efron & Tibshirani (1993), chapter 11.
    """
    if min(len(x), len(y)) < groups:
        raise ValueError(
            f"a distance between {len(x)} and {len(y)} pictures: at least {groups} are needed."
        )
    a, b = (torch.arange(len(s)) % groups for s in (x, y))
    left = torch.tensor(
        [statistic(x[a != i], y[b != i]) for i in range(groups)], dtype=torch.float64
    )
    half = Z * math.sqrt((groups - 1) / groups * float((left - left.mean()).square().sum()))
    value = statistic(x, y)
    return Score(value, value - half, value + half, len(x))
