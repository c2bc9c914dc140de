"""``efface lora``: an edit as a LoRA file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.opening import Base, OfBase, opened
from efface.cli.runfolder import stored
from efface.cli.terminal import Edited, Json, Place, Written, new, output, parsed, show
from efface.edits.edit import Edit
from efface.edits.lora import FORMS, factorise, save
from efface.errors import UserError, pick
from efface.settings import Range


@dataclass(frozen=True)
class Options:
    """An edit, and where its LoRA goes."""

    edit: Edited
    """A run's folder or an edit file."""
    where: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help_behavior_hint="")
    ] = None
    """The safetensors file to be written; must not exist."""
    out: Place = None
    """The same as an option."""
    strength: Written = 1.0
    """How much of the edit, more than 0, up to 10; 1, the default: all of it."""
    rank: Annotated[int, Range(1, 10_000)] = 16
    """Rank of the LoRA, 1 to 10,000: exact where the edit's changes have no higher one."""
    form: Annotated[str, tyro.conf.arg(metavar="{peft,kohya}")] = "peft"
    """Key names: peft (diffusers), or kohya (A1111, ComfyUI, diffusers)."""
    allow_error: Annotated[float, Range(0, 1)] = 0.1
    """The largest part of the change that may be left out, 0 to 1."""
    base: OfBase = Base()
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface lora EDIT OUT``."""
    o = parsed(Options, args, "efface lora")
    edit, out = Edit.load(o.edit), output(o.where, o.out)
    pick(FORMS, o.form, "form")
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"got {str(out)!r} for the LoRA; its name must end in .safetensors.")
    new(out)
    model = opened(o.base, edit, device="cpu")
    edit = edit.scaled(o.strength, model)
    found = factorise(model, edit, o.rank)
    if found.error > o.allow_error:
        instead = "give a higher --rank"
        if found.never > o.allow_error:
            instead = (
                f"no rank holds its biases, norms and tokens ({found.never:.1%}); use efface "
                "merge or efface apply"
            )
        raise UserError(
            f"a LoRA of rank {o.rank} leaves out {found.error:.1%} of the edit's change: {instead}"
            f", or --allow-error {math.ceil(100 * found.error) / 100:g} to write it all the same."
        )
    stored(edit, None)
    save(model, found, out, o.form)
    told = {"lora": str(out), "rank": o.rank, "left_out": round(found.error, 6)}
    print(json.dumps(told)) if o.json else show(
        [["left out of the change", f"{found.error:.2%}"]], ["LoRA", str(out)]
    )
    return 0
