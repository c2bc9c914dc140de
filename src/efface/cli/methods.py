"""``efface methods``: the erasure methods, their presets and settings."""

from __future__ import annotations

import json
from dataclasses import dataclass

from efface.cli.terminal import Json, first_line, parsed, show
from efface.methods import METHODS
from efface.models import FAMILIES
from efface.settings import to_json


@dataclass(frozen=True)
class Options:
    """The methods that there are."""

    json: Json = False
    """Print them with all settings as JSON."""


def command(args: list[str]) -> int:
    """``efface methods``."""
    o = parsed(Options, args, "efface methods")
    if o.json:
        found = {
            n: {
                "about": first_line(m),
                "settings": to_json(m()),
                "presets": {p: to_json(c) for p, c in m.presets().items()},
            }
            for n, m in METHODS.items()
        }
        print(json.dumps(found, indent=1))
        return 0
    show(
        [[n, first_line(m), ", ".join(m.presets())] for n, m in METHODS.items()],
        ["method", "is", "presets"],
    )
    print("\nweight groups")
    for f in FAMILIES.values():
        print(f"  {f.label}: {', '.join(f.groups)}")
    print("\nefface erase METHOD --help shows a method's settings.")
    return 0
