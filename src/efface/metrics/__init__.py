"""Questions asked of pictures: one file each, and one line here."""

from __future__ import annotations

from efface.metrics.accuracy import Seen, esr, psr, psr_difference, see, table
from efface.metrics.judge import Judge

METRICS = {"esr": esr, "psr": psr}
"""Every metric by name; higher is better for both."""

__all__ = ["METRICS", "Judge", "Seen", "esr", "psr", "psr_difference", "see", "table"]
