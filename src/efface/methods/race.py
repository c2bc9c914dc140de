"""RACE: erase under the text states near the concept's own that bring it back most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.errors import UserError, pick
from efface.models.process import Diffusion
from efface.settings import Range
from efface.training import Bank, Entry, Job, Loss, Made, Method, Student, Tuning
from efface.training.batches import Batch
from efface.training.latents import Banked
from efface.training.recall import PACE
from efface.training.student import Clock

TARGETS = ("teacher", "start_noise")


@dataclass(frozen=True, kw_only=True)
class RACE(Method, Tuning):
    """ESD, and then ESD again under text states that are searched for in every update.

    Source: arXiv:2405.16341, section 3, as differences of these fields: ``paper``. Its first part,
    a finished ESD, is the first updates here. Left out: latents from the student's own rollouts.
    """

    name: ClassVar[str] = "race"
    label: ClassVar[str] = "RACE"

    eta: Annotated[float, Range(0)] = 1.0
    """Strength of the negative guidance; 0 maps the concept onto its anchor."""
    plain: Annotated[float, Range(0, 1)] = 0.5
    """Share of the updates, the first ones, without an adversary: ESD."""
    inner_target: str = "teacher"
    """What the adversary makes the edited model predict: what the frozen model predicts for the
    concept (``teacher``), or the noise that the trajectory began with (``start_noise``), as the
    released code does, which is the picture's noise near its beginning only."""
    steps: Annotated[int, Range(1, 10_000)] = 10
    """Steps of the adversary in an update, each a quarter of the radius."""
    radius: Annotated[float, Range(0, 100, open_low=True)] = 0.1
    """How far a number of the text states may move, in units of their root mean square, which is
    about 1 in Stable Diffusion (there the paper's 0.1 is absolute)."""
    bounded: bool = True
    """Keep the states between the smallest and the largest number of the prompt's own."""
    lasso: Annotated[float, Range(0)] = 0.0
    """Weight of the mean absolute change of each weight tensor, summed over tensors."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""
    latents: Bank = Bank()
    """Where noisy latents come from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(dict.fromkeys(TARGETS), self.inner_target, "inner target")

    def check(self, job: Job) -> None:
        """Refuse the noise as a target where velocities are predicted."""
        if self.inner_target == "start_noise" and not isinstance(job.model.process, Diffusion):
            raise UserError(
                f"{job.model.family.label} predicts velocities, which no noise is a target of: "
                "choose inner_target 'teacher'."
            )

    def make(self, job: Job) -> Made:
        """Train by the guided prediction, first under the names, then under the adversary's."""
        clock = Clock()
        return Made(job.train(self.loss(job, self.latents.open(job), clock), [clock]))

    def loss(self, job: Job, bank: Banked, clock: Clock) -> Loss:
        """Of the update that the clock says."""
        keeping, plain = job.keeping(), round(self.plain * self.updates)
        own = job.model.parameters()

        def value(student: Student, g: torch.Generator) -> Tensor:
            path, step = bank.pick(g, self.batch)
            b = bank.at(path, step)
            cond = b.concept
            if clock.update >= plain:
                start = bank.z[path, 0].to(b.z.device)
                goal = b.e_concept if self.inner_target == "teacher" else start
                states = b.concept.states + self.adversary(student.still(), b, goal, g)
                cond = replace(b.concept, states=states.to(b.concept.states.dtype))
            found = mse_loss(student(b.z, b.t, cond), b.goal(self.eta))
            if self.lasso:
                far = [(w - own[k].float()).abs().mean() for k, w in student.weights.items()]
                found = found + self.lasso * torch.stack(far).sum()
            return found + keeping.term(student, b.z, b.t, g)

        return value

    def adversary(self, student: Student, b: Batch, goal: Tensor, g: torch.Generator) -> Tensor:
        """What to add to the text states of each row, (B, L, D), fp32.

        Args:
            student: still.
            goal: what it is to predict, (B, C, H, W).
        """
        own = b.concept.states.float()
        ball = self.radius * own.square().mean((1, 2), keepdim=True).sqrt()
        low, high = own.amin((1, 2), keepdim=True), own.amax((1, 2), keepdim=True)

        def held(far: Tensor) -> Tensor:
            far = far.clamp(-ball, ball)
            return (own + far).clamp(low, high) - own if self.bounded else far

        far = held(ball * (2 * torch.rand(own.shape, generator=g).to(own) - 1))
        with torch.enable_grad():
            for _ in range(self.steps):
                x = far.requires_grad_()
                cond = replace(b.concept, states=own + x)
                lost = (student(b.z, b.t, cond) - goal).square().sum()
                (grad,) = torch.autograd.grad(lost, x)
                far = held(far.detach() - PACE * ball * grad.sign())
        return far

    @classmethod
    def presets(cls) -> Mapping[str, RACE]:
        """``paper``: as the released code."""
        return {"paper": cls(inner_target="start_noise", batch=1, updates=2000)}

    @classmethod
    def lineup(cls) -> Mapping[str, Entry]:
        """With the learning rate that was found for ESD."""
        return {"race": Entry(cls.label, cls(lr=3e-5))}
