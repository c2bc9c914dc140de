"""What is known before anything is trained: who will be hurt, what it may become, what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efface.cli.plan import planned
from efface.concepts import Concept, check
from efface.errors import UserError
from efface.evaluation import bound
from efface.evaluation.sensitivity import PROXIES, Moved, closed_form, prediction
from efface.models import DiffusionModel
from efface.page.wish import Wish
from efface.training.anchors import (
    LIKELIER,
    candidates,
    compare,
    likelier,
    narrowed,
    own_pictures,
)
from efface.vocabularies import load as load_vocabulary
from efface.vocabulary import Vocabulary

MOST = 2000
"""Words that are ranked."""
LOOKED = 24
"""Of these, the first ones whose predictions are compared."""
SHOWN = 6
"""Victims that are shown."""
ANCHORS, TRIED = 4, 16
"""Anchors that are suggested, and candidates that they are chosen among."""


@dataclass(frozen=True)
class Victim:
    """A word that an erasure will hurt, by a cheap edit that stands for the real one."""

    word: str
    harm: float
    """Change of what is predicted for it, in percent of its square."""
    kept: bool = False
    """Whether it is on the keep list."""


def words_of(model: DiffusionModel, concepts: Sequence[Concept]) -> Vocabulary:
    """The other words, the nearest first."""
    found = load_vocabulary("auto", model, concepts).without(concepts, model.tokenizer)
    return found.pool(model, concepts[0], 0, MOST, "nearest")


def victims(model: DiffusionModel, wish: Wish, words: Sequence[str]) -> list[Victim]:
    """The words that will be hurt most, worst first.

    All are ranked by what the layers that read the text make of them, and the first ones by
    predictions. Where no layer reads text alone, the nearest ones are compared.
    """
    concepts, _ = check(wish.concepts, wish.method.keep, model.tokenizer)
    if model.text_maps():
        edit = PROXIES["closed-form"]().erase(model, concepts)
        first = closed_form(model, edit, words, progress=False)
        some: Sequence[str] = [first.words[i] for i in first.order()[:LOOKED]]
    else:
        edit = PROXIES["steps"]().erase(model, concepts)
        some = words[:LOOKED]
    if not some:
        return []
    found: Moved = prediction(model, edit, some, latents=2, progress=False)
    kept = set(wish.method.keep)
    return [
        Victim(found.words[i], round(float(found.harm[i]), 2), found.words[i] in kept)
        for i in found.order()[:SHOWN]
    ]


def limit(model: DiffusionModel, wish: Wish, words: Sequence[str]) -> str:
    """What no linear edit of the text maps can do, in one line; "": it cannot be said."""
    found = bound.forecast(model, wish.concepts, list(words))
    return "" if found is None else found.said


def plan(model: DiffusionModel, wish: Wish, out: Path) -> dict[str, Any]:
    """``efface erase --dry-run``'s plan: memory, time, evaluations, files.

    Args:
        out: the run's folder.

    Raises:
        UserError: whatever the erasure itself would refuse.
    """
    concepts, _ = check(wish.concepts, wish.method.keep, model.tokenizer)
    return planned(wish.method, model, concepts, out)


@torch.no_grad()
def anchors(model: DiffusionModel, concepts: Sequence[Concept]) -> list[str]:
    """What the first concept may become, the best first, as the run itself would choose.

    Among the words nearest by their text; the run itself searches all of them.

    Raises:
        UserError: no word is left for it, or no other style is known.
    """
    one = concepts[0]
    some = narrowed(model, one, candidates(model, one, concepts, "auto"))
    if not some.words:
        raise UserError(f"No other style is known that {one.name!r} could become: write one.")
    if len(some.words) > TRIED:
        some = some.pool(model, one, 0, TRIED, "nearest")
    found = compare(model, one.name, some.words, own_pictures(model, one.name, 0))
    near = [found.words[int(i)] for i in found.far.argsort(stable=True)[:ANCHORS]]
    return sorted(near, key=lambda word: likelier(model, word, one.name, some.words, 0) < LIKELIER)
