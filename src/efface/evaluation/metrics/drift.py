"""Drift: how far preserved prompts' pictures moved from the unedited model's of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from efface.evaluation.metrics.metric import Given, Metric, grouped
from efface.scores import Score, grouped_mean


def drift(images: Tensor, unedited: Tensor, prompts: Sequence[str]) -> Score:
    """Root mean squared difference of two pictures of one prompt and seed, in percent of the range.

    Lower: the edit left the picture alone. The interval is over prompts like these.

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
    return grouped_mean(moved(images, unedited), grouped(prompts), "prompts")


def moved(images: Tensor, unedited: Tensor) -> Tensor:
    """The difference of each pair of pictures, in percent of the range, (N,)."""
    return 100 * (images - unedited).square().mean((1, 2, 3)).sqrt()


class Drift(Metric):
    """Drift of every group of prompts."""

    name: ClassVar[str] = "drift"
    better: ClassVar[str] = "lower"
    unit: ClassVar[str] = "% of the picture's range"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})

    def measure(self, given: Given) -> dict[str, Score]:
        """One score a group."""
        found = {}
        for suffix, rows in given.groups().items():
            far = torch.cat([moved(x, y) for x, y in given.pairs(rows)])
            found[f"drift{suffix}"] = grouped_mean(far, grouped(given.prompts(rows)), "prompts")
        return found
