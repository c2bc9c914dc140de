"""Project: after the edit, the text maps cannot tell a concept from its anchor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from efface import Job, Made, Method, UserError
from efface.training.closed_form import text_vectors


@dataclass(frozen=True, kw_only=True)
class Project(Method):
    """Project the direction from anchor to concept out of all keys and values.

    A linear map that does not see the difference of two vectors gives the same for both. Source:
    one step of the null-space projection of arXiv:2004.07667, with the difference of two text
    vectors as the direction. Ours: what is kept, and the start token, lie outside the projection.
    """

    name: ClassVar[str] = "project"
    label: ClassVar[str] = "Projection"
    closed_form: ClassVar[bool] = True

    share: float = 1.0
    """How much of the direction is taken out; 1: all of it."""
    keep: tuple[str, ...] = ()
    """Words whose keys and values do not change at all."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"got {self.share} for share; more than 0 and at most 1 is allowed.")

    def make(self, job: Job) -> Made:
        """The same projection for every map."""
        model = job.model
        still = text_vectors(model, ["", *self.keep])  # (m, D); of "": the start token
        away = text_vectors(model, job.names) - text_vectors(model, job.anchors)
        d = directions(away, still)  # (D, r)
        if not d.shape[1]:
            raise UserError("the words to keep leave no direction free: keep fewer words.")
        job.notes["directions"] = d.shape[1]
        p = torch.eye(len(d), dtype=d.dtype) - self.share * d @ d.T
        own = model.parameters()
        return Made({n: (own[n].cpu().double() @ p).float() for n in model.text_maps()})

    @classmethod
    def presets(cls) -> Mapping[str, Project]:
        """``half``: a milder edit."""
        return {"half": cls(share=0.5)}


def directions(away: Tensor, still: Tensor, least: float = 1e-6) -> Tensor:
    """Orthonormal directions that ``away`` (n, D) spans at right angles to ``still`` (m, D).

    Args:
        least: length of what is left of a vector, against its own, below which it counts as none.

    Returns:
        (D, r).
    """
    away = away / away.norm(dim=1, keepdim=True).clamp_min(1e-30)
    basis = spanned(still / still.norm(dim=1, keepdim=True).clamp_min(1e-30), least)
    return spanned(away - away @ basis @ basis.T, least)


def spanned(rows: Tensor, least: float) -> Tensor:
    """An orthonormal basis (D, r) of what the rows (n, D) span."""
    _, size, vectors = torch.linalg.svd(rows, full_matrices=False)
    found: Tensor = vectors[size > least].T
    return found
