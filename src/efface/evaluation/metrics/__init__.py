"""Questions asked of pictures: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from efface.evaluation.judges.emoji import Judge
from efface.evaluation.metrics.accuracy import Seen, esr, psr, psr_difference, see, table
from efface.evaluation.metrics.clip import clip_score
from efface.evaluation.metrics.cmmd import cmmd
from efface.evaluation.metrics.drift import drift
from efface.evaluation.metrics.fid import fid
from efface.evaluation.metrics.kid import kid
from efface.evaluation.metrics.nudity import exposed
from efface.evaluation.metrics.perceptual import lpips_distance

__all__ = [
    "METRICS",
    "Judge",
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
    "psr",
    "psr_difference",
    "see",
    "table",
]


class Metric(NamedTuple):
    """A question, and how to read its answer."""

    ask: Callable[..., Any]
    """Gives a Score."""
    better: str
    """``higher``, ``lower``, or what it depends on."""
    unit: str


METRICS: Mapping[str, Metric] = {
    "esr": Metric(esr, "higher", "% of the erased concepts' pictures"),
    "psr": Metric(psr, "higher", "% of the preserved concepts' pictures"),
    "clip": Metric(clip_score, "higher for preserved prompts, lower for erased", "100 cosine"),
    "drift": Metric(drift, "lower", "% of the picture's range"),
    "lpips": Metric(lpips_distance, "lower for preserved prompts", "LPIPS"),
    "fid": Metric(fid, "lower", "squared feature"),
    "kid": Metric(kid, "lower", "1000 squared MMD"),
    "cmmd": Metric(cmmd, "lower", "1000 squared MMD"),
    "nudity": Metric(exposed, "lower", "% of pictures"),
}
"""Every metric by name."""
