"""Opening a diffusers folder: what it is, and whether it is whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.errors import UserError
from efface.models.diffusion import DiffusionModel
from efface.models.families.family import Family
from efface.models.files.components import (
    check_files,
    check_finite,
    open_component,
    open_tokenizer,
    refuse_quantised,
)
from efface.models.files.configs import check_index, open_scheduler, read_json
from efface.models.files.sketch import sketch
from efface.models.files.stored import hash_later, stored_dtype, unchanged
from efface.models.placement import overflows

VOCABULARIES = ("vocab.json", "tokenizer.json", "spiece.model")


def load(
    folder: Path,
    name: str,
    families: Collection[type[Family]],
    dtype: torch.dtype,
    device: torch.device,
    size: int = 0,
    change: Callable[[Any, Family], None] | None = None,
    maps_only: bool = False,
) -> DiffusionModel:
    """Open a diffusers folder.

    Args:
        folder: holds ``model_index.json`` and its components' folders.
        name: what the user called it.
        families: what it may be.
        size: side of a picture in pixels; 0: the model's own.
        change: what is done to the denoiser, of a family, before it goes to the device.
        maps_only: of a large denoiser open only what reads the text, until the rest is asked for.

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
    own, names = family(index), [part for part in modules if there[part]]
    place = folder / own.denoiser
    refuse_quantised(place)
    hashed, same = hash_later(place), unchanged(place)

    def whole() -> nn.Module:
        same()
        found = open_component(place, index[own.denoiser], dtype)
        check_finite(found, place)
        if change is not None:
            change(found, own)
        return found.to(device)

    lean = None
    if maps_only:
        lean = sketch(folder / own.denoiser, index[own.denoiser], dtype, family, whole, device)
    parts: dict[str, Any] = {
        part: open_component(folder / part, index[part], dtype)
        for part in names
        if part != own.denoiser
    }
    parts = {own.denoiser: lean or whole(), **parts}
    stored_dtype(folder / family.denoiser)  # refuses a mixture
    if overflows(parts["vae"]):
        parts["vae"].to(torch.float32)  # SDXL's
    for part in sorted(tokenizers):
        parts[part] = open_tokenizer(folder / part, index[part][1])
    parts["scheduler"] = open_scheduler(folder / "scheduler")
    for part in names:
        if part != own.denoiser:
            check_finite(parts[part], folder / part)
            parts[part].to(device)
    if own.experimental:
        warnings.warn(
            f"{family.label} is experimental here: diffusers' own classes for it may still change.",
            stacklevel=4,
        )
    return DiffusionModel(
        name,
        own,
        parts,
        hashed,
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


def present(index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline has a component."""
    found = index.get(part)
    return isinstance(found, list) and len(found) == 2 and found[1] is not None
