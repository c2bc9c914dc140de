"""The most harmed candidates, by scoring all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.errors import UserError
from efface.models import DiffusionModel
from efface.settings import Range, check_ranges
from efface.training.closed_form import text_vectors
from efface.training.erasure import Job
from efface.training.search.pools import Setting
from efface.training.search.random import RandomSearch
from efface.training.student import Student


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Score every candidate on shared latents, and preserve the most harmed."""

    kind: ClassVar[str] = "exact"
    refresh: Annotated[int, Range(1, 10**7)] = 30
    """Updates between two scorings; the first, before anything is harmed, finds nothing, so that
    until the second any candidate is drawn."""
    probes: Annotated[int, Range(1, 10_000)] = 3
    """Latents that candidates are scored on, one a scoring, in turn."""
    memory: Annotated[float, Range(0, 1)] = 0.5
    """How much of the running harm a new scoring leaves in place."""
    top: Annotated[int, Range(0, 10**9)] = 24
    """How many of the most harmed are drawn from, all alike; 0: every candidate, as often as its
    share of all harm."""
    among: Annotated[int, Range(0, 10**9)] = 0
    """Of a large vocabulary only so many are scored, those of which the trained text maps make most
    else, which takes no evaluation; the others keep their running harm. 0: all."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def start(self, setting: Setting) -> ExactSearch:
        """The search at work."""
        return ExactSearch(self, setting)


def states_of(job: Job, words: Sequence[str]) -> Tensor:
    """The text states of words that trained text maps read, (U, r, D), on the CPU.

    Raises:
        UserError: no text map is trained.
    """
    maps = set(job.model.text_maps())
    if not maps & set(job.model.group(getattr(job.method, "group", "xattn"))):
        raise UserError(
            "search:exact --search.among looks at what trained text maps make of a word, and none "
            "is trained here: train another group of weights, or score every candidate (0)."
        )
    found = text_vectors(job.model, words).float()
    return found.view(len(words), -1, found.shape[1])


@torch.no_grad()
def changed(model: DiffusionModel, student: Student, states: Tensor) -> Tensor:
    """How much else all trained text maps make of each word, squared, (U,), on the CPU.

    Args:
        states: (U, r, D), r of a word.
    """
    own, form = model.parameters(), torch.zeros(states.shape[2], states.shape[2])
    for name in model.text_maps():
        if name in student.weights:
            far = (student.weights[name] - own[name].to(student.weights[name])).float().cpu()
            form += far.T @ far
    return ((states @ form) * states).sum((1, 2))


class ExactSearch(RandomSearch):
    """The most harmed candidates by scoring all of them.

    Harm is the mean squared change of ε on shared latents. The frozen model's side is computed
    once; a scoring costs U evaluations of the student, one latent a scoring, and the running harm
    averages over the last ones. With ``among`` it costs so many of each of both.
    """

    def __init__(self, config: Exact, setting: Setting) -> None:
        candidates = setting.candidates
        super().__init__(candidates)
        self.config, self.model = config, setting.job.model
        g = setting.job.generator("probes")
        self.everyone = torch.arange(len(candidates.words))
        self.states: Tensor | None = None
        self.before: list[Tensor] = []
        if 0 < config.among < len(candidates.words):
            self.states = states_of(setting.job, candidates.words)
        self.probe = setting.source.draw(g, config.probes)
        if self.states is None:
            self.before = [self._predict(i, None) for i in range(config.probes)]
        self.harm = torch.zeros(len(candidates.words))
        self.calls = 0

    def _predict(self, probe: int, student: Student | None, some: Tensor | None = None) -> Tensor:
        batch, some = self.model.at_once, self.everyone if some is None else some
        z, t = self.probe.z[[probe]], self.probe.t[[probe]]
        parts = []
        with torch.no_grad():
            for mine in some.split(batch):
                cond = self.pools.take(mine)
                n = len(cond)
                args = (z.expand(n, -1, -1, -1), t.expand(n), cond)
                parts.append(self.model.predict(*args) if student is None else student(*args))
        return torch.cat(parts)

    def score(self, student: Student, probe: int) -> Tensor:
        """Harm of every candidate on one probe latent, (U,)."""
        if self.states is not None:
            far = changed(self.model, student, self.states)
            some = far.topk(self.config.among).indices.sort().values
            change = self._predict(probe, student, some) - self._predict(probe, None, some)
            return self.harm.index_copy(0, some, change.square().mean((1, 2, 3)).cpu())
        change = self._predict(probe, student) - self.before[probe]
        return change.square().mean((1, 2, 3)).cpu()

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Score all candidates, at every ``refresh``-th update."""
        if self.calls % self.config.refresh == 0:
            fresh = self.score(student, (self.calls // self.config.refresh) % self.config.probes)
            keep = self.config.memory if self.calls else 0.0
            self.harm = keep * self.harm + (1 - keep) * fresh
            self.odds = tuple(self._odds(self.harm[mine]) for mine in self.pools.of)
        self.calls += 1

    def _odds(self, harm: Tensor) -> Tensor:
        if not harm.any():  # as long as nothing is harmed, any candidate
            return torch.ones_like(harm)
        if not self.config.top:
            return harm + harm.max() * 1e-6 + torch.finfo(harm.dtype).tiny
        worst = harm.topk(min(self.config.top, len(harm))).indices
        return torch.zeros_like(harm).index_fill(0, worst, 1.0)

    def _one(self, which: int, g: torch.Generator) -> Tensor:
        return self.pools.of[which][torch.multinomial(self.odds[which], 1, generator=g)[0]]

    def state(self) -> dict[str, Tensor]:
        """The running harm, and how often it was asked."""
        return {
            "harm": self.harm,
            "calls": torch.tensor(self.calls),
            **{f"odds{i}": w for i, w in enumerate(self.odds)},
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.harm, self.calls = state["harm"], int(state["calls"])
        self.odds = tuple(state[f"odds{i}"] for i in range(len(self.pools.of)))
