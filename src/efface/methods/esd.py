"""ESD: steer a concept's noise prediction away from itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.settings import Range
from efface.training import Bank, Entry, Job, Latents, Made, Method, Student, Tuning


@dataclass(frozen=True, kw_only=True)
class ESD(Method, Tuning):
    """Erase by negative guidance; optionally preserve fixed words.

    Source: arXiv:2303.07345, section 4; with ``keep`` the "preserve a word" control of
    arXiv:2410.15618, figure 1b (there with the latents of the erased concept for both terms, as
    here). Left out: nothing of the loss; latents come from a bank of the frozen model unless
    ``latents`` are rollouts of the student.
    """

    name: ClassVar[str] = "esd"
    label: ClassVar[str] = "ESD"

    eta: Annotated[float, Range(0)] = 1.0
    """Strength of the negative guidance; 0 maps the concept onto its anchor."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""
    latents: Latents = Bank()

    def make(self, job: Job) -> Made:
        """Train by the guided prediction, and where words are kept by what they should predict."""
        source, keeping = self.latents.open(job), job.keeping()

        def loss(student: Student, g: torch.Generator) -> Tensor:
            b = source.draw(g, self.batch, student.weights)
            value = mse_loss(student(b.z, b.t, b.concept), b.goal(self.eta))
            return value + keeping.term(student, b.z, b.t, g)

        return Made(job.train(loss))

    @classmethod
    def presets(cls) -> Mapping[str, ESD]:
        """``lora``: low-rank adapters, as LECO and concept sliders have it; ``searched``.

        ``lora`` is the same loss (arXiv:2311.12092), alpha = rank. ``searched`` has the learning
        rate found on ``emoji`` (split 4).
        """
        return {"lora": cls(rank=4), "searched": cls(lr=3e-5)}

    @classmethod
    def lineup(cls) -> Mapping[str, Entry]:
        """Also with the null prompt preserved, and on adapters."""
        best = cls.presets()["searched"]
        return {
            "esd": Entry("ESD", best),
            "esd-null": Entry('ESD, "" preserved', replace(best, keep=("",))),
            "lora": Entry("ESD on LoRA", cls(rank=4, lr=1e-4)),
        }
