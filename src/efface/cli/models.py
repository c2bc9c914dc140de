"""``efface models``: the models that ship, and how to name others."""

from __future__ import annotations

import json
from dataclasses import dataclass

from efface.cli.terminal import Json, parsed, show
from efface.models import FAMILIES, MODELS


@dataclass(frozen=True)
class Options:
    """What ``--model`` takes."""

    json: Json = False
    """Print those that ship as JSON."""


def command(args: list[str]) -> int:
    """``efface models``."""
    o = parsed(Options, args, "efface models")
    if o.json:
        print(json.dumps({n: s.about for n, s in MODELS.items()}, indent=1))
        return 0
    known = ", ".join(f.label for f in FAMILIES.values())
    others = [
        ["DIR", f"a local diffusers folder (safetensors): {known}"],
        ["FILE", "a .safetensors file of one of these in the original layout"],
        ["OWNER/NAME", "such a model on the Hugging Face hub"],
    ]
    show([*([n, s.about] for n, s in MODELS.items()), *others], ["model", "is"])
    return 0
