"""The paper's relaxed search: gradient ascent on logits over the candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from efface.models import Conditioning, mix, stack
from efface.settings import Range, check_ranges
from efface.training.checkpoints import stepped
from efface.training.search.pools import Drawn, Setting
from efface.training.student import HALF_SCALE, Student


@dataclass(frozen=True, kw_only=True)
class Gumbel:
    """Climb logits over the candidates by gradient (arXiv:2410.15618, section 3.3)."""

    kind: ClassVar[str] = "gumbel"
    tau: Annotated[float, Range(0, 1e6, open_low=True)] = 2.0
    """Temperature."""
    hard: bool = False
    """One-hot samples with a straight-through gradient, instead of soft mixtures."""
    mixture: Annotated[int, Range(0, 10**9)] = 0
    """Keep only so many of a soft mixture's largest shares, renormalised; 0: all."""
    uniform_start: bool = False
    """Logits start at 1/K as in the authors' code, instead of 0 (the same distribution)."""
    lr: Annotated[float, Range(0, 1e3, open_low=True)] = 1e-2
    """Adam's learning rate for the logits."""
    passes: Annotated[int, Range(1, 1000)] = 2
    """Passes per weight update; all but one climb (``pgd_num_steps`` in the authors' code)."""
    teacher_gradient: bool = True
    """Let the gradient of the harm through the frozen model as well; the authors' code does
    not."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def start(self, setting: Setting) -> GumbelSearch:
        """The search at work."""
        return GumbelSearch(self, setting)


class GumbelSearch:
    """Gradient ascent on logits over the candidates, sampled with Gumbel noise.

    One logit vector an erased concept, never reset (arXiv:2410.15618, section 3.3).
    ``F.gumbel_softmax`` takes no generator, hence the draw by hand.
    """

    def __init__(self, config: Gumbel, setting: Setting) -> None:
        candidates, device = setting.candidates, setting.job.model.device
        self.pools, self.config, self.source = candidates, config, setting.source
        assert setting.objective is not None
        self.objective = setting.objective
        start = [1.0 / len(m) if config.uniform_start else 0.0 for m in candidates.of]
        self.logits = [
            torch.full((len(m),), s, device=device).requires_grad_()
            for m, s in zip(candidates.of, start, strict=True)
        ]
        self.adam = torch.optim.Adam(self.logits, lr=config.lr)
        self.calls = 0

    def sample(self, which: int, g: torch.Generator) -> Tensor:
        """One Gumbel-Softmax sample over a concept's candidates, (K,); differentiable."""
        logits = self.logits[which]
        u = torch.rand(len(logits), generator=g).to(logits.device)
        noise = -torch.log(-torch.log(u + 1e-10) + 1e-10)
        y = torch.softmax((logits + noise) / self.config.tau, 0)
        if self.config.mixture:
            kept = y.topk(min(self.config.mixture, len(y)))
            y = torch.zeros_like(y).scatter(0, kept.indices, kept.values / kept.values.sum())
        if not self.config.hard:
            return y
        return one_hot(y.argmax(), len(y)).to(y.dtype) + y - y.detach()

    def _sampled(self, which: Tensor, n: int, g: torch.Generator) -> Drawn:
        rows, index = [], []
        for i in range(n):
            one = int(which[i % len(which)])
            y, mine = self.sample(one, g), self.pools.of[one]
            rows.append(mix(y[None], self.pools.take(mine)))
            index.append(mine[int(y.argmax())])
        return Drawn(stack(rows), torch.stack(index))

    def climb(self, student: Student, n: int, g: torch.Generator) -> Tensor:
        """One ascent step of the logits on a fresh draw; the harm that it saw."""

        def choose(which: Tensor) -> Conditioning:
            return self._sampled(which, n, g).cond

        with torch.enable_grad():
            batch, words = self.source.draw_beside(g, n, student.weights, choose)
            harm = self.objective(student.still(), batch, words)
            scale = HALF_SCALE if student.model.dtype == torch.float16 else 1.0
            grads = torch.autograd.grad(-harm * scale, self.logits, allow_unused=True)
        for logits, grad in zip(self.logits, grads, strict=True):
            logits.grad = grad if grad is None else grad / scale
        self.adam.step()
        seen: Tensor = harm.detach()
        return seen

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Climb ``passes - 1`` times, each on a fresh batch, but not before the first update.

        There nothing is harmed and the gradient is zero; the authors climb after it, too.
        """
        if self.calls:
            for _ in range(self.config.passes - 1):
                self.climb(student, batch, g)
        self.calls += 1

    def end(self, student: Student) -> None:
        """Nothing."""

    def draw(self, which: Tensor, n: int, g: torch.Generator) -> Drawn:
        """A fresh sample for each of ``n`` rows."""
        cond, index = self._sampled(which, n, g)
        return Drawn(cond.detach(), index)

    def learn(self, chosen: Tensor, harm: Tensor) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """Logits, their Adam moments, and how often it was asked."""
        found = {f"logits{i}": x for i, x in enumerate(self.logits)}
        found["calls"] = torch.tensor(self.calls)
        for i, x in enumerate(self.logits):
            found |= {f"adam{i}/{k}": v for k, v in self.adam.state[x].items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.calls = int(state["calls"])
        for i, x in enumerate(self.logits):
            x.data.copy_(state[f"logits{i}"])
            own = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"adam{i}/")}
            if own:
                self.adam.state[x] = {k: stepped(k, v, self.adam, x) for k, v in own.items()}
