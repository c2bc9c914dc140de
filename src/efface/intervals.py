"""How far the mean of a few concepts may be off: what the scores' intervals are made of."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def student(df: int) -> float:
    """Two-sided 95 % point of Student's t.

    With t = sqrt(df) tan(x), the density of x is a power of its cosine.
    """
    x = torch.linspace(0, math.pi / 2, 20001, dtype=torch.float64)
    density = x.cos() ** (df - 1)
    mass = torch.cumulative_trapezoid(density, x)
    i = int(torch.searchsorted(mass, 0.95 * mass[-1]))
    before = mass[i - 1]
    at = x[i] + (0.95 * mass[-1] - before) / (mass[i] - before) * (x[i + 1] - x[i])
    return math.sqrt(df) * math.tan(float(at))


LEVELS, SPREADS = 400, 24
"""The grid of :func:`limits`: means of the concepts, and how much the concepts resemble themselves.
Both are even in the angle whose sine squared they are, which is Jeffreys' prior for a share."""


@lru_cache(maxsize=512)
def likelihood(hits: int, n: int) -> Tensor:
    """Log likelihood of a concept's hits in ``n`` pictures, (LEVELS, SPREADS).

    The concept's own rate is drawn from a beta distribution with a mean and a spread, the
    correlation of two of its pictures.
    """
    mean, spread = (
        ((torch.arange(k, dtype=torch.float64) + 0.5) / k * math.pi / 2).sin() ** 2
        for k in (LEVELS, SPREADS)
    )
    size = 1 / spread - 1
    a, b = mean[:, None] * size, (1 - mean)[:, None] * size
    found = torch.lgamma(hits + a) - torch.lgamma(a) + torch.lgamma(n - hits + b) - torch.lgamma(b)
    whole: Tensor = found + torch.lgamma(size) - torch.lgamma(n + size)
    return whole


def limits(hits: Tensor, n: Tensor) -> tuple[float, float]:
    """The mean rate of concepts like these, 2.5 and 97.5 % points; a beta-binomial model.

    Five concepts without a miss do not show that a sixth has none: the spread that they leave
    possible widens the interval, and only downwards.

    Args:
        hits: of each concept, (k,).
        n: pictures of each concept, (k,).

    Source: the model of Skellam, J. R. Stat. Soc. B 10 (1948); its spread is integrated out.
    """
    kinds = Counter(zip(hits.long().tolist(), n.long().tolist(), strict=True))
    log = torch.zeros(LEVELS, SPREADS, dtype=torch.float64)
    for kind, times in kinds.items():
        log += times * likelihood(*kind)
    mass = (log - log.max()).exp().sum(1).cumsum(0)
    mass = torch.cat([mass.new_zeros(1), mass / mass[-1]])
    edges = (torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS * math.pi / 2).sin() ** 2
    wanted = torch.tensor([0.025, 0.975], dtype=torch.float64)
    i = torch.searchsorted(mass, wanted).clamp(1, LEVELS)
    part = (wanted - mass[i - 1]) / (mass[i] - mass[i - 1])
    low, high = (edges[i - 1] + part * (edges[i] - edges[i - 1])).tolist()
    return low, high


def totals(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the values of each group, (k,) each.

    Raises:
        ValueError: no values.
    """
    if values.numel() == 0:
        raise ValueError("a mean over zero samples: generate some first.")
    _, index = groups.unique(return_inverse=True)
    zero = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
    v = values.double()
    return zero.index_add(0, index, v), zero.index_add(0, index, torch.ones_like(v))


def of_seeds(values: Tensor, concepts: Tensor, runs: Tensor | None) -> float | None:
    """Half the width that the training seeds add to a mean's interval; None: one seed a split.

    The variance between the means of a split's runs, less what its pictures and concepts explain
    of it (analysis of variance, two ways), is taken to be the same in all splits.

    Args:
        values: (N,).
        concepts: (N,) integers.
        runs: (N, 2) integers: the split, and the training seed within it.

    Source: Searle, Casella & McCulloch, Variance Components (1992), chapter 4.
    """
    if runs is None:
        return None
    between, df, shares = 0.0, 0, 0.0
    for split in runs[:, 0].unique():
        here = runs[:, 0] == split
        _, c = concepts[here].unique(return_inverse=True)
        _, s = runs[here, 1].unique(return_inverse=True)
        k, seeds = int(c.max()) + 1, int(s.max()) + 1
        shares += float(here.double().mean()) ** 2 / seeds
        if seeds < 2:
            continue
        total, count = totals(values[here], c * seeds + s)
        if len(total) < k * seeds:
            raise ValueError("the runs of a split have pictures of different concepts.")
        mean = (total / count).view(k, seeds)
        column = mean.mean(0)
        rest = mean - mean.mean(1, keepdim=True) - column + column.mean()
        noise = float(rest.square().sum()) / max(k - 1, 1) / (seeds - 1) / k
        between += (seeds - 1) * (float(column.var()) - noise)
        df += seeds - 1
    if not df:
        return None
    return student(df) * math.sqrt(max(between / df, 0.0) * shares)
