"""A text-to-image diffusion model, reduced to four verbs: embed, predict, rollout, generate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from efface.errors import UserError, pick
from efface.models.components import Components
from efface.models.conditioning import Conditioning, chosen, stack
from efface.models.counter import Counter
from efface.models.families.family import Asked, warn_long
from efface.models.placement import overflows
from efface.models.process import Schedule, sampled
from efface.settings import Range, need

Weights = Mapping[str, Tensor]
"""Parameter name -> tensor, laid over the frozen denoiser."""


GUIDANCE, SEEDS = Range(0, 1000), Range(-(2**63), 2**64 - 1)
"""Scales of guidance, and what a generator of PyTorch can be seeded with."""


def to_image(x: Tensor) -> Image.Image:
    """A (3, H, W) tensor in [0, 1] as a picture."""
    return Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())


class DiffusionModel(Components):
    """The parts of a diffusers pipeline, frozen, and what can be asked of them.

    The denoiser is never copied: an edited model is this one with some of its weights laid over
    (``weights=`` in every verb). Predictions are the noise ε, whatever the denoiser gives out, or
    the velocity in flow models (:class:`~efface.models.process.Process`).
    """

    # -- embed ---------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(
        self, prompts: Sequence[str], batch: int = 0, where: str = "", null: bool = False
    ) -> Conditioning:
        """Encode prompts, each a row of (L, D) hidden states.

        Warns (and says what is cut) where a prompt is longer than the tokenizer allows.

        Args:
            prompts: B texts.
            batch: prompts per call of the text encoders; 0: by the length of an encoded one.
            where: device of the result; "": the model's.
            null: ``""`` is the null prompt of the guidance, which some families do not encode
                (SDXL's is zeros).
        """
        warn_long(self.family, self.parts, prompts)
        batch = batch or self._texts_at_once
        parts, few, to = [], len(prompts) < 4000, (where or self.device, self.dtype)
        for i in tqdm(range(0, len(prompts), batch), desc="embed", disable=few):
            some = self.family.encode(self.parts, prompts[i : i + batch], self.device)
            parts.append(some.each(lambda x: x.to(*to)))
        whole = stack(parts)
        if null and "" in prompts:
            said = torch.tensor([bool(p) for p in prompts])
            whole = chosen(said, whole, self.family.null(whole))
        return whole

    def null(self, n: int) -> Conditioning:
        """The null prompt of the guidance, ``n`` times; encoded once."""
        self._null = self._null or self.family.null(self.embed([""], batch=1))
        return self._null.repeat(n)

    @torch.no_grad()
    def words(self, prompts: Sequence[str]) -> Tensor:
        """States of each prompt's last word, (n, r, D): one of each of r text encoders.

        What :meth:`embed` gives at :meth:`last_word`, but for rounding; CLIP, whose states do not
        depend on what comes after them, is asked for no more tokens than the prompts have.
        """
        warn_long(self.family, self.parts, prompts)
        n, dtype = self._texts_at_once, self.dtype
        some = (prompts[i : i + n] for i in range(0, len(prompts), n))
        return torch.cat(
            [self.family.word_states(self.parts, p, self.device).to(dtype) for p in some]
        )

    @property
    def _texts_at_once(self) -> int:
        """Prompts per call of the text encoders, by the length of an encoded one."""
        return max(1, min(256, 2**14 // self.null(1).states.shape[1]))

    def last_word(self, prompts: Sequence[str]) -> Tensor:
        """Positions of each prompt's last word among its states, (n, r): once an encoder."""
        return self.family.last_word(self.parts, prompts)

    # -- predict -------------------------------------------------------------------------------

    def predict(
        self,
        z: Tensor,
        t: Tensor,
        cond: Conditioning,
        weights: Weights | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """What the model predicts for a latent: its noise, or its velocity in flow models.

        Without ``weights`` this is the frozen model and no gradient is kept for it, except through
        ``cond``.

        Args:
            z: noisy latents, (B, C, H, W).
            t: training timesteps, (B,).
            cond: B encoded prompts.
            weights: laid over the denoiser's own; gradients reach them.
            guidance: the number that denoisers with embedded guidance are told; 1 in training.

        Returns:
            The prediction, (B, C, H, W), in fp32.
        """
        self.fill()
        dtype = self.dtype  # once: diffusers looks through all of its weights for it
        half = cond.each(lambda x: x.to(dtype))
        asked = Asked(self.denoiser, z.to(dtype), t, half, guidance, self.picture_size)
        inputs = {**self.family.inputs(asked), "return_dict": False}
        if weights:
            cast = {k: w.to(dtype) for k, w in weights.items()}
            out = functional_call(self.denoiser, cast, (), inputs)[0]
        else:
            out = self.denoiser(**inputs)[0]
        found = self.family.output(out, z).float()
        self.counter.see(len(z), found)
        return self.process.read(found, z.float(), t)

    def guided(
        self, z: Tensor, t: Tensor, cond: Conditioning, guidance: float, weights: Weights | None
    ) -> Tensor:
        """The prediction with guidance, as the model has it; a scale of 1 leaves it out."""
        if self.guides != "cfg":
            return self.predict(z, t, cond, weights, guidance)
        if guidance == 1:
            return self.predict(z, t, cond, weights)
        both = stack([self.null(len(z)), cond])
        e0, e1 = self.predict(torch.cat([z, z]), torch.cat([t, t]), both, weights).chunk(2)
        return e0 + guidance * (e1 - e0)

    # -- rollout -------------------------------------------------------------------------------

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` start latents from N(0, I), (n, C, H, W)."""
        return torch.randn((n, *self.latent_shape), generator=generator).to(self.device)

    def schedule(self, steps: int) -> Schedule:
        """A deterministic rollout of this model's noise schedule."""
        self.check_steps(steps, self.process.times - 1)  # DDIM's offset needs a timestep of room
        return self.process.schedule(steps, self.device)

    @torch.no_grad()
    def rollout(
        self,
        z: Tensor,
        cond: Conditioning,
        schedule: Schedule,
        span: range,
        guidance: float,
        weights: Weights | None = None,
        visit: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Partly denoise latents by deterministic steps with guidance.

        Args:
            z: latents at the first timestep of ``span``, (B, C, H, W).
            cond: B encoded prompts.
            schedule: of :meth:`schedule`.
            span: indices into its timesteps to be stepped through, in order.
            guidance: scale; 1 leaves the null prompt out.
            weights: laid over the denoiser's own.
            visit: called before each step with (index, latents, prediction for the null prompt,
                prediction for ``cond``).

        Returns:
            The latents after the last step.
        """
        both = stack([self.null(len(z)), cond]) if visit is not None else cond
        for i in span:
            t = schedule.timesteps[i].expand(len(z))
            if visit is None:
                guess = self.guided(z, t, cond, guidance, weights)
            else:
                pair = self.predict(torch.cat([z, z]), torch.cat([t, t]), both, weights)
                e0, e1 = pair.chunk(2)
                visit(i, z, e0, e1)
                guess = e0 + guidance * (e1 - e0)
                if self.guides != "cfg":
                    told = self.guides == "embedded" and guidance != 1
                    guess = self.predict(z, t, cond, weights, guidance) if told else e1
            z = schedule.step(z, guess, i)
        return z

    # -- generate ------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str] | Conditioning,
        seeds: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        weights: Weights | None = None,
        batch: int = 0,
        progress: bool = False,
        output_type: str = "pil",
    ) -> Iterator[Any]:
        """Make a picture for each (prompt, seed), in order.

        The start noise comes from the seed alone, drawn on the CPU, so that a picture does not
        depend on the pictures made beside it, nor on the device.

        Args:
            prompts: N texts, or one; or N encoded ones.
            seeds: N integers, or one for all.
            steps: sampling steps; None: the model's default.
            guidance: scale of classifier-free guidance; None: the model's default.
            weights: laid over the denoiser's own.
            batch: pictures at once; 0: by their size.
            output_type: ``pil``, or ``pt`` for tensors.

        Yields:
            PIL pictures; or tensors (3, H, W) in [0, 1], fp32, on the CPU.

        Raises:
            UserError: ``steps`` below 1, or more than the model has timesteps; a seed or a scale
                of guidance that is none.
            ValueError: not as many seeds as prompts.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        seeds = [seeds] * len(prompts) if isinstance(seeds, int) else seeds
        pick(dict.fromkeys(("pil", "pt")), output_type, "output type")
        if len(prompts) != len(seeds):
            raise ValueError(f"got {len(prompts)} prompts and {len(seeds)} seeds.")
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        self.check_steps(steps)
        need(guidance, "guidance", GUIDANCE, whole=False)
        for seed in seeds:
            need(seed, "seeds", SEEDS)
        batch = batch or max(1, self.at_once // 4)
        bar = tqdm(total=len(prompts), desc="generate", unit="picture", disable=not progress)
        for i in range(0, len(prompts), batch):
            some = prompts[i : i + batch]
            cond = some if isinstance(some, Conditioning) else self.embed(some)
            draws, noise = self.start(seeds[i : i + batch])
            guess = partial(self.guided, cond=cond, guidance=guidance, weights=weights)
            scheduler = self.process.sampler(self.scheduler, steps, self.device)
            made = self.decode(sampled(scheduler, noise, draws, guess))
            yield from made if output_type == "pt" else map(to_image, made)
            bar.update(len(some))
        bar.close()

    def start(self, seeds: Sequence[int]) -> tuple[list[torch.Generator], Tensor]:
        """The generators of pictures, one a seed, and their start noise (N, C, H, W)."""
        draws = [torch.Generator().manual_seed(int(s)) for s in seeds]
        noise = [torch.randn((1, *self.latent_shape), generator=g) for g in draws]
        return draws, torch.cat(noise).to(self.device)

    def check_steps(self, steps: int, most: int = 0) -> None:
        """Refuse a number of steps that the noise schedule cannot give."""
        most = most or self.process.times
        if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= most:
            raise UserError(f"got {steps} sampling steps; 1 to {most} are possible.")

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, H, W) as pictures (B, 3, sH, sW) in [0, 1], fp32, on the CPU.

        s is 8, of FLUX.2 Klein 16.
        """
        vae = self.vae
        if overflows(vae):  # a pipeline's, which is left as it is
            vae = copy.deepcopy(vae).float()
        scaled = self.family.unscaled(vae, z).to(next(vae.parameters()).dtype)
        x: Tensor = vae.decode(scaled, return_dict=False)[0].float()
        return ((x + 1) / 2).clamp(0, 1).cpu()

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, sH, sW) in [0, 1] as latents (B, C, H, W): the posterior's mode.

        s as in :meth:`decode`.
        """
        vae = self.vae
        if overflows(vae):
            vae = copy.deepcopy(vae).float()
        like = next(vae.parameters())
        found = vae.encode((2 * pictures - 1).to(like.device, like.dtype), return_dict=False)[0]
        return self.family.scaled(vae, found.mode().float())

    @contextmanager
    def counting(self) -> Iterator[Counter]:
        """Count the evaluations made inside the block."""
        before = self.counter.copy()
        yield (inside := Counter())
        vars(inside).update(vars(self.counter.since(before)))
