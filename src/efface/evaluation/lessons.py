"""Pictures as a training sees them: noised anew for every draw, with what is to be predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from efface.models import Conditioning, DiffusionModel, Weights


class Lessons:
    """The plain diffusion loss on a few pictures."""

    def __init__(self, model: DiffusionModel, pictures: Tensor) -> None:
        self.model = model
        n = max(1, model.at_once // 4)
        self.clean = torch.cat([model.encode(part) for part in pictures.split(n)])

    def draw(self, batch: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``batch`` noised pictures.

        Returns:
            z (B, C, H, W), t (B,), what is to be predicted (B, C, H, W), and which picture it is
            (B,) on the CPU.
        """
        process, to = self.model.process, self.model.device
        row = torch.randint(0, len(self.clean), (batch,), generator=g)
        t = torch.randint(0, process.times, (batch,), generator=g).to(to)
        return *self.at(row, t, g), row

    def at(self, row: Tensor, t: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The pictures ``row`` (B,) with noise of timesteps ``t`` (B,): z, t, and the goal."""
        clean = self.clean[row.to(self.clean.device)]
        noise = torch.randn(clean.shape, generator=g).to(clean.device)
        process = self.model.process
        return process.noised(clean, noise, t), t, process.goal(clean, noise)

    def loss(
        self, z: Tensor, t: Tensor, goal: Tensor, cond: Conditioning, weights: Weights | None
    ) -> Tensor:
        """The mean squared error of what is predicted."""
        return (self.model.predict(z, t, cond, weights) - goal).square().mean()
