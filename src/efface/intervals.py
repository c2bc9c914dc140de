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
    a, b = grid()
    found = torch.lgamma(hits + a) - torch.lgamma(a) + torch.lgamma(n - hits + b) - torch.lgamma(b)
    whole: Tensor = found + torch.lgamma(a + b) - torch.lgamma(n + a + b)
    return whole


def grid() -> tuple[Tensor, Tensor]:
    """Both parameters of the beta distributions of :func:`likelihood`'s grid, (LEVELS, SPREADS)."""
    mean, spread = (
        ((torch.arange(k, dtype=torch.float64) + 0.5) / k * math.pi / 2).sin() ** 2
        for k in (LEVELS, SPREADS)
    )
    size = 1 / spread - 1
    return mean[:, None] * size, (1 - mean)[:, None] * size


@lru_cache
def tails(n: int, share: float) -> Tensor:
    """The mean rate of the ``share`` of concepts that fare worst in ``n`` pictures of their own.

    By other pictures than those in which they were found; of each beta distribution of the grid,
    for many concepts, (LEVELS, SPREADS).
    """
    a, b = grid()
    left, total = torch.full_like(a, share), torch.zeros_like(a)
    for k in range(n + 1):  # those with the fewest hits first, as far as there is room
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        odds = torch.lgamma(k + a) - torch.lgamma(a) + torch.lgamma(n - k + b) - torch.lgamma(b)
        whole = torch.lgamma(a + b) - torch.lgamma(n + a + b)
        taken = torch.minimum((ways + odds + whole).exp(), left)
        total += taken * (a + k) / (a + b + n)
        left = left - taken
    return total / share


def posterior(hits: Tensor, n: int) -> Tensor:
    """How likely each mean and spread of the grid is, (LEVELS, SPREADS), of sum 1.

    Args:
        hits: of each concept in each cell, (cells, concepts); cells share their concepts, and
            count as one.
        n: pictures of each.
    """
    log = torch.zeros(LEVELS, SPREADS, dtype=torch.float64)
    for kind, times in Counter(hits.long().flatten().tolist()).items():
        log += times / len(hits) * likelihood(kind, n)
    mass = (log - log.max()).exp()
    return mass / mass.sum()


def likely(hits: Tensor, n: int, draws: int, g: torch.Generator, share: float = 0.0) -> Tensor:
    """Rates of concepts like these that the hits leave possible, (draws,).

    Args:
        hits, n: of :func:`posterior`.
        share: of the concepts, those that fare worst (:func:`tails`); 0: the mean of all.
    """
    at = torch.multinomial(posterior(hits, n).flatten(), draws, True, generator=g)
    if share:
        return tails(n // 2, share).flatten()[at]
    levels = ((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS * math.pi / 2).sin() ** 2
    return levels[at // SPREADS]


def tail_limits(hits: Tensor, n: int, share: float) -> tuple[float, float]:
    """The rate of the worst ``share`` of concepts like these, 2.5 and 97.5 % points.

    The model of :func:`limits`. A bootstrap draws the concepts that are there: where hardly any
    has a miss, it knows nothing of worse ones, and covers far too little (docs/intervals.md).

    Args:
        hits: of each concept in each cell, (cells, concepts); cells share their concepts, and
            count as one.
        n: pictures of each.
    """
    order = tails(n // 2, share).flatten().argsort()
    rates, mass = tails(n // 2, share).flatten()[order], posterior(hits, n).flatten()[order]
    mass = mass.cumsum(0)
    at = torch.searchsorted(mass, torch.tensor([0.025, 0.975], dtype=torch.float64))
    low, high = rates[at.clamp(max=len(rates) - 1)].tolist()
    return low, high


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


def resamples(draws: int, g: torch.Generator, *sizes: int) -> list[Tensor]:
    """Numbers below each size, as many, drawn with replacement in turn: (draws, size) each."""
    drawn = [[torch.randint(0, n, (n,), generator=g) for n in sizes] for _ in range(draws)]
    return [torch.stack(some) for some in zip(*drawn, strict=True)]


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
