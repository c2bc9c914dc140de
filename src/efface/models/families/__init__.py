"""What differs between families of models, one file each; only ``models`` stands above them.

A file here, or an entry point ``efface.families`` elsewhere, is all that a family needs.
"""

from __future__ import annotations

from efface.models.families.family import Family
from efface.plugins import Table

FAMILIES: Table[Family] = Table("families", __name__, Family)  # type: ignore[type-abstract]
"""The families that can be opened, by their short names."""

ORDER = ("sd", "sdxl", "sd3", "flux", "klein", "z-image")
"""How they are listed; others follow by name."""

__all__ = ["FAMILIES", "ORDER", "Family"]
