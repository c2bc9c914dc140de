"""What each command of the command line does: a function of its arguments, giving the exit code."""

from __future__ import annotations

from efface.commands.benching import bench
from efface.commands.erasing import erase
from efface.commands.others import (
    generate,
    inspect,
    lora,
    merge_command,
    methods,
    models,
    vocabulary,
)
from efface.commands.reporting import report
from efface.commands.scoring import score
from efface.commands.sensing import sensitivity
from efface.commands.studying import study

__all__ = [
    "bench",
    "demo",
    "erase",
    "generate",
    "inspect",
    "lora",
    "merge_command",
    "methods",
    "models",
    "report",
    "score",
    "sensitivity",
    "study",
    "vocabulary",
]


def demo(args: list[str]) -> int:
    """``efface demo``."""
    from efface.demo import run

    return run(args)
