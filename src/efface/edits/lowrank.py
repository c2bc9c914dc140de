"""Low-rank adapters: what is trained instead of the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class LowRank:
    """``W + up @ down`` for every weight that has rows and columns.

    ``up`` starts at zero, so that nothing is changed at first; the factors have no scale of their
    own (alpha = rank). A convolution counts as the matrix (out, in·k·k). Norms and biases stay as
    they are.

    Source: arXiv:2106.09685, section 4.1.
    """

    def __init__(self, base: Mapping[str, Tensor], rank: int, g: torch.Generator) -> None:
        self.base = {k: w for k, w in base.items() if w.ndim >= 2}
        self.rank = rank
        self.factors: dict[str, Tensor] = {}
        for name, w in self.base.items():
            out, inner = w.flatten(1).shape
            bound = 1 / math.sqrt(inner)
            down = (2 * torch.rand((min(rank, out, inner), inner), generator=g) - 1) * bound
            self.factors[f"{name}/down"] = down.to(w.device)
            self.factors[f"{name}/up"] = torch.zeros(out, len(down), device=w.device)

    def weights(self, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights with the adapters on, differentiable in the factors."""
        return {
            k: w + (factors[f"{k}/up"] @ factors[f"{k}/down"]).view_as(w)
            for k, w in self.base.items()
        }
