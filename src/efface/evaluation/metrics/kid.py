"""KID: squared maximum mean discrepancy with a cubic kernel."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from efface.evaluation.metrics.metric import Given, Metric
from efface.scores import Score, jackknifed


def mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate with the kernel (x·y / D + 1)³ (arXiv:1801.01401, section 4)."""
    x, y = x.double(), y.double()
    n, m, d = len(x), len(y), x.shape[1]
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kid(x: Tensor, y: Tensor) -> Score:
    """KID times 1000; lower: the sets are more alike; may be below 0. Jackknife interval.

    Args:
        x: features of the pictures, (N, D).
        y: of the reference pictures, (M, D).

    Raises:
        ValueError: fewer than 20 pictures on a side.
    """
    return jackknifed(lambda a, b: 1000 * mmd2(a, b), x, y)


class KID(Metric):
    """KID to the unedited pictures, in CLIP's features."""

    name: ClassVar[str] = "kid"
    better: ClassVar[str] = "lower"
    unit: ClassVar[str] = "1000 squared MMD"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "clip"})
    least: ClassVar[int] = 20

    def measure(self, given: Given) -> dict[str, Score]:
        """One score over all pictures, by the CLIP's name."""
        assert given.base is not None
        own, base = given.vectors(given.samples), given.vectors(given.base)
        return {f"KID to the unedited ({given.clip.name})": kid(own, base)}
