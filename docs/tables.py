"""The tables of these pages that are made from the package: conf.py puts them in their places."""

from __future__ import annotations

from efface.cli.terminal import first_line
from efface.methods import METHODS


def methods() -> str:
    """All methods, those of other packages included."""
    rows = [
        [
            f"`{name}`",
            first_line(method),
            "closed form" if method.closed_form else "fine-tuned",
            ", ".join(f"`{p}`" for p in method.presets()) or "–",
        ]
        for name, method in METHODS.items()
    ]
    head = ["method", "is", "how", "presets"]
    return "\n".join(f"| {' | '.join(r)} |" for r in [head, ["---"] * len(head), *rows])


TABLES = {"<!-- methods -->": methods}
