"""A whole model with an edit in it: a diffusers folder, or one file in the original layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from efface.edits.contents import contents
from efface.edits.edit import Edit
from efface.edits.kept import fits
from efface.edits.ledger import Ledger, checked, note_merged
from efface.edits.rounding import Stored, lost, tell
from efface.errors import UserError
from efface.models import DiffusionModel, configs, stored_dtype, variant
from efface.models.files.tensors import dump, save
from efface.storage import make_folder, write_folder


def merge_single(model: DiffusionModel, edit: Edit, out: Path) -> Path:
    """Write one file in the original layout with the edit in it, for A1111 and ComfyUI.

    Of SD3 and FLUX it holds the transformer alone.

    Args:
        model: the base, opened from a folder.
        out: a safetensors file that does not exist yet, its folder made where it is missing; stored
            in the base model's precision.

    Raises:
        UserError: ``out`` exists, cannot be written, the edit is not of this model, or the stored
            precision cannot hold it.
    """
    edit.check(model)
    if out.exists():
        raise UserError(f"{str(out)!r} exists already; name a file that does not.")
    if model.folder is None:
        raise UserError(f"{model.name!r} was not opened from a folder: nothing to merge into.")
    dtype = stored_dtype(model.folder / model.family.denoiser)
    with edit.applied(model):
        found = model.family.original(model.parts)
        tensors = {k: w.detach().to("cpu", dtype).contiguous().clone() for k, w in found.items()}
    fits(tensors, out)
    told(model, edit, dtype, out)
    about = {
        "format": "pt",
        "efface": json.dumps(dict(edit.meta)),
        "configs": json.dumps(configs(model.folder)),
    }
    make_folder(out.absolute().parent)
    save(out, tensors, about)
    return out


def merge(
    model: DiffusionModel,
    edit: Edit,
    out: Path,
    card: Callable[[Mapping[str, str]], str] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Write a whole diffusers folder with the edit in it and its ledger, whole or not at all.

    The weights are stored in the precision that the base model's are stored in. Whatever else holds
    the denoiser is left out: other precisions, single files, pickles, exports.

    Args:
        model: the base, opened from a folder, from the hub, or shipped.
        out: a folder that does not exist yet, those above it made where they are missing; one that
            this very merge has written stays.
        card: gives the text of its README.md, from what became of each file that can hold weights.
        scores: what was measured of the edit, for the ledger.

    Raises:
        UserError: ``out`` exists, cannot be written, the edit is not of this model, or the stored
            precision cannot hold it.
    """
    edit.check(model)
    if out.exists():
        if not merged(out, edit):
            raise UserError(f"{str(out)!r} exists already; name a folder that does not.")
        return out
    if model.folder is None:
        raise UserError(f"{model.name!r} was not opened from a folder: nothing to merge into.")
    source, here = model.folder, contents(model.folder)
    own = here.part
    dtype, kind = stored_dtype(source / own), variant(source / own)
    name = f"{own}/diffusion_pytorch_model{f'.{kind}' if kind else ''}.safetensors"

    def fill(part: Path) -> None:
        for file in (*here.plain, *here.other):
            if ".safetensors.index." not in file or not file.startswith(f"{own}/"):
                (part / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, part / file)
        with edit.applied(model):
            state = {k: v.to(dtype) for k, v in model.denoiser.state_dict().items()}
            fits(state, out)
            dump(part / name, state, {"format": "pt"})
        left = [f for f in (*here.alike, *here.foreign, *here.hidden) if f != name]
        found = note_merged(part, model, edit, left, scores)
        if card is not None:
            text = card({k: f.state for k, f in found.files.items()})
            (part / "README.md").write_text(text, encoding="utf8")

    make_folder(out.absolute().parent)
    write_folder(out, fill)
    told(model, edit, dtype, out)
    return out


def told(model: DiffusionModel, edit: Edit, dtype: torch.dtype, out: Path) -> None:
    """Warn where the stored precision takes much of an edit."""
    own = model.parameters()
    laid = ((own[k].cpu().float(), edit.laid(k, own[k])) for k in edit.weights)
    share = lost(Stored(w - was, was, w.to(dtype)) for was, w in laid)
    tell(share, repr(str(out)), dtype)


def merged(out: Path, edit: Edit) -> bool:
    """Whether a folder is what merging an edit has written, whole.

    Raises:
        UserError: it was changed since.
    """
    found = Ledger.read(out)
    if found is None or found.removable or found.erasures[-1].edit != edit.digest:
        return False
    return bool(checked(out))
