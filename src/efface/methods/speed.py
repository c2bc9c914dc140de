"""SPEED: a closed-form edit of the text projections that cannot reach what is preserved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.errors import UserError, pick
from efface.models import DiffusionModel
from efface.seeds import generator
from efface.settings import Range
from efface.training import Job, Made, Method
from efface.training.closed_form import evened, text_vectors

MAPS = {"v": (".to_v.",), "k": (".to_k.",), "kv": (".to_k.", ".to_v."), "all": ("",)}
"""Choices of text projections, by parts of their names."""


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
    retain_scale: Annotated[float, Range(0, open_low=True)] = 1.0
    """ρ, how much the maps hold on to themselves."""
    slack: Annotated[float, Range(0)] = 0.0
    """λ, 0: the null prompt's vectors do not move at all."""
    null: Annotated[float, Range(0, open_low=True)] = 0.1
    """Directions with less than this share of the preserved vectors' mean singular value are
    free."""
    filter: bool = True
    """Preserve only the words that the plain erasure would move more than the mean."""
    draws: Annotated[int, Range(0, 10_000)] = 10
    """Augmented copies of each preserved vector."""
    keep: tuple[str, ...] = ()
    """Words that do not move at all, as the null prompt does not (unless ``slack``)."""
    vocabulary: str = "auto"
    """The preserved words: auto, names, tags, nouns, styles, people, tokens, or a word list file;
    the erased concepts are left out."""

    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(MAPS, self.maps, "choice of maps")

    def make(self, job: Job) -> Made:
        """Solve for every map."""
        model = job.model
        maps = self.names(model)
        mean = (len(job.names) / len(job.concepts)) ** 0.5  # of concepts, where moments takes names
        c, a = (
            mean * evened(text_vectors(model, some), job.concepts)
            for some in (job.names, job.anchors)
        )
        words = job.words(self.vocabulary).words
        kept = text_vectors(model, self.keep) if self.keep else c[:0]
        fixed = torch.cat([fixed_vectors(model), kept])
        own = model.parameters()
        found, ranks = {}, []
        preserved = text_vectors(model, words)
        for name in maps:
            w = own[name].cpu().double()
            some = self.influenced(w, c, a, preserved)
            free = null_space(torch.cat([some, kept]), self.null)
            ranks.append(free.shape[1])
            found[name] = (w + w @ change(c, a, free, fixed, self.retain_scale, self.slack)).float()
        if not any(ranks):
            raise UserError(
                "no direction is free of the preserved words: nothing can be erased; "
                "raise null, or preserve fewer words."
            )
        job.notes["free_directions"] = ranks
        return Made(found)

    def names(self, model: DiffusionModel) -> list[str]:
        """The maps that are edited.

        Raises:
            UserError: the model has none of that kind.
        """
        there = model.text_maps()
        found = [n for n in there if any(part in n for part in MAPS[self.maps])]
        if not found:
            raise UserError(
                f"{model.family.label} has no maps {self.maps!r} that read the text alone, only "
                f"{', '.join(there)}: choose maps 'all'."
            )
        return found

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
            return p[far > far.mean()]

        chosen = most(preserved) if self.filter else preserved
        if not self.draws:
            return chosen
        least = torch.linalg.svd(w, full_matrices=False).Vh[-1]
        g = generator(0, "augmentation")
        noise = torch.randn(
            len(chosen) * self.draws, len(least), generator=g, dtype=w.dtype
        ) @ torch.outer(least, least)
        return torch.cat([chosen, most(chosen.repeat(self.draws, 1) + noise)])


def moments(c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of c cᵀ and of a cᵀ over the erased vectors, both (D, D)."""
    return c.T @ c / len(c), a.T @ c / len(c)


def null_space(preserved: Tensor, share: float) -> Tensor:
    """Directions that the preserved vectors hardly use, (D, r), orthonormal."""
    s = preserved.T @ preserved / max(len(preserved), 1)
    values, vectors = torch.linalg.eigh(s)
    free: Tensor = vectors[:, values < share * values.mean()]
    return free


def change(c: Tensor, a: Tensor, free: Tensor, fixed: Tensor, rho: float, slack: float) -> Tensor:
    """The matrix that the map is multiplied with to give its change (arXiv:2503.07392, eq. 12).

    Args:
        c: erased vectors, (n, D).
        a: their anchors, (n, D).
        free: orthonormal directions that may change, (D, r).
        fixed: vectors that must not move, (m, D).
        rho: weight of the change itself.
        slack: 0: the fixed vectors do not move.

    Returns:
        (D, D).
    """
    t, mixed = moments(c, a)
    p, k = free @ free.T, fixed.T
    eye = torch.eye(len(t), dtype=t.dtype)
    m = torch.linalg.inv(t @ p + rho * eye)
    g = k.T @ p
    small = g @ m @ k + slack * torch.eye(k.shape[1], dtype=t.dtype)
    still = eye - m @ k @ torch.linalg.pinv(small) @ g
    changed: Tensor = (mixed - t) @ p @ still @ m
    return changed


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
