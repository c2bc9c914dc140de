"""Drift: how far preserved prompts' pictures moved from the unedited model's of the same seed."""

from __future__ import annotations

import torch
from torch import Tensor

from efface.scores import Score, resampled


def drift(images: Tensor, unedited: Tensor, prompts: list[str]) -> Score:
    """Root mean squared difference of two pictures of one prompt and seed, in percent of the range.

    Lower: the edit left the picture alone. The bootstrap interval draws whole prompts.

    Args:
        images: (N, 3, H, W) in [0, 1].
        unedited: the same prompts and seeds, without the edit.
        prompts: N prompts.

    Raises:
        ValueError: other shapes, or nothing to compare.
    """
    if images.shape != unedited.shape or len(images) != len(prompts):
        raise ValueError(
            f"got pictures {tuple(images.shape)} and {tuple(unedited.shape)} "
            f"of {len(prompts)} prompts: they must be the same."
        )
    at = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    far = 100 * (images - unedited).square().mean((1, 2, 3)).sqrt()
    return resampled(far, torch.tensor([at[p] for p in prompts]))
