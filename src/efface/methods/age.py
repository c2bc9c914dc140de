"""AGE, adaptive guided erasure: search, while erasing, for the anchor of each concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.concepts import Concept, check_keep
from efface.edit import Edit
from efface.errors import UserError
from efface.latents import Batch, Latents, Words, draw_beside, source_of
from efface.models import Conditioning, DiffusionModel, stack
from efface.runs import Run
from efface.search import Gumbel, Pools, Random, Search, pools
from efface.training import Making, Student, Tuning, finetune
from efface.vocabulary import Vocabulary, load


@dataclass(frozen=True)
class AGE:
    """Steer each concept to an anchor found by a min-max over a vocabulary, and preserve that.

    Source: arXiv:2501.18950, sections 4.2 and 4.3; search by Gumbel-Softmax over single words
    (``search.hard``) or over
    mixtures of the ``search.mixture`` largest shares. Left out: nothing of the loss; ours are
    aligned latents from a bank,
    the erased concepts' absence from the candidates, and ε instead of x0 in both errors unless
    ``x0_weighting``. A concept with an anchor of its own gets that one, without a search.
    """

    eta: float = 1.0
    """Strength of the guidance away from the concept; 0 maps it onto its anchor."""
    preserve: float = 1.0
    """λ, weight of preserving the anchor that was found."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update besides, one drawn for each row."""
    vocabulary: str = "auto"
    """auto, names, tags, tokens, or the path of a word list."""
    pool_size: int = 0
    """K, candidates of each erased concept; 0: the ``nearest`` ones."""
    nearest: int = 100
    """k, the vocabulary is first narrowed to the k nearest by text states; 0: all of it."""
    spread: str = "kmeans"
    """How K are chosen among k: nearest, even, or kmeans."""
    own_latents: bool = False
    """Preserve the anchor on latents rolled out under it, as the authors do; else on the
    concept's."""
    x0_weighting: bool = False
    """Compare predicted pictures instead of noise: every term times (1 - ᾱ)/ᾱ."""
    search: Search = Search(kind="gumbel", hard=True, tau=0.1)
    """``gumbel`` or ``random``."""
    latents: Latents = Latents()
    tuning: Tuning = Tuning()

    def __post_init__(self) -> None:
        if self.search.kind == "exact":
            raise UserError("AGE searches anchors by 'gumbel' or takes 'random' ones, not 'exact'.")
        self.latents.check_own(self.own_latents)

    def erase(self, model: DiffusionModel, concepts: Sequence[Concept], run: Run = Run()) -> Edit:
        """Train an edit that erases ``concepts``."""
        check_keep(concepts, self.keep)
        making = Making("age", self, model, concepts)
        candidates = self.candidates(model, concepts)
        making.about["candidates"] = {"words": len(candidates.words), "hash": candidates.digest}
        source = source_of(model, concepts, self.latents, self.tuning.seed, run.progress)
        kept = model.embed(self.keep) if self.keep else None

        def weigh(b: Batch) -> Tensor:
            return b.weight if self.x0_weighting else torch.ones_like(b.weight)

        def climbed(student: Student, b: Batch, words: Words) -> Tensor:
            """How far the concept is from this anchor, and how much the anchor is harmed."""
            with torch.no_grad():
                goal = model.predict(b.z, b.t, words.cond.detach())
                same = goal
                if self.own_latents:
                    same = model.predict(words.z, words.t, words.cond.detach())
                away = (student(b.z, b.t, b.concept) - goal).square().mean((1, 2, 3))
            harm = (student(words.z, words.t, words.cond) - same).square().mean((1, 2, 3))
            climbed_to: Tensor = (weigh(b) * (away + self.preserve * harm)).mean()
            return climbed_to

        search = (
            Random(candidates)
            if self.search.kind == "random"
            else Gumbel(candidates, self.search, source, climbed, self.own_latents, model.device)
        )

        def loss(student: Student, g: torch.Generator) -> Tensor:
            def choose(which: Tensor) -> Conditioning:
                return search.draw(which, len(which), g).cond

            b, words = draw_beside(
                source, g, self.tuning.batch, student.weights, choose, self.own_latents
            )
            anchor, z = words.cond, words.z
            with torch.no_grad():
                e_anchor = same = model.predict(b.z, b.t, anchor)
                if self.own_latents:
                    same = model.predict(z, b.t, anchor)
            both = student(torch.cat([b.z, z]), torch.cat([b.t, b.t]), stack([b.concept, anchor]))
            goal = b._replace(e_anchor=e_anchor).goal(self.eta)
            away, harm = (
                (a - e).square().mean((1, 2, 3))
                for a, e in zip(both.chunk(2), (goal, same), strict=True)
            )
            value: Tensor = (weigh(b) * (away + self.preserve * harm)).mean()
            if kept is not None:
                cond = kept[torch.randint(0, len(kept), (len(b.z),), generator=g).to(b.z.device)]
                still = model.predict(b.z, b.t, cond)
                value = value + (student(b.z, b.t, cond) - still).square().mean()
            return value

        weights = finetune(model, loss, self.tuning, run, making.about, [search])
        return making.edit(weights)

    def candidates(self, model: DiffusionModel, concepts: Sequence[Concept]) -> Pools:
        """The anchors that each concept may get."""
        common, found = load(self.vocabulary, model), []
        for c in concepts:
            if c.anchor:
                found.append(Vocabulary((c.anchor,), f"anchor of {c.name}"))
                continue
            own = Vocabulary(c.pool, f"pool of {c.name}") if c.pool else common
            size = 0 if c.pool else self.pool_size
            nearest = 0 if c.pool else self.nearest
            clean = own.without(concepts, model.tokenizer)
            found.append(clean.pool(model, c, size, nearest, self.spread))
        return pools(model, concepts, found)
