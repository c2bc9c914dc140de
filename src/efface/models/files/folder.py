"""Opening a diffusers folder: what it is, whether it is whole, and its components."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from efface.errors import UserError
from efface.models.diffusion import DiffusionModel
from efface.models.families.family import Family
from efface.models.files.configs import ODD, check_fields, check_index, open_scheduler, read_json
from efface.models.placement import overflows

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
VOCABULARIES = ("vocab.json", "tokenizer.json", "spiece.model")


def load(
    folder: Path,
    name: str,
    families: Collection[type[Family]],
    dtype: torch.dtype,
    device: torch.device,
    size: int = 0,
    change: Callable[[Any, Family], None] | None = None,
) -> DiffusionModel:
    """Open a diffusers folder.

    Args:
        folder: holds ``model_index.json`` and its components' folders.
        name: what the user called it.
        families: what it may be.
        size: side of a picture in pixels; 0: the model's own.
        change: what is done to the denoiser, of a family, before it goes to the device.

    Raises:
        UserError: not such a folder, another architecture, pickled weights, broken files, or NaN in
        the weights.
    """
    family, index = which(folder, name, families)
    ledger = folder / "erasures.json"
    if ledger.exists() and not read_json(ledger, "the ledger").get("now"):
        raise UserError(
            f"a change of {name!r} was broken off: give its command (efface apply, efface remove) "
            "again before it is used."
        )
    modules = [family.denoiser, "vae", *family.encoders]
    there = {part: present(index, part) for part in modules}
    for part in modules:
        if there[part]:
            check_files(folder / part)
        elif part not in family.optional:
            raise UserError(f"{name!r} has no {part}, which {family.label} cannot do without.")
    tokenizers = {t for e, t in family.encoders.items() if there[e]}
    for part in sorted(tokenizers):
        if not any((folder / part / f).exists() for f in VOCABULARIES):
            raise UserError(f"no tokenizer (vocab.json, merges.txt) in {str(folder / part)!r}.")
    own = family(index)
    parts: dict[str, Any] = {
        part: open_component(folder / part, index[part], dtype) for part in modules if there[part]
    }
    stored_dtype(folder / family.denoiser)  # refuses a mixture
    if overflows(parts["vae"]):
        parts["vae"].to(torch.float32)  # SDXL's
    for part in sorted(tokenizers):
        parts[part] = open_tokenizer(folder / part, index[part][1])
    parts["scheduler"] = open_scheduler(folder / "scheduler")
    for part, module in parts.items():
        if part in modules:
            check_finite(module, folder / part)
            if change is not None and part == family.denoiser:
                change(module, own)
            module.to(device)
    if own.experimental:
        warnings.warn(
            f"{family.label} is experimental here: diffusers' own classes for it may still change.",
            stacklevel=4,
        )
    return DiffusionModel(
        name,
        own,
        parts,
        partial(hash_stored, folder / family.denoiser),
        steps=own.steps,
        guidance=own.guidance,
        folder=folder,
        size=size,
    )


def which(
    folder: Path, name: str, families: Collection[type[Family]]
) -> tuple[type[Family], dict[str, Any]]:
    """The family of a diffusers folder, and its ``model_index.json``.

    Raises:
        UserError: no such folder, or a pipeline of no known family.
    """
    index = read_json(folder / "model_index.json", "this is no diffusers model folder")
    kind = index.get("_class_name")
    family = next((f for f in families if kind in f.pipelines), None)
    if family is None:
        known = ", ".join(p for f in families for p in f.pipelines)
        raise UserError(f"{name!r} is a {kind}; efface reads {known}.")
    names = [family.denoiser, "vae", *family.encoders, *family.encoders.values()]
    check_index(folder / "model_index.json", index, names)
    return family, index


def configs(folder: Path) -> dict[str, Any]:
    """The configs of a diffusers folder, by their place in it: what its single file carries."""
    names = ["model_index.json", "scheduler/scheduler_config.json"]
    names += [f"{p.parent.name}/config.json" for p in sorted(folder.glob("*/config.json"))]
    index = read_json(folder / "model_index.json", "this is no diffusers model folder")
    wanted = [n for n in names if n.partition("/")[0] in {*index, "model_index.json"}]
    return {n: read_json(folder / n, "the model is not whole") for n in wanted}


def present(index: dict[str, Any], part: str) -> bool:
    """Whether a pipeline has a component."""
    found = index.get(part)
    return isinstance(found, list) and len(found) == 2 and found[1] is not None


def open_component(folder: Path, what: Sequence[str], dtype: torch.dtype) -> nn.Module:
    """A network of diffusers or transformers, by its library's and its class's name."""
    library, kind = what
    import diffusers
    import transformers

    source: Any = transformers if library == "transformers" else diffusers
    cls = getattr(source, kind, None)
    if cls is None:
        raise UserError(f"{str(folder)!r} is a {kind}, unknown to {library} {source.__version__}.")
    path = folder / "config.json"
    check_fields(path, read_json(path, f"the model has no {folder.name}"), cls)
    precision = "dtype" if library == "transformers" else "torch_dtype"
    options = {precision: dtype, "variant": variant(folder), "use_safetensors": True}
    return open_part(cls, folder, local_files_only=True, **options)


def open_tokenizer(folder: Path, kind: str) -> Any:
    """A tokenizer of transformers, by its class's name."""
    import transformers

    cls = getattr(transformers, kind, None)
    if cls is None:
        raise UserError(
            f"{str(folder)!r} is a {kind}, unknown to transformers {transformers.__version__}."
        )
    for path in sorted(folder.glob("*.json")):
        read_json(path, "the model has no tokenizer")
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except (OSError, *ODD) as e:
        reason = " ".join(str(e).split())
        raise UserError(f"cannot open {str(folder)!r}: damaged ({reason[:300]}).") from None


CANONICAL = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call a component's weights."""


def variant(folder: Path) -> str | None:
    """The variant that a component's weights come in (``fp16``), if they come in no other form."""
    kinds = [kind_of(p.name) for p in sorted(folder.glob("*.safetensors"))]
    if not kinds or None in kinds:
        return None
    return "fp16" if "fp16" in kinds else kinds[0]


def kind_of(name: str) -> str | None:
    """The variant (``fp16``, ``non_ema``) that a file of weights, or their index, is of."""
    stem, _, index = name.partition(".safetensors")
    told = index.removeprefix(".index").removesuffix("json").strip(".")
    _, _, kind = stem.partition(".")
    return told or kind.partition("-")[0] or None


def weight_files(folder: Path) -> list[Path]:
    """A component's weights: the files that are opened, without those that lie beside them.

    As in diffusers: the shards that an index names; else the file with the usual name.

    Raises:
        UserError: an index that is damaged, or names what is not there.
    """
    own = variant(folder)
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        if kind_of(index.name) == own:
            return shards(index)
    found = [p for p in sorted(folder.glob("*.safetensors")) if kind_of(p.name) == own]
    usual = [p for p in found if p.name.partition(".")[0] in CANONICAL]
    return usual or found


def shards(index: Path) -> list[Path]:
    """The files that an index of shards names.

    Raises:
        UserError: it is damaged, or names what is not there.
    """
    found = read_json(index, "the model is not whole").get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UserError(f"{str(index)!r}: weight_map must give a file's name for each tensor.")
    files = [index.parent / Path(name).name for name in sorted(set(found.values()))]
    for path in files:
        if not path.exists():
            raise UserError(
                f"{str(index)!r} names {path.name!r}, which is not there: the download is "
                "incomplete."
            )
    return files


def check_files(folder: Path) -> None:
    """Refuse missing and pickled weights before anything is opened."""
    if weight_files(folder):
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
    from huggingface_hub.errors import StrictDataclassError

    try:
        found: tuple[nn.Module, dict[str, Any]] = cls.from_pretrained(
            folder, output_loading_info=True, **options
        )
    except (OSError, RuntimeError, safetensors.SafetensorError, StrictDataclassError, *ODD) as e:
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


def hash_stored(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 over a component's stored tensors, by name.

    The same weights are the same model in whatever files they lie.
    """
    found: dict[str, Callable[[], Tensor]] = {}
    with ExitStack() as stack:
        for path in weight_files(folder):
            f = stack.enter_context(safe_open(path, "pt"))
            found |= {k: partial(f.get_tensor, k) for k in f.keys()}  # noqa: SIM118 (no mapping)
        return hash_tensors(found)


def hash_tensors(tensors: Mapping[str, Callable[[], Tensor]]) -> str:
    """First 16 hex digits of the SHA-256 over tensors: name, precision, shape and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        w = tensors[name]().detach().cpu().contiguous()
        digest.update(f"{name} {w.dtype} {tuple(w.shape)}\n".encode())
        digest.update(w.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Precisions of floating-point weights that are read, the widest first."""


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision that a folder's safetensors are stored in.

    Raises:
        UserError: more than one, or one that is not read.
    """
    kinds: set[str] = set()
    for path in weight_files(folder):
        with safe_open(path, "pt") as f:
            kinds |= precisions(f, f.keys())
    return the_one(kinds, str(folder))


def precisions(f: Any, keys: Iterable[str]) -> set[str]:
    """How the floating-point tensors among some keys of an open safetensors file are stored."""
    found = {str(f.get_slice(k).get_dtype()) for k in keys}
    return {k for k in found if k.startswith(("F", "BF"))}


def the_one(kinds: set[str], where: str) -> torch.dtype:
    """The precision of the weights that an edit would change.

    Raises:
        UserError: more than one, or one that is not read.
    """
    if len(kinds) > 1 or not kinds <= set(STORED):
        raise UserError(
            f"the weights in {where!r} are stored in {' and '.join(sorted(kinds))}; efface reads "
            "models that are in one of fp32, fp16 and bf16 throughout: convert it first."
        )
    return STORED[next(iter(kinds), "F32")]
