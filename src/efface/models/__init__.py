"""Models of the families that efface knows; ``load`` opens one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from efface.errors import UserError, pick
from efface.models.attention import check_crosses, watched
from efface.models.conditioning import Conditioning, mix, stack
from efface.models.counter import Counter
from efface.models.diffusion import DiffusionModel, Weights
from efface.models.family import Family
from efface.models.flux import Flux
from efface.models.flux2 import Klein
from efface.models.folder import (
    PICKLES,
    cache_folder,
    configs,
    hash_files,
    refuse_pickle,
    stored_dtype,
    variant,
    weight_files,
    which,
)
from efface.models.folder import load as load_folder
from efface.models.memory import WORTH, Plan, checkpointed, plan, release
from efface.models.one_file import unpacked
from efface.models.process import Schedule
from efface.models.quantised import quantise as pack_weights
from efface.models.sd3 import StableDiffusion3
from efface.models.sdxl import StableDiffusionXL
from efface.models.stable_diffusion import StableDiffusion
from efface.models.z_image import ZImage

FAMILIES: tuple[type[Family], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    StableDiffusion3,
    Flux,
    Klein,
    ZImage,
)
"""The families that can be opened."""

__all__ = [
    "FAMILIES",
    "MODELS",
    "PICKLES",
    "WORTH",
    "Conditioning",
    "Counter",
    "DiffusionModel",
    "Family",
    "Flux",
    "Klein",
    "Plan",
    "Schedule",
    "Shipped",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "Weights",
    "ZImage",
    "cache_folder",
    "check_crosses",
    "checkpointed",
    "configs",
    "family_of",
    "hash_files",
    "load",
    "mix",
    "plan",
    "refuse_pickle",
    "release",
    "stack",
    "stored_dtype",
    "variant",
    "watched",
    "weight_files",
]

ASSETS = Path(__file__).parents[1] / "assets"


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
    name_or_path: str | Path,
    dtype: str = "fp32",
    device: str | None = None,
    size: int = 0,
    quantise: str = "",
    keep: str = "xattn",
) -> DiffusionModel:
    """Open a model: a shipped name, a local diffusers folder, a single file, or a hub id.

    Args:
        name_or_path: ``emoji``, a folder with ``model_index.json``, a ``.safetensors`` file in the
            original layout (:func:`~efface.models.one_file.unpacked`), or ``owner/model`` on the
            Hugging Face hub.
        dtype: ``fp32``, ``fp16`` or ``bf16``; what is trained stays fp32.
        device: a torch device; None: CUDA, else MPS, else the CPU.
        size: side of a picture in pixels; 0: what the model was made for.
        quantise: ``nf4``: the denoiser's linear layers in four bits (bitsandbytes), but for
            ``keep`` and what closed forms edit.
        keep: the weight group that is to be trained.

    Raises:
        UserError: unknown name, dtype or device, or a model that cannot be read (see the family's
        file).
    """
    name, precision = str(name_or_path), pick(DTYPES, dtype, "dtype")
    where = pick_device(device)

    def opened(folder: Path) -> DiffusionModel:
        def pack(denoiser: nn.Module, family: Family) -> None:
            pack_weights(denoiser, family, quantise, keep, precision)

        change = pack if quantise else None
        model = load_folder(folder, name, FAMILIES, precision, where, size, change)
        model.quantised = quantise
        return model

    if name in MODELS:
        shipped = MODELS[name]
        model = opened(shipped.folder)
        model.steps, model.guidance, model.lr = shipped.steps, shipped.guidance, shipped.lr
        return model
    path = Path(name).expanduser()
    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.is_file():
        return opened(unpacked(path, FAMILIES))
    if path.is_dir():
        return opened(path)
    if name.count("/") != 1 or path.parent.exists():
        pick(MODELS, name, "model (no such folder either)")
    return opened(download(name))


def family_of(folder: Path) -> type[Family]:
    """The family of a diffusers folder.

    Raises:
        UserError: no such folder, or of no known family.
    """
    return which(folder, str(folder), FAMILIES)[0]


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
