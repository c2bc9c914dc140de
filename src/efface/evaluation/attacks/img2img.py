"""A picture of the concept is noised, and the edited model draws over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from efface.errors import UserError
from efface.evaluation.artefacts import Artefact, Picture
from efface.evaluation.attacks.attack import Attack, Attacked
from efface.settings import Range, check_ranges

UNASKED = " unasked"
"""Ends the points of the empty prompt."""


@dataclass(frozen=True)
class Img2Img(Attack):
    """Draw over pictures of the concept that are noised to several strengths.

    Once under the name, once under the empty prompt. At small strengths it is the picture that
    shows the concept, not the model: the controls say from where on.

    Source: the control that arXiv:2507.07139 lacks.
    """

    name: ClassVar[str] = "img2img"
    channel: ClassVar[str] = "picture"
    needs: ClassVar[frozenset[str]] = frozenset({"pictures"})

    strengths: Annotated[tuple[float, ...], Range(0, 1, open_low=True)] = (0.3, 0.5, 0.7, 0.8, 0.9)
    """Shares of the steps that the edited model makes."""
    steps: Annotated[int, Range(2, 1000)] = 20
    """Deterministic steps of a whole picture."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.strengths:
            raise UserError("got no strength for img2img; one or more from 0 to 1 are needed.")

    @property
    def headline(self) -> str:
        """The strength nearest to 0.7, under the name."""
        return f"{min(self.strengths, key=lambda s: abs(s - 0.7)):g}"

    def curve(self) -> Sequence[str]:
        """Every strength, asked and unasked."""
        return [f"{s:g}{mark}" for s in self.strengths for mark in ("", UNASKED)]

    def full(self) -> Img2Img:
        """More steps."""
        return replace(self, steps=50)

    def count(self, prompts: int) -> int:
        """Of a concept."""
        return 2 * len(self.strengths)

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """One a strength and a prompt."""
        pictures = given.starts()
        for strength in self.strengths:
            for prompt, mark in ((given.asked[0], ""), ("", UNASKED)):
                yield Picture(
                    prompt=prompt,
                    source=prompt,
                    at=f"{strength:g}{mark}",
                    pictures=pictures,
                    strength=strength,
                    steps=self.steps,
                )
