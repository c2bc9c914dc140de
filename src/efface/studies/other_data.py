"""Does the picture hold on other data: photographs of clothes instead of drawn emoji?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from efface.errors import UserError
from efface.methods.ap import AP
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import MODELS
from efface.studies import grid
from efface.studies.lab import Lab
from efface.training import Tuning
from efface.training.search import Random

LR = MODELS["emoji"].lr
"""That of the benchmark, with the shipped model's learning rate, which no search changed."""
AWAY = AP.presets()["away"]
CHOICES: Mapping[str, Any] = {
    "unedited": None,
    "ESD (nothing preserved)": ESD(lr=LR),
    "UCE": UCE(vocabulary="names"),
    "AP, random word (control)": replace(AWAY, search=Random(), lr=LR),
    "AP (ours)": replace(AWAY, lr=LR),
}


def run(
    lab: Lab, seeds: int = 2, updates: int = 400, gone: int = 50, kept: int = 50
) -> dict[str, Any]:
    """The main methods on every split of the model's own protocol.

    Args:
        updates: of every fine-tuned method.
        gone: pictures of each erased concept and seed.
        kept: pictures of each other concept and seed.

    Raises:
        UserError: the shipped model.
    """
    if lab.model.name in MODELS:
        raise UserError(
            "other data need another model: make one by recipes/fashion/model.py, and give "
            "--model FOLDER."
        )

    def choices(_: int) -> list[grid.Choice]:
        return [
            grid.Choice(
                label,
                replace(m, updates=updates) if isinstance(m, Tuning) else m,
            )
            for label, m in CHOICES.items()
        ]

    splits = {
        split: grid.run(lab, choices, seeds, lab.protocol.erased(split), gone, kept)
        for split in lab.protocol.splits
    }
    return {"about": lab.protocol.about, "updates": updates, "splits": splits}


def figure(found: Mapping[str, Any]) -> str:
    """ESR-1 and PSR-1 of every method on the first split, with intervals."""
    return grid.figure(next(iter(found["splits"].values())))


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and a table for each split."""
    parts = []
    for split, s in found["splits"].items():
        ours, control, nothing = list(CHOICES)[-1], list(CHOICES)[-2], list(CHOICES)[1]
        apart = {
            label: grid.difference(s, ours, other)
            for label, other in (("the random control", control), ("ESD", nothing))
        }
        said = "; ".join(f"against {k} {v} points of PSR-1" for k, v in apart.items())
        parts.append(f"Split {split}: {grid.intro(s)} AP {said}.\n\n{grid.table(s, 'method')}")
    return f"{found['about']} {found['updates']} updates.\n\n" + "\n\n".join(parts)
