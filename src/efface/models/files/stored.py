"""A component's weights on disk: which files they lie in, how precise they are, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from efface.errors import UserError
from efface.models.files.configs import read_json
from efface.models.files.tensors import readers

CANONICAL = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call a component's weights."""


def variant(folder: Path) -> str | None:
    """The variant that a component's weights come in (``fp16``), if they come in no other form."""
    kinds = [kind_of(p.name) for p in stored(folder)]
    if not kinds or None in kinds:
        return None
    return "fp16" if "fp16" in kinds else kinds[0]


def stored(folder: Path) -> list[Path]:
    """The safetensors files of a folder, without what file managers put beside them (``._x``)."""
    return [p for p in sorted(folder.glob("*.safetensors")) if not p.name.startswith(".")]


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
    found = [p for p in stored(folder) if kind_of(p.name) == own]
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


def hash_stored(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 over a component's stored tensors, by name.

    The same weights are the same model in whatever files they lie.
    """
    found: dict[str, Callable[[], Tensor]] = {}
    for path in weight_files(folder):
        found |= readers(path)
    return hash_tensors(found)


def unchanged(folder: Path) -> Callable[[], None]:
    """What makes sure, later, that a component's files of weights are those that are there now.

    It looks at their sizes and times, and raises a UserError where they have changed: weights that
    were opened before would pass for those of today.
    """

    def state() -> list[tuple[str, int, int]]:
        told = [(p.name, p.stat()) for p in weight_files(folder)]
        return [(name, s.st_size, s.st_mtime_ns) for name, s in told]

    before = state()

    def check() -> None:
        try:
            now = state()
        except OSError:
            now = []
        if now != before:
            raise UserError(
                f"the weights in {str(folder)!r} were changed since the model was opened: open it "
                "again."
            )

    return check


def hash_later(folder: Path) -> Callable[[], str]:
    """What gives :func:`hash_stored` of a component's files as they are now, once it is asked."""
    check, known = unchanged(folder), cache(partial(hash_stored, folder))

    def found() -> str:
        check()
        return known()

    return found


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
    return the_one(kinds_in(folder), str(folder))


def widest(folder: Path) -> torch.dtype:
    """The finest precision that a component is stored in."""
    kinds = kinds_in(folder)
    return next((d for k, d in STORED.items() if k in kinds), torch.float32)


def kinds_in(folder: Path) -> set[str]:
    """How the floating-point tensors of a component's files are stored."""
    kinds: set[str] = set()
    for path in weight_files(folder):
        with safe_open(path, "pt") as f:
            kinds |= precisions(f, f.keys())
    return kinds


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
