"""FID: Fréchet distance between two sets of pictures, in any feature space."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from efface.evaluation.metrics.metric import Given, Metric
from efface.scores import Score, jackknifed


def frechet(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to features (N, D) and (M, D).

    Source: arXiv:1706.08500, equation 6.
    """
    x, y = x.double(), y.double()
    away = (x.mean(0) - y.mean(0)).square().sum()
    a, b = torch.atleast_2d(torch.cov(x.T)), torch.atleast_2d(torch.cov(y.T))
    values, vectors = torch.linalg.eigh(a)
    root = vectors @ (values.clamp(min=0).sqrt()[:, None] * vectors.T)
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return float(away + a.trace() + b.trace() - 2 * cross)


def fid(x: Tensor, y: Tensor) -> Score:
    """Fréchet distance, unit: squared feature; lower: the sets are more alike.

    The name of the metric that is printed holds the feature extractor's: this is the FID of the
    literature only with Inception's features. Depends on N: compare equal N only. Jackknife
    interval.

    Args:
        x: features of the pictures, (N, D).
        y: of the reference pictures, (M, D).

    Raises:
        ValueError: fewer than 20 pictures on a side.
    """
    return jackknifed(frechet, x, y)


class FID(Metric):
    """FID to the unedited pictures, in CLIP's features."""

    name: ClassVar[str] = "fid"
    better: ClassVar[str] = "lower"
    unit: ClassVar[str] = "squared feature"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "clip"})
    least: ClassVar[int] = 20

    def measure(self, given: Given) -> dict[str, Score]:
        """One score over all pictures, by the CLIP's name."""
        assert given.base is not None
        own, base = given.vectors(given.samples), given.vectors(given.base)
        return {f"FID to the unedited ({given.clip.name})": fid(own, base)}
