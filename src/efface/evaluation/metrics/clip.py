"""CLIP score: how well a picture fits a text, by the shipped tiny CLIP or by any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from efface.evaluation.clip import Clip, TinyClip
from efface.evaluation.metrics.metric import Given, Metric, grouped
from efface.scores import Score, grouped_mean


def clip_score(images: Tensor, texts: Sequence[str], clip: Clip | None = None) -> Score:
    """100 times the cosine of picture and text, at least 0; higher: the picture fits the text.

    Args:
        images: (N, 3, H, W) in [0, 1].
        texts: N texts; the interval is over texts like these.
        clip: None: the shipped one.

    Raises:
        ValueError: not as many texts as pictures, or none.

    Source: arXiv:2104.08718, section 3, with torchmetrics' factor of 100.
    """
    if len(images) != len(texts):
        raise ValueError(f"got {len(images)} pictures and {len(texts)} texts.")
    if not len(images):
        raise ValueError("a CLIP score over zero samples: generate some first.")
    clip = clip or TinyClip()
    once, group = list(dict.fromkeys(texts)), grouped(texts)
    return fit(clip.pictures(images), clip.texts(once)[group], group)


def fit(pictures: Tensor, texts: Tensor, group: Tensor) -> Score:
    """The CLIP score of unit vectors, (N, D) each; the interval is over groups (N,) like these."""
    return grouped_mean(100 * (pictures * texts).sum(1).clamp(min=0), group, "texts")


class ClipScore(Metric):
    """CLIP score of every group of prompts."""

    name: ClassVar[str] = "clip"
    better: ClassVar[str] = "higher for preserved prompts, lower for erased"
    unit: ClassVar[str] = "100 cosine"
    needs: ClassVar[frozenset[str]] = frozenset({"clip", "prompts"})

    def measure(self, given: Given) -> dict[str, Score]:
        """One score a group, by the CLIP's name."""
        own, found = given.vectors(given.samples), {}
        for suffix, rows in given.groups().items():
            prompts = given.prompts(rows)
            group = grouped(prompts)
            texts = given.clip.texts(list(dict.fromkeys(prompts)))[group]
            found[f"CLIP score{suffix} ({given.clip.name})"] = fit(own[rows], texts, group)
        return found
