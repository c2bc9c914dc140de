"""Any candidate: the control that every search must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from efface.training.search.pools import Drawn, Pools, Setting
from efface.training.student import Student


@dataclass(frozen=True, kw_only=True)
class Random:
    """Preserve any candidate."""

    kind: ClassVar[str] = "random"

    def start(self, setting: Setting) -> RandomSearch:
        """The search at work."""
        return RandomSearch(setting.candidates)


class RandomSearch:
    """Any candidate of the row's concept."""

    def __init__(self, candidates: Pools) -> None:
        self.pools = candidates

    def draw(self, which: Tensor, n: int, g: torch.Generator) -> Drawn:
        """``n`` candidates, row i for the erased concept ``which[i]`` (over again)."""
        index = torch.stack([self._one(int(which[i % len(which)]), g) for i in range(n)])
        return Drawn(self.pools.take(index), index)

    def _one(self, which: int, g: torch.Generator) -> Tensor:
        mine = self.pools.of[which]
        return mine[torch.randint(0, len(mine), (), generator=g)]

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Nothing."""

    def end(self, student: Student) -> None:
        """Nothing."""

    def learn(self, chosen: Tensor, harm: Tensor) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


class WeightedSearch(RandomSearch):
    """Each candidate of the row's concept as often as its odds say."""

    odds: Tensor
    """How often each candidate is drawn, (U,); all alike where none of a concept's is."""

    def _one(self, which: int, g: torch.Generator) -> Tensor:
        mine = self.pools.of[which]
        odds = self.odds[mine]
        odds = odds if odds.any() else torch.ones_like(odds)
        return mine[torch.multinomial(odds, 1, generator=g)[0]]


def by_share(harm: Tensor, some: float) -> Tensor:
    """Odds by the share of all harm, but for ``some`` of the draws, which go to any, (U,)."""
    mean = harm.mean()
    return (1 - some) * harm / mean + some if mean > 0 else torch.ones_like(harm)
