"""Memory of a training: what it will take, and how to take less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from efface.models.conditioning import Conditioning
from efface.models.diffusion import DiffusionModel
from efface.models.families.family import Asked
from efface.models.files.components import open_component
from efface.models.files.configs import read_json

ADAM, ADAM_8BIT = 16, 10
"""Bytes of a trained number: itself, its gradient (fp32) and two moments (fp32, or 8 bits)."""


@contextmanager
def checkpointed(denoiser: Any) -> Iterator[None]:
    """Keep no activations inside the denoiser's blocks: compute them again for the gradient.

    The weights that were laid over a block when it ran are laid over it again.
    """

    def again(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        laid = {**dict(block.named_parameters()), **dict(block.named_buffers())}

        def run(*args: Any, **kwargs: Any) -> Any:
            return functional_call(block, laid, args, kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    denoiser.enable_gradient_checkpointing(gradient_checkpointing_func=again)
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()


class Reopening(dict[str, Any]):
    """Components of which some are only on disk, until they are asked for."""

    def __init__(self, parts: Mapping[str, Any], gone: Sequence[str], folder: Path) -> None:
        there = {k: p for k, p in parts.items() if k not in gone}
        super().__init__(there)
        self.gone: dict[str, torch.dtype] = {}
        if isinstance(parts, Reopening):
            self.gone |= parts.gone
        self.gone |= {k: next(parts[k].parameters()).dtype for k in gone}
        self.folder = folder

    def __missing__(self, name: str) -> Any:
        """Open a component again as it was."""
        if name not in self.gone:
            raise KeyError(name)
        there = next(p for p in self.values() if isinstance(p, nn.Module))
        device = next(there.parameters()).device
        index = read_json(self.folder / "model_index.json", "the model is gone")
        module = open_component(self.folder / name, index[name], self.gone[name]).to(device)
        self[name] = module.eval().requires_grad_(False)
        del self.gone[name]
        return module

    def get(self, name: str, default: Any = None) -> Any:
        """As a dict's, but opens what is on disk."""
        return self[name] if name in self or name in self.gone else default


WORTH = 10**9
"""Bytes from which on it is worth to keep something out of the device, or to open it again."""


def releasable(model: DiffusionModel, reading: bool = False) -> list[str]:
    """Text encoders and autoencoder, where they are large and can be opened again.

    Args:
        reading: the text encoders are needed while it is trained.
    """
    encoders = () if reading else tuple(model.family.encoders)
    names = [n for n in (*encoders, "vae") if n in model.parts]
    size = sum(bytes_of(model.parts[n]) for n in names)
    own = model.folder is not None and not model.borrowed
    return names if own and size >= WORTH else []


def release(model: DiffusionModel, reading: bool = False) -> None:
    """Drop what a training does not use once its prompts are encoded; opened again when asked for.

    Models that were not opened from a folder, and small ones, keep everything.

    Args:
        reading: keep the text encoders: it goes on asking them.
    """
    names = releasable(model, reading)
    if names:
        model.null(1)  # rollouts need it
        model.parts = Reopening(model.parts, names, model.folder or Path())


def bytes_of(module: nn.Module) -> int:
    """What a module's parameters and buffers take."""
    return sum(p.numel() * p.element_size() for p in [*module.parameters(), *module.buffers()])


@dataclass(frozen=True)
class Plan:
    """Bytes that a training takes at its peak."""

    frozen: int
    """The model, without what is dropped once its prompts are encoded."""
    trained: int
    """Trained weights in fp32 with gradients and optimiser, and their copies in the model's
    precision."""
    activations: int
    """What is kept for the gradient."""
    plain: bool = False
    """Whether attention is computed without SDPA: evaluations of many latents, which keep nothing,
    may then take more than all of this."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.frozen + self.trained + self.activations

    def __str__(self) -> str:
        """In words, GB = 10^9 bytes."""
        parts = (self.frozen, self.trained, self.activations)
        model, weights, kept = (f"{n / 1e9:.1f}" for n in parts)
        more = ", and more for many latents at once, as attention is without SDPA"
        return (
            f"about {self.total / 1e9:.1f} GB: model {model}, trained weights with their optimiser "
            f"{weights}, activations {kept}{more if self.plain else ''}"
        )


def memory_of(model: DiffusionModel) -> int:
    """Bytes of a model's weights that are in memory."""
    found = [m for m in model.parts.values() if isinstance(m, nn.Module)]
    some = [x for m in found for x in (*m.parameters(), *m.buffers()) if not x.is_meta]
    return sum(x.numel() * x.element_size() for x in some)


def plan(
    model: DiffusionModel,
    group: str,
    rows: int,
    rank: int = 0,
    checkpointing: bool = False,
    adam8bit: bool = False,
    averaged: bool = False,
    reading: bool = False,
) -> Plan:
    """What a training will take, from the architecture; nothing is computed.

    Args:
        group: weight group.
        rows: latents that go through the trained denoiser in one update.
        rank: of low-rank adapters; 0: the weights themselves.
        checkpointing: compute activations again instead of keeping them.
        adam8bit: keep the moments in 8 bits.
        averaged: keep the mean of what is trained beside it.
        reading: the text encoders stay (:attr:`~efface.training.Tuning.reads_tokens`).
    """
    names, own = model.group(group), model.parameters()
    shapes = [own[n].shape for n in names]
    whole = sum(s.numel() for s in shapes)
    moved = whole
    if rank:
        moved = sum(rank * (s[0] + s[1:].numel()) if len(s) > 1 else s.numel() for s in shapes)
    gone = releasable(model, reading)
    stay = [p for n, p in model.parts.items() if isinstance(p, nn.Module) and n not in gone]
    frozen = sum(bytes_of(p) for p in stay)
    size = torch.finfo(model.dtype).bits // 8
    copies = whole * size if size < 4 else 0
    laid = whole * (4 if size == 4 else 8) if rank else 0  # W + UD, and W itself in fp32
    return Plan(
        frozen,
        moved * ((ADAM_8BIT if adam8bit else ADAM) + 4 * averaged) + copies + laid,
        activations(model, names, rows, checkpointing),
        bool(without_sdpa(model.denoiser)),
    )


def without_sdpa(denoiser: Any) -> dict[str, Any]:
    """The attention processors of a denoiser that compute attention without SDPA, by name."""
    from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

    found = getattr(denoiser, "attn_processors", {})
    return {k: p for k, p in found.items() if type(p) in (AttnProcessor, SlicedAttnProcessor)}


def activations(
    model: DiffusionModel, names: list[str], rows: int, checkpointing: bool = False
) -> int:
    """Bytes of the tensors that a forward pass keeps for the gradient of some weights.

    Where blocks are computed again, with those of the largest block.
    """
    kept: dict[int, tuple[Any, int]] = {}
    device, dtype, family = model.device, model.dtype, model.family
    cond = model.null(1)
    if cond.mask is not None:  # short prompts, as most erased concepts are
        cond = Conditioning(cond.states[:, : int(cond.mask.sum())], cond.pooled)
    with FakeTensorMode(), torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            denoiser: Any = type(model.denoiser).from_config(model.denoiser.config)
        finally:
            torch.set_default_dtype(before)
        if plain := without_sdpa(model.denoiser):
            denoiser.set_attn_processor({**denoiser.attn_processors, **plain})
        denoiser.eval().requires_grad_(False)
        own = dict(denoiser.named_parameters())
        for n in names:
            own[n].requires_grad_()
        stored = {p.untyped_storage()._cdata for p in own.values()}

        def keep(x: Tensor, into: dict[int, tuple[Any, int]] = kept) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in stored and storage._cdata not in kept:
                into[storage._cdata] = (storage, storage.nbytes())
            return x

        blocks = [0]

        def again(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
            """A block that is computed again: its inputs stay, the rest only while it runs."""
            for x in (*args, *kwargs.values()):
                if isinstance(x, Tensor):
                    keep(x)
            mine: dict[int, tuple[Any, int]] = {}
            with torch.autograd.graph.saved_tensors_hooks(lambda x: keep(x, mine), lambda x: x):
                found = block(*args, **kwargs)
            blocks.append(sum(n for _, n in mine.values()))
            return found

        if checkpointing:
            denoiser.enable_gradient_checkpointing(gradient_checkpointing_func=again)
        z = torch.zeros((rows, *model.latent_shape), dtype=dtype)
        t = torch.ones(rows, dtype=torch.long)
        some = cond.each(lambda x: torch.zeros((rows, *x.shape[1:]), dtype=dtype))
        inputs = family.inputs(Asked(denoiser, z, t, some, 1.0, model.picture_size))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            denoiser(**inputs, return_dict=False)
    return sum(n for _, n in kept.values()) + max(blocks)
