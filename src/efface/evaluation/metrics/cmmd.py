"""CMMD: maximum mean discrepancy with a Gaussian kernel on unit CLIP features."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.evaluation.metrics.metric import Given, Metric
from efface.scores import Score, jackknifed

SIGMA = 10.0
"""Width of the kernel (arXiv:2401.09603, section 4)."""


def gaussian(x: Tensor, y: Tensor) -> float:
    """Biased squared MMD of unit features times 1000, as its authors compute it."""
    x, y = normalize(x.double(), dim=1), normalize(y.double(), dim=1)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * SIGMA**2)).mean()

    return float(1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))


def cmmd(x: Tensor, y: Tensor) -> Score:
    """CMMD (times 1000); lower: the sets are more alike. Jackknife interval.

    Args:
        x: CLIP features of the pictures, (N, D).
        y: of the reference pictures, (M, D).

    Raises:
        ValueError: fewer than 20 pictures on a side.
    """
    return jackknifed(gaussian, x, y)


class CMMD(Metric):
    """CMMD to the unedited pictures."""

    name: ClassVar[str] = "cmmd"
    better: ClassVar[str] = "lower"
    unit: ClassVar[str] = "1000 squared MMD"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "clip"})
    least: ClassVar[int] = 20

    def measure(self, given: Given) -> dict[str, Score]:
        """One score over all pictures, by the CLIP's name."""
        assert given.base is not None
        own, base = given.vectors(given.samples), given.vectors(given.base)
        return {f"CMMD to the unedited ({given.clip.name})": cmmd(own, base)}
