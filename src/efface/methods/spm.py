"""SPM, semi-permeable membrane: an adapter a concept, switched on by prompts that ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.edits.gates import Gate
from efface.edits.lowrank import LowRank
from efface.errors import UserError
from efface.models import Conditioning
from efface.settings import Range
from efface.training import Bank, Job, Latents, Made, Method, Student, Tuning


@dataclass(frozen=True, kw_only=True)
class SPM(Method, Tuning):
    """Train an adapter for each concept while random text states stay put; gate it by the prompt.

    Source: arXiv:2312.16145, sections 3.1 to 3.4. Left out: restarts of the learning rate, random
    picture sizes, 8-bit Adam. Ours: aligned latents from a bank; all random text states are
    anchored on (the authors' code reads half of them as the null prompt), and the gate scales each
    adapter once, apart from the others.
    """

    name: ClassVar[str] = "spm"
    label: ClassVar[str] = "SPM"
    apart: ClassVar[bool] = True

    group: str = "transformer"
    """Which weights are trained: xattn, kv, noxattn, selfattn, transformer or full; of some
    models also text or single (efface methods)."""
    rank: Annotated[int, Range(0, 4096)] = 1
    """Rank of each concept's adapter."""
    eta: Annotated[float, Range(0)] = 1.0
    """Strength of the guidance away from the concept; 0 maps it onto its anchor."""
    anchoring: Annotated[float, Range(0)] = 10.0
    """Weight of the random text states' preservation; the paper's is 1000."""
    anchors: Annotated[int, Range(1, 4096)] = 4
    """Random text states in an update."""
    gated: bool = True
    """Switch each adapter by how much a prompt asks for its concept; else always on."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""
    latents: Latents = Bank()
    """Where noisy latents come from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rank:
            raise UserError("SPM trains adapters: rank 1 or more is needed.")

    @property
    def rows(self) -> int:
        """The concepts' latents, the random states', and the kept words'."""
        return self.batch + self.anchors + self.kept_rows

    def make(self, job: Job) -> Made:
        """One adapter a concept; the weights are those with all gates open."""
        own = job.model.parameters()
        base = {k: own[k].detach().float() for k in job.model.group(self.group)}
        gates = []
        for i, c in enumerate(job.concepts):
            alone = job.alone(i)
            factors = job.part(i, partial(self.adapter, alone, base))
            gates.append(Gate(c.names, factors))
        weights = {k: w.cpu().clone() for k, w in base.items() if w.ndim >= 2}
        for gate in gates:
            for k in weights:
                weights[k] += gate.change(k).view_as(weights[k])
        return Made(weights, tuple(gates) if self.gated else ())

    def adapter(self, job: Job, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The factors of one concept's adapter."""
        model, source, keeping = job.model, self.latents.open(job), job.keeping()
        adapters = LowRank(base, self.rank, job.generator("adapters"))

        def loss(student: Student, g: torch.Generator) -> Tensor:
            b = source.draw(g, self.batch, student.weights)
            value = mse_loss(student(b.z, b.t, b.concept), b.goal(self.eta))
            n = self.anchors
            cond = random_like(b.concept[:1], n, g)
            z, t = b.z[:1].expand(len(cond), -1, -1, -1), b.t[:1].expand(len(cond))
            harm = (student(z, t, cond) - model.predict(z, t, cond)).square().mean((1, 2, 3))
            value = value + self.anchoring * harm.mean()
            return value + keeping.term(student, b.z, b.t, g)

        job.train(loss, adapters=adapters)
        return {k: w.detach().cpu().contiguous() for k, w in adapters.factors.items()}

    @classmethod
    def presets(cls) -> Mapping[str, SPM]:
        """``searched``: found on ``emoji`` (split 4)."""
        return {"searched": cls(anchoring=1.0)}


def random_like(cond: Conditioning, n: int, g: torch.Generator) -> Conditioning:
    """``n`` random conditionings with about the norm of ``cond``, a single one, and its mask.

    Source: arXiv:2312.16145, section 3.2: norm times U(0.8, 1.2).
    """

    def draw(like: Tensor) -> Tensor:
        x = torch.randn((n, *like.shape[1:]), generator=g).to(like.device)
        ones = (n, *[1] * (like.ndim - 1))
        kappa = 0.8 + 0.4 * torch.rand(ones, generator=g).to(like.device)
        length = like.float().flatten(1).norm() / x.flatten(1).norm(dim=1).view(ones)
        drawn: Tensor = (kappa * length * x).to(like.dtype)
        return drawn

    pooled, mask = cond.pooled, cond.mask
    used = cond.states if mask is None else cond.states[:, mask[0] > 0]
    states = draw(used)
    if mask is not None:  # as many random states as the prompt has of its own
        whole = states.new_zeros(n, *cond.states.shape[1:])
        whole[:, mask[0] > 0] = states
        states = whole
    return Conditioning(
        states,
        None if pooled is None else draw(pooled),
        None if mask is None else mask.expand(n, -1),
    )
