"""Text states of which edited maps read what the base model's read of others, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Inverse(NamedTuple):
    """Text states that are to read as others."""

    states: Tensor
    """(L, D), double."""
    residual: float
    """‖W'c' - Wc‖ / ‖Wc‖ over all maps and rows."""
    growth: float
    """‖c'‖ / ‖c‖."""


def inverse(base: Sequence[Tensor], edited: Sequence[Tensor], c: Tensor, ridge: float) -> Inverse:
    """Solve for c' of which the edited maps W' read what the base maps W read of c.

    c' = (λ I + Σ W'ᵀW')⁻¹ Σ W'ᵀW c, row by row.

    Args:
        base: W of each map, (out, D), double.
        edited: W' of each.
        c: text states, (L, D), double.
        ridge: λ in units of the mean eigenvalue of Σ W'ᵀW'.

    Source: arXiv:2407.12383, section 3.2.
    """
    left = torch.stack([w.T @ w for w in edited]).sum(0)
    right = torch.stack([w.T @ v for w, v in zip(edited, base, strict=True)]).sum(0)
    d = len(left)
    size = left.diagonal().mean()
    found = torch.linalg.solve(left + ridge * size * torch.eye(d).to(left), right @ c.T).T
    want = torch.cat([c @ w.T for w in base], 1)
    got = torch.cat([found @ w.T for w in edited], 1)
    return Inverse(found, float((got - want).norm() / want.norm()), float(found.norm() / c.norm()))
