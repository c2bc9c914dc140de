"""Stable Diffusion 1.x and 2.x: loading, checking and weight groups of the UNet."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.errors import UserError, pick
from efface.models.diffusion import DiffusionModel

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

GROUPS: Mapping[str, Callable[[str], bool]] = {
    "xattn": lambda n: ".attn2." in n,
    "kv": lambda n: ".attn2.to_k." in n or ".attn2.to_v." in n,
    "selfattn": lambda n: ".attn1." in n,
    "noxattn": lambda n: (
        ".attn2." not in n and not re.match(r"(conv_norm_out|conv_out|time_embedding)\.", n)
    ),
    "transformer": lambda n: ".attentions." in n,
    "full": lambda n: True,
}
"""Which of the denoiser's parameters a weight group holds, by name (arXiv:2303.07345, section 4.1;
arXiv:2410.15618); ``transformer`` is SPM's: all of the transformer blocks (arXiv:2312.16145)."""


def text_maps(denoiser: nn.Module) -> list[str]:
    """Names of the weights (out, D) that read text states: cross-attention keys and values."""
    return [n for n, _ in denoiser.named_parameters() if GROUPS["kv"](n)]


def load(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> DiffusionModel:
    """Open a diffusers folder of Stable Diffusion 1.x / 2.x.

    Args:
        folder: holds ``model_index.json`` and its components' folders.
        name: what the user called it.

    Raises:
        UserError: not such a folder, another architecture, pickled weights, broken files, or NaN in
        the weights.
    """
    index = read_json(folder / "model_index.json", "this is no diffusers model folder")
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(
            f"{name!r} is a {kind}; efface reads StableDiffusionPipeline "
            "(Stable Diffusion 1.x and 2.x)."
        )
    for part in ("unet", "vae", "text_encoder"):
        check_files(folder / part)
    if not any((folder / "tokenizer" / f).exists() for f in ("vocab.json", "tokenizer.json")):
        raise UserError(f"no tokenizer (vocab.json, merges.txt) in {str(folder / 'tokenizer')!r}.")
    import diffusers
    import transformers

    options = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
    unet = open_part(diffusers.UNet2DConditionModel, folder / "unet", **options)
    vae = open_part(diffusers.AutoencoderKL, folder / "vae", **options)
    text = open_part(
        transformers.CLIPTextModel, folder / "text_encoder", dtype=dtype, use_safetensors=True
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        folder / "tokenizer", local_files_only=True
    )
    config = read_json(folder / "scheduler" / "scheduler_config.json", "the model has no scheduler")
    scheduler = pick_scheduler(config).from_config(config)
    for module, where in ((unet, "unet"), (vae, "vae"), (text, "text_encoder")):
        check_finite(module, folder / where)
        module.to(device)
    base = hash_files(folder / "unet")
    return DiffusionModel(name, tokenizer, text, unet, vae, scheduler, base, folder=folder)


def pick_scheduler(config: dict[str, Any]) -> Any:
    """The diffusers scheduler class that a config names."""
    import diffusers

    name = config.get("_class_name", "")
    if not name.endswith("Scheduler") or not hasattr(diffusers, name):
        raise UserError(
            f"the model's scheduler {name!r} is unknown to diffusers {diffusers.__version__}."
        )
    return getattr(diffusers, name)


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """A JSON file, or one line that says what is missing."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except OSError:
        raise UserError(f"{otherwise}: no {path.name} in {str(path.parent)!r}.") from None
    except ValueError as e:
        raise UserError(f"{str(path)!r} is no JSON: {e}.") from None
    return found


def check_files(folder: Path) -> None:
    """Refuse missing and pickled weights before anything is opened."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = next((p for p in sorted(folder.glob("*")) if p.suffix in PICKLES), None)
    if pickled is not None:
        refuse_pickle(pickled)
    raise UserError(
        f"no *.safetensors in {str(folder)!r}: "
        "the download is incomplete, or this is no model folder."
    )


def refuse_pickle(path: Path) -> None:
    """A pickle runs whatever code its author put in: never opened."""
    raise UserError(
        f"{str(path)!r} is a pickle, which can run any code when opened; "
        "only safetensors are read. "
        "Convert it on a machine you can lose, or download the model's safetensors."
    )


def open_part(cls: Any, folder: Path, **options: Any) -> nn.Module:
    """``from_pretrained`` that refuses files which do not fill the architecture exactly.

    Raises:
        UserError: unreadable or truncated file, missing, unexpected or misshapen tensors.
    """
    import safetensors

    try:
        found: tuple[nn.Module, dict[str, Any]] = cls.from_pretrained(
            folder, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as e:
        reason = " ".join(str(e).split())
        raise UserError(
            f"cannot open {str(folder)!r}: truncated, damaged or another architecture "
            f"({reason[:300]})"
        ) from None
    module, info = found
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        wrong = [k for k in info.get(what, ()) if "position_ids" not in str(k)]
        if wrong:
            raise UserError(
                f"{str(folder)!r} holds another architecture than its config.json says: "
                f"{len(wrong)} {what.replace('_', ' ')}, first {sorted(map(str, wrong))[0]!r}."
            )
    return module


def check_finite(module: nn.Module, folder: Path) -> None:
    """Refuse weights with NaN or infinity, naming the first tensor that has one."""
    for name, w in module.named_parameters():
        if not torch.isfinite(w).all():
            raise UserError(
                f"the weights in {str(folder)!r} are damaged: {name!r} holds NaN or infinity."
            )


def hash_files(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 over a folder's safetensors files, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision that a folder's safetensors are stored in (of their first tensor)."""
    from safetensors import safe_open

    with safe_open(sorted(folder.glob("*.safetensors"))[0], "pt") as f:
        first: torch.Tensor = f.get_tensor(next(iter(f.keys())))
    return first.dtype


def group_names(denoiser: nn.Module, group: str) -> list[str]:
    """Names of the denoiser's parameters in a weight group.

    Raises:
        UserError: no such group.
    """
    rule = pick(GROUPS, group, "weight group")
    return [n for n, _ in denoiser.named_parameters() if rule(n)]
