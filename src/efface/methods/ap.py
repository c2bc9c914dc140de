"""Adversarial preservation: protect, at every step, what the erasure harms most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from efface.concepts import Concept, check_keep
from efface.edit import Edit
from efface.errors import UserError, pick
from efface.latents import (
    Bank,
    Batch,
    Latents,
    Rollouts,
    Words,
    draw_beside,
    source_of,
)
from efface.models import Conditioning, DiffusionModel, stack
from efface.runs import Run
from efface.search import Exact, Gumbel, Objective, Pools, Random, Search, pools
from efface.training import Loss, Making, Student, Tuning, finetune
from efface.vocabulary import Vocabulary, load


class Built(NamedTuple):
    """The parts of a run."""

    candidates: Pools
    source: Bank | Rollouts
    search: Random | Exact | Gumbel
    loss: Loss


@dataclass(frozen=True)
class AP:
    """Erase concepts while preserving the adversarial concept.

    Source: arXiv:2410.15618, section 3. The defaults are ours; :data:`PRESETS` holds the paper's
    formulas and the
    authors' released behaviour, as differences of these fields.
    """

    eta: float = 4.0
    """Strength of the negative guidance away from the erased concept; 0 maps it onto its anchor
    (the paper)."""
    preserve: float = 1.0
    """λ, weight of the preservation term."""
    preserve_batch: int = 8
    """Preserved concepts in an update; 0: as many as erased ones."""
    keep: tuple[str, ...] = ()
    """Words that are always among the candidates and in every update's preserved ones."""
    vocabulary: str = "auto"
    """auto, names, tags, tokens, or the path of a word list."""
    pool_size: int = 0
    """K, candidates of each erased concept; 0: the whole vocabulary."""
    nearest: int = 0
    """k, first narrow the vocabulary down to the k nearest by text states, where it holds more; 0:
    all of it."""
    spread: str = "even"
    """How K are chosen among k: nearest, even, or kmeans (on the distances, as the authors do)."""
    exclude_erased: bool = True
    """Keep the erased concepts, their case variants, tokens and synonyms out of the candidates."""
    own_latents: bool = False
    """Preserve a word on latents rolled out under it, from the erased concept's noise; else on the
    concept's own."""
    x0_weighting: bool = False
    """Compare predicted pictures instead of noise: every term times (1 - ᾱ)/ᾱ."""
    search: Search = Search(refresh=60, probes=2, top=0)
    latents: Latents = Latents(trajectories=4)
    tuning: Tuning = Tuning(batch=4)

    def __post_init__(self) -> None:
        for name in ("preserve_batch", "pool_size", "nearest"):
            if getattr(self, name) < 0:
                raise UserError(f"got {getattr(self, name)} for {name}; 0 or more is allowed.")
        self.latents.check_own(self.own_latents)

    def erase(self, model: DiffusionModel, concepts: Sequence[Concept], run: Run = Run()) -> Edit:
        """Train an edit that erases ``concepts``."""
        check_keep(concepts, self.keep)
        making = Making("ap", self, model, concepts)
        built = self.build(model, concepts, run.progress)
        words = built.candidates
        making.about["candidates"] = {"words": len(words.words), "hash": words.digest}
        weights = finetune(model, built.loss, self.tuning, run, making.about, [built.search])
        return making.edit(weights)

    def build(self, model: DiffusionModel, concepts: Sequence[Concept], progress: bool) -> Built:
        """Candidates, latents, search, and the loss that ties them together."""
        candidates = self.candidates(model, concepts)
        source = source_of(model, concepts, self.latents, self.tuning.seed, progress)
        search = self._search(model, candidates, source)
        kept = model.embed(self.keep) if self.keep else None

        def loss(student: Student, g: torch.Generator) -> Tensor:
            n = self.preserve_batch or self.tuning.batch

            def choose(which: Tensor) -> Conditioning:
                cond = search.draw(which, n, g).cond
                if kept is None:
                    return cond
                also = torch.randint(0, len(kept), (max(n // 4, 1),), generator=g)
                return stack([cond, kept[also.to(model.device)]])

            b, words = draw_beside(
                source, g, self.tuning.batch, student.weights, choose, self.own_latents
            )
            with torch.no_grad():
                goal = model.predict(words.z, words.t, words.cond)
            guess = student(
                torch.cat([b.z, words.z]),
                torch.cat([b.t, words.t]),
                stack([b.concept, words.cond]),
            )
            erased = (guess[: len(b.z)] - b.goal(self.eta)).square().mean((1, 2, 3))
            harm = (guess[len(b.z) :] - goal).square().mean((1, 2, 3))
            w = self._weighting(b)
            return (w * erased).mean() + self.preserve * (w[words.rows] * harm).mean()

        return Built(candidates, source, search, loss)

    def candidates(self, model: DiffusionModel, concepts: Sequence[Concept]) -> Pools:
        """The pool of every erased concept."""
        common = load(self.vocabulary, model)
        found = []
        for c in concepts:
            own = Vocabulary(c.pool, f"pool of {c.name}") if c.pool else common
            if self.exclude_erased:
                own = own.without(concepts, model.tokenizer)
            small = bool(c.pool)
            size, nearest = (0, 0) if small else (self.pool_size, self.nearest)
            found.append(own.pool(model, c, size, nearest, self.spread).including(self.keep))
        return pools(model, concepts, found)

    def _search(
        self, model: DiffusionModel, candidates: Pools, source: Bank | Rollouts
    ) -> Random | Exact | Gumbel:
        kind = self.search.kind
        if kind == "random":
            return Random(candidates)
        if kind == "exact":
            return Exact(candidates, self.search, model, source, self.tuning.seed)
        return Gumbel(
            candidates,
            self.search,
            source,
            self._objective(model),
            self.own_latents,
            model.device,
        )

    def _objective(self, model: DiffusionModel) -> Objective:
        """The harm that Gumbel's logits climb (arXiv:2410.15618, equation 6)."""

        def harm(student: Student, b: Batch, words: Words) -> Tensor:
            with torch.set_grad_enabled(self.search.teacher_gradient):
                goal = model.predict(words.z, words.t, words.cond)
            change = (student(words.z, words.t, words.cond) - goal).square().mean((1, 2, 3))
            return (self._weighting(b) * change).mean()

        return harm

    def _weighting(self, b: Batch) -> Tensor:
        return b.weight if self.x0_weighting else torch.ones_like(b.weight)


PRESETS: dict[str, AP] = {
    "ours": AP(),
    "paper": AP(
        eta=0.0,
        preserve_batch=0,
        pool_size=100,
        nearest=1000,
        spread="kmeans",
        search=Search(kind="gumbel", hard=False),
        latents=Latents(source="student", ddim_steps=50),
        tuning=Tuning(batch=1),
    ),
    "official": AP(
        eta=1.0,
        preserve_batch=0,
        pool_size=100,
        nearest=1000,
        spread="kmeans",
        exclude_erased=False,
        own_latents=True,
        x0_weighting=True,
        search=Search(kind="gumbel", hard=True, uniform_start=True, teacher_gradient=False),
        latents=Latents(source="student", ddim_steps=50, aligned=False),
        tuning=Tuning(batch=1),
    ),
}
"""Named settings: ours; the paper's formulas; what the authors' released code does, quirks
included."""


def preset(name: str) -> AP:
    """A preset by name.

    Raises:
        UserError: no such preset.
    """
    return pick(PRESETS, name, "preset")
