"""Muon: momentum whose matrices are made orthogonal (kellerjordan.github.io/posts/muon, 2024)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

QUINTIC = (
    (8.2872, -23.5959, 17.3004),
    (4.1071, -2.9478, 0.5448),
    (3.9487, -2.9089, 0.5518),
    (3.3184, -2.4885, 0.5101),
)
"""Coefficients of each iteration's a x + b x^3 + c x^5 (Polar Express, arXiv:2505.16932)."""
RMS = 0.2
"""Root mean square of an update at learning rate 1, as AdamW's (arXiv:2502.16982, section 2.2)."""


def orthogonal(x: Tensor) -> Tensor:
    """The (R, C) matrix nearest ``x`` with singular values near 1.

    It iterates on the Gram matrix, whose side is the shorter one: the matrices of 3x3 convolutions
    are about nine times as long as wide, where in and out are alike.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x / (1.01 * x.norm() + 1e-12)
    gram, total = x @ x.T, None
    for i, (a, b, c) in enumerate(QUINTIC):
        p = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal().add_(a)
        total = p if total is None else p @ total
        if i + 1 < len(QUINTIC):
            gram = p @ gram @ p
    return total @ x


class Muon(torch.optim.Optimizer):
    """For weights of two and more dimensions; convolutions count as (out, in x height x width)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                if "momentum" not in self.state[w]:
                    self.state[w]["momentum"] = torch.zeros_like(w)
                m = self.state[w]["momentum"]
                m.lerp_(w.grad, 1 - group["momentum"])
                update = orthogonal(w.grad.lerp(m, group["momentum"]).flatten(1))
                size = group["lr"] * RMS * max(update.shape) ** 0.5
                w.add_(update.reshape(w.shape), alpha=-size)
