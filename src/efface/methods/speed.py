"""SPEED: a closed-form edit of the text projections that cannot reach what is preserved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.concepts import Diversify
from efface.errors import UserError, escaped, pick
from efface.models import DiffusionModel
from efface.seeds import generator
from efface.settings import Range
from efface.training import Job, Made, Method
from efface.training.closed_form import MAPS, WEIGHT, Erased, erased_rows, maps_of, text_vectors
from efface.training.projection import (
    LEAST,
    change,
    left_free,
    leverage,
    made_of,
    moments,
    null_space,
)


@dataclass(frozen=True, kw_only=True)
class SPEED(Method):
    """Erase inside the null space of the preserved vectors that the erasure would move.

    Source: arXiv:2503.07392, sections 4.1 to 4.3: influence-based filtering of the preserved words,
    directed augmentation, and exact constraints on the null prompt. Left out: nothing of these.
    Ours: the null space holds the directions below a *share* of the mean singular value, because a
    threshold in absolute numbers means something else in every model; and the whole vocabulary is
    the preserved set.
    """

    name: ClassVar[str] = "speed"
    label: ClassVar[str] = "SPEED (null space)"
    closed_form: ClassVar[bool] = True

    maps: str = "v"
    """Which text projections are edited: values (``v``), keys (``k``), both (``kv``), or whatever
    reads the text alone (``all``): in transformers that is one layer before all blocks."""
    retain_scale: Annotated[float, WEIGHT._replace(open_low=True)] = 1.0
    """ρ, how much the maps hold on to themselves."""
    slack: Annotated[float, WEIGHT] = 0.0
    """λ, 0: the null prompt's vectors do not move at all."""
    null: Annotated[float, Range(0, open_low=True)] = 0.1
    """Directions with less than this share of the preserved vectors' mean singular value are
    free."""
    filter: bool = True
    """Preserve only the words that the plain erasure would move more than the mean."""
    draws: Annotated[int, Range(0, 10_000)] = 10
    """Augmented copies of each preserved vector."""
    invariants: bool = True
    """Hold the null prompt's vectors and ``keep`` in place by constraints of their own; else the
    kept words are among the preserved alone."""
    diversify: Diversify = 0
    """Prompts that stand for each erased name, filled into templates of its kind; 0: the bare
    name."""
    keep: tuple[str, ...] = ()
    """Words that do not move at all, as the null prompt does not (unless ``slack``)."""
    vocabulary: str = "auto"
    """The preserved words: auto, names, tags, nouns, styles, people, tokens, a word list file, or
    "words: fox, sky"; the erased concepts are left out."""

    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(MAPS, self.maps, "choice of maps")

    def make(self, job: Job) -> Made:
        """Solve for every map."""
        model = job.model
        maps = maps_of(model, self.maps)
        rows = erased_rows(job, diversify=self.diversify)
        several = len(job.names) * max(self.diversify, 1) / len(job.concepts)
        mean = several**0.5  # of concepts, where moments takes rows
        c, a = mean * rows.c, mean * rows.a
        words = job.words(self.vocabulary).words
        kept = text_vectors(model, self.keep) if self.keep else c[:0]
        fixed = torch.cat([fixed_vectors(model), kept]) if self.invariants else c[:0]
        own = model.parameters()
        found, ranks = {}, list[int]()
        room = torch.zeros(len(c), dtype=c.dtype)
        preserved = text_vectors(model, words)
        for name in maps:
            w = own[name].cpu().double()
            some = self.influenced(w, c, a, preserved)
            free = null_space(torch.cat([some, kept]), self.null)
            ranks.append(free.shape[1])
            still = (fixed[:0] if self.slack else fixed) @ free
            room = room.maximum(leverage(c, free @ left_free(still, still[:0], 1.0)))
            found[name] = (w + w @ change(c, a, free, fixed, self.retain_scale, self.slack)).float()
        if not any(ranks):
            raise UserError(
                "no direction is free of the preserved words: nothing can be erased; "
                "raise null, or preserve fewer words."
            )
        null = text_vectors(model, [""])
        said = ["", *self.keep, *words]
        self.check_room(room, rows, said, torch.cat([null, kept, preserved]))
        job.notes["free_directions"] = ranks
        return Made(found)

    def check_room(self, room: Tensor, erased: Erased, words: list[str], rows: Tensor) -> None:
        """Refuse a concept of which no map has anything left to change.

        Args:
            room: share of each erased vector that the best map leaves free, (n,).
            words: what is preserved.
            rows: their vectors, some to a word, (m, D).

        Raises:
            UserError: names it, and the words that it is made of.
        """
        i = int(room.argmin())
        if float(room[i]) < LEAST:
            raise UserError(
                f"{escaped(repr(erased.names[i]))} is nearly a combination of the preserved words "
                f"({', '.join(made_of(erased.c[i], rows, words))}): {100 * float(room[i]):.2g} % "
                f"of its text state is free of them, and {100 * LEAST:g} % is needed; preserve "
                "fewer, or raise null."
            )

    @classmethod
    def presets(cls) -> Mapping[str, SPEED]:
        """``searched``: found on ``emoji`` (split 4)."""
        return {"searched": cls(maps="kv", retain_scale=0.05)}

    def influenced(self, w: Tensor, c: Tensor, a: Tensor, preserved: Tensor) -> Tensor:
        """The preserved vectors (m, D) that the plain erasure moves more than the mean, augmented.

        Augmented copies are moved along the direction that the map ``w`` sees least.
        """
        t, mixed = moments(c, a)
        eye = torch.eye(len(t), dtype=t.dtype)
        plain = w @ torch.linalg.solve(eye + t, mixed - t, left=False)

        def most(p: Tensor) -> Tensor:
            far = (p @ plain.T).norm(dim=1)
            return p[far >= far.mean()]

        chosen = most(preserved) if self.filter else preserved
        if not self.draws:
            return chosen
        least = torch.linalg.svd(w, full_matrices=False).Vh[-1]
        g = generator(0, "augmentation")
        noise = torch.randn(
            len(chosen) * self.draws, len(least), generator=g, dtype=w.dtype
        ) @ torch.outer(least, least)
        return torch.cat([chosen, most(chosen.repeat(self.draws, 1) + noise)])


def fixed_vectors(model: DiffusionModel, centres: int = 3) -> Tensor:
    """The start token's state, and the centres of the null prompt's others, (1 + centres, D)."""
    rows = text_vectors(model, [""], "all")
    rest = rows[1:]
    found = rest[torch.linspace(0, len(rest) - 1, centres).long()]
    for _ in range(20):  # Lloyd's k-means, from rows spread over the positions
        near = torch.cdist(rest, found).argmin(1)
        found = torch.stack(
            [rest[near == i].mean(0) if (near == i).any() else found[i] for i in range(len(found))]
        )
    return torch.cat([rows[:1], found])
