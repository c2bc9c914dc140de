"""Ways of getting an erased concept back, one file each; none knows another.

A file here, or an entry point ``efface.attacks`` elsewhere, is all that an attack needs;
:mod:`efface.evaluation.trial` draws and judges what it finds.
"""

from __future__ import annotations

from efface.evaluation.attacks.attack import CHANNELS, Attack, Attacked
from efface.plugins import Table

ATTACKS: Table[Attack] = Table("attacks", __name__, Attack)  # type: ignore[type-abstract]
"""Every attack by its name, those of other packages included."""

__all__ = ["ATTACKS", "CHANNELS", "Attack", "Attacked"]
