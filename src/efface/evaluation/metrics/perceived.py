"""How differently a network sees two pictures of one prompt and seed; does not saturate."""

from __future__ import annotations

from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import UserError
from efface.evaluation.metrics.metric import Given, Metric, grouped
from efface.scores import Score, grouped_mean


class Sees(Protocol):
    """A network that shows its inner pictures."""

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) at each depth."""
        ...


@torch.no_grad()
def perceived(images: Tensor, unedited: Tensor, network: Sees) -> Tensor:
    """The distance of each pair of pictures, (N,), times 100; 0: seen as the same.

    At every depth the channels of each place are a unit vector; their squared distance, averaged
    over places and depths. As LPIPS (arXiv:1801.03924, section 3), with a judge's network and
    without weights of the channels.

    Args:
        images: (N, 3, H, W) in [0, 1].
        unedited: the same prompts and seeds, without the edit.
    """
    parts = []
    for x, y in zip(images.split(256), unedited.split(256), strict=True):
        pairs = zip(network.features(x), network.features(y), strict=True)
        far = [(normalize(a, dim=1) - normalize(b, dim=1)).square().sum(1) for a, b in pairs]
        parts.append(torch.stack([d.mean((1, 2)) for d in far]).mean(0))
    return 100 * torch.cat(parts)


class Perceived(Metric):
    """The perceived distance of every group of prompts."""

    name: ClassVar[str] = "perceived"
    better: ClassVar[str] = "lower for preserved prompts"
    unit: ClassVar[str] = "100 squared distance of unit features"
    needs: ClassVar[frozenset[str]] = frozenset({"judge", "pairs"})

    def measure(self, given: Given) -> dict[str, Score]:
        """One score a group."""
        judge = given.judge
        if not hasattr(judge, "features"):
            raise UserError(
                f"the judge {getattr(judge, 'version', None)!r} does not show what it sees inside."
            )
        found, network = {}, cast(Sees, judge)
        for suffix, rows in given.groups().items():
            far = torch.cat([perceived(x, y, network) for x, y in given.pairs(rows)])
            found[f"perceived{suffix}"] = grouped_mean(far, grouped(given.prompts(rows)), "prompts")
        return found
