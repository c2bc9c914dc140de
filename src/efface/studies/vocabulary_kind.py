"""Which words should be searched: names, tags, tokens, the nearest ones, or any?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from efface.concepts import Concept
from efface.methods.ap import AP
from efface.seeds import generator
from efface.studies import grid
from efface.studies.lab import Lab
from efface.studies.similarity import cosines
from efface.vocabularies import load as load_vocabulary

BASE = AP.presets()["away"]


def run(
    lab: Lab,
    size: int = 100,
    seeds: int = 1,
    updates: int = 400,
    erased: tuple[str, ...] = grid.ERASED,
) -> dict[str, Any]:
    """AP with as many candidates of each kind."""
    concepts = [Concept(e) for e in erased]
    method = replace(BASE, updates=updates)
    lists = {
        kind: load_vocabulary(kind, lab.model).without(concepts, lab.model.tokenizer).words
        for kind in ("names", "tags", "tokens")
    }

    def drawn(words: tuple[str, ...], seed: int) -> tuple[str, ...]:
        g = generator(seed, "words of each kind")
        return tuple(words[i] for i in torch.randperm(len(words), generator=g)[:size].tolist())

    def nearest(words: tuple[str, ...]) -> tuple[str, ...]:
        near = cosines(lab.model, erased, words).amax(0)
        return tuple(words[i] for i in near.argsort(descending=True)[:size].tolist())

    def choices(seed: int) -> list[grid.Choice]:
        common = lists["tokens"][: 50 * size]  # in order of their id, the commoner the earlier
        return [
            grid.Choice("random names", method, drawn(lists["names"], seed)),
            grid.Choice("names nearest by text", method, nearest(lists["names"])),
            grid.Choice("random tags", method, drawn(lists["tags"], seed)),
            grid.Choice("commonest tokens", method, common[:size]),
            grid.Choice("tokens nearest by text", method, nearest(common)),
            grid.Choice("random tokens", method, drawn(lists["tokens"], seed)),
        ]

    return {"updates": updates, "size": size, **grid.run(lab, choices, seeds, erased)}


figure = grid.figure


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    order = sorted(grid.labels(found), key=lambda n: -grid.score(found, n, "kept").value)
    far = grid.difference(found, order[0], order[-1])
    return (
        f"{grid.intro(found)} {found['updates']} updates of AP with {found['size']} candidates. "
        f"{order[0][0].upper()}{order[0][1:]} keep most, {far} points more than {order[-1]}.\n\n"
        f"{grid.table(found, 'candidates')}"
    )
