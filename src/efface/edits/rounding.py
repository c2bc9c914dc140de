"""How much of an edit is lost where weights are stored in half precision."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

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
    sums: list[Tensor] = []  # of a weight: what is amiss, and all that was meant
    for change, own, now in weights:
        fine = torch.float32 if now.device.type == "mps" else torch.float64  # all that MPS has
        meant, had, is_now = (x.detach().to(now.device, fine) for x in (change, own, now))
        sums.append(torch.stack([(is_now - had - meant).square().sum(), meant.square().sum()]))
    gone, whole = (sum(x) for x in zip((0.0, 0.0), *(s.tolist() for s in sums), strict=True))
    return (gone / whole) ** 0.5 if whole else 0.0


MEASURED: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""What was measured in denoisers that are still about."""


def unmeasured(denoiser: nn.Module, about: str) -> bool:
    """Whether this is asked of a denoiser for the first time.

    Args:
        about: which edit, how strong, in which precision.
    """
    known = MEASURED.setdefault(denoiser, set())
    new = about not in known
    known.add(about)
    return new


def tell(share: float, where: str, dtype: torch.dtype) -> None:
    """Warn of an edit that rounding took much of.

    Args:
        share: as of :func:`lost`.
        where: what holds it, in words.
        dtype: of what is stored.
    """
    if share <= TOO_MUCH:
        return
    wider = "fp32" if dtype == torch.float16 else "fp32 or fp16"
    warnings.warn(
        f"{where} is stored in {str(dtype)[6:]}, whose rounding takes {share:.0%} of this edit's "
        "change: look whether the concepts are still erased (efface score), put the edit into the "
        f"model in {wider}, or use it as a LoRA (efface lora).",
        stacklevel=3,
    )
