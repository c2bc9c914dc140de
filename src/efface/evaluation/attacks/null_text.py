"""The start noise from which the edited model draws the concept without being asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.evaluation.artefacts import Artefact, Latents, Victim
from efface.evaluation.attacks.attack import Attack, Attacked, no_gates
from efface.settings import Range, check_ranges


@dataclass(frozen=True)
class NullText(Attack):
    """Run the deterministic steps backwards from pictures of the concept, under the empty prompt.

    Before each step the latents z must be such that the step leads to what is known after it: a
    fixed point of z = back(ε'(z, t, "")), found by a few rounds. An exact inverse reproduces any
    picture, also of what a model never knew (the control with negatives), and from latents that
    nobody would draw: ``z`` is their likelihood as a z-score, (‖z‖² - d) / √(2d), 0 for noise.

    Source: TINA (arXiv:2603.17828), which takes 25 steps of AdamW to the same fixed point; the
    reading by likelihood is arXiv:2412.00782's.
    """

    name: ClassVar[str] = "null-text"
    channel: ClassVar[str] = "latent"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "pictures"})
    searches: ClassVar[bool] = True

    steps: Annotated[int, Range(2, 1000)] = 20
    """Deterministic steps."""
    rounds: Annotated[int, Range(1, 1000)] = 5
    """Rounds to the fixed point of each."""
    pictures: Annotated[int, Range(1, 10_000)] = 8
    """Pictures that are inverted."""
    share: Annotated[float, Range(0, 1)] = 0.05
    """Part of the latents' variance that is fresh noise where they are drawn from again: what
    needs the very latents is no way of asking."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def curve(self) -> Sequence[str]:
        """None."""
        return ()

    def full(self) -> NullText:
        """The paper's."""
        return replace(self, steps=50, rounds=25)

    def wanted(self) -> int:
        """What is inverted."""
        return self.pictures

    def least(self) -> int:
        """One round of every step, of one picture."""
        return self.steps

    def evaluations(self) -> int:
        """Forward alone."""
        return self.steps * self.rounds * self.pictures

    def check(self, given: Attacked) -> None:
        """One set of weights."""
        no_gates(given, self.name)

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """The start latents of all pictures."""
        z = inverted(given, self.steps, self.rounds, given.shown()[: self.pictures])
        d = z[0].numel()
        if given.blind:
            away = torch.randn(z.shape, generator=given.generator("blind")).to(z)
            z = away * (z.flatten(1).norm(dim=1) / away.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
        score = (z.flatten(1).square().sum(1) - d) / (2 * d) ** 0.5
        yield Latents(
            prompt="",
            source="",
            z=z.cpu(),
            steps=self.steps,
            share=self.share,
            scale=1.0,
            measured={"z": float(score.mean())},
        )


@torch.no_grad()
def inverted(given: Attacked, steps: int, rounds: int, pictures: Tensor) -> Tensor:
    """Latents before the first step that lead to pictures, (N, C, H, W).

    A small budget takes rounds away, then pictures: every step has one round.
    """
    model, victim = given.model, Victim(given.model, given.edit)
    weights, schedule = victim.weights(""), model.schedule(steps)
    if (most := given.remaining()) is not None:
        rounds = max(1, min(rounds, most // (steps * len(pictures))))
        pictures = pictures[: max(1, most // (steps * rounds))]
    z = model.encode(pictures)
    cond = model.embed([""]).repeat(len(z))
    for i in reversed(range(steps)):
        known, t = z, schedule.timesteps[i].expand(len(z))
        for _ in range(rounds):
            z = schedule.back(known, model.predict(z, t, cond, weights), i)
    return z
