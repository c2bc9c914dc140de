"""Preserved words on latents chosen once, with what the frozen model predicts there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from efface.models import Conditioning
from efface.training.batches import Batch, drawn
from efface.training.erasure import Job
from efface.training.latents import Banked
from efface.training.search.pools import Drawn, Pools, Searching, Setting
from efface.training.student import Student
from efface.training.tuning import Tuning


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
        path = drawn(bank.odds, len(bank.z), count, g)
        self.step = torch.randint(0, len(bank.t), (count,), generator=g)
        self.z = bank.z[path, self.step]  # the bank may hold others later
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
        return self.z[rows], self.bank.t[self.step[rows]]

    def beside(self, words: Drawn, g: torch.Generator) -> HeldWords:
        """Each drawn word on one of its latents."""
        rows = words.chosen * self.n + torch.randint(0, self.n, (len(words.chosen),), generator=g)
        to = self.bank.model.device
        z, t = self._at(rows)
        weight = self.bank.weight[self.step[rows]]
        return HeldWords(words.cond, z.to(to), t.to(to), self.goal[rows].to(to), weight.to(to))


Drawing = Callable[[Student, torch.Generator], tuple[Batch, Tensor, HeldWords]]
"""Draws an update's rows: a batch, which candidates are preserved beside it, and they."""


def drawing(setting: Setting, search: Searching, batch: int, n: int, reuse: int) -> Drawing:
    """How an update's rows are drawn, with ``n`` preserved words beside its batch.

    Args:
        reuse: latents of a bank on which each word is held, where that saves evaluations; 0: words
            are preserved on the latents of the update.
    """
    job, candidates, source, _ = setting
    tuning, fixed = job.method, None
    assert isinstance(tuning, Tuning)
    asked = tuning.updates * tuning.accumulate * n
    if isinstance(source, Banked) and 0 < reuse * len(candidates.words) < asked:
        fixed = Held(job, candidates, source, reuse)

    def held(student: Student, g: torch.Generator) -> tuple[Batch, Tensor, HeldWords]:
        assert fixed is not None
        b = source.draw(g, batch, student.weights)
        found = search.draw(b.which, n, g)
        return b, found.chosen, fixed.beside(found, g)

    def anew(student: Student, g: torch.Generator) -> tuple[Batch, Tensor, HeldWords]:
        found: list[Drawn] = []

        def choose(which: Tensor) -> Conditioning:
            found.append(search.draw(which, n, g))
            return found[0].cond

        b, words = source.draw_beside(g, batch, student.weights, choose)
        with torch.no_grad():
            goal = job.model.predict(words.z, words.t, words.cond)
        weight = b.weight[words.rows]
        return b, found[0].chosen, HeldWords(words.cond, words.z, words.t, goal, weight)

    return anew if fixed is None else held
