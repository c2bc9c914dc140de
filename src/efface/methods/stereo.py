"""STEREO: find one vector after the other that brings the concept back, then erase all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.errors import UserError
from efface.models import Conditioning, check_clip, stack
from efface.settings import Range
from efface.training import Bank, Entry, Job, Loss, Made, Method, Student, Tuning, turns
from efface.training.latents import Banked
from efface.training.recall import Recall, Tokens


@dataclass(frozen=True, kw_only=True)
class STEREO(Method, Tuning):
    """Two stages: rounds of erasure and inversion, and one erasure of all that they found.

    Source: arXiv:2408.16807, section 3. Differences: vectors are found on trajectories of the
    frozen model, whose prediction for the concept they are to give, by the signs of the gradient,
    instead of by Adam on finished pictures; latents are those of the frozen model; a concept's
    anchor stands for the authors' sentences; ``updates`` are those of both stages together.
    """

    name: ClassVar[str] = "stereo"
    label: ClassVar[str] = "STEREO"

    rounds: Annotated[int, Range(0, 100)] = 2
    """Vectors of each concept that are searched for, each against an erasure of the one before."""
    share: Annotated[float, Range(0, 1)] = 0.5
    """Share of the updates for the rounds' erasures; the others are the second stage's."""
    guidance: Annotated[float, Range(0, 100)] = 2.0
    """g: the goal is g - 1 times the way to the anchor, and g + 1 times the mean way to concept and
    vectors taken away, from the null prompt."""
    inversion: Annotated[int, Range(1, 10**6)] = 150
    """Steps of a vector."""
    inversion_batch: Annotated[int, Range(2, 4096)] = 16
    """Latents of a step."""
    inversion_step: Annotated[float, Range(0, 100, open_low=True)] = 0.1
    """How far a number of the vector moves in a step, in units of the token table's root mean
    square."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""
    latents: Bank = Bank()
    """Where noisy latents come from."""

    @property
    def rows(self) -> int:
        """An update's latents, or a step's of a vector."""
        return max(self.batch + self.kept_rows, self.inversion_batch if self.rounds else 0)

    @property
    def reads_tokens(self) -> bool:
        """Where vectors are searched for."""
        return self.rounds > 0

    @property
    def round_updates(self) -> int:
        """Updates of a round's erasure; at least one is left for the second stage."""
        return min(int(self.share * self.updates), self.updates - 1) // max(self.rounds, 1)

    def check(self, job: Job) -> None:
        """Refuse a model without token vectors, and more names than it can hold latents of."""
        if self.rounds:
            check_clip(job.model, f"the method {self.name!r}")
        n = sum(len(c.pairs(self.diversify)) for c in job.concepts)
        if n > turns.HELD:
            raise UserError(
                f"stereo looks in the latents of all prompts at once, of {turns.HELD} at most, and "
                f"there are {n:,}: erase in several runs and put them together (efface combine)."
            )

    def make(self, job: Job) -> Made:
        """Search, then erase from the original weights."""
        bank = self.latents.open(job)
        words = self.opened(job, bank)
        found: list[Conditioning] = []
        weights: dict[str, Tensor] = {}
        for i in range(self.rounds):
            part = self.part(job, i)
            make = partial(self.round, part, bank, words, weights, found[-1:])
            kept = job.run.part(i, part.fingerprint, make, job.model.counter)
            weights = {k[2:]: w for k, w in kept.items() if k.startswith("w/")}
            words.restore({k[2:]: w for k, w in kept.items() if k.startswith("v/")})
            found.append(words.cond)
        left = self.updates - self.rounds * self.round_updates
        last = replace(job, method=replace(self, updates=left))
        return Made(last.train(self.second(job, bank, found)))

    def part(self, job: Job, i: int) -> Job:
        """The job of a round's erasure."""
        method = replace(self, updates=max(self.round_updates, 1))
        about = {**job.about, "part": i}
        return replace(job, method=method, about=about, branch=("round", i))

    def opened(self, job: Job, bank: Banked) -> Tokens:
        """The vectors, at their start."""
        config = Recall(steps=1, batch=self.inversion_batch, tokens_step=self.inversion_step)
        return Tokens(job, bank, config)

    def round(
        self,
        job: Job,
        bank: Banked,
        words: Tokens,
        weights: Mapping[str, Tensor],
        last: Sequence[Conditioning],
    ) -> dict[str, Tensor]:
        """Erase on top of some weights, and search for vectors that bring the concepts back.

        Args:
            words: the search, from its start on.
            last: what the round before found; empty: the names are erased.

        Returns:
            Weights (``w/…``) and vectors (``v/…``).
        """
        fresh = self.opened(job, bank)
        words.restore(fresh.state())
        keeping, model = job.keeping(), job.model

        def loss(student: Student, g: torch.Generator) -> Tensor:
            b = bank.draw(g, self.batch)
            cond = last[0][words.chosen(b, g).to(b.z.device)] if last else b.concept
            value = mse_loss(student(b.z, b.t, cond), b.e_anchor)
            return value + keeping.term(student, b.z, b.t, g)

        own = {**model.parameters(), **{k: w.to(model.device) for k, w in weights.items()}}
        trained = dict(weights) or {k: own[k].float().cpu() for k in model.group(self.group)}
        if self.round_updates:
            trained = job.train(loss, start=own)
        student = Student(model, {k: w.to(model.device) for k, w in trained.items()})

        def step(i: int, _: bool = False) -> None:
            words.search(student, job.generator("inversion", i))

        if job.run.trial is None:
            for i in range(self.inversion):
                step(i)
        else:
            updates = job.run.trial.updates  # steps of a vector are no updates of weights
            job.run.trial.loop(model, self.inversion, step)
            job.run.trial.updates = updates
        kept = {f"w/{k}": w.contiguous() for k, w in trained.items()}
        return kept | {f"v/{k}": w.detach().cpu() for k, w in words.state().items()}

    def second(self, job: Job, bank: Banked, found: Sequence[Conditioning]) -> Loss:
        """The loss of the second stage.

        Args:
            found: of every round, n·T rows.
        """
        model, keeping = job.model, job.keeping()

        def value(student: Student, g: torch.Generator) -> Tensor:
            b, n = bank.draw(g, self.batch), self.batch
            each = len(found[0]) // len(job.concepts) if found else 1
            row = (b.which * each + torch.randint(0, each, (n,), generator=g)).to(b.z.device)
            away = [b.concept, *(rows[row] for rows in found)]
            with torch.no_grad():
                asked = stack([model.null(n), *away[1:]])
                z, t = (x.repeat(len(away), *[1] * (x.ndim - 1)) for x in (b.z, b.t))
                null, *others = model.predict(z, t, asked).split(n)
            ways = torch.stack([e - null for e in (b.e_concept, *others)]).mean(0)
            goal = null + (self.guidance - 1) * (b.e_anchor - null) - (self.guidance + 1) * ways
            pick = torch.randint(0, len(away), (n,), generator=g)
            cond = stack([away[k][[i]] for i, k in enumerate(pick.tolist())])
            return mse_loss(student(b.z, b.t, cond), goal) + keeping.term(student, b.z, b.t, g)

        return value

    @classmethod
    def lineup(cls) -> Mapping[str, Entry]:
        """With the learning rate that was found for ESD."""
        return {"stereo": Entry(cls.label, cls(lr=3e-5))}
