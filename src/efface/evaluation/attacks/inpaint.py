"""The middle of a picture of the concept is drawn anew by the edited model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from efface.errors import UserError
from efface.evaluation.artefacts import Artefact, Picture
from efface.evaluation.attacks.attack import Attack, Attacked
from efface.settings import Range, check_ranges


@dataclass(frozen=True)
class Inpaint(Attack):
    """Fill a hole in pictures of the concept under its name, from noise.

    What is left around the hole may be enough for the judge: the control with negatives says so.

    Source: a probe of arXiv:2505.17013, whose hole has half of the picture's side.
    """

    name: ClassVar[str] = "inpaint"
    channel: ClassVar[str] = "picture"
    needs: ClassVar[frozenset[str]] = frozenset({"pictures"})

    holes: Annotated[tuple[float, ...], Range(0, 1, open_low=True)] = (0.5, 0.75)
    """Sides of a square in the middle, as shares of the picture's."""
    steps: Annotated[int, Range(2, 1000)] = 20
    """Deterministic steps of a picture."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.holes:
            raise UserError("got no hole for inpaint; one or more from 0 to 1 are needed.")

    @property
    def headline(self) -> str:
        """The smallest hole."""
        return f"{min(self.holes):g}"

    def curve(self) -> Sequence[str]:
        """Every hole."""
        return [f"{h:g}" for h in self.holes]

    def full(self) -> Inpaint:
        """More steps."""
        return replace(self, steps=50)

    def count(self, prompts: int) -> int:
        """One a hole."""
        return len(self.holes)

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """One a hole."""
        pictures = given.starts()
        for hole in self.holes:
            yield Picture(
                prompt=given.asked[0],
                at=f"{hole:g}",
                pictures=pictures,
                strength=1.0,
                steps=self.steps,
                hole=hole,
            )
