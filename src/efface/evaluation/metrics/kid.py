"""KID: squared maximum mean discrepancy with a cubic kernel."""

from __future__ import annotations

from torch import Tensor

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
