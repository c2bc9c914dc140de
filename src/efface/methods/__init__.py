"""Erasure methods, one file each; none knows another.

Written with ``training``; a file here, or an entry point ``efface.methods`` elsewhere, is all that
a method needs: command line, contract tests, benchmark and docs find it by :data:`METHODS`.
"""

from __future__ import annotations

from efface.plugins import Table
from efface.training import Method

METHODS: Table[Method] = Table("methods", __name__, Method)  # type: ignore[type-abstract]
"""Every method by its name, those of other packages included."""

ORDER = (
    *("ap", "esd", "uce", "ca", "age", "speed", "dp", "oce", "minimax", "spm", "mace"),
    *("twofold", "race", "stereo", "advunlearn", "rece"),
)
"""How they are listed; others follow by name."""

__all__ = ["METHODS", "ORDER"]
