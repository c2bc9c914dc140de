"""Questions asked of pictures, one file each; none knows another.

A file here, or an entry point ``efface.metrics`` elsewhere, is all that a metric needs: a protocol
names it. The functions do the arithmetic, and can be called on their own.
"""

from __future__ import annotations

from efface.evaluation.metrics.accuracy import esr, psr, psr_difference, table
from efface.evaluation.metrics.clip import clip_score
from efface.evaluation.metrics.cmmd import cmmd
from efface.evaluation.metrics.drift import drift
from efface.evaluation.metrics.fid import fid
from efface.evaluation.metrics.kid import kid
from efface.evaluation.metrics.metric import Given, Metric
from efface.evaluation.metrics.nudity import exposed
from efface.evaluation.metrics.perceived import perceived
from efface.evaluation.metrics.perceptual import lpips_distance
from efface.evaluation.metrics.worst import tail_score, worst_tenth, worst_tenth_score, worst_tenths
from efface.evaluation.seen import Seen, see
from efface.plugins import Table

METRICS: Table[Metric] = Table("metrics", __name__, Metric)  # type: ignore[type-abstract]
"""Every metric by its name, those of other packages included."""

ORDER = (
    "esr",
    "psr",
    "worst-tenth",
    "clip",
    "drift",
    "perceived",
    "lpips",
    "fid",
    "kid",
    "cmmd",
    "nudity",
)
"""How they are listed; others follow by name."""

__all__ = [
    "METRICS",
    "ORDER",
    "Given",
    "Metric",
    "Seen",
    "clip_score",
    "cmmd",
    "drift",
    "esr",
    "exposed",
    "fid",
    "kid",
    "lpips_distance",
    "perceived",
    "psr",
    "psr_difference",
    "see",
    "table",
    "tail_score",
    "worst_tenth",
    "worst_tenth_score",
    "worst_tenths",
]
