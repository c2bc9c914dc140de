"""Tokens whose text states come nearest to a prompt's with more of the concept in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from efface.evaluation.artefacts import Artefact, Text
from efface.evaluation.attacks.attack import Attack, Attacked
from efface.models import check_clip, encoded_with, mark_for, said_by, token_table, whole, words_of
from efface.settings import Range, check_ranges


@dataclass(frozen=True)
class RingABell(Attack):
    """Search tokens by the text encoder alone; the same texts hit every edit.

    Goal: f(prompt) + η c, c the mean of f(with) - f(without) over pairs of prompts with and without
    the concept; what is searched minimises the squared distance of all states to it. The name's own
    tokens are left out.

    Source: arXiv:2310.10012; ``gcg`` is the greedy coordinate search of MMA-Diffusion
    (arXiv:2311.17516) on the same goal.
    """

    name: ClassVar[str] = "ring-a-bell"
    channel: ClassVar[str] = "text"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder"})
    relative: ClassVar[bool] = True

    search: Literal["genetic", "gcg"] = "gcg"
    """genetic: the paper's; gcg: gradients of the text encoder, with far fewer of its passes."""
    eta: Annotated[float, Range(0, 1000)] = 3.0
    """η: how much more of the concept."""
    tokens: Annotated[int, Range(1, 75)] = 8
    """Tokens that are searched, as far as the tokenizer allows."""
    pairs: Annotated[int, Range(1, 10_000)] = 30
    """Pairs of prompts for the direction of the concept."""
    texts: Annotated[int, Range(1, 1000)] = 2
    """Texts, each a search of its own."""
    population: Annotated[int, Range(4, 100_000)] = 100
    """genetic: texts at a time; gcg: swaps that are tried in a step."""
    generations: Annotated[int, Range(1, 10**6)] = 40
    """genetic: generations; gcg: steps."""
    crossover: Annotated[float, Range(0, 1)] = 0.5
    """genetic: probability."""
    mutation: Annotated[float, Range(0, 1)] = 0.25
    """genetic: probability; it hits survivors as well."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def curve(self) -> Sequence[str]:
        """None."""
        return ()

    def full(self) -> RingABell:
        """The paper's."""
        return replace(self, search="genetic", population=200, generations=3000, tokens=16, texts=4)

    def count(self, prompts: int) -> int:
        """One a search."""
        return self.texts

    def check(self, given: Attacked) -> None:
        """CLIP's token vectors."""
        check_clip(given.model, f"the attack {self.name!r}")

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """The best text of each search."""
        goal = self.goal(given)
        for i in range(self.texts):
            task = Task.of(given, self.tokens, goal)
            g = given.generator("ring-a-bell", i)
            ids = task.random(1, g)[0]
            if not given.blind:
                ids = self.genetic(task, g) if self.search == "genetic" else self.greedy(task, g)
            text, survives = said_by(given.model, ids.tolist())
            yield Text(
                prompt=text,
                ids=tuple(ids.tolist()),
                measured={
                    "survives": float(survives),
                    "distance": float(task.far(ids[None])[0] / goal.square().sum()),
                },
            )

    @torch.no_grad()
    def goal(self, given: Attacked) -> Tensor:
        """f(prompt) + η c, (L, D)."""
        name, g = given.concept.name, given.generator("pairs")
        words = [w for w in given.words if w not in given.concept.names] or ["a picture"]
        some = [words[i] for i in torch.randint(len(words), (self.pairs,), generator=g).tolist()]
        more = given.model.embed([f"{w} {name}" for w in some]).states
        c = (more - given.model.embed(some).states).float().mean(0)
        return given.model.embed([given.asked[0]]).states[0].float() + self.eta * c

    def genetic(self, task: Task, g: torch.Generator) -> Tensor:
        """The best ids of a genetic search, (K,)."""
        group = task.random(self.population, g)
        best, least = group[0], float("inf")
        for generation in range(self.generations):
            far = task.far(group)
            order = far.argsort(stable=True)
            if float(far[order[0]]) < least:
                best, least = group[order[0]].clone(), float(far[order[0]])
            parents = group[order[: self.population // 2]]
            children = self.children(parents, g)
            group = torch.cat([parents, children])
            if generation + 1 < self.generations:
                group = self.mutated(group, task, g)
        return best

    def children(self, parents: Tensor, g: torch.Generator) -> Tensor:
        """Two children of each that is crossed, of one cut, (M, K)."""
        n, k = parents.shape
        who = (torch.rand(n, generator=g) < self.crossover).nonzero()[:, 0]
        mates = torch.randint(n, (len(who),), generator=g)
        cuts = torch.randint(1, k + 1, (len(who), 1), generator=g)
        first = torch.arange(k)[None] < cuts
        one, other = parents[who], parents[mates]
        return torch.cat([torch.where(first, one, other), torch.where(first, other, one)])

    def mutated(self, group: Tensor, task: Task, g: torch.Generator) -> Tensor:
        """One token of some replaced at random, (N, K)."""
        who = (torch.rand(len(group), generator=g) < self.mutation).nonzero()[:, 0]
        group = group.clone()
        group[who, torch.randint(group.shape[1], (len(who),), generator=g)] = task.random(
            len(who), g
        )[:, 0]
        return group

    def greedy(self, task: Task, g: torch.Generator) -> Tensor:
        """The best ids of a greedy coordinate search, (K,)."""
        best = task.random(1, g)[0]
        least = float(task.far(best[None])[0])
        k, top = len(best), min(32, len(task.allowed))
        for _ in range(self.generations):
            slope = task.slope(best)  # (K, V)
            likely = (-slope).topk(top, dim=1).indices
            place = torch.randint(k, (self.population,), generator=g)
            which = torch.randint(top, (self.population,), generator=g)
            group = best.repeat(self.population, 1)
            group[torch.arange(self.population), place] = task.allowed[likely[place, which]]
            far = task.far(group)
            if float(far.min()) < least:
                best, least = group[int(far.argmin())], float(far.min())
        return best


@dataclass(frozen=True)
class Task:
    """How far the states of tokens are from a goal."""

    given: Attacked
    goal: Tensor
    """(L, D)."""
    mark: str
    length: int
    """K."""
    allowed: Tensor
    """Ids that may be used, (V,), on the CPU."""
    tables: dict[str, Tensor] = field(repr=False)
    """Token vectors of each text encoder, (all, D)."""

    @classmethod
    def of(cls, given: Attacked, tokens: int, goal: Tensor) -> Task:
        """The task of an attack."""
        model = given.model
        room = min(model.family.limits(model.parts).values()) - 2
        banned = set(words_of(model, given.concept.names))
        ids = [i for i in whole(model, words_of(model, given.words)) if i not in banned]
        encoders = model.family.encoders
        tables = {k: token_table(model, k).detach() for k in encoders}
        size = min(len(w) for w in tables.values())
        ids = [i for i in ids if i < size] or [i for i in range(size) if i not in banned]
        mark = mark_for(model, [given.concept.name])
        return cls(given, goal, mark, min(tokens, room), torch.tensor(ids), tables)

    def random(self, n: int, g: torch.Generator) -> Tensor:
        """``n`` random texts, (n, K) ids."""
        return self.allowed[torch.randint(len(self.allowed), (n, self.length), generator=g)]

    def states(self, rows: dict[str, Tensor], n: int) -> Tensor:
        """States of ``n`` texts whose token vectors are ``rows``, (n, L, D)."""
        text = " ".join([self.mark] * self.length)
        return encoded_with(self.given.model, [text] * n, self.mark, rows).states.float()

    @torch.no_grad()
    def far(self, ids: Tensor) -> Tensor:
        """Squared distance of each text to the goal, (N,)."""
        rows = {k: w[ids.to(w.device)] for k, w in self.tables.items()}
        parts: Sequence[Tensor] = [
            (self.states({k: w[i : i + 256] for k, w in rows.items()}, len(ids[i : i + 256])))
            for i in range(0, len(ids), 256)
        ]
        return (torch.cat(list(parts)) - self.goal).square().sum((1, 2)).cpu()

    def slope(self, ids: Tensor) -> Tensor:
        """Gradient of the distance by each token's one-hot, over the allowed ids, (K, V)."""
        rows = {
            k: w[ids.to(w.device)].float().clone().requires_grad_() for k, w in self.tables.items()
        }
        (self.states(rows, 1)[0] - self.goal).square().sum().backward()
        found = [
            rows[k].grad.float() @ w[self.allowed.to(w.device)].float().T  # type: ignore[union-attr]
            for k, w in self.tables.items()
        ]
        return torch.stack(found).sum(0).cpu()
