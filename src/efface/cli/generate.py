"""``efface generate``: pictures, with or without an edit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.opening import OfModel, Opening, opened
from efface.cli.terminal import Json, Place, Strength, makeable, parsed, show
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.samples import Wanted
from efface.evaluation.samples import generate as generate_samples
from efface.settings import Range


@dataclass(frozen=True)
class Options:
    """What is drawn."""

    prompt: tuple[str, ...] = ()
    """A prompt; again for more."""
    out: Path = Path("pictures")
    """The folder for the pictures."""
    edit: Place = None
    """A run's folder or an edit file."""
    strength: Strength = 1.0
    """How much of the edit, 0 to 10: 0 is the base model, 1, the default, the edit."""
    opening: OfModel = Opening()
    seeds: Annotated[int, Range(1, 100_000)] = 1
    """How many pictures of each prompt, 1 to 100,000: seeds from 0 on."""
    steps: Annotated[
        int | None, Range(1, 10_000), tyro.conf.arg(metavar="INT", help_behavior_hint="")
    ] = None
    """Sampling steps, 1 to 10,000. Default: the model's."""
    guidance: Annotated[
        float | None, Range(0, 1000), tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")
    ] = None
    """Scale of classifier-free guidance, 0 to 1,000. Default: the model's."""
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface generate --prompt …``."""
    o = parsed(Options, args, "efface generate")
    if not o.prompt:
        raise UserError("nothing to draw; give --prompt TEXT (again for more).")
    edit = Edit.load(o.edit) if o.edit else None
    if edit is None and o.strength != 1:
        raise UserError("--strength is how much of an edit: name one by --edit.")
    makeable(o.out)
    model = opened(o.opening, edit)
    if edit is not None:
        edit = edit.scaled(o.strength, model)
    wanted = [Wanted(p, s, p) for p in o.prompt for s in range(o.seeds)]
    made = generate_samples(model, wanted, o.out, edit, o.steps, o.guidance)
    rows = [[r.prompt, str(r.seed), str(made.folder / r.file)] for r in made.rows]
    print(
        json.dumps([dict(zip(("prompt", "seed", "file"), r, strict=True)) for r in rows], indent=1)
    ) if o.json else show(rows, ["prompt", "seed", "file"])
    return 0
