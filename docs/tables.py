"""The tables of these pages that are made from the package: conf.py puts them in their places."""

from __future__ import annotations

from importlib import import_module

from architecture import floors

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
    return markdown(["method", "is", "how", "presets"], rows)


def rooms() -> str:
    """What lives where, from the floors of the import contract and the modules' first lines."""
    rows = [
        [f"`{name}`", first_line(import_module(f"efface.{name}"))]
        for floor in floors()
        for name in floor
        if name != "__main__"
    ]
    return markdown(["in `efface`", "lives"], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(r)} |" for r in [head, ["---"] * len(head), *rows])


TABLES = {"<!-- methods -->": methods, "<!-- rooms -->": rooms}
