"""Latents of finished pictures, noised anew: what CA and MACE train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from tqdm import tqdm

from efface.models import DiffusionModel
from efface.settings import Range, check_ranges
from efface.training.erasure import Job


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Finished pictures of the frozen model, made once."""

    n: Annotated[int, Range(1, 100_000)] = 32
    """Of each prompt."""
    ddim_steps: Annotated[int, Range(1, 1000)] = 25
    """Steps of a picture."""
    cfg: Annotated[float, Range(-100, 100)] = 6.0
    """Scale of classifier-free guidance."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def make(self, job: Job, prompts: Sequence[str]) -> Noised:
        """The pictures of some prompts."""
        return Noised(job.model, prompts, self, job.generator("pictures"), job.run.progress)


class Noised:
    """Latents of finished pictures that the frozen model drew, noised anew for every draw.

    They are taken before the autoencoder, which would only blur them.
    """

    def __init__(
        self,
        model: DiffusionModel,
        prompts: Sequence[str],
        config: Pictures,
        g: torch.Generator,
        progress: bool = True,
    ) -> None:
        self.model = model
        n = config.n
        schedule, span = model.schedule(config.ddim_steps), range(config.ddim_steps)
        cond = model.embed(prompts, null=True)
        parts = [
            model.rollout(model.noise(n, g), cond[[i]].repeat(n), schedule, span, config.cfg).cpu()
            for i in tqdm(range(len(prompts)), desc="pictures", unit="prompt", disable=not progress)
        ]
        self.z0 = torch.cat(parts)
        """(P·n, C, H, W), prompt by prompt."""
        self.prompt = torch.arange(len(prompts)).repeat_interleave(n)
        """Index of the prompt of each."""

    def draw(
        self, g: torch.Generator, batch: int, chance: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``batch`` noised pictures.

        Args:
            chance: weights of the timesteps, (T,); None: all alike.

        Returns:
            z (B, C, H, W), t (B,), and the index of each picture (B,) on the CPU.
        """
        row = torch.randint(0, len(self.z0), (batch,), generator=g)
        if chance is None:
            chance = torch.ones(self.model.process.times)
        t = torch.multinomial(chance, batch, replacement=True, generator=g)
        noise = torch.randn(self.z0[row].shape, generator=g)
        z = self.model.process.noised(self.z0[row], noise, t)
        return z.to(self.model.device), t.to(self.model.device), row
