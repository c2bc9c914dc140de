"""How a model puts noise on a latent and takes it away: by diffusion, or along a straight flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efface.errors import UserError


class Schedule(ABC):
    """The steps of a deterministic rollout."""

    timesteps: Tensor
    """What the denoiser is told at each step, (S,), from the noisiest on."""

    @abstractmethod
    def step(self, z: Tensor, prediction: Tensor, i: int) -> Tensor:
        """Latents after step ``i``."""

    @abstractmethod
    def back(self, z: Tensor, prediction: Tensor, i: int) -> Tensor:
        """Latents before step ``i``, of which :meth:`step` with this prediction makes ``z``."""


class Process(ABC):
    """The noise of a model: what its predictions mean, and how they are used."""

    times: int
    """Timesteps of the training."""

    @abstractmethod
    def read(self, out: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The denoiser's output as a prediction, (B, C, H, W)."""

    @abstractmethod
    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Clean latents (B, C, H, W) with noise of timesteps (B,) on them."""

    @abstractmethod
    def goal(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What a prediction for such latents should be."""

    @abstractmethod
    def weight(self, t: Tensor) -> Tensor:
        """What a squared error of the prediction is as one of the clean latent, (B,)."""

    @abstractmethod
    def schedule(self, steps: int, device: torch.device) -> Schedule:
        """A deterministic rollout of ``steps`` steps."""

    @abstractmethod
    def sampler(self, scheduler: Any, steps: int, device: torch.device) -> Any:
        """The model's own diffusers scheduler, ready to step on predictions."""


class DDIM(Schedule):
    """Deterministic steps on ε (arXiv:2010.02502, equation 12), at leading timesteps plus one."""

    def __init__(self, alphas: Tensor, steps: int) -> None:
        self.alphas, self.width = alphas, len(alphas) // steps
        times = torch.arange(steps - 1, -1, -1, device=alphas.device)
        self.timesteps = times * self.width + 1

    def step(self, z: Tensor, prediction: Tensor, i: int) -> Tensor:
        """Latents one step cleaner."""
        t = int(self.timesteps[i])
        a, b = self.alphas[t], self.alphas[max(t - self.width, 0)]
        x0 = (z - (1 - a).sqrt() * prediction) / a.sqrt()
        return b.sqrt() * x0 + (1 - b).sqrt() * prediction

    def back(self, z: Tensor, prediction: Tensor, i: int) -> Tensor:
        """Latents one step noisier."""
        t = int(self.timesteps[i])
        a, b = self.alphas[t], self.alphas[max(t - self.width, 0)]
        x0 = (z - (1 - b).sqrt() * prediction) / b.sqrt()
        return a.sqrt() * x0 + (1 - a).sqrt() * prediction


@dataclass(frozen=True)
class Diffusion(Process):
    """z = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) ε; predictions are ε, from denoisers that give ε or v."""

    alphas: Tensor
    """ᾱ of the training timesteps, (T,), fp32."""
    kind: str
    """``epsilon`` or ``v_prediction``: what the denoiser gives out."""

    @property
    def times(self) -> int:  # type: ignore[override]
        """Timesteps of the training."""
        return len(self.alphas)

    def read(self, out: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """ε of the denoiser's output."""
        if self.kind == "epsilon":
            return out
        a = self.alphas[t.long()].view(-1, 1, 1, 1)
        return a.sqrt() * out + (1 - a).sqrt() * z  # arXiv:2202.00512, appendix D

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """As much noise as belongs to the timesteps."""
        a = self.alphas.to(clean.device)[t.to(clean.device)].view(-1, 1, 1, 1)
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def goal(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The noise."""
        return noise

    def weight(self, t: Tensor) -> Tensor:
        """(1 - ᾱ) / ᾱ."""
        a = self.alphas[t.to(self.alphas.device)]
        return (1 - a) / a

    def schedule(self, steps: int, device: torch.device) -> DDIM:
        """DDIM without noise of its own."""
        return DDIM(self.alphas.to(device), steps)

    def sampler(self, scheduler: Any, steps: int, device: torch.device) -> Any:
        """The scheduler, told that it gets ε."""
        config = {**scheduler.config, "prediction_type": "epsilon"}
        own = type(scheduler).from_config(config)
        own.set_timesteps(steps, device=device)
        return own


class Euler(Schedule):
    """Straight steps along the velocity."""

    def __init__(self, sigmas: Tensor, times: int) -> None:
        self.sigmas, self.timesteps = sigmas, sigmas[:-1] * times

    def step(self, z: Tensor, prediction: Tensor, i: int) -> Tensor:
        """Latents one step cleaner."""
        return z + (self.sigmas[i + 1] - self.sigmas[i]) * prediction

    def back(self, z: Tensor, prediction: Tensor, i: int) -> Tensor:
        """Latents one step noisier."""
        return z - (self.sigmas[i + 1] - self.sigmas[i]) * prediction


@dataclass(frozen=True)
class Flow(Process):
    """z = (1 - σ) x0 + σ noise; predictions are the velocity, noise - x0 (arXiv:2403.03206)."""

    scheduler: Any
    """The model's flow-matching scheduler."""
    mu: Callable[[int], float]
    """Shift of the schedule for a number of steps, where it depends on the picture's size."""
    from_one: bool
    """Spread σ evenly from 1 before the shift, as FLUX does; else as the scheduler does."""

    @property
    def times(self) -> int:  # type: ignore[override]
        """Timesteps of the training."""
        return int(self.scheduler.config.num_train_timesteps)

    def sigma(self, t: Tensor) -> Tensor:
        """σ of timesteps (B,), as (B, 1, 1, 1)."""
        return (t.float() / self.times).view(-1, 1, 1, 1)

    def read(self, out: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The velocity is what comes out."""
        return out

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """A point on the straight line."""
        s = self.sigma(t.to(clean.device))
        return (1 - s) * clean + s * noise

    def goal(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The velocity."""
        return noise - clean

    def weight(self, t: Tensor) -> Tensor:
        """σ²."""
        return (t.float() / self.times).square()

    def schedule(self, steps: int, device: torch.device) -> Euler:
        """Euler steps at the model's own σ."""
        return Euler(self.sampler(self.scheduler, steps, device).sigmas.to(device), self.times)

    def sampler(self, scheduler: Any, steps: int, device: torch.device) -> Any:
        """The scheduler with its σ."""
        own = type(scheduler).from_config(scheduler.config)
        options: dict[str, Any] = {}
        if own.config.get("use_dynamic_shifting"):
            options["mu"] = self.mu(steps)
        if self.from_one and not own.config.get("use_flow_sigmas"):
            options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        else:
            options["num_inference_steps"] = steps
        own.set_timesteps(device=device, **options)
        return own


def process_of(
    scheduler: Any, mu: Callable[[int], float], from_one: bool, device: torch.device
) -> Process:
    """The process that a diffusers scheduler belongs to.

    Args:
        mu: shift of a flow's schedule for a number of steps.

    Raises:
        UserError: another scheduler or prediction than efface follows.
    """
    config = scheduler.config
    if hasattr(scheduler, "alphas_cumprod"):
        alphas = scheduler.alphas_cumprod.float().to(device)
        if config.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"models that predict {config.prediction_type!r} are not supported; epsilon and "
                "v_prediction are."
            )
        return Diffusion(alphas, config.prediction_type)
    if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler":
        raise UserError(
            f"the scheduler {type(scheduler).__name__} is not supported: efface needs one with "
            "alphas_cumprod, or FlowMatchEulerDiscreteScheduler."
        )
    return Flow(scheduler, mu, from_one)


def sampled(
    scheduler: Any,
    z: Tensor,
    draws: Sequence[torch.Generator],
    guess: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Latents at the end of a diffusers scheduler's steps.

    Args:
        scheduler: of :meth:`Process.sampler`.
        z: noise, (B, C, H, W).
        draws: a generator for each row, for solvers that draw.
        guess: the prediction for (latents, timesteps).
    """
    drawing = "generator" in signature(scheduler.step).parameters
    options = {"generator": list(draws)} if drawing else {}
    scale = getattr(scheduler, "scale_model_input", lambda z, _: z)
    z = z * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        z = scheduler.step(
            guess(scale(z, t), t.expand(len(z))), t, z, return_dict=False, **options
        )[0]
    return z
