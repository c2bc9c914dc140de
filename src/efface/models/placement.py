"""On which device a model lies, and in which precision."""

from __future__ import annotations

from typing import Any

import torch

from efface.errors import UserError, pick

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """A precision by its name, or torch's own.

    Raises:
        UserError: one that is not read.
    """
    if isinstance(dtype, torch.dtype):
        names = {d: n for n, d in DTYPES.items()}
        dtype = names.get(dtype, str(dtype))
    return pick(DTYPES, dtype, "dtype")


def overflows(vae: Any) -> bool:
    """Whether an autoencoder is in fp16, and must not be (SDXL's)."""
    half = next(vae.parameters()).dtype == torch.float16
    return half and bool(getattr(vae.config, "force_upcast", False))


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best that there is.

    Raises:
        UserError: it is not there.
    """
    if device is None:
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as e:
        raise UserError(
            f"device {str(device)!r} cannot be used here: {str(e).splitlines()[0][:150]}"
        ) from None
    return found
