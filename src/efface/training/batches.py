"""What one update sees: latents of erased concepts, words beside them, and how both are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from efface.concepts import Concept
from efface.models import Conditioning, DiffusionModel


class Batch(NamedTuple):
    """What one update sees, a row each."""

    z: Tensor
    """Noisy latents of the erased concepts, (B, C, H, W)."""
    t: Tensor
    """Their timesteps, (B,)."""
    which: Tensor
    """Index of the erased concept of each row, (B,)."""
    concept: Conditioning
    """The erased concept of each row, encoded."""
    e_concept: Tensor
    """What the frozen model predicts for it, (B, C, H, W)."""
    e_anchor: Tensor
    """What the frozen model predicts for its anchor, (B, C, H, W)."""
    weight: Tensor
    """What a squared error of a prediction is as one of the clean latent, (B,)."""
    push: Tensor
    """By how much of the guidance it is pushed away from the concept, (B,)."""

    def goal(self, eta: float) -> Tensor:
        """What the erased concept is to predict: the anchor, pushed away from the concept.

        Source: arXiv:2303.07345, equation 5.
        """
        away = (eta * self.push)[:, None, None, None]
        return self.e_anchor - away * (self.e_concept - self.e_anchor)


class Words(NamedTuple):
    """Other words beside a batch: row i goes with row i of the batch, over again."""

    cond: Conditioning
    """Encoded, N rows."""
    z: Tensor
    """What they are predicted on, (N, C, H, W)."""
    t: Tensor
    """Its timesteps, (N,)."""
    rows: Tensor
    """The row of the batch that each goes with, (N,)."""


Choose = Callable[[Tensor], Conditioning]
"""Chooses words, given the index of the erased concept of every row of a batch."""


def beside(b: Batch, cond: Conditioning) -> Words:
    """Words on the latents of a batch."""
    rows = torch.arange(len(cond), device=b.z.device) % len(b.z)
    return Words(cond, b.z[rows], b.t[rows], rows)


class Encoded(NamedTuple):
    """The erased concepts' prompts, a row each: all of every name and synonym."""

    concept: Conditioning
    anchor: Conditioning
    of: Tensor
    """Index of the concept that a row belongs to."""
    bare: tuple[bool, ...]
    """Whether the null prompt is a row's anchor."""


def encode(model: DiffusionModel, concepts: Sequence[Concept], prompts: int = 0) -> Encoded:
    """Encode every erased name beside its anchor.

    Args:
        prompts: that stand for each name (:meth:`~efface.concepts.Concept.pairs`).
    """
    rows = [(i, pair) for i, c in enumerate(concepts) for pair in c.pairs(prompts)]
    return Encoded(
        model.embed([pair.prompt for _, pair in rows]),
        model.embed([pair.instead for _, pair in rows], null=True),
        torch.tensor([i for i, _ in rows]),
        tuple(not pair.instead for _, pair in rows),
    )


def odds(of: Tensor) -> Tensor | None:
    """How often rows are drawn: concepts equally, and the names of one equally, (R,).

    Args:
        of: the concept of each row, (R,).

    Returns:
        None where all rows are alike, as without synonyms.
    """
    names = of.bincount()
    return None if (names == names[0]).all() else 1.0 / names[of]


def drawn(chance: Tensor | None, n: int, batch: int, g: torch.Generator) -> Tensor:
    """``batch`` of ``n`` rows by their chances, (B,); None: all alike."""
    if chance is None:
        return torch.randint(0, n, (batch,), generator=g)
    return torch.multinomial(chance, batch, replacement=True, generator=g)
