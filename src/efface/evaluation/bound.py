"""What no edit of the text maps can do: a bound on the worst word, before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from efface.concepts import Concept, few
from efface.errors import escaped
from efface.models import DiffusionModel
from efface.training.closed_form import text_vectors
from efface.training.minimax import least_harm, seen_by
from efface.training.projection import fulfilled, reduced

ROUNDS = 50
"""Of the iteration: the bound holds after any number of them, and comes near its end long before
an edit does that reaches it."""


@dataclass(frozen=True)
class Forecast:
    """The least harm to the worst word, whoever makes the edit."""

    erased: tuple[str, ...]
    bound: float
    """In percent of what the text maps make of the word."""
    word: str
    """The word that stands most in the way: that of most weight in the bound, not the worst one,
    which depends on the edit."""
    words: int
    """How many were looked at."""
    possible: bool = True
    """Whether there is any such edit: one linear change that sends each concept to its anchor."""

    @property
    def said(self) -> str:
        """In one line."""
        names = escaped(few(self.erased))
        if not self.possible:
            return (
                f"No linear edit of the text maps can erase all of {names} fully: their text "
                "states are combinations of each other."
            )
        if self.bound < 0.005:
            return (
                f"A linear edit of the text maps can erase {names} fully and move none of "
                f"{self.words:,} other words: their text states leave room for it."
            )
        return (
            f"No linear edit of the text maps can erase {names} fully and move its worst word by "
            f"less than {self.bound:.2f} % of what they read (of {self.words:,} words, "
            f"{escaped(self.word)} stands most in the way)."
        )


@torch.no_grad()
def forecast(
    model: DiffusionModel, concepts: Sequence[Concept], words: Sequence[str]
) -> Forecast | None:
    """The bound for concepts that go where their anchors are; None: no weight reads text alone.

    An edit is whatever linear change each text map gets, one by one: by a closed form or a training
    that changes them alone. Fully erased is a concept of which every map makes what it makes of the
    anchor. What it says of pictures is less certain.

    Args:
        words: the other words.
    """
    maps = model.text_maps()
    if not maps or not words:
        return None
    pairs = [p for c in concepts for p in c.pairs()]
    c, a = (
        text_vectors(model, some)
        for some in ([p.prompt for p in pairs], [p.instead for p in pairs])
    )
    possible = fulfilled(c, a)
    c, a = reduced(c, a, 1.0)
    rows = text_vectors(model, words)
    own = model.parameters()
    found = least_harm(
        c,
        a,
        c[:0],
        rows.view(len(words), -1, rows.shape[1]),
        seen_by([own[n] for n in maps]),
        rounds=ROUNDS,
    )
    names = tuple(c.name for c in concepts)
    return Forecast(names, 100 * found.bound, words[found.chief], len(words), possible)
