"""A whole model with an edit in it: a diffusers folder, or one file in the original layout."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.models import DiffusionModel, configs, stored_dtype, variant
from efface.storage import write


def merge_single(model: DiffusionModel, edit: Edit, out: Path) -> Path:
    """Write one file in the original layout with the edit in it, for A1111 and ComfyUI.

    Of SD3 and FLUX it holds the transformer alone.

    Args:
        model: the base, opened from a folder.
        out: a safetensors file that does not exist yet; stored in the base model's precision.

    Raises:
        UserError: ``out`` exists, cannot be written, or the edit is not of this model.
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
    about = {
        "format": "pt",
        "efface": json.dumps(dict(edit.meta)),
        "configs": json.dumps(configs(model.folder)),
    }
    write(out, lambda p: save_file(tensors, p, about))
    return out


def merge(model: DiffusionModel, edit: Edit, out: Path, card: str = "") -> Path:
    """Write a whole diffusers folder with the edit in it, whole or not at all.

    The weights are stored in the precision that the base model's are stored in.

    Args:
        model: the base, opened from a folder, from the hub, or shipped.
        out: a folder that does not exist yet.
        card: text of its README.md, instead of the base model's.

    Raises:
        UserError: ``out`` exists, cannot be written, or the edit is not of this model.
    """
    edit.check(model)
    if out.exists():
        raise UserError(f"{str(out)!r} exists already; name a folder that does not.")
    if model.folder is None:
        raise UserError(f"{model.name!r} was not opened from a folder: nothing to merge into.")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    own = model.family.denoiser
    dtype = stored_dtype(model.folder / own)
    try:
        shutil.copytree(model.folder, part, ignore=shutil.ignore_patterns(own, "erasures*"))
        (part / own).mkdir()
        shutil.copy(model.folder / own / "config.json", part / own)
        with edit.applied(model):
            state = {k: v.to(dtype).contiguous() for k, v in model.denoiser.state_dict().items()}
            kind = variant(model.folder / own)
            name = f"diffusion_pytorch_model{f'.{kind}' if kind else ''}.safetensors"
            save_file(state, part / own / name, {"format": "pt"})
        if card:
            (part / "README.md").write_text(card, encoding="utf8")
        os.replace(part, out)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"cannot write {str(out)!r}: {getattr(e, 'strerror', None) or e}."
        ) from None
    return out
