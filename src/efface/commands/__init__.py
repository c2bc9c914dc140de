"""What each command of the command line does: a function of its arguments, giving the exit code."""

from __future__ import annotations

from efface.commands.erasing import erase
from efface.commands.others import generate, inspect, merge_command, methods, models, vocabulary
from efface.commands.scoring import score

__all__ = [
    "demo",
    "erase",
    "generate",
    "inspect",
    "merge_command",
    "methods",
    "models",
    "score",
    "vocabulary",
]


def demo(args: list[str]) -> int:
    """``efface demo``."""
    from efface.demo import run

    return run(args)
