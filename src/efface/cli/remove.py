"""``efface remove``: an edit out of a diffusers folder again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.apply import told
from efface.cli.terminal import Json, parsed
from efface.edits.in_place import remove


@dataclass(frozen=True)
class Options:
    """A model, and the edit to be taken out of it."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A diffusers folder that edits were applied to."""
    edit: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="[EDIT]", help_behavior_hint="")
    ] = ""
    """Digest of an edit in its ``erasures.json``, or the beginning of one. Default: all."""
    json: Json = False
    """Print the ledger as JSON."""


def command(args: list[str]) -> int:
    """``efface remove FOLDER [EDIT]``."""
    o = parsed(Options, args, "efface remove")
    return told(o.folder, remove(o.folder, o.edit), o.json)
