"""The encoded prompt, whatever a family makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, a row each; every field of a family that has it shares the first axis."""

    states: Tensor
    """Hidden states of the text encoder, (B, L, D)."""

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> Conditioning:
        """The rows at ``index``, in that order."""
        return Conditioning(self.states[index])

    def repeat(self, n: int) -> Conditioning:
        """Each row ``n`` times in a row: (B·n, L, D)."""
        return Conditioning(self.states.repeat_interleave(n, 0))

    def detach(self) -> Conditioning:
        """The same numbers without a gradient."""
        return Conditioning(self.states.detach())


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Several conditionings one after the other."""
    return Conditioning(torch.cat([p.states for p in parts]))


def mix(weights: Tensor, rows: Conditioning) -> Conditioning:
    """Weighted sums of rows, differentiable in the weights.

    Args:
        weights: (B, K).
        rows: K encoded prompts.

    Returns:
        B encoded prompts.
    """
    return Conditioning(torch.einsum("bk,kld->bld", weights, rows.states))
