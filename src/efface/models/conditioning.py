"""The encoded prompt, whatever a family makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, a row each; every field that a family has shares the first axis."""

    states: Tensor
    """Hidden states of the text encoders, (B, L, D)."""
    pooled: Tensor | None = None
    """One vector for the whole prompt, (B, P), in families that have one."""
    mask: Tensor | None = None
    """Above 0 where a state is the prompt's, (B, L), in families that drop the padding."""

    def __len__(self) -> int:
        return len(self.states)

    def each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same change made to every field."""
        return Conditioning(
            *(None if x is None else change(x) for x in (self.states, self.pooled, self.mask))  # type: ignore[arg-type]
        )

    def __getitem__(self, index: Tensor | Sequence[int] | slice) -> Conditioning:
        """The rows at ``index``, in that order."""
        return self.each(lambda x: x[index])

    def repeat(self, n: int) -> Conditioning:
        """Each row ``n`` times in a row: (B·n, …)."""
        return self.each(lambda x: x.repeat_interleave(n, 0))

    def detach(self) -> Conditioning:
        """The same numbers without a gradient."""
        return self.each(torch.Tensor.detach)


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Several conditionings one after the other."""

    def joined(field: str) -> Tensor | None:
        found = [x for p in parts if (x := getattr(p, field)) is not None]
        return torch.cat(found) if found else None

    return Conditioning(torch.cat([p.states for p in parts]), joined("pooled"), joined("mask"))


def chosen(first: Tensor, one: Conditioning, other: Conditioning) -> Conditioning:
    """The rows of ``one`` where ``first`` (B,) says so, of ``other`` elsewhere."""

    def field(name: str) -> Tensor | None:
        a, b = getattr(one, name), getattr(other, name)
        if a is None or b is None:
            return None
        here = first.to(a.device).view(-1, *[1] * (a.ndim - 1))
        return torch.where(here, a, b)

    states = field("states")
    assert states is not None
    return Conditioning(states, field("pooled"), field("mask"))


def mix(weights: Tensor, rows: Conditioning) -> Conditioning:
    """Weighted sums of rows, differentiable in the weights, each with its likeliest row's mask.

    Args:
        weights: (B, K).
        rows: K encoded prompts.

    Returns:
        B encoded prompts.
    """

    def summed(x: Tensor) -> Tensor:
        return torch.einsum("bk,k...->b...", weights.to(x.dtype), x)

    return Conditioning(
        summed(rows.states),
        None if rows.pooled is None else summed(rows.pooled),
        None if rows.mask is None else rows.mask[weights.argmax(1).to(rows.mask.device)],
    )
