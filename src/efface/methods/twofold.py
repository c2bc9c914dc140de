"""Twofold: preserve what an erasure harms most, and erase under what brings it back most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.concepts import MOST
from efface.models import stack
from efface.settings import Range
from efface.training import Bank, Entry, Job, Loss, Made, Method, Student, Tuning
from efface.training.held import Drawing, drawing
from efface.training.recall import Recall, Recalls, check_tokens
from efface.training.search import Exact, Online, Pools, Random, Searching, Setting, pools


@dataclass(frozen=True, kw_only=True)
class Twofold(Method, Tuning):
    """Adversarial preservation against two adversaries at once.

    One is the vocabulary's, as in AP: the words that the edit harms most are preserved. The other
    looks, now and then, for text states, a token vector and latents with which the edited model
    predicts what the frozen one does for the concept; under these the concept is erased as under
    its name. Source: ours; arXiv:2410.15618 and, of the other adversary, arXiv:2405.16341 (RACE)
    and arXiv:2408.16807 (STEREO).
    """

    name: ClassVar[str] = "twofold"
    label: ClassVar[str] = "Twofold"
    takes_pools: ClassVar[bool] = True

    batch: Annotated[int, Range(1, 4096)] = 2
    """Latents of erased concepts in an update, under their names."""
    anchor: str = "auto"
    """What concepts without an anchor of their own are steered to: a word, auto (searched for in
    the vocabulary, for each concept), or nothing, the null prompt."""
    eta: Annotated[float, Range(0)] = 1.5
    """Strength of the negative guidance away from the erased concept; 0 maps it onto its anchor."""
    preserve: Annotated[float, Range(0)] = 1.0
    """λ, weight of the preservation term."""
    preserve_batch: Annotated[int, Range(0, 4096)] = 6
    """Preserved concepts in an update; 0: as many as erased ones."""
    reuse: Annotated[int, Range(0, 10**6)] = 4
    """Latents of the bank on which each preserved word is held, chosen once, so that the frozen
    model is asked once for each and not at every update; 0: on those of the update, anew. Only
    where that saves evaluations."""
    against: Annotated[float, Range(0)] = 1.0
    """Weight of the erasure under what brings the concept back."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""
    vocabulary: str = "auto"
    """auto, names, tags, nouns, styles, people, tokens, a word list file, or such a list
    itself, "words: fox, sky"."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""
    styled: Annotated[int, Range(0, MOST)] = 16
    """Prompts that stand for each name where a style is erased and ``diversify`` does not say: a
    thing in the style each. A style alone is no picture, and so its name alone says little; 0: it
    does."""
    search: Online | Exact | Random = Online()
    """How preserved words are chosen."""
    recall: Recall = Recall()
    """How what brings the concept back is searched for."""
    latents: Bank = Bank(trajectories=2)
    """Where noisy latents come from."""

    @property
    def rows(self) -> int:
        """The concepts' latents, the preserved, recalled and kept ones; or a search's."""
        more = self.recall.rows if self.recall.channels else 0
        own = self.batch + (self.preserve_batch or self.batch) + more + self.kept_rows
        return max(own, self.recall.batch if self.recall.channels else 0)

    @property
    def reads_tokens(self) -> bool:
        """Where a token vector is searched for."""
        return self.recall.tokens

    def check(self, job: Job) -> None:
        """Refuse a model without token vectors, where one is searched for."""
        if self.recall.tokens:
            check_tokens(job.model)

    def make(self, job: Job) -> Made:
        """Train by the erased concept's guided prediction and by what both searches found."""
        bank = self.latents.open(job)
        candidates = self.candidates(job)
        setting = Setting(job, candidates, bank)
        search, n = self.search.start(setting), self.preserve_batch or self.batch
        rows = drawing(setting, search, self.batch, n, self.reuse)
        recalls = self.recall.open(job, bank)
        job.about["candidates"] = candidates.about
        return Made(job.train(self.loss(job, rows, search, recalls), [search, recalls]))

    def candidates(self, job: Job) -> Pools:
        """The pool of every erased concept."""
        found = [
            job.words(self.vocabulary, c).pool(job.model, c, 0, 0, "even") for c in job.concepts
        ]
        return pools(job, found)

    def loss(self, job: Job, rows: Drawing, search: Searching, recalls: Recalls) -> Loss:
        """Of an update: AP's two terms, and the erasure under what was found."""
        keeping = job.keeping()

        def value(student: Student, g: torch.Generator) -> Tensor:
            b, chosen, words = rows(student, g)
            z, t, cond = [b.z, words.z], [b.t, words.t], [b.concept, words.cond]
            goals, again = [b.goal(self.eta), words.goal], recalls.draw(g)
            if again is not None:
                z, t, cond = [*z, again.z], [*t, again.t], [*cond, again.cond]
                goals.append(again.goal)
            guess = student(torch.cat(z), torch.cat(t), stack(cond))
            far = (guess - torch.cat(goals)).square().mean((1, 2, 3)).split([len(x) for x in z])
            search.learn(chosen, far[1])
            terms = zip((1.0, self.preserve, self.against), far, strict=False)
            found = sum((w * x.mean() for w, x in terms), torch.zeros((), device=guess.device))
            return found + keeping.term(student, b.z, b.t, g)

        return value

    @classmethod
    def presets(cls) -> Mapping[str, Twofold]:
        """``firm``: pushes beyond the anchor under a find as well, and harms more."""
        return {"firm": cls(recall=Recall(eta=1.5))}

    @classmethod
    def lineup(cls) -> Mapping[str, Entry]:
        """With all channels, and the same firm."""
        firm = Entry(f"{cls.label}, firm", cls.presets()["firm"])
        return {"twofold": Entry(cls.label, cls()), "twofold-firm": firm}
