"""Networks that say what a picture shows, one file each; none knows another.

A file here, or an entry point ``efface.judges`` elsewhere, is all that a judge needs: a protocol
names it.
"""

from __future__ import annotations

from efface.errors import pick
from efface.evaluation.judges.judge import Judge, Judgement
from efface.plugins import Table

JUDGES: Table[Judge] = Table("judges", __name__, Judge)  # type: ignore[type-abstract]
"""Every judge by its name, those of other packages included."""

__all__ = ["JUDGES", "Judge", "Judgement", "named"]


def named(version: str) -> Judge:
    """The judge that a protocol names.

    Args:
        version: a judge's name, a hyphen, and which of its kind.

    Raises:
        UserError: no such judge; names the nearest one.
    """
    kinds = sorted(JUDGES, key=len, reverse=True)
    kind = next((k for k in kinds if f"{version}-".startswith(f"{k}-")), version)
    return pick(JUDGES, kind, "judge").opened(version)
