"""The linear edit that harms its worst word least, and the proof that no other does better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-12
"""Ridge that is always there, against rounding, in units of the words' mean square."""
EVEN = 1e-5
"""Share of the weights that all words have alike, so that none is lost for good."""
FEW = 1e-3
"""Weight of a word, in units of an even one, below which a round leaves it to the even share."""
PACE = 1.5
"""Power of the harm by which weights grow; 1 is Lawson's own, and slower."""


class Least(NamedTuple):
    """What :func:`least_harm` finds."""

    y: Tensor
    """Y of the edit W' = W (I + (A - C) Yᵀ), (D, n)."""
    harm: Tensor
    """What each word's share of change is, at full erasure, (K,)."""
    bound: float
    """What no edit that sends the same vectors to the same anchors, with the same ones in place and
    no larger, gets its worst word below."""
    weights: Tensor
    """How much each word stands in the way, (K,), sum 1."""

    @property
    def gap(self) -> float:
        """How far the worst word is above the bound, as a share; 0 where nothing is harmed."""
        worst = float(self.harm.max())
        return 0.0 if worst < 1e-6 else worst / max(self.bound, 1e-12) - 1

    @property
    def chief(self) -> int:
        """The word that stands most in the way."""
        return int(self.weights.argmax())


def seen_by(maps: Sequence[Tensor], weights: Sequence[float] = ()) -> Tensor:
    """The quadratic form of what all maps (out, D) make of a vector together, (D, D).

    Args:
        weights: of each map's squares; (): all alike.
    """
    d = maps[0].shape[1]
    total = torch.zeros(d, d, dtype=torch.float64)
    for w, weight in zip(maps, weights or [1.0] * len(maps), strict=True):
        w = w.detach().cpu().double()
        total += weight * w.T @ w
    return total


def lengths(words: Tensor, form: Tensor) -> Tensor:
    """What the maps make of each word, its rows together, as a length, (K,).

    Args:
        words: (K, r, D).
        form: of :func:`seen_by`.
    """
    return ((words @ form) * words).sum((1, 2)).clamp(min=0).sqrt()


def least_harm(
    c: Tensor,
    a: Tensor,
    hard: Tensor,
    words: Tensor,
    form: Tensor,
    ridge: float = 0.0,
    rounds: int = 1000,
    tolerance: float = 0.01,
) -> Least:
    """Minimise the largest share of change over words, with c sent to a and hard rows in place.

    The harm of a word w is |ΔW w| / |W w| over all maps together. Lawson's iteration: least squares
    with weights on the words, which grow with each word's harm. Every round is a proof as well: no
    edit has a smaller weighted sum than the least squares, hence none a smaller largest harm. It
    holds for each map on its own as for a Q that all share, since the least squares of all maps
    have the same Q.

    Args:
        c: erased vectors, independent of each other and of ``hard``, (n, D).
        a: their anchors, (n, D).
        hard: vectors that do not move, (m, D).
        words: (K, r, D), r rows a word.
        form: of :func:`seen_by`.
        ridge: weight of the edit's own size, in units of the words' mean square.
        rounds: at most.
        tolerance: of :attr:`Least.gap`, at which it ends.

    Source: C. L. Lawson, Contributions to the theory of linear least maximum approximation (1961).
    """
    n, d, many = len(c), c.shape[1], len(words)
    far = (a - c) @ form @ (a - c).T  # (n, n)
    scaled = words / lengths(words, form).clamp(min=1e-12)[:, None, None]
    fixed = torch.cat([c, hard])
    goal = torch.eye(len(fixed), dtype=c.dtype)[:, :n]
    square = scaled.square().sum() / (many * d)
    lam = float(max(ridge, FLOOR) * square)
    weights = torch.full((many,), 1 / many, dtype=c.dtype)
    own = squares(scaled, torch.full_like(weights, EVEN / many))
    own = own + lam * torch.eye(d, dtype=c.dtype)
    best, low = None, 0.0
    for _ in range(rounds):
        some = weights > FEW / many
        share = torch.where(some, weights, 0.0)
        share = (1 - EVEN) * share / share.sum()
        even = share + EVEN / many
        b = own + squares(scaled[some], share[some])
        y = best_of(b, fixed, goal)
        squared, size = harms(scaled, y, far), float((y @ far * y).sum())
        low = max(low, float(even @ squared) + lam * size)
        if best is None or float(squared.max()) + lam * size < best[0]:
            best = (float(squared.max()) + lam * size, y, squared, even, size)
        worst, part = float(best[2].max()), lam * best[4]
        if worst <= (1 + tolerance) ** 2 * (low - part) or best[0] < 1e-12:
            break
        weights = weights * squared ** (PACE / 2)
        weights = weights / weights.sum()
    assert best is not None
    _, y, squared, weights, size = best
    bound = max(low - lam * size, 0.0) ** 0.5
    return Least(y, squared.sqrt(), bound, weights)


def squares(words: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of w wᵀ over all rows of words (K, r, D), (D, D)."""
    rows = words.flatten(0, 1)
    total: Tensor = rows.T @ (weights.repeat_interleave(words.shape[1])[:, None] * rows)
    return total


def best_of(b: Tensor, fixed: Tensor, goal: Tensor) -> Tensor:
    """Y with fixed·Y = goal and the smallest Yᵀ B Y (Gauss-Markov), (D, n).

    Args:
        b: (D, D).
        fixed: (n + m, D).
        goal: (n + m, n).
    """
    x = torch.linalg.solve(b, fixed.T)
    found: Tensor = x @ torch.linalg.solve(fixed @ x, goal)
    return found


def harms(words: Tensor, y: Tensor, far: Tensor) -> Tensor:
    """Squared harm of every word, (K,), given what the erased vectors move (n, n)."""
    seen = words @ y  # (K, r, n)
    return ((seen @ far) * seen).sum((1, 2)).clamp(min=0)
