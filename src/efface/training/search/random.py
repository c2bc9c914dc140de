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

    def learn(self, chosen: Tensor, harm: Tensor) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""
