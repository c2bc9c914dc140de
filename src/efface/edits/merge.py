"""A whole model with an edit in it: a diffusers folder, or one file in the original layout."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.concepts import few
from efface.edits.contents import contents
from efface.edits.edit import Edit
from efface.edits.kept import fits
from efface.edits.ledger import Ledger, checked, note_merged
from efface.edits.rounding import Stored, lost, tell
from efface.errors import UserError
from efface.models import DiffusionModel, configs, stored_dtype, variant
from efface.models.files.folder import present
from efface.models.files.single_file import CLIP_WORDS, MARK_OF_V, OPEN_CLIP, seems_v
from efface.models.files.stored import widest
from efface.models.files.tensors import dump, save
from efface.storage import make_folder, write_folder


def merge_single(model: DiffusionModel, edit: Edit, out: Path) -> Path:
    """Write one file in the original layout with the edit in it, for A1111 and ComfyUI.

    Of SD3 and FLUX it holds the transformer alone.

    Args:
        model: the base, opened from a folder.
        out: a safetensors file that does not exist yet, its folder made where it is missing; each
            component is stored in the precision that the base model's is.

    Warns of what such a file cannot hold: words that were added to CLIP's vocabulary, and a Stable
    Diffusion 2.x whose prediction ComfyUI would guess wrong.

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
    kinds = {
        head: widest(model.folder / part)
        for head, part in BESIDE.items()
        if present(model.family.index, part)
    }

    def stored(name: str) -> torch.dtype:
        return next((kind for head, kind in kinds.items() if name.startswith(head)), dtype)

    with edit.applied(model):
        found = model.family.original(model.parts)
        tensors = {
            k: w.detach().to("cpu", stored(k)).contiguous().clone() for k, w in found.items()
        }
    fits(tensors, out)
    told(model, edit, dtype, out)
    about = {
        "format": "pt",
        "efface": json.dumps(dict(edit.meta)),
        "configs": json.dumps(without_added_words(model, tensors, configs(model.folder))),
    }
    check_guess(model, tensors, out)
    make_folder(out.absolute().parent)
    save(out, tensors, about)
    return out


BESIDE = {
    "first_stage_model.": "vae",
    "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
}
"""What a single file of Stable Diffusion calls the components besides the denoiser."""


def without_added_words(
    model: DiffusionModel, tensors: dict[str, Tensor], told: dict[str, Any]
) -> dict[str, Any]:
    """Take out of a single file what was added to CLIP's vocabulary; gives the configs without.

    A file has no tokenizer, and A1111 and ComfyUI open no other size than CLIP's.
    """
    more = [k for k, w in tensors.items() if "token_embedding" in k and len(w) > CLIP_WORDS]
    if not more:
        return told
    for name in more:
        tensors[name] = tensors[name][:CLIP_WORDS].clone()
    known = model.tokenizer.get_vocab()
    added = sorted((w for w, i in known.items() if i >= CLIP_WORDS), key=known.__getitem__)
    words = f": {few(added)}" if added else ""
    warnings.warn(
        f"a single file holds CLIP's vocabulary alone, so {len(added)} added words stay behind"
        f"{words}; keep them as embeddings, or merge into a folder.",
        stacklevel=3,
    )
    return {
        k: {**v, "vocab_size": CLIP_WORDS} if v.get("vocab_size", 0) > CLIP_WORDS else v
        for k, v in told.items()
    }


def check_guess(model: DiffusionModel, tensors: Mapping[str, Tensor], out: Path) -> None:
    """Warn where other programs would guess wrong what a Stable Diffusion 2.x predicts."""
    if MARK_OF_V not in tensors or not any(k.startswith(OPEN_CLIP) for k in tensors):
        return
    says = model.scheduler.config.get("prediction_type", "epsilon")
    if seems_v(tensors[MARK_OF_V]) != (says == "v_prediction"):
        warnings.warn(
            f"{str(out)!r} predicts {says}, and by the weight that ComfyUI looks at "
            f"({MARK_OF_V}) it seems not to: set the prediction there (ModelSamplingDiscrete), or "
            "by a .yaml beside the file in A1111.",
            stacklevel=3,
        )


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
