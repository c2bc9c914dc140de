"""Edits confined to the directions that preserved text vectors leave free: SPEED's, and DP's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efface.concepts import few
from efface.errors import UserError, escaped
from efface.training.closed_form import Erased, lost

EXACT = 1e-14
"""Share of the sum of squares below which a direction is rounding."""
LEAST = 0.01
"""Share of an erased vector that what is preserved must leave free for it to be erased at all."""


def moments(c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of c cᵀ and of a cᵀ over the erased vectors, both (D, D)."""
    return c.T @ c / len(c), a.T @ c / len(c)


def null_space(preserved: Tensor, share: float) -> Tensor:
    """Directions that the preserved vectors hardly use, (D, r), orthonormal; all, for none."""
    s = preserved.T @ preserved / max(len(preserved), 1)
    values, vectors = torch.linalg.eigh(s)
    hardly = values < share * values.mean() if len(preserved) else values == 0
    free: Tensor = vectors[:, hardly]
    return free


def left_free(exact: Tensor, soft: Tensor, energy: float) -> Tensor:
    """Directions that some vectors do not use at all, and others with a share of their squares.

    Args:
        exact: vectors that keep all of theirs, (m, D).
        soft: vectors that keep ``energy`` of their sum of squares, (k, D).

    Returns:
        (D, r), orthonormal.
    """
    values, vectors = torch.linalg.eigh(exact.T @ exact)
    free = vectors[:, values <= EXACT * values.sum()]
    rest = soft @ free
    values, vectors = torch.linalg.eigh(rest.T @ rest)  # ascending
    unused = values.clamp(min=0).cumsum(0) <= max(1 - energy, EXACT) * values.sum()
    found: Tensor = free @ vectors[:, unused]
    return found


def change(c: Tensor, a: Tensor, free: Tensor, fixed: Tensor, rho: float, slack: float) -> Tensor:
    """The matrix that the map is multiplied with to give its change (arXiv:2503.07392, eq. 12).

    Without ``rho`` it is the limit of a vanishing one, (A - C) X⁺ Uᵀ with X = Uᵀ C and U the free
    directions: double projection (arXiv:2604.10032).

    Args:
        c: erased vectors, (n, D).
        a: their anchors, (n, D).
        free: orthonormal directions that may change, (D, r).
        fixed: vectors that must not move, (m, D).
        rho: weight of the change itself.
        slack: 0: the fixed vectors do not move.

    Returns:
        (D, D).

    Raises:
        UserError: ``rho`` is rounding beside the erased vectors.
    """
    if not rho:
        if len(fixed):
            free = free @ left_free(fixed @ free, fixed[:0] @ free, 1.0)
        limit: Tensor = (a - c).T @ torch.linalg.pinv((c @ free).T) @ free.T
        return limit
    t, mixed = moments(c, a)
    if lost(rho, t):
        raise UserError(
            f"a retain_scale of {rho:g} is rounding beside the erased concepts' text states; raise "
            "it."
        )
    p, k = free @ free.T, fixed.T
    eye = torch.eye(len(t), dtype=t.dtype)
    m = torch.linalg.inv(t @ p + rho * eye)
    g = k.T @ p
    small = g @ m @ k + slack * torch.eye(k.shape[1], dtype=t.dtype)
    still = eye - m @ k @ torch.linalg.pinv(small) @ g
    changed: Tensor = (mixed - t) @ p @ still @ m
    return changed


def reduced(c: Tensor, a: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """Independent combinations of erased rows, and the same ones of their anchors.

    Args:
        c: (n, D).
        a: (n, D).
        energy: share of the rows' sum of squares that stays.

    Returns:
        Two (k, D) tensors; k is no more than the rank of ``c``.
    """
    u, s, _ = torch.linalg.svd(c, full_matrices=False)
    taken = s.square().cumsum(0) - s.square()  # before each direction
    kept = u[:, s.square().sum() - taken > max(1 - energy, EXACT) * s.square().sum()]
    return kept.T @ c, kept.T @ a


def leverage(c: Tensor, free: Tensor) -> Tensor:
    """Share of each vector's length that lies in the free directions, (n,)."""
    share: Tensor = (c @ free).norm(dim=1) / c.norm(dim=1)
    return share


def check_leverage(
    erased: Erased, free: Tensor, rows: Tensor, words: Sequence[str], least: float
) -> dict[str, float]:
    """The smallest :func:`leverage` of every erased name, if none is too small.

    Args:
        rows: what left ``free``, some to a word, word by word, (m, D).
        words: what they are.
        least: what is needed.

    Raises:
        UserError: names the concept, the words that it is made of, and how many would fit.
    """
    found: dict[str, float] = {}
    for name, x in zip(erased.names, leverage(erased.c, free).tolist(), strict=True):
        found[name] = min(x, found.get(name, 1.0))
    name = min(found, key=lambda n: found[n])
    if found[name] >= least:
        return found
    own = erased.c[[n == name for n in erased.names]]
    c = own[leverage(own, free).argmin()]
    if not words:
        raise UserError(f"{name!r} has no direction of its own in the text states.")
    raise UserError(
        f"{name!r} is {'' if found[name] < 1e-6 else 'nearly '}a combination of the preserved words"
        f" ({', '.join(made_of(c, rows, words))}): {100 * found[name]:.2g} % of its text state is "
        f"free of them, and {100 * least:g} % is needed. The first "
        f"{fits(c, rows, words, least)} of the {len(words)} words would fit: preserve fewer."
    )


def fulfilled(c: Tensor, a: Tensor) -> bool:
    """Whether one linear map sends every erased row (n, D) to its anchor (n, D)."""
    less_c, less_a = reduced(c, a, 1.0)
    missed = c @ (torch.linalg.pinv(less_c) @ less_a) - a
    return bool(missed.norm() <= 1e-4 * (a - c).norm())


def independent(
    c: Tensor, a: Tensor, free: Tensor, names: Sequence[str], energy: float
) -> tuple[Tensor, Tensor]:
    """:func:`reduced` rows, of concepts that stay independent beside what is preserved.

    Args:
        c: erased vectors, (n, D).
        a: their anchors, (n, D).
        free: orthonormal directions that may change, (D, r).
        names: of the concepts.
        energy: of :func:`reduced`; 1: every row goes to its anchor.

    Raises:
        UserError: they do not; names them, and says how many directions there are.
    """
    less_c, less_a = reduced(c, a, energy)
    s = torch.linalg.svdvals(less_c @ free)
    none = free.shape[1] < len(less_c) or float(s[-1]) < 1e-6 * float(s[0])
    if none or (energy == 1 and not fulfilled(c, a)):
        raise UserError(
            f"{few([escaped(n) for n in names], 5)} cannot all be erased: beside the preserved "
            f"words they are combinations of each other, with {free.shape[1]} directions of the "
            "text states left for them; erase fewer, or preserve fewer."
        )
    return less_c, less_a


def made_of(c: Tensor, rows: Tensor, words: Sequence[str], n: int = 3) -> list[str]:
    """The words that have the largest parts in the combination nearest to a vector."""
    parts = torch.linalg.pinv(rows.T) @ c
    large = (parts[:, None] * rows).norm(dim=1).view(len(words), -1).amax(1)
    return [escaped(repr(words[i])) for i in large.argsort(descending=True)[:n]]


def fits(c: Tensor, rows: Tensor, words: Sequence[str], least: float) -> int:
    """How many of the words, in their order, leave a vector ``least`` of its length."""
    basis = rows[:0]
    each = len(rows) // len(words)
    for i in range(len(words)):
        for row in rows[i * each : (i + 1) * each]:
            rest = row - basis.T @ (basis @ row)
            if rest.norm() > 1e-7 * row.norm():
                basis = torch.cat([basis, rest[None] / rest.norm()])
        if (c - basis.T @ (basis @ c)).norm() < least * c.norm():
            return i
    return len(words)
