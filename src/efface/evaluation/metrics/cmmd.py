"""CMMD: maximum mean discrepancy with a Gaussian kernel on unit CLIP features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
