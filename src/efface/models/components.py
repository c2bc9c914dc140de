"""The components of a text-to-image diffusion model: where they are, and what they fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from efface.errors import UserError
from efface.models.conditioning import Conditioning
from efface.models.counter import Counter
from efface.models.families.family import Family
from efface.models.fitting import check_fit
from efface.models.placement import pick_device
from efface.models.process import Process, process_of
from efface.settings import Range, need

Own = TypeVar("Own", bound="Components")


SIZE = Range(0, 8192)
"""Sides of pictures, in pixels."""


@dataclass
class Components:
    """The parts of a diffusers pipeline, frozen, and what is known of them."""

    name: str
    """What it was loaded from."""
    family: Family
    """What differs between families."""
    parts: dict[str, Any]
    """Components by diffusers' names: denoiser, ``vae``, ``scheduler``, text encoders and
    tokenizers."""
    hashed: Callable[[], str]
    """Gives :attr:`base`."""
    steps: int = 50
    """Default sampling steps."""
    guidance: float = 7.5
    """Default scale of guidance."""
    lr: float = 1e-5
    """Default learning rate of a fine-tuning."""
    folder: Path | None = None
    """The diffusers folder that it was opened from."""
    size: int = 0
    """Side of a picture in pixels; 0: what the model was made for."""
    quantised: str = ""
    """How frozen weights are quantised; "": not at all."""
    borrowed: bool = False
    """Whether the weights are somebody else's, a pipeline's."""
    counter: Counter = field(default_factory=Counter)
    inside: list[str] = field(default_factory=list)
    """The edits whose weights are in its own, while or since they were put there."""

    def __post_init__(self) -> None:
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        check_fit(self.family, self.parts)
        self._own = int(2 ** (len(self.vae.config.block_out_channels) - 1))
        """Pixels of a picture to one of the VAE's."""
        self._sized(self.size)
        self.shrink = self._own * self.family.patch
        """Pixels of a picture to one of a latent."""
        self.guides = self.family.guides(self.denoiser)
        """``cfg``, ``embedded`` or ``none``: how guidance works."""
        self._computes: tuple[torch.dtype, ...] = ()
        """Precision of the first weight, and what the denoiser computes in where it is that."""
        self._settle()

    def _sized(self, size: int) -> int:
        """A side of pictures that can be."""
        need(size, "size", SIZE)
        if size % (2 * self._own):
            raise UserError(
                f"got {size} pixels; the side of a picture must be a multiple of {2 * self._own}."
            )
        return size

    def _settle(self) -> None:
        """Put on the model's device what is not one of its parts."""
        tokens = self.family.tokens(self.latent_shape)
        mu = partial(self.family.shift, self.scheduler.config, tokens)
        self.process: Process = process_of(self.scheduler, mu, self.family.from_one, self.device)
        """How noise is added, and what predictions are."""
        self._null: Conditioning | None = None
        """The null prompt, once it was asked for."""

    def at(self: Own, size: int) -> Own:
        """The same model, parts and all, for pictures of another size.

        Args:
            size: side in pixels, 0 to 8,192.

        Raises:
            UserError: no such size.
        """
        other = copy.copy(self)
        other.size = self._sized(size)
        other._settle()
        return other

    def to(self: Own, device: str | torch.device) -> Own:
        """Move the model to another device, and give it back.

        Raises:
            UserError: it is a pipeline's, or the device is not there.
        """
        if self.borrowed:
            raise UserError(
                "this model's weights are a pipeline's: call pipe.to(device) and open it again."
            )
        to = pick_device(device)
        self.fill()
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                part.to(to)
        self._settle()
        return self

    @property
    def base(self) -> str:
        """Hash of the denoiser's weights as stored: what an edit remembers of its base.

        With an edit put into them it is another model, with another hash.
        """
        if not self.inside:
            return self._stored
        return sha256("\n".join([self._stored, *self.inside]).encode()).hexdigest()[:16]

    @cached_property
    def _stored(self) -> str:
        return self.hashed()

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return self.parts[self.family.denoiser]

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.parts["vae"]

    @property
    def scheduler(self) -> Any:
        """The model's own, which :meth:`generate` uses."""
        return self.parts["scheduler"]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the first text encoder."""
        return self.parts[next(iter(self.family.encoders.values()))]

    def fill(self) -> None:
        """Open the rest of a denoiser of which only some weights are in memory."""
        whole = getattr(self.denoiser, "whole", None)
        if whole is not None:
            self.parts[self.family.denoiser] = whole().eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the denoiser lives."""
        own = self.denoiser.parameters
        return next((p for p in own() if not p.is_meta), next(own())).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        first = next(self.denoiser.parameters()).dtype
        if self._computes[:1] != (first,):  # diffusers walks through all modules to find it
            self._computes = (first, self.denoiser.dtype)
        return self._computes[1]

    @property
    def precision(self) -> str:
        """Its name: ``float32``, ``bfloat16`` or ``float16``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        c, h, w = self.family.latent_shape(self.parts)
        side = self.size // self.shrink
        return (c, side, side) if side else (c, h, w)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of a picture, in pixels."""
        return (self.latent_shape[2] * self.shrink, self.latent_shape[1] * self.shrink)

    @property
    def at_once(self) -> int:
        """Latents to go through the denoiser together where nothing is kept for a gradient."""
        return max(1, min(128, 2**17 // (self.latent_shape[1] * self.latent_shape[2])))

    # -- weights -------------------------------------------------------------------------------

    def group(self, name: str) -> list[str]:
        """Names of the parameters in a weight group.

        Raises:
            UserError: no such group.
        """
        return self.family.group(self.denoiser, name)

    def text_maps(self) -> list[str]:
        """Names of the weights (out, D) that read text states and nothing else."""
        return self.family.text_maps(self.denoiser)

    def parameters(self) -> dict[str, Tensor]:
        """The denoiser's own weights by name, frozen."""
        return dict(self.denoiser.named_parameters())
