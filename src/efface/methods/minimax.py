"""Minimax: erase in full, and harm the worst word of a vocabulary as little as can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from efface.concepts import Diversify
from efface.errors import escaped, pick
from efface.settings import Range
from efface.training import Job, Made, Method
from efface.training.closed_form import (
    MAPS,
    ROWS,
    WEIGHT,
    erased_rows,
    maps_of,
    moved,
    text_vectors,
)
from efface.training.minimax import Least, least_harm, seen_by
from efface.training.projection import LEAST, check_leverage, independent, left_free, reduced
from efface.training.weighing import by_attention, by_drift

HARMS = {"states": None, "drift": by_drift, "attention": by_attention}
"""What weighs the maps in a word's harm."""


@dataclass(frozen=True, kw_only=True)
class Minimax(Method):
    """The linear edit of the text maps whose worst word is proved to be harmed least.

    Source: ours; the least squares of arXiv:2308.14761 under exact constraints, with weights on the
    preserved words that Lawson's iteration makes grow where they are harmed. Proved is a bound for
    the same strength of erasure: among all linear edits of the same maps that take the erased
    vectors as far, leave the same words in place and are no larger, none gets its worst word below
    it. That is of text states and linear maps: pictures are another matter, see ``efface
    sensitivity``.
    """

    name: ClassVar[str] = "minimax"
    label: ClassVar[str] = "Minimax (certified)"
    closed_form: ClassVar[bool] = True

    maps: str = "all"
    """Which text projections are edited: values (``v``), keys (``k``), both (``kv``), or whatever
    reads the text alone (``all``)."""
    strength: Annotated[float, Range(0, 10, open_low=True)] = 1.0
    """How far the erased vectors go, in units of the way to their anchors; above 1 beyond them.
    Harm is in proportion."""
    ridge: Annotated[float, WEIGHT] = 1e-2
    """How much the edit's own size counts beside the worst word's harm: what is no word of the
    vocabulary moves less."""
    rows: str = "subject"
    """Which text states of a word count as its harm: its last word's (``subject``), or all of its
    prompt's together (``all``)."""
    harm: str = "states"
    """How the maps count in a word's harm: alike (``states``), by how far predictions drift for a
    change of each that has to do with no word (``drift``), or by the attention that its layer pays
    to a word (``attention``)."""
    keep: tuple[str, ...] = ()
    """Words that do not move at all."""
    keep_anchors: bool = True
    """Anchors do not move, either."""
    vocabulary: str = "auto"
    """Whose worst word counts: auto, names, tags, nouns, styles, people, tokens, a word list file,
    or "words: fox, sky"; the erased concepts are left out."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""
    rounds: Annotated[int, Range(1, 100_000)] = 1000
    """Of the iteration, at most."""
    tolerance: Annotated[float, Range(0, 1)] = 0.01
    """How far above the proved bound the worst word may be, as a share of it."""
    diversify: Diversify = 0
    """Prompts that stand for each erased name, filled into templates of its kind; 0: the bare
    name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(MAPS, self.maps, "choice of maps")
        pick(dict.fromkeys(ROWS), self.rows, "choice of rows")
        pick(HARMS, self.harm, "kind of harm")

    def make(self, job: Job) -> Made:
        """One matrix for all maps, with its certificate in the notes."""
        model, maps = job.model, maps_of(job.model, self.maps)
        erased = erased_rows(job, diversify=self.diversify)
        anchors = job.anchors if self.keep_anchors else []
        hard = list(dict.fromkeys([*anchors, *self.keep]))
        words = job.words(self.vocabulary).words
        exact = text_vectors(model, hard)
        free = left_free(exact, exact[:0], 1.0)
        check_leverage(erased, free, exact, hard, LEAST)
        energy = 0.99 if self.diversify else 1.0
        c, a = independent(erased.c, erased.a, free, job.names, energy)
        h, _ = reduced(exact, exact, 1.0)
        rows = text_vectors(model, words, self.rows)
        own, weigh = model.parameters(), HARMS[self.harm]
        weights = weigh(model, maps, words, job.generator("harm")) if weigh else ()
        found = least_harm(
            c,
            a,
            h,
            rows.view(len(words), -1, rows.shape[1]),
            seen_by([own[n] for n in maps], weights),
            self.ridge,
            self.rounds,
            self.tolerance,
        )
        self.note(job, found, words)
        far = self.strength * (a - c).T @ found.y.T
        return Made(moved(model, maps, far))

    def note(self, job: Job, found: Least, words: tuple[str, ...]) -> None:
        """Keep the certificate, both numbers at the strength that was asked for."""
        worst = int(found.harm.argmax())
        job.notes["certificate"] = {
            "harm": round(100 * self.strength * float(found.harm[worst]), 3),
            "bound": round(100 * self.strength * found.bound, 3),
            "worst": words[worst],
            "chief": words[found.chief],
        }
        harm, bound = (100 * self.strength * float(x) for x in (found.harm[worst], found.bound))
        job.notes["said"] = (
            f"its worst word, {escaped(words[worst])}, moves by {harm:.2f} % of what the maps read"
            "; for the same strength of erasure, no linear edit that is as small and leaves the "
            f"same words in place gets below {bound:.2f} %"
        )

    @classmethod
    def presets(cls) -> Mapping[str, Minimax]:
        """``searched``: found on ``emoji`` (split 4)."""
        return {"searched": cls(strength=1.2)}
