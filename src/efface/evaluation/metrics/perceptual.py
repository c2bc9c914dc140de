"""LPIPS: perceptual distance to the unedited picture of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.errors import UserError
from efface.evaluation.metrics.metric import Given, Metric, grouped
from efface.scores import Score, grouped_mean


def network(backbone: str = "alex") -> Any:
    """The network of the ``lpips`` package, with its weights.

    Raises:
        UserError: the package, or its backbone's weights, are not there.
    """
    try:
        import lpips

        return lpips.LPIPS(net=backbone, verbose=False).eval()
    except ImportError:
        raise UserError("LPIPS is not installed: pip install 'efface[lpips]'.") from None
    except OSError as e:  # no network and no cached weights
        raise UserError(f"LPIPS cannot get the weights of its backbone {backbone!r}: {e}") from None


@torch.no_grad()
def lpips_distance(images: Tensor, unedited: Tensor, prompts: Sequence[str], net: Any) -> Score:
    """LPIPS to the unedited picture; lower: more alike. The interval draws whole prompts.

    Args:
        images: (N, 3, H, W) in [0, 1], at least 64 pixels a side.
        unedited: the same prompts and seeds, without the edit.
        prompts: N prompts.
        net: of :func:`network`; any callable on two (B, 3, H, W) batches in [-1, 1].

    Source: arXiv:1801.03924.
    """
    if images.shape != unedited.shape or not len(images):
        raise ValueError(f"got pictures {tuple(images.shape)} and {tuple(unedited.shape)}.")
    pairs = zip(images.split(32), unedited.split(32), strict=True)
    far = torch.cat([distances(a, b, net) for a, b in pairs])
    return grouped_mean(far, grouped(prompts), "prompts")


@torch.no_grad()
def distances(images: Tensor, unedited: Tensor, net: Any) -> Tensor:
    """LPIPS of each pair of pictures, (N,)."""
    found: Tensor = net(2 * images - 1, 2 * unedited - 1).flatten()
    return found


class LPIPS(Metric):
    """LPIPS of every group of prompts."""

    name: ClassVar[str] = "lpips"
    better: ClassVar[str] = "lower for preserved prompts"
    unit: ClassVar[str] = "LPIPS"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "lpips"})
    install: ClassVar[str] = "pip install 'efface[lpips]'"

    def measure(self, given: Given) -> dict[str, Score]:
        """One score a group."""
        net, found = given.tools.get("lpips") or network(), {}
        for suffix, rows in given.groups().items():
            far = torch.cat([distances(x, y, net) for x, y in given.pairs(rows)])
            found[f"LPIPS{suffix}"] = grouped_mean(far, grouped(given.prompts(rows)), "prompts")
        return found
