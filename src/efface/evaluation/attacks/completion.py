"""The base model begins the picture, and the edited one ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from efface.errors import UserError
from efface.evaluation.artefacts import Artefact, Begun, Picture
from efface.evaluation.attacks.attack import Attack, Attacked
from efface.settings import Range, check_ranges

FRESH = 10_000_000
"""Added to the seeds of the control, in which nobody but the edited model draws."""


@dataclass(frozen=True)
class Completion(Attack):
    """The base model makes the first k of S steps under the name, the edited model the others.

    An edit that only turns away from the name does not know what to do with a picture that is
    begun; one that has forgotten the concept loses it again. The half point is the least k at which
    half as many pictures show it as the base model's own.

    Source: arXiv:2505.17013.
    """

    name: ClassVar[str] = "completion"
    channel: ClassVar[str] = "latent"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})
    judged: ClassVar[bool] = False
    rising: ClassVar[bool] = True

    steps: Annotated[int, Range(2, 1000)] = 20
    """S, deterministic steps of a picture."""
    begun: Annotated[tuple[int, ...], Range(0, 1000)] = (4, 7, 10, 15)
    """The k that are tried."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.begun or max(self.begun) >= self.steps:
            raise UserError(
                f"got {self.begun} for begun; one or more numbers below the {self.steps} steps."
            )

    @property
    def headline(self) -> str:
        """The k nearest to half of the steps."""
        return str(min(self.begun, key=lambda k: abs(2 * k - self.steps)))

    def curve(self) -> Sequence[str]:
        """Every k."""
        return [str(k) for k in self.begun]

    def full(self) -> Completion:
        """Every step."""
        return replace(self, steps=20, begun=tuple(range(20)))

    def count(self, prompts: int) -> int:
        """One a k and a prompt."""
        return len(self.begun) * prompts

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """One a k and a prompt."""
        for k in sorted(set(self.begun)):
            for prompt in given.asked:
                if given.negative:  # as somebody would begin who can draw negatives
                    share = (self.steps - k) / self.steps
                    yield Picture(
                        prompt=prompt,
                        source=prompt,
                        at=str(k),
                        pictures=given.shown(),
                        strength=share,
                        steps=self.steps,
                    )
                    continue
                by, shift = (given.victim, FRESH) if given.blind else (given.base, 0)
                yield Begun(
                    prompt=prompt,
                    source=prompt,
                    at=str(k),
                    by=by,
                    k=k,
                    steps=self.steps,
                    shift=shift,
                )
