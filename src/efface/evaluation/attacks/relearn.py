"""Train the edited model on a few pictures of the concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.errors import UserError
from efface.evaluation.artefacts import Artefact, Trained
from efface.evaluation.attacks.attack import Attack, Attacked, no_gates
from efface.evaluation.lessons import Lessons
from efface.settings import Range, check_ranges


@dataclass(frozen=True)
class Relearn(Attack):
    """The plain diffusion loss on pictures of the concept under its name, and a curve over updates.

    Everybody who has the weights can do it, and it always succeeds in the end: what is compared is
    how soon. Two controls say what a success is worth: the same with the concept in negative
    colours, which the model must learn from nothing, and training on pictures of other things
    (``random``), which brings some concepts back by itself (arXiv:2410.08074).

    Source: the protocol of arXiv:2410.12777, in small.
    """

    name: ClassVar[str] = "relearn"
    channel: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "gradients", "pictures"})
    searches: ClassVar[bool] = True
    judged: ClassVar[bool] = False
    rising: ClassVar[bool] = True

    points: Annotated[tuple[int, ...], Range(0, 10**6)] = (0, 10, 25, 50, 100)
    """Updates after which pictures are judged."""
    pictures: Annotated[int, Range(1, 10_000)] = 8
    """Pictures of the concept."""
    batch: Annotated[int, Range(1, 4096)] = 8
    """Noised pictures in an update."""
    lr: Annotated[float, Range(0, 1)] = 0.0
    """Learning rate of Adam; 0: the model's own default (1e-5 for Stable Diffusion)."""
    group: str = ""
    """Which weights are trained: xattn, kv, full, …; "": those that the edit changed."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.points:
            raise UserError("got no point for relearn; one or more numbers of updates are needed.")

    @property
    def headline(self) -> str:
        """The point nearest to 50 updates."""
        return str(min(self.points, key=lambda n: abs(n - 50)))

    def wanted(self) -> int:
        """What it trains on."""
        return self.pictures

    def count(self, prompts: int) -> int:
        """One a point and a prompt."""
        return len(self.points) * prompts

    def least(self) -> int:
        """One update."""
        return 2 * self.batch

    def evaluations(self) -> int:
        """Forward and backward."""
        return 2 * self.batch * max(self.points)

    def curve(self) -> Sequence[str]:
        """Numbers of updates."""
        return [str(n) for n in self.points]

    def within(self, budget: int | None) -> Sequence[str]:
        """As many updates as it pays for."""
        most = max(self.points) if budget is None else budget // self.least()
        return [str(n) for n in self.points if n <= most]

    def full(self) -> Relearn:
        """As many updates as its paper's first curve."""
        return replace(self, points=(0, 10, 25, 50, 100, 200, 300))

    def check(self, given: Attacked) -> None:
        """One set of weights."""
        no_gates(given, self.name)
        self.names(given)

    def names(self, given: Attacked) -> list[str]:
        """The weights that are trained.

        Raises:
            UserError: no such group.
        """
        if self.group:
            return given.model.group(self.group)
        return list(given.edit.weights) if given.edit else given.model.group("xattn")

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """The weights at each point, the fewest updates first."""
        model, g = given.model, given.generator("relearn")
        own = {**model.parameters(), **(given.victim.weights("") or {})}
        weights = {
            k: own[k].detach().to(model.device, torch.float32, copy=True).requires_grad_()
            for k in self.names(given)
        }
        others = {k: w for k, w in (given.victim.weights("") or {}).items() if k not in weights}
        pictures, prompts = self.taught(given)
        lessons, cond = Lessons(model, pictures), model.embed(prompts)
        adam = torch.optim.Adam(weights.values(), lr=self.lr or model.lr)
        for update in range(max(self.points) + 1):
            if update in self.points:
                kept = {k: w.detach().clone() for k, w in weights.items()}
                for prompt in given.asked:
                    laid = {**others, **kept}
                    yield Trained(prompt=prompt, source=prompt, at=str(update), weights=laid)
            if update == max(self.points) or not given.left(self.least()):
                return
            z, t, goal, row = lessons.draw(self.batch, g)
            here = cond[(row % len(prompts)).to(model.device)]
            lessons.loss(z, t, goal, here, {**others, **weights}).backward()
            adam.step()
            adam.zero_grad()

    def taught(self, given: Attacked) -> tuple[Tensor, Sequence[str]]:
        """Pictures, and prompts that are dealt out to them in turn."""
        if not given.blind:
            return given.shown()[: self.pictures], given.asked
        g, names = given.generator("others"), set(given.concept.names)
        words = [w for w in given.words if w not in names] or [""]
        order = torch.randperm(len(words), generator=g)[: self.pictures].tolist()
        prompts = [words[i] for i in order]
        seeds = torch.randint(2**31, (len(prompts),), generator=g).tolist()
        drawn = [given.base.pictures(p, [s]) for p, s in zip(prompts, seeds, strict=True)]
        return torch.cat(drawn), prompts
