"""CA, concept ablation: the concept's prompt predicts what its anchor's does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.concepts import TEMPLATES
from efface.models import Conditioning, stack
from efface.settings import Range
from efface.training import Job, Made, Method, Pictures, Student, Tuning


@dataclass(frozen=True, kw_only=True)
class CA(Method, Tuning):
    """Map a concept onto its anchor's distribution, on noised pictures of the anchor.

    Source: arXiv:2303.13516, section 3.2 (model-based objective). Left out: the noise-based
    objective, picture augmentation, the regularisation term on anchor pictures, AdamW's weight
    decay, the gradient block on the start token, and prompts written by a language model: ours are
    the templates of the concept's kind. ``keep`` is ours.
    """

    name: ClassVar[str] = "ca"
    label: ClassVar[str] = "CA"

    group: str = "kv"
    """Which weights are trained: xattn, kv, noxattn, selfattn, transformer or full; of some
    models also text or single (efface methods)."""
    pictures: Pictures = Pictures(n=32)
    """Anchor pictures of each erased concept; the paper's code makes 1000."""
    live: bool = False
    """The goal is what the student itself predicts for the anchor, without gradient (the authors'
    code); else what the frozen model predicts, which does not move away."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""

    def make(self, job: Job) -> Made:
        """Train by what the anchor's prompt predicts, on the anchor's pictures."""
        model, concepts, keeping = job.model, job.concepts, job.keeping()
        pictures = self.pictures.make(job, [c.anchor for c in concepts])
        pairs = [
            [p[1:] for p in c.pairs(self.diversify or len(TEMPLATES[c.kind])) if p.name == n]
            for c in concepts
            for n in c.names
        ]
        of = [i for i, c in enumerate(concepts) for _ in c.names]  # the concept of each name
        erased, anchor = (
            [model.embed([p[side] for p in some], null=True) for some in pairs] for side in (0, 1)
        )

        def pick_prompts(rows: Tensor, g: torch.Generator) -> tuple[Conditioning, Conditioning]:
            """A random name and template for the concept of each picture."""
            chosen = []
            for concept in pictures.prompt[rows].tolist():
                names = [k for k, i in enumerate(of) if i == concept]
                name = names[int(torch.randint(0, len(names), (), generator=g))]
                template = int(torch.randint(0, len(pairs[name]), (), generator=g))
                chosen.append((erased[name][[template]], anchor[name][[template]]))
            ours, theirs = zip(*chosen, strict=True)
            return stack(ours), stack(theirs)

        def loss(student: Student, g: torch.Generator) -> Tensor:
            z, t, rows = pictures.draw(g, self.batch)
            concept, instead = pick_prompts(rows, g)
            with torch.no_grad():
                goal = student(z, t, instead) if self.live else model.predict(z, t, instead)
            return mse_loss(student(z, t, concept), goal) + keeping.term(student, z, t, g)

        return Made(job.train(loss))

    @classmethod
    def presets(cls) -> Mapping[str, CA]:
        """``searched``: found on ``emoji`` (split 4)."""
        return {"searched": cls(lr=5e-5)}
