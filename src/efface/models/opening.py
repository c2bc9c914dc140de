"""Opening a model: a shipped name, a folder, a single file, a hub id, or a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.errors import UserError, pick
from efface.models.diffusion import DiffusionModel
from efface.models.families import FAMILIES
from efface.models.families.family import Family
from efface.models.files.folder import PICKLES, refuse_pickle, which
from efface.models.files.folder import load as load_folder
from efface.models.files.single_file import unpacked
from efface.models.pipelines import borrowed, is_pipeline
from efface.models.quantised import quantise as pack_weights
from efface.storage import ASSETS


@dataclass(frozen=True)
class Shipped:
    """A model inside the package, and how it is best sampled."""

    folder: Path
    steps: int
    guidance: float
    lr: float
    about: str


MODELS = {
    "emoji": Shipped(
        ASSETS / "emoji",
        steps=12,
        guidance=4.0,
        lr=3e-4,
        about="312 concepts in 6 drawing styles, 64x64 pixels; trained on licensed emoji drawings",
    ),
}
"""The models that ship, by name."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load(
    name_or_path: str | Path | DiffusionModel | Any,
    dtype: str | torch.dtype = "fp32",
    device: str | None = None,
    size: int = 0,
    quantise: str = "",
    keep: str = "xattn",
) -> DiffusionModel:
    """Open a model: a shipped name, a local diffusers folder, a single file, a hub id, a pipeline.

    A diffusers pipeline is taken as it is: without a copy of its weights, on its device, in its
    precision, and left unchanged; the other arguments do not apply to it.

    Args:
        name_or_path: a pipeline, a model that is open already, ``emoji``, a folder with
            ``model_index.json``, a ``.safetensors`` file in the original layout
            (:func:`~efface.models.files.single_file.unpacked`), or ``owner/model`` on the Hugging
            Face hub.
        dtype: ``fp32``, ``fp16`` or ``bf16``, or torch's; what is trained stays fp32.
        device: a torch device; None: CUDA, else MPS, else the CPU.
        size: side of a picture in pixels; 0: what the model was made for.
        quantise: ``nf4``: the denoiser's linear layers in four bits (bitsandbytes), but for
            ``keep`` and what closed forms edit.
        keep: the weight group that is to be trained.

    Raises:
        UserError: unknown name, dtype or device, or a model that cannot be read (see the family's
        file).
    """
    if isinstance(name_or_path, DiffusionModel):
        return name_or_path
    if is_pipeline(name_or_path):
        return shipped(borrowed(name_or_path, FAMILIES.values(), size))
    name, precision = str(name_or_path), dtype_of(dtype)
    where = pick_device(device)

    def opened(folder: Path) -> DiffusionModel:
        def pack(denoiser: nn.Module, family: Family) -> None:
            pack_weights(denoiser, family, quantise, keep, precision)

        change = pack if quantise else None
        model = load_folder(folder, name, FAMILIES.values(), precision, where, size, change)
        model.quantised = quantise
        return model

    if name in MODELS:
        return shipped(opened(MODELS[name].folder))
    path = Path(name).expanduser()
    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.is_file():
        return opened(unpacked(path, FAMILIES.values()))
    if path.is_dir():
        return opened(path)
    if name.count("/") != 1 or path.parent.exists():
        pick(MODELS, name, "model (no such folder either)")
    return opened(download(name))


def shipped(model: DiffusionModel) -> DiffusionModel:
    """A model with the settings that it ships with, if it is one of ours."""
    for name, known in MODELS.items():
        if model.folder == known.folder:
            model.name = name
            model.steps, model.guidance, model.lr = known.steps, known.guidance, known.lr
    return model


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """A precision by its name, or torch's own.

    Raises:
        UserError: one that is not read.
    """
    if isinstance(dtype, torch.dtype):
        names = {d: n for n, d in DTYPES.items()}
        dtype = names.get(dtype, str(dtype))
    return pick(DTYPES, dtype, "dtype")


def family_of(folder: Path) -> type[Family]:
    """The family of a diffusers folder.

    Raises:
        UserError: no such folder, or of no known family.
    """
    return which(folder, str(folder), FAMILIES.values())[0]


def download(hub_id: str) -> Path:
    """The local snapshot of a hub model, without its pickles.

    Raises:
        UserError: no network, no such model, or no access.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        kinds = ("json", "txt", "jinja", "model", "safetensors")
        wanted = ["model_index.json", *(f"*/*.{kind}" for kind in kinds)]
        unwanted = ["*.fp16.*", "*non_ema*", "safety_checker/*", "*.ckpt"]
        return Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=unwanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise UserError(
            f"cannot fetch {hub_id!r} from the hub: {' '.join(str(e).split())[:200]}"
        ) from None


def pick_device(device: str | None) -> torch.device:
    """The device asked for, or the best that there is."""
    if device is None:
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as e:
        raise UserError(
            f"device {device!r} cannot be used here: {str(e).splitlines()[0][:150]}"
        ) from None
    return found
