"""Memory of a training: what it will take, and how to take less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from efface.models.conditioning import Conditioning
from efface.models.diffusion import DiffusionModel

ADAM = 16
"""Bytes of a trained number: itself, its gradient and two moments, all fp32."""


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


@dataclass(frozen=True)
class Plan:
    """Bytes that a training takes at its peak."""

    frozen: int
    """The model, as it is loaded."""
    trained: int
    """Trained weights in fp32 with gradients and optimiser, and their copies in the model's
    precision."""
    activations: int
    """What is kept for the gradient."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.frozen + self.trained + self.activations

    def __str__(self) -> str:
        """In words, GB = 10^9 bytes."""
        parts = (self.frozen, self.trained, self.activations)
        model, weights, kept = (f"{n / 1e9:.1f}" for n in parts)
        return (
            f"about {self.total / 1e9:.1f} GB: model {model}, trained weights with their optimiser "
            f"{weights}, activations {kept}"
        )


def plan(
    model: DiffusionModel, group: str, rows: int, rank: int = 0, checkpointing: bool = False
) -> Plan:
    """What a training will take, from the architecture; nothing is computed.

    Args:
        group: weight group.
        rows: latents that go through the trained denoiser in one update.
        rank: of low-rank adapters; 0: the weights themselves.
    """
    names, own = model.group(group), model.parameters()
    shapes = [own[n].shape for n in names]
    whole = sum(s.numel() for s in shapes)
    moved = whole
    if rank:
        moved = sum(rank * (s[0] + s[1:].numel()) if len(s) > 1 else s.numel() for s in shapes)
    frozen = sum(
        p.numel() * p.element_size()
        for part in model.parts.values()
        if isinstance(part, nn.Module)
        for p in [*part.parameters(), *part.buffers()]
    )
    size = torch.finfo(model.dtype).bits // 8
    copies = whole * size if size < 4 else 0
    laid = whole * 4 if rank else 0  # W + UD
    return Plan(
        frozen,
        moved * ADAM + copies + laid,
        activations(model, names, rows, checkpointing),
    )


def activations(
    model: DiffusionModel, names: list[str], rows: int, checkpointing: bool = False
) -> int:
    """Bytes of the tensors that a forward pass keeps for the gradient of some weights."""
    kept: dict[int, tuple[Any, int]] = {}
    device, dtype, family = model.device, model.dtype, model.family
    cond = model.null(1)
    with FakeTensorMode(), torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            denoiser: Any = type(model.denoiser).from_config(model.denoiser.config)
        finally:
            torch.set_default_dtype(before)
        denoiser.eval().requires_grad_(False)
        own = dict(denoiser.named_parameters())
        for n in names:
            own[n].requires_grad_()
        stored = {p.untyped_storage()._cdata for p in own.values()}

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in stored:
                kept[storage._cdata] = (storage, storage.nbytes())
            return x

        z = torch.zeros((rows, *model.latent_shape), dtype=dtype)
        t = torch.ones(rows, dtype=torch.long)
        some = Conditioning(
            *(
                None if x is None else torch.zeros((rows, *x.shape[1:]), dtype=dtype)
                for x in (cond.states, cond.pooled)
            )  # type: ignore[arg-type]
        )
        inputs = family.inputs(denoiser, z, t, some, 1.0, model.picture_size)
        context = checkpointed(denoiser) if checkpointing else _nothing()
        with context, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            denoiser(**inputs, return_dict=False)
    return sum(n for _, n in kept.values())


@contextmanager
def _nothing() -> Iterator[None]:
    yield
