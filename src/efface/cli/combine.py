"""``efface combine``: several edits as one."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.opening import Base, OfBase, opened
from efface.cli.terminal import Json, new, parsed, show
from efface.edits.combine import ALIKE, combinable, combine, overlaps
from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.methods import METHODS
from efface.storage import make_folder
from efface.training.joint import jointly


@dataclass(frozen=True)
class Options:
    """Edits, and where the one that they become goes."""

    edits: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN RUN …", help_behavior_hint=""),
    ] = ()
    """Two or more run folders or edit files, of one base model."""
    out: Path = Path("combined.safetensors")
    """The edit file to be written; must not exist."""
    how: Annotated[str, tyro.conf.arg(metavar="{sum,joint}")] = "sum"
    """sum: their changes add up; joint: the closed form that made all of them solves again for all
    concepts."""
    base: OfBase = Base()
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface combine EDIT EDIT … --out FILE``."""
    o = parsed(Options, args, "efface combine")
    if o.out.suffix.lower() != ".safetensors":
        raise UserError(f"got {str(o.out)!r} for the edit; its name must end in .safetensors.")
    new(o.out)
    edits = [Edit.load(p) for p in o.edits]
    pick(dict.fromkeys(("sum", "joint")), o.how, "way to combine")
    combinable(edits)  # before a model is opened
    model = opened(o.base, edits[0], device="cpu")
    made = jointly(model, edits, METHODS) if o.how == "joint" else combine(model, edits)
    met = overlaps(model, edits)
    make_folder(o.out.absolute().parent)
    made.save(o.out)
    for x in met:
        if x.share > ALIKE:
            warnings.warn(
                f"{x.one} and {x.two} touch the same directions (overlap {x.share:.2f}): look "
                "whether both are still erased (efface score).",
                stacklevel=1,
            )
    if o.json:
        found = {"edit": str(o.out), "digest": made.digest, "overlaps": [asdict(x) for x in met]}
        print(json.dumps(found, indent=1))
    else:
        show([[x.one, x.two, f"{x.share:.2f}"] for x in met], ["edit", "and", "overlap"])
        print(f"\nwritten: {o.out}")
    return 0
