"""``efface diff``: how two models differ."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from efface.cli.opening import located
from efface.cli.terminal import Json, Place, new, parsed, show
from efface.edits.combine import diff
from efface.errors import UserError
from efface.models import load
from efface.models.identity import apart
from efface.storage import make_folder


@dataclass(frozen=True)
class Options:
    """Two models."""

    one: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A shipped model, a diffusers folder, a single file, or a hub id."""
    two: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The other one."""
    out: Place = None
    """Also write the difference as an edit of the first model; must not exist."""
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface diff MODEL MODEL``."""
    o = parsed(Options, args, "efface diff")
    if o.out is not None:
        new(o.out)
    one, two = (load(located(name), device="cpu") for name in (o.one, o.two))
    found, edit = diff(one, two)
    if o.json:
        print(json.dumps([asdict(d) for d in found], indent=1))
    else:
        show(
            [
                [d.group, f"{d.changed} of {d.tensors}", f"{d.relative:.2%}", f"{d.rank:.1f}"]
                for d in found
            ],
            ["weight group", "tensors changed", "change", "effective rank"],
        )
    if others := apart(one, two):
        told = f"efface: the models also differ in {', '.join(others)}, which no edit holds."
        print(told, file=sys.stderr)
    if o.out is not None:
        if not edit.weights:
            raise UserError("the denoisers are the same: there is no difference to write.")
        make_folder(o.out.absolute().parent)
        edit.save(o.out)
    return 0
