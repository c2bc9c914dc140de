"""A tiny model that brings its words, its protocol and its judge, and settings of small runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from efface.evaluation.judges.emoji import EmojiJudge, JudgeConfig
from efface.testing import tiny_pipeline

NAMES = ("coat", "dress", "bag", "boot", "shirt", "hat")
SMALL = (
    *("--updates", "6", "--save-every", "2", "--batch", "2", "--lr", "1e-3"),
    *("--latents.ddim-steps", "3", "--latents.trajectories", "2"),
)
PICTURES = ("--pictures.n", "2", "--pictures.ddim-steps", "3")
SETTINGS = {
    "esd": SMALL,
    "ap": (*SMALL, "--vocabulary", "names", "--search.any", "0.5"),
    "age": (*SMALL, "--vocabulary", "names"),
    "ca": (*SMALL[:8], *PICTURES),
    "spm": SMALL,
    "mace": (*SMALL[:8], *PICTURES, "--vocabulary", "names"),
    "uce": (),
    "speed": ("--vocabulary", "names"),
    "dp": (),
    "oce": ("--vocabulary", "names"),
    "minimax": ("--vocabulary", "names"),
    "twofold": (*SMALL, "--vocabulary", "names", "--search.any", "0.5"),
    "race": SMALL,
    "stereo": (*SMALL, "--inversion", "2", "--inversion-batch", "2"),
    "advunlearn": (*SMALL, "--vocabulary", "names", "--steps", "2"),
    "rece": (),
}
"""Flags that make a method's run short."""


class Result(NamedTuple):
    """What a part of the campaign found."""

    tried: int
    wrong: list[tuple[str, str]]
    """Kind and words of every failure."""
    notes: Sequence[str] = ()
    """What was accepted, and may be."""


def clothes(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """Make the model's folder.

    Args:
        names: of what it draws and its judge knows.
    """
    tiny_pipeline().save_pretrained(folder)
    rows = [{"name": n, "tags": [f"a kind of {n}"]} for n in names]
    (folder / "concepts.json").write_text(json.dumps({"concepts": rows}))
    told = {
        "splits": {"1": list(names[:1])},
        "neighbours": {names[0]: list(names[1:3])},
        "pictures": {"erased": 2, "preserved": 1},
        "template": "a photo of a {}",
        "steps": 2,
        "guidance": 2.0,
        "judge": "clothes-1",
        "metrics": ["esr", "psr", "drift"],
    }
    (folder / "protocol.json").write_text(json.dumps(told))
    torch.manual_seed(0)
    judge = EmojiJudge(JudgeConfig(tuple(names), ("photo",), (8, 8), (1, 1), "clothes-1"))
    judge.concept_head.weight.data *= 100  # of different minds about different pictures
    judge.save(folder / "judge")
    return folder
