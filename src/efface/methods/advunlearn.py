"""AdvUnlearn: erase under the prefixes that bring a concept back most, and retain other words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.errors import UserError, pick
from efface.models import (
    Conditioning,
    check_clip,
    encoded_with,
    ids_in,
    mark_for,
    stack,
    token_table,
)
from efface.settings import Range
from efface.training import Bank, Batch, Job, Loss, Made, Method, Student, Tuning
from efface.training.batches import beside
from efface.training.latents import Banked
from efface.training.recall import missed
from efface.training.search import Random, Searching, Setting, pools

STARTS = ("random", "last")


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Method, Tuning):
    """ESD under a prefix that is searched for in every update, beside words that are retained.

    It trains the denoiser, since an edit holds the denoiser's weights and no others. The published
    default trains the text encoder; to train groups of the UNet is an option of the authors' code.

    Source: arXiv:2405.15234. Differences: latents come from a bank of the frozen model; retained
    words weigh in the same step (the authors' ``reg``; a step of their own is their default), are
    of the vocabulary, and are predicted on the update's latents; each step of the search has its
    own gradient, where the released code adds up those of all steps before; a prefix is as many
    tokens long as it says, where there words are counted; rows of a batch with the same prompt
    share a prefix.
    """

    name: ClassVar[str] = "advunlearn"
    label: ClassVar[str] = "AdvUnlearn, on the denoiser"
    takes_pools: ClassVar[bool] = True

    eta: Annotated[float, Range(0)] = 1.0
    """Strength of the negative guidance; 0 maps the concept onto its anchor."""
    warm_up: Annotated[float, Range(0, 1)] = 0.2
    """Share of the updates, the first ones, under the bare names."""
    prefix: Annotated[int, Range(1, 64)] = 1
    """k, token vectors before an erased name."""
    start: str = "random"
    """Where a search sets out: at ``random`` tokens, or at what the ``last`` one for the same name
    found."""
    steps: Annotated[int, Range(1, 10_000)] = 5
    """Steps of a search, each on new latents."""
    step: Annotated[float, Range(0, 100, open_low=True)] = 0.4
    """How far about a number of a prefix moves in a step, in units of the token table's root mean
    square: Adam's learning rate."""
    signs: bool = False
    """Step by the signs of the gradient instead of Adam's (the authors' ``fast_at``)."""
    preserve: Annotated[float, Range(0)] = 0.3
    """Weight of the retained words' term."""
    preserve_batch: Annotated[int, Range(1, 4096)] = 5
    """Retained words in an update."""
    keep: tuple[str, ...] = ()
    """Words that are preserved at every update, whatever else is; ``""`` is the null prompt."""
    keep_weight: Annotated[float, Range(0)] = 1.0
    """Weight of the kept words' term."""
    vocabulary: str = "auto"
    """Where retained words are from: auto, names, tags, nouns, styles, people, tokens, a word list
    file, or such a list itself, "words: fox, sky"."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""
    latents: Bank = Bank()
    """Where noisy latents come from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pick(dict.fromkeys(STARTS), self.start, "start of a search")

    @property
    def rows(self) -> int:
        """The concepts' latents, the retained words' and the kept ones'."""
        return self.batch + self.preserve_batch + self.kept_rows

    @property
    def reads_tokens(self) -> bool:
        """Prefixes are read with every update's prompts."""
        return True

    def check(self, job: Job) -> None:
        """Refuse a model without token vectors, and a prefix that pushes a name out."""
        model = job.model
        check_clip(model, f"the method {self.name!r}")
        for encoder, limit in model.family.limits(model.parts).items():
            for prompt in erased_prompts(job):
                n = len(ids_in(model, model.family.encoders[encoder], prompt))
                if n + self.prefix > limit - 2:
                    s = "s" if self.prefix > 1 else ""
                    raise UserError(
                        f"with {self.prefix} token{s} before it, {prompt!r} is cut: the text "
                        f"encoder reads {limit - 2} in all."
                    )

    def make(self, job: Job) -> Made:
        """Train by the guided prediction under the prefixes, and by the retained words'."""
        bank = self.latents.open(job)
        found = [
            job.words(self.vocabulary, c).pool(job.model, c, 0, 0, "even") for c in job.concepts
        ]
        candidates = pools(job, found)
        job.about["candidates"] = candidates.about
        words, prefixes = Random().start(Setting(job, candidates, bank)), Prefixes(job, self, bank)
        return Made(job.train(self.loss(job, words, prefixes), [prefixes]))

    def loss(self, job: Job, words: Searching, prefixes: Prefixes) -> Loss:
        """Of an update."""
        model, keeping = job.model, job.keeping()

        def value(student: Student, g: torch.Generator) -> Tensor:
            b, cond = prefixes.draw(self.batch, g)
            other = beside(b, words.draw(b.which, self.preserve_batch, g).cond)
            with torch.no_grad():
                goal = model.predict(other.z, other.t, other.cond)
            z, t = torch.cat([b.z, other.z]), torch.cat([b.t, other.t])
            erased, retained = student(z, t, stack([cond, other.cond])).split([len(b.z), len(goal)])
            found = mse_loss(erased, b.goal(self.eta)) + self.preserve * mse_loss(retained, goal)
            return found + keeping.term(student, b.z, b.t, g)

        return value

    @classmethod
    def presets(cls) -> Mapping[str, AdvUnlearn]:
        """``official``: the released code's numbers, on the denoiser.

        Its steps of 1e-3 are about 0.07 of the token table's root mean square in Stable Diffusion.
        """
        return {
            "official": cls(batch=1, updates=1000, steps=30, step=0.07, latents=Bank(ddim_steps=50))
        }


def erased_prompts(job: Job) -> list[str]:
    """The erased prompts of a job, in the order of a bank's rows."""
    assert isinstance(job.method, Tuning)
    return [pair.prompt for c in job.concepts for pair in c.pairs(job.method.diversify)]


class Prefixes:
    """Token vectors before each erased prompt, searched for before an update's batches.

    What is looked for is where the student predicts what the frozen model predicts for the prompt.
    """

    def __init__(self, job: Job, config: AdvUnlearn, bank: Banked) -> None:
        self.job, self.config, self.bank, self.model = job, config, bank, job.model
        prompts = erased_prompts(job)
        self.mark = mark_for(job.model, prompts)
        before = " ".join([self.mark] * config.prefix)
        self.texts = [f"{before} {p}" for p in prompts]
        self.found = self.random(job.generator("prefixes"))
        """Text encoder -> (R, k, D), for each of R prompts."""
        self.lr = {
            e: config.step * float(token_table(job.model, e).float().square().mean().sqrt())
            for e in self.found
        }
        """Text encoder -> learning rate of its vectors."""
        self.path: Tensor | None = None
        """Trajectories of the prompts that the update is about, (B,); None: it warms up."""

    def random(self, g: torch.Generator) -> dict[str, Tensor]:
        """Vectors of random tokens, (R, k, D) of each text encoder."""
        tables = {e: token_table(self.model, e).detach() for e in self.model.family.encoders}
        n = min(len(w) for w in tables.values())
        ids = torch.randint(0, n, (len(self.texts), self.config.prefix), generator=g)
        return {e: w[ids.to(w.device)].float() for e, w in tables.items()}

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Search, once the method is warm."""
        if self.job.now < round(self.config.warm_up * self.config.updates):
            return
        self.path, _ = self.bank.pick(g, batch)
        if self.config.start == "random":
            self.found = self.random(g)
        self.search(student.still(), self.path, g)

    def search(self, student: Student, path: Tensor, g: torch.Generator) -> None:
        """Descend for the prompts of some trajectories, (B,).

        Args:
            student: still.
        """
        x = {e: w.clone().requires_grad_() for e, w in self.found.items()}
        groups = [{"params": [w], "lr": self.lr[e]} for e, w in x.items()]
        steps = torch.optim.SGD(groups) if self.config.signs else torch.optim.Adam(groups)
        for _ in range(self.config.steps):
            b = self.bank.again(g, path)
            lost = missed(student, b.z, b, self.encoded(x, path))
            grads = torch.autograd.grad(lost, list(x.values()))
            for w, grad in zip(x.values(), grads, strict=True):
                w.grad = grad.sign() if self.config.signs else grad
            steps.step()
        self.found = {e: w.detach() for e, w in x.items()}

    def encoded(self, rows: Mapping[str, Tensor], path: Tensor) -> Conditioning:
        """The prompts of some trajectories behind their prefixes, B rows."""
        row = self.bank.row[path]
        mine = {e: w[row.to(w.device)] for e, w in rows.items()}
        return encoded_with(self.model, [self.texts[i] for i in row.tolist()], self.mark, mine)

    def draw(self, batch: int, g: torch.Generator) -> tuple[Batch, Conditioning]:
        """Latents, and what is to be erased on them: names, or the update's prefixes with them.

        All batches of an update are of the prompts that it searched for.
        """
        if self.path is None:
            b = self.bank.draw(g, batch)
            return b, b.concept
        b = self.bank.again(g, self.path)
        with torch.no_grad():
            return b, self.encoded(self.found, self.path)

    def end(self, student: Student) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """What was found."""
        return dict(self.found)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.found = {e: state[e].to(w.device) for e, w in self.found.items()}
