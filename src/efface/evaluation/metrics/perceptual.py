"""LPIPS: perceptual distance to the unedited picture of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.scores import Score, resampled


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
    parts = [
        net(2 * a - 1, 2 * b - 1).flatten()
        for a, b in zip(images.split(32), unedited.split(32), strict=True)
    ]
    at = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    return resampled(torch.cat(parts), torch.tensor([at[p] for p in prompts]))
