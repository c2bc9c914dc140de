"""How the adversarial concept is found: the preserved concept that the current edit harms most."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from efface.concepts import Concept
from efface.errors import UserError, pick
from efface.latents import Bank, Batch, Rollouts, Words, draw_beside
from efface.models import WORTH, Conditioning, DiffusionModel, mix, stack
from efface.training import Student
from efface.vocabulary import Vocabulary

KINDS = ("exact", "gumbel", "random")


@dataclass(frozen=True)
class Search:
    """How preserved concepts are chosen for an update."""

    kind: str = "exact"
    """``exact``: score every candidate on shared latents. ``gumbel``: the paper's relaxed search by
    gradient ascent (arXiv:2410.15618, section 3.3). ``random``: any candidate, the control."""
    refresh: int = 30
    """exact: updates between two scorings; the first, before anything is harmed, finds nothing, so
    that until the second any candidate is drawn."""
    probes: int = 3
    """exact: latents that candidates are scored on, one a scoring, in turn."""
    memory: float = 0.5
    """exact: how much of the running harm a new scoring leaves in place."""
    top: int = 24
    """exact: how many of the most harmed are drawn from, all alike; 0: every candidate, as often as
    its share of all harm."""
    tau: float = 2.0
    """gumbel: temperature."""
    hard: bool = False
    """gumbel: one-hot samples with a straight-through gradient, instead of soft mixtures."""
    mixture: int = 0
    """gumbel: keep only so many of a soft mixture's largest shares, renormalised; 0: all."""
    uniform_start: bool = False
    """gumbel: logits start at 1/K as in the authors' code, instead of 0 (the same distribution)."""
    lr: float = 1e-2
    """gumbel: Adam's learning rate for the logits."""
    passes: int = 2
    """gumbel: passes per weight update; all but one climb (``pgd_num_steps`` in the authors'
    code)."""
    teacher_gradient: bool = True
    """gumbel: let the gradient of the harm through the frozen model as well; the authors' code does
    not."""

    def __post_init__(self) -> None:
        pick(dict.fromkeys(KINDS), self.kind, "search")
        for name in ("refresh", "probes", "passes"):
            if getattr(self, name) < 1:
                raise UserError(f"got {getattr(self, name)} for {name}; at least 1 is needed.")
        for name in ("top", "mixture"):
            if getattr(self, name) < 0:
                raise UserError(f"got {getattr(self, name)} for {name}; 0 or more is allowed.")
        if self.tau <= 0:
            raise UserError(f"got {self.tau} for tau; a temperature above 0 is needed.")


class Pools(NamedTuple):
    """The candidates of all erased concepts."""

    words: tuple[str, ...]
    """Every candidate once, U of them."""
    rows: Conditioning
    """Encoded, U rows; on the CPU where they take more than a gigabyte."""
    of: tuple[Tensor, ...]
    """Indices into ``words``, one tensor an erased concept."""
    device: torch.device | None = None
    """Where they are used; None: where they are."""

    def take(self, index: Tensor | slice) -> Conditioning:
        """Some rows, on the device."""
        if isinstance(index, Tensor):
            index = index.to(self.rows.states.device)
        return self.rows[index].each(lambda x: x.to(self.device or x.device))

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over the words of every concept."""
        said = "\n".join(self.words) + str([m.tolist() for m in self.of])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def pools(model: DiffusionModel, concepts: Sequence[Concept], found: Sequence[Vocabulary]) -> Pools:
    """Encode the candidates of each concept, each word once."""
    words = tuple(dict.fromkeys(w for v in found for w in v.words))
    at = {w: i for i, w in enumerate(words)}
    of = tuple(torch.tensor([at[w] for w in v.words]) for v in found)
    for concept, mine in zip(concepts, of, strict=True):
        if not len(mine):
            raise UserError(
                f"no word is left to preserve while erasing {concept.name!r}: "
                "give a larger vocabulary."
            )
    many = model.null(1).states.nbytes * len(words) > WORTH
    return Pools(words, model.embed(words, where="cpu" if many else ""), of, model.device)


class Drawn(NamedTuple):
    """Preserved concepts for the rows of an update."""

    cond: Conditioning
    chosen: Tensor
    """Which candidate each row is (its largest share, where it is a mixture)."""


class Random:
    """Any candidate of the row's concept."""

    def __init__(self, candidates: Pools) -> None:
        self.pools = candidates

    def draw(self, which: Tensor, n: int, g: torch.Generator) -> Drawn:
        """``n`` candidates, row i for the erased concept ``which[i]`` (over again)."""
        index = torch.stack([self._one(int(which[i % len(which)]), g) for i in range(n)])
        return Drawn(self.pools.take(index), index)

    def _one(self, which: int, g: torch.Generator) -> Tensor:
        mine = self.pools.of[which]
        return mine[torch.randint(0, len(mine), (), generator=g)]

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


class Exact(Random):
    """The most harmed candidates by scoring all of them.

    Harm is the mean squared change of ε on shared latents. The frozen model's side is computed
    once; a scoring costs U
    evaluations of the student, one latent a scoring, and the running harm averages over the last
    ones.
    """

    def __init__(
        self,
        candidates: Pools,
        config: Search,
        model: DiffusionModel,
        source: Bank | Rollouts,
        seed: int,
    ) -> None:
        super().__init__(candidates)
        self.config, self.model = config, model
        g = torch.Generator().manual_seed(seed + 7_919)
        self.probe = source.draw(g, config.probes)
        self.before = [self._predict(i, None) for i in range(config.probes)]
        self.harm = torch.zeros(len(candidates.words))
        self.calls = 0

    def _predict(self, probe: int, student: Student | None) -> Tensor:
        batch = self.model.at_once
        z, t = self.probe.z[[probe]], self.probe.t[[probe]]
        parts = []
        with torch.no_grad():
            for i in range(0, len(self.pools.words), batch):
                cond = self.pools.take(slice(i, i + batch))
                n = len(cond)
                args = (z.expand(n, -1, -1, -1), t.expand(n), cond)
                parts.append(self.model.predict(*args) if student is None else student(*args))
        return torch.cat(parts)

    def score(self, student: Student, probe: int) -> Tensor:
        """Harm of every candidate on one probe latent, (U,)."""
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


Objective = Callable[[Student, Batch, Words], Tensor]
"""What the logits climb: of a still student, a batch and a candidate for each of its rows."""


class Gumbel:
    """Gradient ascent on logits over the candidates, sampled with Gumbel noise.

    One logit vector an erased concept, never reset (arXiv:2410.15618, section 3.3).
    ``F.gumbel_softmax`` takes no
    generator, hence the draw by hand.
    """

    def __init__(
        self,
        candidates: Pools,
        config: Search,
        source: Bank | Rollouts,
        objective: Objective,
        own_latents: bool,
        device: torch.device,
    ) -> None:
        self.pools, self.config, self.source = candidates, config, source
        self.objective, self.own_latents = objective, own_latents
        start = [1.0 / len(m) if config.uniform_start else 0.0 for m in candidates.of]
        self.logits = [
            torch.full((len(m),), s, device=device).requires_grad_()
            for m, s in zip(candidates.of, start, strict=True)
        ]
        self.adam = torch.optim.Adam(self.logits, lr=config.lr)

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
            batch, words = draw_beside(self.source, g, n, student.weights, choose, self.own_latents)
            harm = self.objective(student.still(), batch, words)
            grads = torch.autograd.grad(-harm, self.logits, allow_unused=True)
        for logits, grad in zip(self.logits, grads, strict=True):
            logits.grad = grad
        self.adam.step()
        seen: Tensor = harm.detach()
        return seen

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Climb ``passes - 1`` times, each on a fresh batch."""
        for _ in range(self.config.passes - 1):
            self.climb(student, batch, g)

    def draw(self, which: Tensor, n: int, g: torch.Generator) -> Drawn:
        """A fresh sample for each of ``n`` rows."""
        cond, index = self._sampled(which, n, g)
        return Drawn(cond.detach(), index)

    def state(self) -> dict[str, Tensor]:
        """Logits and their Adam moments."""
        found = {f"logits{i}": x for i, x in enumerate(self.logits)}
        for i, x in enumerate(self.logits):
            found |= {f"adam{i}/{k}": v for k, v in self.adam.state[x].items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        for i, x in enumerate(self.logits):
            x.data.copy_(state[f"logits{i}"])
            own = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"adam{i}/")}
            if own:
                self.adam.state[x] = own
