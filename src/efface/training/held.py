"""Preserved words on latents chosen once, with what the frozen model predicts there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from efface.models import Conditioning
from efface.training.erasure import Job
from efface.training.latents import Banked, drawn
from efface.training.search.pools import Drawn, Pools


class HeldWords(NamedTuple):
    """Preserved words of an update, a row each."""

    cond: Conditioning
    """Encoded, N rows."""
    z: Tensor
    """What they are predicted on, (N, C, H, W)."""
    t: Tensor
    """Its timesteps, (N,)."""
    goal: Tensor
    """What the frozen model predicts there, (N, C, H, W)."""
    weight: Tensor
    """What a squared error of a prediction is as one of the clean latent, (N,)."""


class Held:
    """``n`` latents of a bank for every candidate: the frozen model is asked once for each.

    Costs ``U n`` evaluations before the first update, and none afterwards.
    """

    def __init__(self, job: Job, pools: Pools, bank: Banked, n: int) -> None:
        g, count = job.generator("held"), len(pools.words) * n
        self.bank, self.n = bank, n
        self.path = drawn(bank.odds, len(bank.z), count, g)
        self.step = torch.randint(0, len(bank.t), (count,), generator=g)
        model, batch = job.model, job.model.at_once
        parts = []
        for i in tqdm(
            range(0, count, batch),
            desc="preserved words",
            unit="batch",
            disable=not job.run.progress,
        ):
            rows = torch.arange(i, min(i + batch, count))
            cond = pools.take(rows // n)
            z, t = (x.to(model.device) for x in self._at(rows))
            with torch.no_grad():
                parts.append(model.predict(z, t, cond).cpu())
        self.goal = torch.cat(parts)

    def _at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.bank.z[self.path[rows], self.step[rows]], self.bank.t[self.step[rows]]

    def beside(self, words: Drawn, g: torch.Generator) -> HeldWords:
        """Each drawn word on one of its latents."""
        rows = words.chosen * self.n + torch.randint(0, self.n, (len(words.chosen),), generator=g)
        to = self.bank.model.device
        z, t = self._at(rows)
        weight = self.bank.weight[self.step[rows]]
        return HeldWords(words.cond, z.to(to), t.to(to), self.goal[rows].to(to), weight.to(to))
