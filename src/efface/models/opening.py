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
from efface.models.files.components import PICKLES, refuse_pickle
from efface.models.files.folder import load as load_folder
from efface.models.files.folder import which
from efface.models.files.single_file import unpacked
from efface.models.pipelines import borrowed, is_pipeline
from efface.models.placement import dtype_of, pick_device
from efface.models.quantised import quantise as pack_weights
from efface.storage import ASSETS

PICKLED = [*(f"*{end}" for end in PICKLES), "*.msgpack", "*.onnx", "*.xml", "*.h5", "*.gguf"]
"""Files of the hub that are never fetched."""


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


def load(
    name_or_path: str | Path | DiffusionModel | Any,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    size: int = 0,
    quantise: str = "",
    keep: str = "xattn",
    torch_dtype: str | torch.dtype | None = None,
    maps_only: bool = False,
) -> DiffusionModel:
    """Open a model: a shipped name, a local diffusers folder, a single file, a hub id, a pipeline.

    A diffusers pipeline is taken as it is: without a copy of its weights, on its device, in its
    precision, and left unchanged.

    Args:
        name_or_path: a pipeline, a model that is open already, ``emoji``, a folder with
            ``model_index.json``, a ``.safetensors`` file in the original layout
            (:func:`~efface.models.files.single_file.unpacked`), or ``owner/model`` on the Hugging
            Face hub.
        dtype: ``fp32``, ``fp16`` or ``bf16``, or torch's; what is trained stays fp32. None: fp32,
            or what an open model or pipeline has.
        device: a torch device; None: CUDA, else MPS, else the CPU, or where an open one is.
        size: side of a picture in pixels; 0: what the model was made for.
        quantise: ``nf4``: the denoiser's linear layers in four bits (bitsandbytes), but for
            ``keep`` and what closed forms edit.
        keep: the weight group that is to be trained.
        torch_dtype: another name for ``dtype``, as in diffusers.
        maps_only: of a large denoiser in a folder or file open only what closed forms edit; the
            rest is opened when it is asked for.

    Raises:
        UserError: unknown name, dtype or device, or a model that cannot be read (see the family's
        file); an open model or pipeline that is asked for in another precision or elsewhere.
    """
    dtype = dtype if torch_dtype is None else torch_dtype
    if isinstance(name_or_path, DiffusionModel):
        return unchanged(name_or_path, dtype, device, size or name_or_path.size, quantise)
    if is_pipeline(name_or_path):
        model = shipped(borrowed(name_or_path, FAMILIES.values(), size))
        return unchanged(model, dtype, device, size, quantise)
    name, precision = str(name_or_path), dtype_of("fp32" if dtype is None else dtype)
    where = pick_device(device)

    def opened(folder: Path) -> DiffusionModel:
        def pack(denoiser: nn.Module, family: Family) -> None:
            pack_weights(denoiser, family, quantise, keep, precision)

        change = pack if quantise else None
        model = load_folder(
            folder, name, FAMILIES.values(), precision, where, size, change, maps_only
        )
        model.quantised = quantise
        return model

    if name in MODELS:
        return shipped(opened(MODELS[name].folder))
    path = Path(name).expanduser()
    if path.suffix.lower() in PICKLES:
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


def unchanged(
    model: DiffusionModel,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    size: int,
    quantise: str,
) -> DiffusionModel:
    """A model that is open already, which stays as it is.

    Raises:
        UserError: it is asked for in another way than it is.
    """
    asked = {
        "dtype": None if dtype is None else (dtype_of(dtype), model.dtype),
        "device": None if device is None else (pick_device(device).type, model.device.type),
        "size": (size, model.size),
        "quantise": (quantise, model.quantised) if quantise else None,
    }
    for name, pair in asked.items():
        if pair and pair[0] != pair[1]:
            raise UserError(
                f"got {name} {pair[0]} for a model that is open already, with {pair[1]}: it is "
                "taken as it is; move it first (.to), or give the folder instead."
            )
    return model


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
        found = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=unwanted))
        places = [p.parent for p in found.glob("*/config.json")]
        lean = [f"{p.name}/*" for p in places if not [*p.glob("*.safetensors")]]
        if lean:  # many finetunes have half precision alone
            snapshot_download(
                hub_id, allow_patterns=lean, ignore_patterns=[*unwanted[1:], *PICKLED]
            )
        return found
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise UserError(
            f"cannot fetch {hub_id!r} from the hub: {' '.join(str(e).split())[:200]}"
        ) from None
