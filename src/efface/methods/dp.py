"""DP, double projections: exact on what is preserved, exact on what is erased."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.concepts import Diversify
from efface.errors import UserError, escaped, pick
from efface.settings import Range
from efface.training import Job, Made, Method
from efface.training.closed_form import MAPS, erased_rows, maps_of, moved, text_vectors
from efface.training.projection import change, check_leverage, independent, left_free
from efface.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class DP(Method):
    """Send each erased vector where its anchor goes, inside the null space of the preserved ones.

    Source: arXiv:2604.10032, both projections. SPEED without its filter, its augmentation and its
    invariants is the same as its ridge vanishes. Ours: the anchors belong to what is preserved;
    kept words are exact and a vocabulary is so up to its ``energy``; a concept that the preserved
    words leave too little of is refused.
    """

    name: ClassVar[str] = "dp"
    label: ClassVar[str] = "DP (double projection)"
    closed_form: ClassVar[bool] = True

    maps: str = "all"
    """Which text projections are edited: values (``v``), keys (``k``), both (``kv``), or whatever
    reads the text alone (``all``)."""
    keep: tuple[str, ...] = ()
    """Words that do not move at all."""
    keep_anchors: bool = True
    """Anchors do not move, either."""
    vocabulary: str = ""
    """Also preserve a vocabulary: auto, names, tags, nouns, styles, people, tokens, a word list
    file, or "words: fox, sky"; the erased concepts are left out. Text states have few directions to
    spare: see ``energy``."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""
    energy: Annotated[float, Range(0, 1)] = 0.99
    """How much of the vocabulary's text states is out of reach, as a share of their squares; 1:
    all."""
    proxy: tuple[str, ...] = ()
    """Words whose nearest combination to a concept is its anchor, where it has none of its own."""
    leverage: Annotated[float, Range(0, 1)] = 0.1
    """The least share of an erased vector that what is preserved must leave free."""
    diversify: Diversify = 0
    """Prompts that stand for each erased name, filled into templates of its kind; 0: the bare
    name."""

    def __post_init__(self) -> None:
        if isinstance(self.proxy, str):
            object.__setattr__(self, "proxy", (self.proxy,))
        super().__post_init__()
        pick(MAPS, self.maps, "choice of maps")
        object.__setattr__(self, "proxy", tuple(dict.fromkeys(self.proxy)))

    def make(self, job: Job) -> Made:
        """Solve once, for all maps."""
        model, maps = job.model, maps_of(job.model, self.maps)
        rows = erased_rows(job, diversify=self.diversify)
        a = self.proxied(job, rows.c, rows.a)
        anchors = job.anchors if self.keep_anchors else []
        hard = list(dict.fromkeys([*anchors, *self.keep]))
        soft = job.words(self.vocabulary).words if self.vocabulary else ()
        exact, some = text_vectors(model, hard), text_vectors(model, soft)
        free = left_free(exact, some, self.energy)
        words = [*hard, *soft]
        found = check_leverage(rows, free, torch.cat([exact, some]), words, self.leverage)
        job.notes["free_directions"] = free.shape[1]
        job.notes["leverage"] = {n: round(x, 3) for n, x in found.items()}
        least = min(found, key=lambda n: found[n])
        job.notes["said"] = (
            f"{free.shape[1]} of {len(free)} directions are free of what is preserved; of "
            f"{escaped(least)} {100 * found[least]:.0f} % is, the least of all"
        )
        c, a = independent(rows.c, a, free, job.names, 0.99 if self.diversify else 1.0)
        far = change(c, a, free, exact[:0], 0.0, 0.0)
        return Made(moved(model, maps, far))

    def proxied(self, job: Job, c: Tensor, a: Tensor) -> Tensor:
        """The anchors, of concepts without one the nearest combination of the safe words.

        Source: arXiv:2604.10032, the first projection.

        Raises:
            UserError: no safe word is left.
        """
        if not self.proxy:
            return a
        given = Vocabulary(self.proxy, "proxy").without(job.concepts, job.model.tokenizer)
        if not given.words:
            raise UserError("every word of proxy is erased itself: name others, or none.")
        safe = text_vectors(job.model, given.words).T
        near = (safe @ (torch.linalg.pinv(safe) @ c.T)).T
        bare = torch.tensor([not anchor for anchor in job.anchors])
        return torch.where(bare.repeat_interleave(len(c) // len(bare))[:, None], near, a)

    @classmethod
    def presets(cls) -> Mapping[str, DP]:
        """``searched``: found on ``emoji`` (split 4)."""
        return {"searched": cls(vocabulary="auto", energy=0.98)}
