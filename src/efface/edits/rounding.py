"""How much of an edit is lost where weights are stored in half precision."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

TOO_MUCH = 0.1
"""Part of an edit's change from which on its loss is told."""


class Stored(NamedTuple):
    """One weight with a change in it."""

    change: Tensor
    """What was meant to be added."""
    own: Tensor
    """The base model's value, as it is stored."""
    now: Tensor
    """What is stored now."""


def lost(weights: Iterable[Stored]) -> float:
    """The part of some changes that stored weights do not have: |stored - meant| / |change|.

    0: all is there; 1: as much is amiss as the whole change. Weights of bf16 have steps of 0.4 % of
    themselves, so that a smaller change of a weight is mostly rounded away.

    Args:
        weights: looked at one after the other, and not kept.
    """
    gone, whole = 0.0, 0.0
    for change, own, now in weights:
        meant = change.double().cpu()
        had = now.detach().cpu().double() - own.detach().cpu().double()
        gone += float((had - meant).square().sum())
        whole += float(meant.square().sum())
    return (gone / whole) ** 0.5 if whole else 0.0


def tell(share: float, where: str, dtype: torch.dtype) -> None:
    """Warn of an edit that rounding took much of.

    Args:
        share: as of :func:`lost`.
        where: what holds it, in words.
        dtype: of what is stored.
    """
    if share <= TOO_MUCH:
        return
    warnings.warn(
        f"{where} is stored in {str(dtype)[6:]}, whose rounding takes {share:.0%} of this edit's "
        "change: look whether the concepts are still erased (efface score), put the edit into the "
        "model in fp32 or fp16, or use it as a LoRA (efface lora).",
        stacklevel=3,
    )
