"""``efface merge``: a whole model with an edit in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.opening import Base, OfBase, opened
from efface.cli.runfolder import scores_of, stored
from efface.cli.terminal import Edited, Place, Written, new, output, parsed
from efface.edits.contents import LEDGER
from efface.edits.edit import Edit
from efface.edits.merge import merge, merge_single
from efface.errors import UserError
from efface.models import PICKLES
from efface.reporting.attacked import attacked, markdown
from efface.reporting.card import card

OTHERS = (".gguf", ".sft", ".onnx")
"""Suffixes of weights that are not written."""


@dataclass(frozen=True)
class Options:
    """An edit, and where the whole model goes."""

    edit: Edited
    """A run's folder or an edit file."""
    where: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help_behavior_hint="")
    ] = None
    """The diffusers folder to be written, or, ending in ``.safetensors``, one file in the original
    layout for A1111 and ComfyUI; must not exist."""
    out: Place = None
    """The same as an option."""
    strength: Written = 1.0
    """How much of the edit, more than 0, up to 10; 1, the default: all of it."""
    base: OfBase = Base()


def command(args: list[str]) -> int:
    """``efface merge EDIT OUT``."""
    o = parsed(Options, args, "efface merge")
    edit, out = Edit.load(o.edit), output(o.where, o.out)
    single = out.suffix.lower() == ".safetensors"
    if out.suffix.lower() in (*PICKLES, *OTHERS):
        raise UserError(
            f"got {str(out)!r} for the model; a whole model is a folder, or one file whose name "
            "ends in .safetensors."
        )
    if single or not (out / LEDGER).exists():  # of this very merge it is finished already
        new(out, "file" if single else "folder")
    found = stored(edit, scores_of(o.edit, edit, o.strength))
    model = opened(o.base, edit, device="cpu")
    edit = edit.scaled(o.strength, model)
    if single:
        print(merge_single(model, edit, out))
    else:
        home = o.edit if o.edit.is_dir() else o.edit.parent
        attacks = "" if edit.gates else markdown(attacked(home, edit.digest))  # of other weights
        merge(model, edit, out, partial(card, edit, found, attacks=attacks), found)
        print(out)
    return 0
