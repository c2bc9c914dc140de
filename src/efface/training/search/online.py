"""The candidates that were harmed most when they were last preserved: a search for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.settings import Range, check_ranges
from efface.training.processes import add_up, join
from efface.training.search.pools import Pools, Setting
from efface.training.search.random import WeightedSearch, by_share
from efface.training.student import Student


@dataclass(frozen=True, kw_only=True)
class Online:
    """Draw a candidate as often as it was harmed when it was last preserved.

    Every preserved word's harm is a part of the loss: it is taken from there, and no evaluation is
    spent on a search.
    """

    kind: ClassVar[str] = "online"
    memory: Annotated[float, Range(0, 1)] = 0.5
    """How much of a word's running harm a new sight of it leaves in place."""
    any: Annotated[float, Range(0, 1)] = 0.2
    """Share of the draws that go to any candidate, however little it was harmed."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def start(self, setting: Setting) -> OnlineSearch:
        """The search at work."""
        return OnlineSearch(self, setting.candidates)


class OnlineSearch(WeightedSearch):
    """Draws by the harm that was seen in training.

    A word that was not yet seen counts as the mean of those that were; before the first update all
    are alike.
    """

    def __init__(self, config: Online, candidates: Pools) -> None:
        super().__init__(candidates)
        self.config = config
        n = len(candidates.words)
        self.harm = torch.full((n,), torch.nan)
        self.total, self.times = torch.zeros(n), torch.zeros(n)
        self.odds = self._odds()

    def learn(self, chosen: Tensor, harm: Tensor) -> None:
        """Remember how much words were harmed, until the update ends.

        Args:
            chosen: which candidates, (N,).
            harm: of each, (N,).
        """
        self.total.index_add_(0, chosen, harm.detach().float().cpu())
        self.times.index_add_(0, chosen, torch.ones(len(chosen)))

    def end(self, student: Student) -> None:
        """Take in what was seen in the update, by all processes."""
        if join()[1] > 1:
            there = [x.to(student.model.device) for x in (self.total, self.times)]
            add_up(there)
            self.total, self.times = (x.cpu() for x in there)
        seen = self.times > 0
        fresh = self.total / self.times.clamp(min=1)
        new = self.harm.isnan()
        mixed = self.config.memory * self.harm + (1 - self.config.memory) * fresh
        self.harm = torch.where(seen, torch.where(new, fresh, mixed), self.harm)
        self.total, self.times = torch.zeros_like(fresh), torch.zeros_like(fresh)
        self.odds = self._odds()

    def _odds(self) -> Tensor:
        """How often each candidate is drawn, (U,)."""
        harm = self.harm.nan_to_num(float(self.harm.nanmean().nan_to_num(1.0)))
        return by_share(harm, self.config.any)

    def state(self) -> dict[str, Tensor]:
        """The running harm."""
        return {"harm": self.harm}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.harm = state["harm"].clone()
        self.odds = self._odds()
