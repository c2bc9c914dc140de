"""What each command of the command line does: a function of its arguments, giving the exit code."""

from __future__ import annotations

from efface.commands.benching import bench
from efface.commands.erasing import erase
from efface.commands.filing import (
    apply_command,
    combine_command,
    diff_command,
    lora,
    merge_command,
    remove_command,
)
from efface.commands.others import (
    generate,
    inspect,
    methods,
    models,
    vocabulary,
)
from efface.commands.reporting import report
from efface.commands.scoring import score
from efface.commands.sensing import sensitivity
from efface.commands.studying import study

__all__ = [
    "apply_command",
    "bench",
    "combine_command",
    "demo",
    "diff_command",
    "erase",
    "generate",
    "inspect",
    "lora",
    "merge_command",
    "methods",
    "models",
    "remove_command",
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
