"""Adversarial preservation: protect, at every step, what the erasure harms most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from efface.concepts import MOST
from efface.models import stack
from efface.settings import Range
from efface.training import (
    Bank,
    Batch,
    Entry,
    Job,
    Latents,
    Loss,
    Made,
    Method,
    Rollout,
    Student,
    Tuning,
    Words,
)
from efface.training.held import drawing
from efface.training.latents import Source
from efface.training.search import (
    Exact,
    Gumbel,
    Objective,
    Online,
    Pools,
    Random,
    Search,
    Searching,
    Setting,
    pools,
)


class Built(NamedTuple):
    """The parts of a run."""

    candidates: Pools
    source: Source
    search: Searching
    loss: Loss


@dataclass(frozen=True, kw_only=True)
class AP(Method, Tuning):
    """Erase concepts while preserving the adversarial concept.

    Source: arXiv:2410.15618, section 3. The defaults are ours; :meth:`presets` holds the paper's
    formulas and the authors' released behaviour, as differences of these fields.
    """

    name: ClassVar[str] = "ap"
    label: ClassVar[str] = "AP, ours"
    takes_pools: ClassVar[bool] = True

    batch: Annotated[int, Range(1, 4096)] = 2
    """Latents of erased concepts in an update."""
    anchor: str = "auto"
    """What concepts without an anchor of their own are steered to: a word, auto (searched for in
    the vocabulary, for each concept), or nothing, the null prompt."""
    eta: Annotated[float, Range(0)] = 1.5
    """Strength of the negative guidance away from the erased concept; 0 maps it onto its anchor
    (the paper)."""
    preserve: Annotated[float, Range(0)] = 1.0
    """λ, weight of the preservation term."""
    preserve_batch: Annotated[int, Range(0, 4096)] = 6
    """Preserved concepts in an update; 0: as many as erased ones."""
    reuse: Annotated[int, Range(0, 10**6)] = 4
    """Latents of a bank on which each preserved word is held, chosen once, so that the frozen model
    is asked once for each and not at every update; 0: on those of the update, anew. Only where that
    saves evaluations, and words are drawn whole."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""
    vocabulary: str = "auto"
    """auto, names, tags, nouns, styles, people, tokens, a word list file, or such a list
    itself, "words: fox, sky". The authors' code uses a list of 3,000 common words
    (data/english_3000.csv), which may not be shipped: with the preset ``official``, give its path
    where you have it."""
    pool_size: Annotated[int, Range(0, 10**9)] = 0
    """K, candidates of each erased concept; 0: the whole vocabulary."""
    nearest: Annotated[int, Range(0, 10**9)] = 0
    """k, first narrow the vocabulary down to the k nearest by text states, where it holds more; 0:
    all of it."""
    spread: str = "even"
    """How K are chosen among k: nearest, even, or kmeans (on the distances, as the authors do)."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""
    exclude_erased: bool = True
    """Keep the erased concepts, their case variants, tokens and synonyms out of the candidates."""
    x0_weighting: bool = False
    """Compare predicted pictures instead of noise: every term times (1 - ᾱ)/ᾱ."""
    styled: Annotated[int, Range(0, MOST)] = 16
    """Prompts that stand for each name where a style is erased and ``diversify`` does not say: a
    thing in the style each. A style alone is no picture, and so its name alone says little; 0: it
    does."""
    search: Search = Online()
    """How preserved words are chosen."""
    latents: Latents = Bank(trajectories=2, anchored=2)
    """Where noisy latents come from."""

    @property
    def rows(self) -> int:
        """The concepts' latents, the preserved and kept words'; or a climb's, of both models."""
        climb = 0
        if isinstance(self.search, Gumbel):
            climb = self.batch * (2 if self.search.teacher_gradient else 1)
        return max(self.batch + (self.preserve_batch or self.batch) + self.kept_rows, climb)

    def check(self, job: Job) -> None:
        """Refuse a pool that the vocabulary cannot fill."""
        for c in job.concepts:
            if not c.pool:
                words = job.words(self.vocabulary, c, self.exclude_erased)
                words.holds(self.pool_size, self.nearest, self.spread)

    def make(self, job: Job) -> Made:
        """Train by the erased concept's guided prediction and by what the search preserves."""
        built = self.build(job)
        job.about["candidates"] = built.candidates.about
        return Made(job.train(built.loss, [built.search]))

    def build(self, job: Job) -> Built:
        """Candidates, latents, search, and the loss that ties them together."""
        source, keeping = self.latents.open(job), job.keeping()
        candidates = self.candidates(job)
        search = self.search.start(Setting(job, candidates, source, self._objective(job)))
        n = self.preserve_batch or self.batch
        reuse = 0 if isinstance(self.search, Gumbel) else self.reuse  # mixtures are no whole words
        rows = drawing(Setting(job, candidates, source), search, self.batch, n, reuse)

        def loss(student: Student, g: torch.Generator) -> Tensor:
            b, chosen, words = rows(student, g)
            guess = student(
                torch.cat([b.z, words.z]),
                torch.cat([b.t, words.t]),
                stack([b.concept, words.cond]),
            )
            erased = (guess[: len(b.z)] - b.goal(self.eta)).square().mean((1, 2, 3))
            harm = (guess[len(b.z) :] - words.goal).square().mean((1, 2, 3))
            search.learn(chosen, harm)
            value = (self._weighted(b.weight) * erased).mean()
            value = value + self.preserve * (self._weighted(words.weight) * harm).mean()
            return value + keeping.term(student, b.z, b.t, g)

        return Built(candidates, source, search, loss)

    def candidates(self, job: Job) -> Pools:
        """The pool of every erased concept."""
        found = []
        for c in job.concepts:
            own = job.words(self.vocabulary, c, self.exclude_erased)
            size, nearest = (0, 0) if c.pool else (self.pool_size, self.nearest)
            found.append(own.pool(job.model, c, size, nearest, self.spread))
        return pools(job, found)

    def _objective(self, job: Job) -> Objective:
        """The harm that Gumbel's logits climb (arXiv:2410.15618, equation 6)."""
        through = isinstance(self.search, Gumbel) and self.search.teacher_gradient

        def harm(student: Student, b: Batch, words: Words) -> Tensor:
            with torch.set_grad_enabled(through):
                goal = job.model.predict(words.z, words.t, words.cond)
            change = (student(words.z, words.t, words.cond) - goal).square().mean((1, 2, 3))
            return (self._weighted(b.weight) * change).mean()

        return harm

    def _weighted(self, weight: Tensor) -> Tensor:
        return weight if self.x0_weighting else torch.ones_like(weight)

    @classmethod
    def presets(cls) -> Mapping[str, AP]:
        """``ours``; ``paper``: its formulas; ``official``: the authors' code, quirks included.

        ``exact`` scores every candidate, and has more latents and more of them in an update, at
        about twice the evaluations; ``away`` is the same steered to the null prompt and far
        beyond it, as ours was before it searched for anchors. Both forms have the paper's 1,000
        updates; ``paper-short`` and ``official-short`` are the same with the 400 that all methods
        have in the benchmark.
        """
        paper: dict[str, Any] = {
            "anchor": "",
            "styled": 0,
            "preserve_batch": 0,
            "reuse": 0,
            "pool_size": 100,
            "nearest": 1000,
            "spread": "kmeans",
            "batch": 1,
            "updates": 1000,
        }
        forms = {
            "paper": cls(eta=0.0, search=Gumbel(), latents=Rollout(ddim_steps=50), **paper),
            "official": cls(
                eta=1.0,
                exclude_erased=False,
                x0_weighting=True,
                search=Gumbel(hard=True, uniform_start=True, teacher_gradient=False),
                latents=Rollout(ddim_steps=50, aligned=False, own=True),
                **paper,
            ),
        }
        short = {f"{n}-short": replace(form, updates=400) for n, form in forms.items()}
        large: dict[str, Any] = {
            "batch": 4,
            "preserve_batch": 8,
            "reuse": 0,
            "search": Exact(refresh=60, probes=2, top=0),
            "latents": Bank(trajectories=4),
        }
        own = {
            "ours": cls(),
            "exact": cls(eta=1.0, **large),
            "away": cls(anchor="", eta=4.0, styled=0, **large),
        }
        return {**own, **forms, **short}

    @classmethod
    def lineup(cls) -> Mapping[str, Entry]:
        """Beside ours the control without a search, the earlier default, and the two forms.

        The authors' form comes with all of its 1,000 updates as well, and with about as many
        evaluations as ours.
        """
        known = cls.presets()
        said, official = "AP, as the authors' code", known["official-short"]
        return {
            "ap-random": Entry("AP, random words instead of the search", cls(search=Random())),
            "ap": Entry(cls.label, known["ours"]),
            "ap-exact": Entry("AP, every candidate scored", known["exact"]),
            "ap-away": Entry("AP, away from the null prompt", known["away"]),
            "ap-paper": Entry("AP, the paper's formulas", known["paper-short"]),
            "ap-official": Entry(said, official),
            "ap-official-full": Entry(f"{said}, 1,000 updates", official, 2.5),
            "ap-official-equal": Entry(f"{said}, at ours' evaluations", official, 0.12),
        }
