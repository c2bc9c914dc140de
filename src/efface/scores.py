"""Numbers with their uncertainty.

An interval answers one of two questions, and the score says which in its ``over``:

- *new pictures*: these concepts, drawn again (:func:`rate`). It counts pictures. Where pictures of
  a concept resemble each other, as they do, it is wider than it need be.
- *new concepts*, *new concepts and training seeds*: concepts like these, and the edit trained again
  (:func:`concept_rate`, :func:`paired_difference`). It counts concepts; this is what a claim about
  a method needs. :func:`grouped_mean` is the same for numbers that are no rates.

``bench/coverage.py`` measures how often each holds the truth; ``docs/intervals.md`` says it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from efface.intervals import limits, of_seeds, student, totals

Z = 1.959964
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval and the number of independent draws behind it."""

    value: float
    low: float | None
    """None, as ``high``: the draws give no interval, as one concept gives none."""
    high: float | None
    n: int
    counts: str = "draws"
    """What ``n`` counts."""
    over: str = ""
    """What would be new if all were done again; "" where an older file does not say."""

    def __neg__(self) -> Score:
        """The same of the opposite number."""
        low, high = (None if x is None else -x for x in (self.high, self.low))
        return replace(self, value=-self.value, low=low, high=high)

    def __str__(self) -> str:
        return self.said(1)

    def said(self, digits: int) -> str:
        """Value and interval with so many digits; without an interval, the draws."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f} (n = {self.drawn})"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    @property
    def drawn(self) -> str:
        """The number of draws in words: ``1 concept``."""
        return f"{self.n} {self.counts.removesuffix('s') if self.n == 1 else self.counts}"

    @property
    def ends(self) -> tuple[float, float]:
        """The interval to draw in a figure: the value alone where there is none."""
        if self.low is None or self.high is None:
            return self.value, self.value
        return self.low, self.high

    def to_json(self) -> dict[str, float | int | str | None]:
        """Its fields, the numbers rounded to what the interval carries."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def within(value: float, low: float, high: float, n: int, counts: str, over: str) -> Score:
    """A score; without an interval where that has no width, as the draws show no spread."""
    if not low < high:
        return Score(value, None, None, n, counts, over)
    return Score(value, low, high, n, counts, over)


def rate(hits: Sequence[bool] | Tensor, counts: str = "pictures") -> Score:
    """A share in percent with its Wilson interval, over new draws of the same kind.

    Args:
        hits: one truth value a draw, (N,).
        counts: what a draw is.

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
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Score(100 * p, 100 * low, 100 * high, n, counts, f"new {counts}")


def concept_rate(hits: Tensor, concepts: Tensor, runs: Tensor | None = None) -> Score:
    """A share in percent with an interval over concepts, and training seeds, like these.

    Args:
        hits: a truth value a picture, (N,).
        concepts: (N,) integers, equal where the concept is.
        runs: (N, 2) integers, the split and the training seed; without several seeds of a split
            the interval is for this edit and others of the concepts' kind.

    Raises:
        ValueError: no pictures.

    Source: concepts by :func:`limits`; seeds added as squares (MOVER, Zou & Donner, Stat. Med. 27
    (2008)).
    """
    hits = torch.as_tensor(hits)
    hit, n = totals(hits, concepts)
    k, value = len(n), 100 * float(hit.sum() / n.sum())
    half = of_seeds(100 * hits.double(), concepts, runs)
    over = "new concepts" if half is None else "new concepts and training seeds"
    if k == 1:
        return Score(value, None, None, k, "concepts", over)
    low, high = limits(hit, n)
    below = math.hypot(max(value - 100 * low, 0.0), half or 0.0)
    above = math.hypot(max(100 * high - value, 0.0), half or 0.0)
    ends = max(value - below, 0.0), min(value + above, 100.0)
    return Score(value, *ends, k, "concepts", over)


def paired_difference(a: Tensor, b: Tensor, concepts: Tensor, runs: Tensor | None = None) -> Score:
    """Share of hits of ``a`` less that of ``b``, in points, the same pictures asked of both.

    Args:
        a: (N,) truth values.
        b: (N,), in the order of ``a``.
        concepts: (N,) integers; ``runs``: see :func:`concept_rate`.

    Raises:
        ValueError: lengths differ, nothing to compare, or numbers that are no truth values.

    Source: the shares of pictures that only ``a``, or only ``b``, has, each by :func:`limits`;
    combined as Newcombe, Stat. Med. 17 (1998), method 10.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"a paired difference needs the same draws on both sides, got {len(a)} and {len(b)}."
        )
    x, y = a.double(), b.double()
    if not all(((s == 0) | (s == 1)).all() for s in (x, y)):
        raise ValueError("a paired difference is of truth values, 0 and 1.")
    (won, n), (lost, _) = totals(x > y, concepts), totals(x < y, concepts)
    k, value = len(n), 100 * float((won - lost).sum() / n.sum())
    half = of_seeds(100 * (x - y), concepts, runs)
    over = "new concepts" if half is None else "new concepts and training seeds"
    if k == 1:
        return Score(value, None, None, k, "concepts", over)
    p, q = (float(s.sum() / n.sum()) for s in (won, lost))
    (p_low, p_high), (q_low, q_high) = limits(won, n), limits(lost, n)
    together = min(float(pearson(won / n, lost / n)), 0.0)  # a concept that wins seldom loses

    def apart(one: float, other: float) -> float:
        one, other = 100 * max(one, 0.0), 100 * max(other, 0.0)
        return math.sqrt(one**2 + other**2 - 2 * together * one * other + (half or 0.0) ** 2)

    low = max(value - apart(p - p_low, q_high - q), -100.0)
    high = min(value + apart(p_high - p, q - q_low), 100.0)
    return Score(value, low, high, k, "concepts", over)


def grouped_mean(values: Tensor, groups: Tensor, counts: str = "groups") -> Score:
    """The mean of ``values`` with an interval over groups like these.

    Pictures of one prompt resemble each other: only the groups are taken as independent, by
    Student's t with one degree of freedom less than there are groups.

    Args:
        values: (N,), in the unit of the result.
        groups: (N,) integers, equal where draws belong together.
        counts: what a group is.

    Raises:
        ValueError: no values.

    Source: Cochran, Sampling Techniques (1977), section 9.3 and 11 (clusters of unequal size).
    """
    total, n = totals(values, groups)
    k, value = len(n), float(total.sum() / n.sum())
    off = float((total - value * n).square().sum()) / float(n.sum()) ** 2
    half = student(k - 1) * math.sqrt(off * k / (k - 1)) if k > 1 else 0.0
    return within(value, value - half, value + half, k, counts, f"new {counts}")


def ranks(x: Tensor, times: Tensor | None = None) -> Tensor:
    """Ranks from 0, ties sharing their mean, double, (N,).

    Args:
        x: (N,).
        times: how often each is there, (…, N): ranks for every row of it, (…, N).
    """
    _, level = x.double().unique(return_inverse=True)
    times = torch.ones(len(x)).double() if times is None else times
    rows = times.new_zeros(*times.shape[:-1], int(level.max()) + 1 if len(x) else 0)
    count = rows.index_add(-1, level, times)
    return (count.cumsum(-1) - (count + 1) / 2)[..., level]


def pearson(a: Tensor, b: Tensor, times: Tensor | float = 1.0) -> Tensor:
    """Correlation of two rows, each pair taken so many times; 0 without spread."""
    times = times * torch.ones_like(a)
    a, b = (x - (times * x).sum(-1, keepdim=True) / times.sum(-1, keepdim=True) for x in (a, b))
    spread = (times * a * a).sum(-1) * (times * b * b).sum(-1)
    return (times * a * b).sum(-1) / spread.sqrt().clamp(min=torch.finfo(a.dtype).tiny)


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
    g = torch.Generator().manual_seed(seed)
    pick = torch.randint(0, len(x), (draws, len(x)), generator=g)
    times = (
        torch.zeros(draws, len(x))
        .double()
        .scatter_add_(1, pick, torch.ones(1).double().expand(pick.shape))
    )
    found = pearson(ranks(x, times), ranks(y, times), times)
    ends = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64))
    low, high = ends.tolist()
    value = float(pearson(ranks(x), ranks(y)))
    return within(value, low, high, len(x), "pairs", "new pairs")


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
        ValueError: fewer rows than groups on a side, or fewer than two groups.

    Source: Efron & Tibshirani (1993), chapter 11.
    """
    if min(len(x), len(y)) < groups or groups < 2:
        raise ValueError(
            f"a distance between {len(x)} and {len(y)} pictures: at least {max(groups, 2)} are "
            "needed."
        )
    a, b = (torch.arange(len(s)) % groups for s in (x, y))
    left = torch.tensor(
        [statistic(x[a != i], y[b != i]) for i in range(groups)], dtype=torch.float64
    )
    spread = (groups - 1) / groups * float((left - left.mean()).square().sum())
    half, value = student(groups - 1) * math.sqrt(spread), statistic(x, y)
    return within(value, value - half, value + half, len(x), "pictures", "new pictures")
