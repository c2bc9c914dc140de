"""RECE: erase in closed form what the edited maps still read as the concept, and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch

from efface.concepts import Diversify
from efface.errors import pick
from efface.settings import Range
from efface.training import Entry, Job, Made, Method
from efface.training.closed_form import (
    ROWS,
    WEIGHT,
    erased_rows,
    maps_of,
    preserved_rows,
    solve,
)
from efface.training.inverse import inverse


@dataclass(frozen=True, kw_only=True)
class RECE(Method):
    """UCE, then rounds of the same solve on the text states that bring the concept back.

    Those states are found in closed form: of them the edited maps read what the base maps read of
    the concept. Source: arXiv:2407.12383, section 3. Left out: to draw pictures after each round
    and keep the round that a detector likes best, as the released code does.
    """

    name: ClassVar[str] = "rece"
    label: ClassVar[str] = "RECE"
    closed_form: ClassVar[bool] = True

    rounds: Annotated[int, Range(0, 100)] = 1
    """Solves after the first; 0 is UCE."""
    reach: Annotated[float, Range(0, 1e6, open_low=True)] = 1e-2
    """λ of the states that are searched for, in units of the mean eigenvalue of what all maps read
    (the paper's 1e-3 to 0.1 are absolute): the smaller, the farther from the concept's own."""
    cumulative: bool = True
    """Erase in every solve what the earlier ones erased as well; without, as in the paper, a round
    may give back what the one before took away."""
    erase_scale: Annotated[float, WEIGHT] = 1.0
    """Weight of the erased vectors, in every solve."""
    preserve_scale: Annotated[float, WEIGHT] = 0.1
    """Weight of the preserved vectors."""
    ridge: Annotated[float, WEIGHT] = 0.1
    """λ of a solve, how much the maps hold on to what they were before it."""
    rows: str = "all"
    """Which text states stand for a prompt: its last word's (``subject``) or all of them, position
    by position (``all``)."""
    diversify: Diversify = 0
    """Prompts that stand for each erased name, filled into templates of its kind; 0: the bare
    name."""
    keep: tuple[str, ...] = ()
    """Words that are preserved beside the vocabulary, each with ``keep_weight``."""
    keep_weight: Annotated[float, WEIGHT] = 1.0
    """Weight of a kept word, in units of a preserved one's."""
    vocabulary: str = ""
    """Also preserve a whole vocabulary: auto, names, tags, nouns, styles, people, tokens, a word
    list file, or "words: fox, sky"; the erased concepts are left out."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(dict.fromkeys(ROWS), self.rows, "choice of rows")

    def make(self, job: Job) -> Made:
        """Solve ``rounds + 1`` times, each for all maps."""
        names, own = maps_of(job.model, "all"), job.model.parameters()
        base = [own[n].detach().cpu().double() for n in names]
        c, a, _ = erased_rows(job, self.rows, self.diversify)
        keep = preserved_rows(job, self.vocabulary, self.keep, self.keep_weight, self.rows)
        maps, found, left = base, [c], list[float]()
        for _ in range(self.rounds + 1):
            rows = torch.cat(found)
            goals = a.repeat(len(found), 1)
            q = solve(rows, goals, keep, self.erase_scale, self.preserve_scale, self.ridge)
            maps = [w @ q for w in maps]
            back = inverse(base, maps, c, self.reach)
            left.append(round(back.residual, 4))
            found = [*found, back.states] if self.cumulative else [back.states]
        job.notes["residual"] = left
        job.notes["said"] = (
            f"the text states that come nearest to what was erased miss {100 * left[-1]:.1f} % of "
            f"what the maps read ({100 * left[0]:.1f} % after the first solve)"
        )
        return Made({n: w.float() for n, w in zip(names, maps, strict=True)})

    @classmethod
    def presets(cls) -> Mapping[str, RECE]:
        """``paper``: its preserved prompt; ``searched``: UCE's, which were found on ``emoji``.

        Those of this method itself were not searched for.
        """
        return {
            "paper": cls(cumulative=False, keep=("",)),
            "searched": cls(
                erase_scale=100.0, preserve_scale=1.0, rows="subject", vocabulary="auto"
            ),
        }

    @classmethod
    def lineup(cls) -> Mapping[str, Entry]:
        """With the model's own names, as UCE."""
        return {"rece": Entry(cls.label, replace(cls.presets()["searched"], vocabulary="names"))}
