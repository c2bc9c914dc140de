"""What a judge saw on pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.evaluation.samples import Samples


@dataclass(frozen=True)
class Seen:
    """What the judge saw on N pictures, in the order of their rows."""

    concepts: tuple[str, ...]
    """What each picture ought to show."""
    top1: Tensor
    """Whether the judge's first guess is that, (N,) bool."""
    top5: Tensor
    """Whether it is among its first five, (N,) bool."""

    def hits(self, k: int) -> Tensor:
        """(N,) bool for k = 1 or 5."""
        return {1: self.top1, 5: self.top5}[k]

    def of(self, names: Sequence[str]) -> Seen:
        """Only the pictures of these concepts."""
        wanted = set(names)
        rows = torch.tensor(
            [i for i, c in enumerate(self.concepts) if c in wanted], dtype=torch.long
        )
        return Seen(
            tuple(self.concepts[i] for i in rows.tolist()), self.top1[rows], self.top5[rows]
        )

    def packed(self) -> list[list[int]]:
        """Top-1 and top-5 as two lists of 0 and 1, for a file."""
        return [self.top1.int().tolist(), self.top5.int().tolist()]

    @property
    def groups(self) -> Tensor:
        """An integer a picture, equal where the concept is, (N,)."""
        at = {c: i for i, c in enumerate(dict.fromkeys(self.concepts))}
        return torch.tensor([at[c] for c in self.concepts])


def see(
    samples: Samples, judge: Any, head: str = "concept", labels: Mapping[str, str] | None = None
) -> Seen:
    """Judge every picture of a sample set.

    Args:
        head: what the judge is to name: ``concept`` or ``style``.
        labels: what it calls a concept, where that is another name.

    Raises:
        UserError: a concept that the judge does not know.
        ValueError: no pictures.
    """
    goal = torch.tensor([judge.label(r.concept, head, labels) for r in samples.rows])
    found = judge.classify(samples.images())
    guess = found.concepts if head == "concept" else found.styles[:, :5]
    hit = guess == goal[:, None]
    return Seen(tuple(r.concept for r in samples.rows), hit[:, 0], hit.any(1))
