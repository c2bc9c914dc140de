"""How many candidates does the search need?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from efface.concepts import Concept
from efface.methods.ap import AP
from efface.studies import grid
from efface.studies.lab import Lab
from efface.vocabularies import load as load_vocabulary
from efface.vocabulary import Vocabulary

BASE = AP.presets()["away"]


def run(
    lab: Lab,
    sizes: tuple[int, ...] = (10, 30, 100, 300, 1000),
    seeds: int = 1,
    updates: int = 400,
    erased: tuple[str, ...] = grid.ERASED,
) -> dict[str, Any]:
    """AP with K words drawn evenly from names and tags; K grows."""
    concepts = [Concept(e) for e in erased]
    all_words = [w for kind in ("names", "tags") for w in load_vocabulary(kind, lab.model).words]
    clean = Vocabulary(tuple(dict.fromkeys(all_words)), "names and tags").without(
        concepts, lab.model.tokenizer
    )
    method = replace(BASE, updates=updates)

    def choices(_: int) -> list[grid.Choice]:
        found = []
        for k in sizes:
            at = [round(i * (len(clean) - 1) / max(k - 1, 1)) for i in range(min(k, len(clean)))]
            found.append(grid.Choice(str(k), method, tuple(clean.words[i] for i in at)))
        return found

    return {"updates": updates, "of": len(clean), **grid.run(lab, choices, seeds, erased)}


figure = grid.figure


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    names = grid.labels(found)
    enough = next(n for n in names if grid.difference(found, n, names[-1]).ends[1] >= 0)
    return (
        f"{grid.intro(found)} {found['updates']} updates of AP; K candidates, spread evenly over "
        f"{found['of']} names and tags. The smallest K whose PSR-1 is not below that of the "
        f"largest (interval of the paired difference): {enough}.\n\n{grid.table(found, 'K')}"
    )
