"""A denoiser of which only those weights are in memory that closed forms edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.models.families.family import Family
from efface.models.files.components import component_class, damaged
from efface.models.files.configs import ODD
from efface.models.files.stored import weight_files
from efface.models.files.tensors import header, readers

WORTH = 10**9
"""Bytes of stored weights from which on it is worth to leave the rest on disk."""


def sketch(
    folder: Path,
    what: Sequence[str],
    dtype: torch.dtype,
    family: type[Family],
    whole: Callable[[], nn.Module],
    device: torch.device,
) -> nn.Module | None:
    """The denoiser with the weights that read the text, the others without numbers.

    All stored numbers are looked at once, so that what is damaged is refused as ever.

    Args:
        what: its library's and its class's name.
        whole: opens all of it; kept as its ``whole``.
        device: where those weights go.

    Returns:
        None where it is small, where text states go through other weights on their way, or where
        the files do not hold just the names and shapes of the architecture: it is to be opened
        whole, which judges that.

    Raises:
        UserError: NaN or infinity in the weights, or a config that makes no sense.
    """
    files = weight_files(folder)
    if sum(f.stat().st_size for f in files) < WORTH or family.seen is not Family.seen:
        return None
    module = hollow(component_class(folder, what), folder, dtype)
    if module is None:
        return None
    needed = {k: tuple(w.shape) for k, w in module.state_dict().items()}
    there = {k: e.shape for f in files for k, e in header(f).tensors.items()}
    if needed != there:
        return None
    maps = set(family.text_maps(module))
    for file in files:
        for name, read in readers(file).items():
            w = read()
            if not torch.isfinite(w).all():
                raise damaged(folder, name)
            if name in maps:
                holder, _, leaf = name.rpartition(".")
                own = nn.Parameter(w.to(device, dtype), requires_grad=False)
                setattr(module.get_submodule(holder), leaf, own)
    module.whole = whole
    return module  # type: ignore[no-any-return]


def hollow(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network without numbers; None where its config makes none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return cls.from_config(cls.load_config(folder))
    except (RuntimeError, OSError, *ODD):
        return None
    finally:
        torch.set_default_dtype(before)
