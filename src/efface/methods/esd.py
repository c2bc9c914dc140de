"""ESD: steer a concept's noise prediction away from itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.concepts import Concept, check_keep
from efface.edit import Edit
from efface.latents import Latents, source_of
from efface.models import DiffusionModel
from efface.runs import Run
from efface.training import Making, Student, Tuning, finetune


@dataclass(frozen=True)
class ESD:
    """Erase by negative guidance; optionally preserve fixed words.

    Source: arXiv:2303.07345, section 4; with ``keep`` the "preserve a word" control of
    arXiv:2410.15618, figure 1b
    (there with the latents of the erased concept for both terms, as here). Left out: nothing of the
    loss; latents come
    from a bank of the frozen model unless ``latents.source`` is ``student``.
    """

    eta: float = 1.0
    """Strength of the negative guidance; 0 maps the concept onto its anchor."""
    keep: tuple[str, ...] = ()
    """Words to be preserved at every update, one drawn for each row; ``""`` is the null prompt."""
    preserve: float = 1.0
    """Weight of the preservation term."""
    latents: Latents = Latents()
    tuning: Tuning = Tuning()

    def erase(self, model: DiffusionModel, concepts: Sequence[Concept], run: Run = Run()) -> Edit:
        """Train an edit that erases ``concepts``."""
        check_keep(concepts, self.keep)
        making = Making("esd", self, model, concepts)
        source = source_of(model, concepts, self.latents, self.tuning.seed, run.progress)
        kept = model.embed(self.keep) if self.keep else None

        def loss(student: Student, g: torch.Generator) -> Tensor:
            b = source.draw(g, self.tuning.batch, student.weights)
            value = mse_loss(student(b.z, b.t, b.concept), b.goal(self.eta))
            if kept is None or not self.preserve:
                return value
            cond = kept[torch.randint(0, len(kept), (len(b.z),), generator=g).to(b.z.device)]
            return value + self.preserve * mse_loss(
                student(b.z, b.t, cond), model.predict(b.z, b.t, cond)
            )

        weights = finetune(model, loss, self.tuning, run, making.about)
        return making.edit(weights)


PRESETS: dict[str, ESD] = {
    "lora": ESD(tuning=Tuning(rank=4)),
    "searched": ESD(tuning=Tuning(lr=3e-5)),
}
"""``lora``: the same loss on low-rank adapters, as LECO and concept sliders have it
(arXiv:2311.12092); alpha = rank. ``searched``: the learning rate found on ``emoji`` (split 4)."""
