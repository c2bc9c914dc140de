"""A training tried out: what it will take, from two of its updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from efface.models import Conditioning, DiffusionModel, Weights

TRIED = 2
"""Updates that are made and timed; the first warms up, and the second stands for the rest."""
TIMED = 2
"""Latents that the frozen denoiser is timed on."""


class LookedAt(Exception):
    """A loss looks into the denoiser, which is not to be run."""


@dataclass
class Trial:
    """What has been found out so far of a training that is only tried out."""

    rows: int = 0
    """Evaluations without a gradient that were left out."""
    updates: int = 0
    """All that the training will make."""
    training: float = 0.0
    """Seconds of them all, without what was left out."""
    update: float = 0.0
    """Seconds of one, without what was left out."""
    away: float = 0.0
    """Seconds of the trial that were spent on updates."""
    state: int = 0
    """Bytes of what a killed training goes on from."""
    counting: bool = False
    """Whether nothing at all is to be evaluated."""

    def loop(self, model: DiffusionModel, updates: int, make: Callable[[int, bool], object]) -> int:
        """Time the first updates of a training, and count what the others evaluate.

        Of the others each takes as long as the last one that is timed, times how many latents more
        a gradient comes back from: some methods search later on, or now and then.

        Args:
            updates: all of them.
            make: makes one by its number; whether it is only counted.

        Returns:
            How many were made.
        """
        whole, times, before = perf_counter(), [0.0], model.counter.copy()
        made = min(TRIED, updates)
        for update in range(made):
            before, began = model.counter.copy(), perf_counter()
            rows = self.rows
            make(update, False)
            settle(model)
            times.append(perf_counter() - began)
        after = model.counter.copy()
        spent, rows = after.since(before), self.rows - rows
        self.counting = True
        try:
            for update in range(made, updates):
                try:
                    make(update, True)
                except LookedAt:
                    left = updates - update
                    model.counter.forward += left * spent.forward
                    model.counter.backward += left * spent.backward
                    self.rows += left * rows
                    break
        finally:
            self.counting = False
        self.updates += updates
        self.update = times[-1]
        again = model.counter.since(after).backward
        rest = again / spent.backward if spent.backward else updates - made
        self.training += sum(times) + rest * times[-1]
        self.away += perf_counter() - whole
        return made


def settle(model: DiffusionModel) -> None:
    """Wait until the device has done what it was told."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def row_seconds(model: DiffusionModel) -> float:
    """Seconds of one evaluation of the frozen denoiser without a gradient."""
    g = torch.Generator().manual_seed(0)
    took = 0.0
    with torch.no_grad():
        for n in (1, TIMED):
            z, cond = model.noise(n, g), model.null(n)
            t = torch.full((n,), model.process.times // 2, device=model.device)
            settle(model)
            began = perf_counter()
            model.predict(z, t, cond)
            settle(model)
            took = (perf_counter() - began) / n
    return took


@contextmanager
def hollow(model: DiffusionModel, trial: Trial) -> Iterator[None]:
    """Leave out evaluations that no gradient comes back from; they are counted all the same.

    A latent stands for what is predicted of it. Where something looks into the denoiser, it runs.
    """
    real, parts = model.predict, list(model.denoiser.modules())

    def predict(
        z: Tensor,
        t: Tensor,
        cond: Conditioning,
        weights: Weights | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        ties = linked(z, cond, weights) if torch.is_grad_enabled() else []
        looked = any(m._forward_hooks for m in parts)
        if looked and trial.counting:
            raise LookedAt
        if (ties or looked) and not trial.counting:
            return real(z, t, cond, weights, guidance)
        if not ties:
            trial.rows += len(z)
        out = z.float()
        for x in ties:
            out = out + 0 * x.flatten()[:1].sum()
        model.counter.see(len(z), out)
        return out

    patched: Any = model
    patched.predict = predict
    try:
        yield
    finally:
        del patched.predict


def linked(z: Tensor, cond: Conditioning, weights: Weights | None) -> list[Tensor]:
    """What a gradient of a prediction would reach, one weight for all."""
    trained = next((w for w in (weights or {}).values() if w.requires_grad), None)
    some = (z, cond.states, cond.pooled, trained)
    return [x for x in some if x is not None and x.requires_grad]
