"""A diffusers pipeline that is open already, taken as it is."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from efface.errors import UserError
from efface.models.diffusion import DiffusionModel
from efface.models.families.family import Family
from efface.models.files.folder import hash_stored, hash_tensors, weight_files


def is_pipeline(thing: object) -> bool:
    """Whether something is a pipeline of diffusers, without importing that."""
    return any(c.__name__ == "DiffusionPipeline" for c in type(thing).__mro__)


def borrowed(pipe: Any, families: Collection[type[Family]], size: int = 0) -> DiffusionModel:
    """A model whose weights are the pipeline's own, in place, and which leaves them alone.

    Where the pipeline was opened from a folder and holds its weights (in whatever precision), it
    counts as that folder's model: edits of the one are edits of the other.

    Raises:
        UserError: a pipeline of no known family, one that is offloaded, or one with adapters
        loaded.
    """
    kinds = [c.__name__ for c in type(pipe).__mro__]
    family = next((f for f in families if any(k in f.pipelines for k in kinds)), None)
    if family is None:
        known = ", ".join(p for f in families for p in f.pipelines)
        raise UserError(f"this pipeline is a {kinds[0]}; efface takes {known}.")
    tokenizers = [t for e, t in family.encoders.items() if getattr(pipe, e, None) is not None]
    names = [family.denoiser, "vae", *family.encoders, *tokenizers, "scheduler"]
    parts = {n: p for n in names if (p := getattr(pipe, n, None)) is not None}
    missing = [n for n in names if n not in parts and n not in family.optional]
    if missing:
        raise UserError(f"this pipeline has no {missing[0]}, which {family.label} needs.")
    denoiser = parts[family.denoiser]
    check_plain(denoiser, family.denoiser)
    index = {k: v for k, v in dict(pipe.config).items() if not k.startswith("_")}
    own = family(index)
    folder = home(pipe, denoiser, family.denoiser)
    state = {k: partial(_as_is, w) for k, w in denoiser.state_dict().items()}
    return DiffusionModel(
        str(folder) if folder else str(getattr(pipe, "name_or_path", "") or kinds[0]),
        own,
        {n: alias(p) if isinstance(p, nn.Module) else p for n, p in parts.items()},
        partial(hash_tensors, state)
        if folder is None
        else partial(hash_stored, folder / family.denoiser),
        steps=own.steps,
        guidance=own.guidance,
        folder=folder,
        size=size,
        borrowed=True,
    )


def _as_is(w: Tensor) -> Tensor:
    return w


def check_plain(denoiser: nn.Module, name: str) -> None:
    """Refuse a denoiser whose parameters are not simply there.

    Raises:
        UserError: it is offloaded, or has adapters in it.
    """
    if any(p.is_meta for p in denoiser.parameters()):
        raise UserError(
            f"the pipeline's {name} is offloaded: call pipe.remove_all_hooks() and "
            "pipe.to(device) first."
        )
    if any(".base_layer." in n or ".lora_" in n for n, _ in denoiser.named_parameters()):
        raise UserError(
            f"the pipeline's {name} has adapters loaded: call pipe.fuse_lora() and "
            "pipe.unload_lora_weights(), or unload them."
        )


def alias(module: nn.Module) -> nn.Module:
    """A module of its own that shares every parameter and buffer, frozen."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()
    }
    memo |= {id(b): b for b in module.buffers()}
    return copy.deepcopy(module, memo)


def home(pipe: Any, denoiser: nn.Module, name: str) -> Path | None:
    """The folder that a pipeline came from, if its denoiser still is what is stored there."""
    path = folder_of(str(getattr(pipe, "name_or_path", "") or ""))
    if path is None or not (path / "model_index.json").exists():
        return None
    files = weight_files(path / name)
    return path if files and holds(denoiser.state_dict(), files) else None


def folder_of(name_or_path: str) -> Path | None:
    """A local folder, or the cached snapshot of a hub id."""
    if not name_or_path:
        return None
    if Path(name_or_path).is_dir():
        return Path(name_or_path).resolve()
    if name_or_path.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name_or_path, "model_index.json")
    return Path(found).parent if isinstance(found, str) else None


@torch.no_grad()
def holds(state: Mapping[str, Tensor], files: Collection[Path]) -> bool:
    """Whether weights are those of some files, rounded to their own precision."""
    seen = 0
    for path in files:
        with safe_open(path, "pt") as f:
            for k in f.keys():  # noqa: SIM118 (no mapping)
                w = state.get(k)
                if w is None or w.shape != tuple(f.get_slice(k).get_shape()):
                    return False
                if not torch.equal(f.get_tensor(k).to(w.dtype), w.cpu()):
                    return False
                seen += 1
    return seen == len(state)
