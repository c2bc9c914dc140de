"""Frozen weights in four bits, by bitsandbytes: large models on small GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from efface.errors import UserError, pick
from efface.models.families.family import Family

FORMS = ("nf4",)
"""How weights can be quantised: 4-bit NormalFloat (arXiv:2305.14314, section 3)."""

BLOCK = 64
"""Weights with a scale of their own; layers that it does not divide stay as they are."""


def quantise(denoiser: Any, family: Family, form: str, group: str, dtype: torch.dtype) -> None:
    """Put a denoiser's linear layers into four bits, but those that are to be edited.

    They are packed when the denoiser moves to its device; diffusers' own way does the same, but
    wants a GPU.

    Args:
        form: one of :data:`FORMS`.
        group: the weight group that stays as it is, beside all that closed forms edit.
        dtype: what is computed in.

    Raises:
        UserError: an unknown form or group, or no bitsandbytes.
    """
    pick(dict.fromkeys(FORMS), form, "form of quantised weights")
    try:
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
    except ImportError:
        raise UserError(
            "quantised weights need bitsandbytes: pip install 'efface[bitsandbytes]'."
        ) from None
    kept = {*family.group(denoiser, group), *family.text_maps(denoiser)}
    for name, old in list(denoiser.named_modules()):
        plain = type(old) is nn.Linear and old.in_features % BLOCK == 0
        if not plain or f"{name}.weight" in kept:
            continue
        sizes = old.in_features, old.out_features, old.bias is not None
        new = Linear4bit(*sizes, compute_dtype=dtype, quant_type=form, device="meta")  # type: ignore[no-untyped-call]
        new.weight = Params4bit(old.weight.data, requires_grad=False, quant_type=form)
        new.bias = old.bias
        new.support_avx512bf16_for_cpu = False  # that way has no gradient to its input
        holder, _, leaf = name.rpartition(".")
        setattr(denoiser.get_submodule(holder), leaf, new)
