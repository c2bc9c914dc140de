"""OCE: rotate what the values make of the text, until the concept lies where its anchor does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.concepts import Diversify
from efface.errors import UserError, pick
from efface.settings import Range
from efface.training import Job, Made, Method
from efface.training.closed_form import MAPS, ROWS, WEIGHT, erased_rows, maps_of, text_vectors

EXACT = 1e-12
"""Share of a sum of squares that is rounding."""
FORMS = ("iterated", "released")
"""How the rotation is found."""


@dataclass(frozen=True, kw_only=True)
class OCE(Method):
    """W' = R W with an orthogonal R: norms and angles of what a map makes of words all stay.

    Source: arXiv:2605.28902 and the settings of its released scripts (``released``, for one
    object). The released step maximises a linear form of R, whose optimum turns a concept's
    directions round where it outweighs what is kept; ours goes on (``iterated``), each round a
    minimum above the true objective, so that it falls until the concept lies in its anchor's span;
    and a kept word weighs in units of an erased one (s_c has those of the values). Left out:
    captions of COCO (the vocabulary stands for them), and random choices among anchors
    (each concept has its own).
    """

    name: ClassVar[str] = "oce"
    label: ClassVar[str] = "OCE (orthogonal)"
    closed_form: ClassVar[bool] = True

    form: str = "iterated"
    """``iterated`` until the anchor is reached, or the one step that is ``released``."""
    rounds: Annotated[int, Range(1, 10_000)] = 30
    """Of the iterated form."""
    maps: str = "v"
    """Which text projections are edited: values (``v``), keys (``k``), both (``kv``), or whatever
    reads the text alone (``all``): in transformers that is one layer before all blocks."""
    erase_scale: Annotated[float, WEIGHT] = 2000.0
    """s_e, weight of what the concepts keep outside of their anchors' span."""
    preserve_scale: Annotated[float, WEIGHT] = 10.0
    """s_g, weight of the vocabulary's text states, their mean."""
    keep: tuple[str, ...] = ()
    """Words that are held in place, each with ``keep_weight``."""
    keep_weight: Annotated[float, WEIGHT] = 1.0
    """Weight of a kept word, in units of an erased one's."""
    ridge: Annotated[float, WEIGHT] = 10.0
    """λ, how much the maps hold on to themselves."""
    rows: str = "all"
    """Which text states of the vocabulary are held: its last words' (``subject``) or all, so that
    what every prompt begins with counts (``all``)."""
    vocabulary: str = "auto"
    """What is held beside the kept words: auto, names, tags, nouns, styles, people, tokens, a word
    list file, or "words: fox, sky"; the erased concepts are left out."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""
    diversify: Diversify = 0
    """Prompts that stand for each erased name, filled into templates of its kind; 0: the bare
    name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(dict.fromkeys(FORMS), self.form, "form")
        pick(MAPS, self.maps, "choice of maps")
        pick(dict.fromkeys(ROWS), self.rows, "choice of rows")

    def make(self, job: Job) -> Made:
        """A rotation for every map."""
        model, maps = job.model, maps_of(job.model, self.maps)
        c, a, _ = erased_rows(job, diversify=self.diversify)
        energy = 0.99 if self.diversify else 1.0
        anchors = text_vectors(model, list(dict.fromkeys(job.anchors)), "all")
        common = text_vectors(model, job.words(self.vocabulary).words[:3000], self.rows)
        held = self.preserve_scale * common.T @ common / max(len(common), 1)
        kept = text_vectors(model, self.keep)
        held = held + self.ridge * torch.eye(held.shape[0], dtype=held.dtype)
        least, *_, most = torch.linalg.eigvalsh(held).tolist()
        if least <= EXACT * most:
            raise UserError(
                f"the vocabulary's {len(common)} text states and a ridge of {self.ridge:g} leave "
                "directions that nothing holds in place, which would turn at random: raise ridge."
            )
        own, found, left = model.parameters(), {}, []
        for name in maps:
            w = own[name].cpu().double()
            concept = span(c @ w.T, name, energy)
            anchor = widened(span(a @ w.T, name), anchors @ w.T, concept.shape[1])
            still = normalize(kept @ w.T)
            keep = w @ held @ w.T + self.keep_weight * self.erase_scale * still.T @ still
            rotation = self.rotation(concept, anchor, keep)
            found[name] = (rotation @ w).float()
            left.append(round(outside(rotation @ concept, anchor), 4))
        job.notes["outside_the_anchor"] = left
        return Made(found)

    def rotation(self, concept: Tensor, anchor: Tensor, keep: Tensor) -> Tensor:
        """R, (out, out), of determinant 1.

        Args:
            concept: orthonormal directions of what the concepts give, (out, n).
            anchor: of what their anchors give, (out, m).
            keep: (out, out), symmetric, no direction below 0.
        """
        g = concept @ concept.T
        if self.form == "released":
            # its term -s_e G (I - G*), as the code has it; its transpose would be the formula's
            return proper(keep - self.erase_scale * (g - g @ anchor @ anchor.T))
        eye = torch.eye(len(keep), dtype=keep.dtype)
        r = step = eye
        for _ in range(self.rounds):
            turned = r @ g
            step = keep + self.erase_scale * (r - turned + anchor @ (anchor.T @ turned))
            r = polar(step)
        return proper(step)

    @classmethod
    def presets(cls) -> Mapping[str, OCE]:
        """``released``: the authors' one step; ``searched``: found on ``emoji`` (split 4).

        For five concepts at once the one step did better there than the iteration, whose rotation
        reaches the anchor and takes other words along.
        """
        return {
            "released": cls(form="released"),
            "searched": cls(form="released", erase_scale=300.0),
        }


def polar(m: Tensor) -> Tensor:
    """The orthogonal matrix nearest to a square one."""
    u, _, vh = torch.linalg.svd(m)
    nearest: Tensor = u @ vh
    return nearest


def proper(m: Tensor) -> Tensor:
    """The rotation nearest to a square matrix: determinant 1."""
    u, _, vh = torch.linalg.svd(m)
    if torch.linalg.det(u) * torch.linalg.det(vh) < 0:
        u = torch.cat([u[:, :-1], -u[:, -1:]], 1)
    rotation: Tensor = u @ vh
    return rotation


def span(rows: Tensor, name: str, energy: float = 1.0) -> Tensor:
    """Orthonormal directions of some vectors, each as long as any, (out, n).

    Args:
        rows: (k, out).
        name: of the map that gave them.
        energy: share of the sum of squares that they hold at least.

    Raises:
        UserError: they fill the whole space.
    """
    _, s, vh = torch.linalg.svd(normalize(rows), full_matrices=False)
    before = s.square().cumsum(0) - s.square()
    left = s.square().sum() - before
    found: Tensor = vh[left > max(1 - energy, EXACT) * s.square().sum()].T
    if found.shape[1] == len(found):
        raise UserError(
            f"the erased concepts, or their anchors, fill all {len(found)} directions of {name!r}: "
            "erase fewer at once."
        )
    return found


def widened(anchor: Tensor, rows: Tensor, n: int) -> Tensor:
    """At least ``n`` directions, as a rotation squeezes none together, (out, n).

    Args:
        anchor: the first of them, orthonormal, (out, m).
        rows: what a map makes of the anchors' whole prompts, of which the largest directions are
            added, (k, out).
    """
    if anchor.shape[1] >= n:
        return anchor
    rest = normalize(rows) - normalize(rows) @ anchor @ anchor.T
    vh = torch.linalg.svd(rest, full_matrices=False).Vh
    return torch.cat([anchor, vh[: n - anchor.shape[1]].T], 1)


def outside(turned: Tensor, anchor: Tensor) -> float:
    """Share of directions (out, n) that lies outside of the anchors' (out, m), 0 to 1."""
    rest = turned - anchor @ (anchor.T @ turned)
    return float(rest.norm() / max(turned.norm(), 1e-12))
