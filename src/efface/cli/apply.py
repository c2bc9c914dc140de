"""``efface apply``: an edit into a diffusers folder, in place."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.runfolder import scores_of
from efface.cli.terminal import Edited, Json, Written, parsed, show
from efface.concepts import few
from efface.edits.edit import Edit
from efface.edits.in_place import apply
from efface.edits.ledger import Ledger


@dataclass(frozen=True)
class Options:
    """An edit, and the model that it goes into."""

    edit: Edited
    """A run's folder or an edit file."""
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A diffusers folder, which is changed in place; ``erasures.json`` in it accounts for it."""
    strength: Written = 1.0
    """How much of the edit, more than 0, up to 10; 1, the default: all of it."""
    json: Json = False
    """Print the ledger as JSON."""


def command(args: list[str]) -> int:
    """``efface apply EDIT FOLDER``."""
    o = parsed(Options, args, "efface apply")
    edit = Edit.load(o.edit)
    scores = scores_of(o.edit, edit, o.strength)
    return told(o.folder, apply(o.folder, edit, scores, o.strength), o.json)


def told(folder: Path, ledger: Ledger, as_json: bool) -> int:
    """Print what is erased from a folder."""
    if as_json:
        print(json.dumps(asdict(ledger), indent=1))
        return 0
    if not ledger.erasures:
        print(f"{folder}: nothing is erased; the weights are the base model's ({ledger.base}).")
        return 0
    show(
        [[e.edit, e.method, few(e.concepts), f"{e.strength:g}", e.when] for e in ledger.erasures],
        ["edit", "method", "erases", "strength", "since"],
    )
    return 0
