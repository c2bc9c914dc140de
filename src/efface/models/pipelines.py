"""A diffusers pipeline that is open already, taken as it is."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from torch import Tensor, nn

from efface.errors import UserError
from efface.models.diffusion import DiffusionModel
from efface.models.families.family import Family
from efface.models.files.configs import check_scheduler
from efface.models.files.stored import (
    STORED,
    hash_later,
    hash_tensors,
    weight_files,
)

T = TypeVar("T")

SIBLING = r"(ControlNet|Union|PAG|Adapter|Img2Img|Inpaint|Kontext|KV)*Pipeline"
"""What diffusers' pipelines of the same components are called behind their family's name."""


def is_pipeline(thing: object) -> bool:
    """Whether something is a pipeline of diffusers, without importing that."""
    return any(c.__name__ == "DiffusionPipeline" for c in type(thing).__mro__)


def borrowed(pipe: Any, families: Collection[type[Family]], size: int = 0) -> DiffusionModel:
    """A model whose weights are the pipeline's own, in place, and which leaves them alone.

    Where the pipeline was opened from a folder and holds its weights (in whatever precision), it
    counts as that folder's model: edits of the one are edits of the other.

    Raises:
        UserError: a pipeline of no known family, one that is offloaded or quantised, one with
        adapters loaded, or whose parts do not fit each other.
    """
    family = kin(pipe, families)
    tokenizers = [t for e, t in family.encoders.items() if getattr(pipe, e, None) is not None]
    names = [family.denoiser, "vae", *family.encoders, *tokenizers, "scheduler"]
    parts = {n: plain(p) for n in names if (p := getattr(pipe, n, None)) is not None}
    missing = [n for n in names if n not in parts and n not in family.optional]
    if missing:
        raise UserError(f"this pipeline has no {missing[0]}, which {family.label} needs.")
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            check_plain(part, name, family.denoiser)
    check_scheduler(parts["scheduler"].config)
    index = {k: v for k, v in dict(pipe.config).items() if not k.startswith("_")}
    own, denoiser = family(index), parts[family.denoiser]
    known = origin(pipe, denoiser, family.denoiser)
    own_name = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    return DiffusionModel(
        str(known.folder or own_name),
        own,
        {n: alias(p) if isinstance(p, nn.Module) else p for n, p in parts.items()},
        known.hashed,
        steps=own.steps,
        guidance=own.guidance,
        folder=known.folder,
        size=size,
        borrowed=True,
    )


def kin(pipe: Any, families: Collection[type[Family]]) -> type[Family]:
    """The family of a pipeline, of one derived from it, or of a sibling with the same components.

    Raises:
        UserError: there is none.
    """
    for cls in type(pipe).__mro__:
        for family in families:
            stems = [p.removesuffix("Pipeline") for p in family.pipelines]
            if any(re.fullmatch(re.escape(s) + SIBLING, cls.__name__) for s in stems):
                return family
    known = ", ".join(p for f in families for p in f.pipelines)
    raise UserError(f"this pipeline is a {type(pipe).__name__}; efface takes {known}.")


def plain(part: Any) -> Any:
    """A component itself, without what ``torch.compile`` wraps around it."""
    return getattr(part, "_orig_mod", part)


def check_plain(module: nn.Module, name: str, denoiser: str) -> None:
    """Refuse a component whose weights are not simply there.

    Raises:
        UserError: it is offloaded, has adapters in it, projections that are fused, or is a
            quantised denoiser.
    """
    hooked = any(hasattr(m, "_hf_hook") or has_hooks(m) for m in module.modules())
    if hooked or any(p.is_meta for p in module.parameters()):
        raise UserError(
            f"the pipeline's {name} is offloaded, or cached by hooks of diffusers: open the "
            "pipeline without, or call pipe.remove_all_hooks() and pipe.to(device)."
        )
    if any(getattr(m, "fused_projections", False) for m in module.modules()):
        raise UserError(
            f"the pipeline's {name} has fused projections, copies of the weights that an erasure "
            "changes: open the pipeline without, and fuse them after edit.merged_into(pipe)."
        )
    names = [n for n, _ in module.named_parameters()]
    if any("_orig_mod." in n for n in names):
        raise UserError(
            f"the pipeline's {name} is compiled in parts, whose weights have other names then: "
            f"call pipe.{name}.compile(), or its parts' compile(), instead of torch.compile()."
        )
    if any(x in f".{n}" for n in names for x in (".base_layer.", ".lora_")):
        raise UserError(
            f"the pipeline's {name} has adapters loaded: call pipe.fuse_lora() and "
            "pipe.unload_lora_weights(), or the latter alone."
        )
    if any(x in f".{n}" for n in names for x in (".processor.", ".encoder_hid_proj.")):
        raise UserError(
            f"the pipeline's {name} has an IP-Adapter loaded: call pipe.unload_ip_adapter()."
        )
    odd = next((n for n, p in module.named_parameters() if not is_plain(p)), "")
    if odd and name == denoiser:
        raise UserError(
            f"the pipeline's {name} is quantised ({odd!r}), so that its weights cannot be edited: "
            "load_model(folder, quantise='nf4') leaves those that an erasure changes as they are."
        )


def has_hooks(module: nn.Module) -> bool:
    """Whether diffusers moves, caches or casts what is in a module."""
    registry = getattr(module, "_diffusers_hook", None)
    return bool(getattr(registry, "hooks", None))


def is_plain(p: nn.Parameter) -> bool:
    """Whether a parameter holds its numbers as they are."""
    return type(p) is nn.Parameter and type(p.data) is Tensor and p.dtype in STORED.values()


def alias(module: nn.Module) -> nn.Module:
    """A module of its own that shares every parameter and buffer, frozen.

    Hooks are shared as well, one by one, but not what they belong to. Gradient checkpointing is off
    in it: it would compute activations again without the weights that are laid over.
    """
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) if is_plain(p) else p
        for p in module.parameters()
    }
    memo |= {id(b): b for b in module.buffers()}
    for part in module.modules():
        hooks = {k: v for k, v in vars(part).items() if k.startswith(("_forward_", "_backward_"))}
        memo |= {id(v): copy.copy(v) for v in hooks.values()}
    own = copy.deepcopy(module, memo)
    for part in own.modules():
        if getattr(part, "gradient_checkpointing", False):
            vars(part)["gradient_checkpointing"] = False
    return own


class Origin(NamedTuple):
    """Where a pipeline's denoiser comes from."""

    folder: Path | None
    """None: from no folder, or changed since."""
    hashed: Callable[[], str]
    """Gives the hash of its weights."""


SEEN: WeakKeyDictionary[nn.Module, tuple[str, Origin]] = WeakKeyDictionary()
"""What is known of denoisers, with the sum of the weights that they had then."""


def origin(pipe: Any, denoiser: nn.Module, name: str) -> Origin:
    """The folder that a pipeline came from, if its denoiser still is what is stored there.

    Files are compared once, and again when a sum over all weights has changed.
    """
    path, state = str(getattr(pipe, "name_or_path", None) or ""), denoiser.state_dict()
    now = f"{path} {sum_of(state)}"
    if denoiser in SEEN and SEEN[denoiser][0] == now:
        return SEEN[denoiser][1]
    folder = folder_of(path)
    files = weight_files(folder / name) if folder else []
    if folder and files and (folder / "model_index.json").exists() and holds(state, files):
        found = Origin(folder, hash_later(folder / name))
    else:
        base = hash_tensors({k: partial(_as_is, w) for k, w in state.items()})
        found = Origin(None, partial(_as_is, base))
    SEEN[denoiser] = (now, found)
    return found


def _as_is(x: T) -> T:
    return x


def sum_of(state: Mapping[str, Tensor]) -> str:
    """A number that changes with every change of weights: cheap, and where they lie."""
    whole = 0
    for i, w in enumerate(state.values(), 1):
        kind = {2: torch.int16, 4: torch.int32}.get(w.element_size(), torch.uint8)
        bits = w.detach().contiguous().view(-1).view(kind)
        whole += i * int(bits.sum(dtype=torch.int64))
    return f"{len(state)} {whole}"


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
