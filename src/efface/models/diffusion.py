"""A text-to-image diffusion model, reduced to four verbs: embed, predict, rollout, generate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from efface.errors import UserError
from efface.models.conditioning import Conditioning, stack
from efface.models.counter import Counter

Weights = Mapping[str, Tensor]
"""Parameter name -> tensor, laid over the frozen denoiser."""


@dataclass
class DiffusionModel:
    """The parts of a diffusers pipeline, frozen, and what can be asked of them.

    The denoiser is never copied: an edited model is this one with some of its weights laid over
    (``weights=`` in every verb). Predictions are always the noise ε, whatever the model was trained
    to predict.
    """

    name: str
    """What it was loaded from."""
    tokenizer: Any
    text_encoder: nn.Module
    denoiser: nn.Module
    vae: Any
    scheduler: Any
    """The model's own diffusers scheduler; :meth:`generate` uses it, rollouts use DDIM with the
    same schedule."""
    base: str
    """Hash of the denoiser's weights as stored: what an edit remembers of its base."""
    steps: int = 50
    """Default sampling steps."""
    guidance: float = 7.5
    """Default scale of classifier-free guidance."""
    lr: float = 1e-5
    """Default learning rate of a fine-tuning."""
    folder: Path | None = None
    """The diffusers folder that it was opened from."""
    counter: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for part in (self.text_encoder, self.denoiser, self.vae):
            part.eval().requires_grad_(False)
        self.denoiser.register_forward_hook(self._count)
        self.alphas: Tensor = self.scheduler.alphas_cumprod.float().to(self.device)
        """ᾱ of the training timesteps, (T,), fp32."""

    def _count(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        n = len(args[0])
        self.counter.forward += n
        sample = output[0] if isinstance(output, tuple) else output.sample
        if sample.requires_grad:
            sample.register_hook(lambda _: self._count_backward(n))

    def _count_backward(self, n: int) -> None:
        self.counter.backward += n

    @property
    def device(self) -> torch.device:
        """Where the denoiser lives."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        return next(self.denoiser.parameters()).dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        config: Any = self.denoiser.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of a picture, in pixels."""
        up = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return (self.latent_shape[2] * up, self.latent_shape[1] * up)

    # -- embed ---------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], batch: int = 256) -> Conditioning:
        """Encode prompts, each a row of (L, D) hidden states.

        Warns (and says what is cut) where a prompt is longer than the tokenizer allows.

        Args:
            prompts: B texts; ``""`` is the null prompt.
            batch: prompts per call of the text encoder.
        """
        self.warn_long(prompts)
        parts = []
        few = len(prompts) < 4000
        for i in tqdm(range(0, len(prompts), batch), desc="embed", disable=few):
            ids = self.tokenizer(
                list(prompts[i : i + batch]),
                padding="max_length",
                truncation=True,
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            ).input_ids
            states = self.text_encoder(ids.to(self.device))[0]
            parts.append(Conditioning(states.to(self.dtype)))
        return stack(parts)

    def warn_long(self, prompts: Sequence[str]) -> None:
        """Warn of prompts that the tokenizer cuts, and say what is cut."""
        limit = self.tokenizer.model_max_length
        for prompt in prompts:
            if len(prompt) <= limit - 2:
                continue  # a token is at least one character
            ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
            if len(ids) > limit - 2:
                lost = self.tokenizer.decode(ids[limit - 2 :])
                warnings.warn(
                    f"the prompt is longer than {limit} tokens; cut off: {lost!r}", stacklevel=3
                )

    # -- predict -------------------------------------------------------------------------------

    def predict(
        self, z: Tensor, t: Tensor, cond: Conditioning, weights: Weights | None = None
    ) -> Tensor:
        """The noise that the model sees in a latent.

        Without ``weights`` this is the frozen model and no gradient is kept for it, except through
        ``cond``.

        Args:
            z: noisy latents, (B, C, H, W).
            t: training timesteps, (B,) integers.
            cond: B encoded prompts.
            weights: laid over the denoiser's own; gradients reach them.

        Returns:
            ε, (B, C, H, W), in fp32.
        """
        args = (z.to(self.dtype), t, cond.states.to(self.dtype))
        if weights:
            cast = {k: w.to(self.dtype) for k, w in weights.items()}
            out = functional_call(self.denoiser, cast, args, {"return_dict": False})[0]
        else:
            out = self.denoiser(*args, return_dict=False)[0]
        return self._as_noise(out.float(), z.float(), t)

    def _as_noise(self, out: Tensor, z: Tensor, t: Tensor) -> Tensor:
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return out
        a = self.alphas[t.long()].view(-1, 1, 1, 1)
        if kind == "v_prediction":  # arXiv:2202.00512, appendix D: v = sqrt(a) eps - sqrt(1-a) x0
            return a.sqrt() * out + (1 - a).sqrt() * z
        raise UserError(
            f"models that predict {kind!r} are not supported; epsilon and v_prediction are."
        )

    # -- rollout -------------------------------------------------------------------------------

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` start latents from N(0, I), (n, C, H, W)."""
        return torch.randn((n, *self.latent_shape), generator=generator).to(self.device)

    def ddim(self, steps: int) -> Any:
        """A DDIM scheduler of this model's noise schedule, ``steps`` leading timesteps plus one."""
        from diffusers import DDIMScheduler

        self.check_steps(steps, len(self.alphas) - 1)  # the offset of 1 needs a timestep of room
        config = {
            **self.scheduler.config,
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "clip_sample": False,
            "timestep_spacing": "leading",
        }
        scheduler = DDIMScheduler.from_config(config)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    @torch.no_grad()
    def rollout(
        self,
        z: Tensor,
        cond: Conditioning,
        scheduler: Any,
        span: range,
        guidance: float,
        weights: Weights | None = None,
        visit: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Partly denoise latents by deterministic DDIM with classifier-free guidance.

        Args:
            z: latents at the first timestep of ``span``, (B, C, H, W).
            cond: B encoded prompts.
            scheduler: of :meth:`ddim`.
            span: indices into its timesteps to be stepped through, in order.
            guidance: scale; 1 leaves the null prompt out.
            weights: laid over the denoiser's own.
            visit: called before each step with (index, latents, ε of the null prompt, ε of
                ``cond``).

        Returns:
            The latents after the last step.
        """
        null = self.embed([""] * len(z))
        both = stack([null, cond])
        for i in span:
            t = scheduler.timesteps[i]
            many = t.expand(2 * len(z))
            if guidance == 1 and visit is None:
                eps = self.predict(z, many[: len(z)], cond, weights)
            else:
                e0, e1 = self.predict(torch.cat([z, z]), many, both, weights).chunk(2)
                if visit is not None:
                    visit(i, z, e0, e1)
                eps = e0 + guidance * (e1 - e0)
            z = self._ddim_step(z, eps, int(t), scheduler)
        return z

    def _ddim_step(self, z: Tensor, eps: Tensor, t: int, scheduler: Any) -> Tensor:
        """One deterministic DDIM step on ε (arXiv:2010.02502, equation 12)."""
        before = t - len(self.alphas) // scheduler.num_inference_steps
        a = self.alphas[t]
        b = self.alphas[before if before >= 0 else 0]
        x0 = (z - (1 - a).sqrt() * eps) / a.sqrt()
        return b.sqrt() * x0 + (1 - b).sqrt() * eps

    # -- generate ------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None = None,
        guidance: float | None = None,
        weights: Weights | None = None,
        batch: int = 32,
        progress: bool = False,
    ) -> Iterator[Tensor]:
        """Make a picture for each (prompt, seed), in order.

        The start noise comes from the seed alone, drawn on the CPU, so that a picture does not
        depend on the pictures made beside it, nor on the device.

        Args:
            prompts: N texts.
            seeds: N integers.
            steps: sampling steps; None: the model's default.
            guidance: scale of classifier-free guidance; None: the model's default.
            weights: laid over the denoiser's own.
            batch: pictures at once.

        Yields:
            (3, H, W) pictures in [0, 1], fp32, on the CPU.

        Raises:
            UserError: ``steps`` below 1, or more than the model has timesteps.
            ValueError: not as many seeds as prompts.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"got {len(prompts)} prompts and {len(seeds)} seeds.")
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        self.check_steps(steps)
        bar = tqdm(total=len(prompts), desc="generate", unit="picture", disable=not progress)
        for i in range(0, len(prompts), batch):
            some = prompts[i : i + batch]
            draws = [torch.Generator().manual_seed(s) for s in seeds[i : i + batch]]
            z = self._sample(draws, self.embed(some), steps, guidance, weights)
            yield from self.decode(z)
            bar.update(len(some))
        bar.close()

    def check_steps(self, steps: int, most: int = 0) -> None:
        """Refuse a number of steps that the noise schedule cannot give."""
        most = most or len(self.alphas)
        if not 1 <= steps <= most:
            raise UserError(f"got {steps} sampling steps; 1 to {most} are possible.")

    def _sample(
        self,
        draws: Sequence[torch.Generator],
        cond: Conditioning,
        steps: int,
        guidance: float,
        weights: Weights | None,
    ) -> Tensor:
        scheduler = type(self.scheduler).from_config(
            {**self.scheduler.config, "prediction_type": "epsilon"}
        )
        scheduler.set_timesteps(steps, device=self.device)
        both = stack([self.embed([""] * len(draws)), cond])
        noise = [torch.randn((1, *self.latent_shape), generator=g) for g in draws]
        z = torch.cat(noise).to(self.device) * scheduler.init_noise_sigma
        drawing = "generator" in signature(scheduler.step).parameters  # ancestral solvers draw
        options = {"generator": list(draws)} if drawing else {}
        for t in scheduler.timesteps:
            x = scheduler.scale_model_input(z, t)
            if guidance == 1:
                eps = self.predict(x, t.expand(len(z)), cond, weights)
            else:
                e0, e1 = self.predict(torch.cat([x, x]), t.expand(2 * len(z)), both, weights).chunk(
                    2
                )
                eps = e0 + guidance * (e1 - e0)
            z = scheduler.step(eps, t, z, return_dict=False, **options)[0]
        return z  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, H, W) as pictures (B, 3, 8H, 8W) in [0, 1], fp32, on the CPU."""
        scaled = (z / self.vae.config.scaling_factor).to(next(self.vae.parameters()).dtype)
        x: Tensor = self.vae.decode(scaled, return_dict=False)[0].float()
        return ((x + 1) / 2).clamp(0, 1).cpu()

    # -- weights -------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """The denoiser's own weights by name, frozen."""
        return dict(self.denoiser.named_parameters())

    @contextmanager
    def counting(self) -> Iterator[Counter]:
        """Count the evaluations made inside the block."""
        before, inside = self.counter.copy(), Counter()
        yield inside
        spent = self.counter.since(before)
        inside.forward, inside.backward = spent.forward, spent.backward
