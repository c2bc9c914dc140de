"""AGE, adaptive guided erasure: search, while erasing, for the anchor of each concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.models import Conditioning, stack
from efface.settings import Range
from efface.training import (
    AUTO,
    Bank,
    Batch,
    Job,
    Latents,
    Made,
    Method,
    Rollout,
    Student,
    Tuning,
    Words,
)
from efface.training.search import Gumbel, Pools, Random, Setting, pools
from efface.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class AGE(Method, Tuning):
    """Steer each concept to an anchor found by a min-max over a vocabulary, and preserve that.

    Source: arXiv:2501.18950, sections 4.2 and 4.3; search by Gumbel-Softmax over single words
    (``search.hard``) or over mixtures of the ``search.mixture`` largest shares. Left out: nothing
    of the loss; ours are aligned latents from a bank, the erased concepts' absence from the
    candidates, and ε instead of x0 in both errors unless ``x0_weighting``. A concept with an anchor
    of its own gets that one, without a search.
    """

    name: ClassVar[str] = "age"
    label: ClassVar[str] = "AGE"
    takes_pools: ClassVar[bool] = True
    seeks: ClassVar[bool] = True

    eta: Annotated[float, Range(0)] = 1.0
    """Strength of the guidance away from the concept; 0 maps it onto its anchor."""
    preserve: Annotated[float, Range(0)] = 1.0
    """λ, weight of preserving the anchor that was found."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""
    vocabulary: str = "auto"
    """auto, names, tags, nouns, styles, people, tokens, a word list file, or such a list
    itself, "words: fox, sky"."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""
    pool_size: Annotated[int, Range(0, 10**9)] = 0
    """K, candidates of each erased concept; 0: the ``nearest`` ones."""
    nearest: Annotated[int, Range(0, 10**9)] = 100
    """k, the vocabulary is first narrowed to the k nearest by text states; 0: all of it."""
    spread: str = "kmeans"
    """How K are chosen among k: nearest, even, or kmeans."""
    x0_weighting: bool = False
    """Compare predicted pictures instead of noise: every term times (1 - ᾱ)/ᾱ."""
    search: Gumbel | Random = Gumbel(hard=True, tau=0.1)
    """How anchors are chosen."""
    latents: Latents = Bank()
    """Where noisy latents come from; with ``own`` rollouts the anchor is preserved on latents of
    its own, as the authors do."""

    @property
    def rows(self) -> int:
        """The concepts' latents, their anchors', and the kept words'."""
        return 2 * self.batch + self.kept_rows

    def check(self, job: Job) -> None:
        """Refuse a pool that the vocabulary cannot fill."""
        for c in job.concepts:
            if not c.pool and not c.anchor and self.anchor != AUTO:
                job.words(self.vocabulary, c).holds(self.pool_size, self.nearest, self.spread)

    def make(self, job: Job) -> Made:
        """Train by the searched anchor's prediction, and by the anchor's own."""
        model, source, keeping = job.model, self.latents.open(job), job.keeping()
        own = isinstance(self.latents, Rollout) and self.latents.own
        candidates = self.candidates(job)
        job.about["candidates"] = candidates.about

        def weigh(b: Batch) -> Tensor:
            return b.weight if self.x0_weighting else torch.ones_like(b.weight)

        def climbed(student: Student, b: Batch, words: Words) -> Tensor:
            """How much this anchor is harmed: the one part of the error that moves with it.

            How far the concept is from the anchor stands in the authors' sum as well, but what it
            depends on the anchor by is kept out of their gradient.
            """
            with torch.no_grad():
                same = model.predict(words.z, words.t, words.cond)
            harm = (student(words.z, words.t, words.cond) - same).square().mean((1, 2, 3))
            climbed_to: Tensor = (weigh(b) * self.preserve * harm).mean()
            return climbed_to

        search = self.search.start(Setting(job, candidates, source, climbed))

        def loss(student: Student, g: torch.Generator) -> Tensor:
            def choose(which: Tensor) -> Conditioning:
                return search.draw(which, len(which), g).cond

            b, words = source.draw_beside(g, self.batch, student.weights, choose)
            anchor, z = words.cond, words.z
            with torch.no_grad():
                e_anchor = same = model.predict(b.z, b.t, anchor)
                if own:
                    same = model.predict(z, b.t, anchor)
            both = student(torch.cat([b.z, z]), torch.cat([b.t, b.t]), stack([b.concept, anchor]))
            goal = b._replace(e_anchor=e_anchor).goal(self.eta)
            away, harm = (
                (a - e).square().mean((1, 2, 3))
                for a, e in zip(both.chunk(2), (goal, same), strict=True)
            )
            value: Tensor = (weigh(b) * (away + self.preserve * harm)).mean()
            return value + keeping.term(student, b.z, b.t, g)

        return Made(job.train(loss, [search]))

    def candidates(self, job: Job) -> Pools:
        """The anchors that each concept may get."""
        found = []
        for c in job.concepts:
            if c.anchor:
                found.append(Vocabulary((c.anchor,), f"anchor of {c.name}"))
                continue
            size, nearest = (0, 0) if c.pool else (self.pool_size, self.nearest)
            clean = job.words(self.vocabulary, c)
            found.append(clean.pool(job.model, c, size, nearest, self.spread))
        return pools(job, found)
