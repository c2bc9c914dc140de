"""What should be preserved: nothing, the null prompt, one word, the most harmed one, or any?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from efface.methods.ap import AP
from efface.seeds import generator
from efface.studies import grid
from efface.studies.lab import Lab
from efface.studies.similarity import cosines
from efface.training.search import Exact, Random

ANY = Random()
BASE = AP.presets()["away"]


def run(
    lab: Lab, seeds: int = 3, updates: int = 200, erased: tuple[str, ...] = grid.ERASED
) -> dict[str, Any]:
    """The same loss and updates; only what is preserved differs.

    Source: arXiv:2410.15618, figure 1b.
    """
    base = replace(BASE, search=ANY, updates=updates)
    others = [n for n in lab.names if n not in erased]
    near = cosines(lab.model, erased, others)
    nearest = tuple(dict.fromkeys(others[int(i)] for i in near.argmax(1)))

    def choices(seed: int) -> list[grid.Choice]:
        g = generator(seed, "one random word")
        some = others[int(torch.randint(0, len(others), (), generator=g))]
        worst = replace(base, search=Exact(refresh=10, probes=2, top=1))
        return [
            grid.Choice("nothing", replace(base, preserve=0.0)),
            grid.Choice("the null prompt", replace(base, exclude_erased=False), ("",)),
            grid.Choice("a neutral word", base, ("a picture",)),
            grid.Choice("one random word", base, (some,)),
            grid.Choice("the most similar words", base, nearest),
            grid.Choice("the most harmed word", worst),
            grid.Choice("any word", base),
            grid.Choice("any, by its share of harm", replace(base, search=BASE.search)),
        ]

    return {"updates": updates, **grid.run(lab, choices, seeds, erased)}


figure = grid.figure


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    order = sorted(grid.labels(found), key=lambda n: -grid.score(found, n, "kept").value)
    best, second = order[:2]
    harmed = grid.difference(found, "the most harmed word", "one random word")
    return (
        f"{grid.intro(found)} {found['updates']} updates of AP's loss. Most is kept by preserving "
        f"{best}, {grid.difference(found, best, second)} points more than {second}. The most "
        f"harmed word against one random word: {harmed} points.\n\n"
        f"{grid.table(found, 'preserved')}"
    )
