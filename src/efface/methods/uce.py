"""UCE: send a concept's text vectors where its anchor goes, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efface.closed_form import ROWS, solve, text_vectors
from efface.concepts import Concept, check_keep
from efface.edit import Edit
from efface.errors import UserError, pick
from efface.models import DiffusionModel
from efface.runs import Run
from efface.training import Making
from efface.vocabulary import load


@dataclass(frozen=True)
class UCE:
    """One least-squares solve over all keys and values of the cross-attention.

    Source: arXiv:2308.14761, section 4; row choice and defaults of the 2025 release. Left out:
    debiasing, and prompt
    expansion (give synonyms instead).
    """

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

    def erase(self, model: DiffusionModel, concepts: Sequence[Concept], run: Run = Run()) -> Edit:
        """Solve for an edit that erases ``concepts``."""
        check_keep(concepts, self.keep)
        making = Making("uce", self, model, concepts)
        names = [n for c in concepts for n in c.names]
        anchors = [c.anchor for c in concepts for _ in c.names]
        words = list(self.keep)
        if self.vocabulary:
            words += load(self.vocabulary, model).without(concepts, model.tokenizer).words
        maps = model.text_maps()
        keep = text_vectors(model, list(dict.fromkeys(words)), self.rows) if words else None
        q = solve(
            text_vectors(model, names, self.rows),
            text_vectors(model, anchors, self.rows),
            keep,
            self.erase_scale,
            self.preserve_scale,
            self.ridge,
        )
        own = model.parameters()
        weights = {n: (own[n].cpu().double() @ q).float() for n in maps}
        return making.edit(weights)


PRESETS: dict[str, UCE] = {"searched": UCE(erase_scale=100.0, ridge=0.1, vocabulary="auto")}
"""``searched``: against a keep list of hundreds of words, the erased ones must weigh more; found on
``emoji`` (split 4)."""
