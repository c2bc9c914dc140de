"""UCE: send a concept's text vectors where its anchor goes, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from efface.errors import UserError, pick
from efface.training import Entry, Job, Made, Method
from efface.training.closed_form import ROWS, solve, text_vectors


@dataclass(frozen=True, kw_only=True)
class UCE(Method):
    """One least-squares solve over all keys and values of the cross-attention.

    Source: arXiv:2308.14761, section 4; row choice and defaults of the 2025 release. Left out:
    debiasing, and prompt
    expansion (give synonyms instead).
    """

    name: ClassVar[str] = "uce"
    label: ClassVar[str] = "UCE, keep list of all names"
    closed_form: ClassVar[bool] = True

    erase_scale: float = 1.0
    """Weight of the erased vectors."""
    preserve_scale: float = 1.0
    """Weight of the preserved vectors."""
    ridge: float = 0.5
    """λ, how much the maps hold on to themselves."""
    rows: str = "subject"
    """Which text states stand for a prompt: its last word's (``subject``) or all of them, position
    by position (``all``)."""
    keep: tuple[str, ...] = ()
    """Words to be preserved."""
    vocabulary: str = ""
    """Also preserve a whole vocabulary: names, tags, tokens, or a word list file; the erased
    concepts are left out."""

    def __post_init__(self) -> None:
        pick(dict.fromkeys(ROWS), self.rows, "choice of rows")
        for name in ("erase_scale", "preserve_scale", "ridge"):
            if getattr(self, name) < 0:
                raise UserError(f"got {getattr(self, name)} for {name}; 0 or more is allowed.")

    def make(self, job: Job) -> Made:
        """Solve once, for all maps."""
        model, words = job.model, list(self.keep)
        if self.vocabulary:
            words += job.words(self.vocabulary).words
        keep = text_vectors(model, list(dict.fromkeys(words)), self.rows) if words else None
        q = solve(
            text_vectors(model, job.names, self.rows),
            text_vectors(model, job.anchors, self.rows),
            keep,
            self.erase_scale,
            self.preserve_scale,
            self.ridge,
        )
        own = model.parameters()
        return Made({n: (own[n].cpu().double() @ q).float() for n in model.text_maps()})

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
