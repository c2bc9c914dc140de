"""UCE: send a concept's text vectors where its anchor goes, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from efface.concepts import Diversify
from efface.errors import pick
from efface.training import Entry, Job, Made, Method
from efface.training.closed_form import (
    ROWS,
    WEIGHT,
    erased_rows,
    maps_of,
    preserved_rows,
    solve,
)


@dataclass(frozen=True, kw_only=True)
class UCE(Method):
    """One least-squares solve over all keys and values of the cross-attention.

    Source: arXiv:2308.14761, section 4; row choice and defaults of the 2025 release. Left out:
    debiasing, and prompt expansion (give synonyms instead).
    """

    name: ClassVar[str] = "uce"
    label: ClassVar[str] = "UCE, with a keep list"
    closed_form: ClassVar[bool] = True

    erase_scale: Annotated[float, WEIGHT] = 1.0
    """Weight of the erased vectors."""
    preserve_scale: Annotated[float, WEIGHT] = 1.0
    """Weight of the preserved vectors."""
    ridge: Annotated[float, WEIGHT] = 0.5
    """λ, how much the maps hold on to themselves."""
    rows: str = "subject"
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
        """Solve once, for all maps."""
        model = job.model
        keep = preserved_rows(job, self.vocabulary, self.keep, self.keep_weight, self.rows)
        c, a, _ = erased_rows(job, self.rows, self.diversify)
        q = solve(c, a, keep, self.erase_scale, self.preserve_scale, self.ridge)
        own = model.parameters()
        return Made({n: (own[n].cpu().double() @ q).float() for n in maps_of(model, "all")})

    @classmethod
    def presets(cls) -> Mapping[str, UCE]:
        """``searched``: found on ``emoji`` (split 4).

        Against a keep list of hundreds of words, the erased ones must weigh more.
        """
        return {"searched": cls(erase_scale=100.0, ridge=0.1, vocabulary="auto")}

    @classmethod
    def lineup(cls) -> Mapping[str, Entry]:
        """With the model's own names."""
        return {"uce": Entry(cls.label, replace(cls.presets()["searched"], vocabulary="names"))}
