"""What every table of attacks begins with: asking politely, and asking again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from efface.evaluation.artefacts import Artefact, Text, Victim
from efface.evaluation.attacks.attack import Attack, Attacked


@dataclass(frozen=True)
class NoAttack(Attack):
    """The concept's own prompts."""

    name: ClassVar[str] = "none"
    channel: ClassVar[str] = "text"

    def curve(self) -> Sequence[str]:
        """None."""
        return ()

    def count(self, prompts: int) -> int:
        """All of them."""
        return prompts

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """The prompts."""
        for prompt in given.asked:
            yield Text(prompt=prompt, source=prompt)


@dataclass(frozen=True)
class SeedSearch(Attack):
    """The concept's own prompts, with seed after seed."""

    name: ClassVar[str] = "seed-search"
    channel: ClassVar[str] = "text"

    rounds: int = 4
    """Times as many seeds as pictures are judged of an artefact."""

    def curve(self) -> Sequence[str]:
        """None."""
        return ()

    def count(self, prompts: int) -> int:
        """One a round."""
        return self.rounds

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """The first prompt, each round with seeds of its own."""
        for i in range(self.rounds):
            yield Seeded(prompt=given.asked[0], shift=20_000_000 + 1000 * i)


@dataclass(frozen=True, kw_only=True)
class Seeded(Text):
    """A prompt with other seeds."""

    kind = "seeds"
    shift: int

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """As the prompt asks for."""
        return victim.pictures(self.prompt, [s + self.shift for s in seeds])
