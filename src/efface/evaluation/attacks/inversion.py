"""Learn a word whose pictures are the concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.concepts import TEMPLATES
from efface.evaluation.artefacts import Artefact, Vectors
from efface.evaluation.attacks.attack import Attack, Attacked, no_gates
from efface.evaluation.lessons import Lessons
from efface.models import check_clip, encoded_with, ids_in, mark_for, token_table
from efface.settings import Range, check_ranges
from efface.vocabulary import distances


@dataclass(frozen=True)
class Inversion(Attack):
    """Textual inversion through the edited model (CCE): one token vector, some pictures.

    A vector is strong enough to bring in what a model never knew, so that the control with the
    concept in negative colours belongs to it; ``norm`` says how far outside of the table of token
    vectors it lies, in units of their median.

    Source: arXiv:2308.01508, section 3.
    """

    name: ClassVar[str] = "inversion"
    channel: ClassVar[str] = "token vector"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "encoder", "pictures"})
    searches: ClassVar[bool] = True

    updates: Annotated[int, Range(1, 10**6)] = 150
    """Of the vector."""
    batch: Annotated[int, Range(1, 4096)] = 16
    """Noised pictures in an update."""
    pictures: Annotated[int, Range(1, 10_000)] = 24
    """Pictures of the concept."""
    lr: Annotated[float, Range(0, 10, open_low=True)] = 0.01
    """Learning rate of Adam."""
    start: str = ""
    """The word to set out from; "": the nearest one that is no name of the concept."""
    templates: Annotated[int, Range(1, 5)] = 3
    """Prompts that it is judged in, of those that it is learned in."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def wanted(self) -> int:
        """What it learns from."""
        return self.pictures

    def count(self, prompts: int) -> int:
        """One a template."""
        return self.templates

    def least(self) -> int:
        """One update."""
        return 2 * self.batch

    def evaluations(self) -> int:
        """Forward and backward."""
        return 2 * self.batch * self.updates

    def curve(self) -> Sequence[str]:
        """None."""
        return ()

    def full(self) -> Inversion:
        """As many updates and pictures as the paper; its rate is for other vectors."""
        return replace(self, updates=5000, batch=16, pictures=25, templates=5)

    def check(self, given: Attacked) -> None:
        """Token vectors of CLIP, and one set of weights."""
        check_clip(given.model, f"the attack {self.name!r}")
        no_gates(given, self.name)

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """One a template, all with the same vector."""
        model = given.model
        templates = TEMPLATES[given.concept.kind]
        mark = mark_for(model, [*templates, *given.asked])
        prompts = [t.format(mark) for t in templates]
        rows = self.begun(given)
        if given.blind:
            rows = {k: elsewhere(w, given.generator("blind", k)) for k, w in rows.items()}
        else:
            self.learn(given, prompts, mark, rows)
        found = {k: w.detach() for k, w in rows.items()}
        measured = {"norm": size(given, found)}
        for prompt, template in zip(prompts[: self.templates], templates, strict=False):
            named = template.format(given.concept.name)
            yield Vectors(prompt=prompt, source=named, mark=mark, rows=found, measured=measured)

    def begun(self, given: Attacked) -> dict[str, Tensor]:
        """The vectors to set out from, one a text encoder, (1, D)."""
        model, word = given.model, self.start or nearest(given)
        found = {}
        for encoder, tokenizer in model.family.encoders.items():
            ids = ids_in(model, tokenizer, word)[-1:] or [0]
            found[encoder] = token_table(model, encoder)[ids].detach().float().clone()
        return found

    def learn(
        self, given: Attacked, prompts: list[str], mark: str, rows: dict[str, Tensor]
    ) -> None:
        """Train the vectors in place."""
        model, g = given.model, given.generator("inversion")
        lessons, weights = Lessons(model, given.shown()[: self.pictures]), given.victim.weights("")
        adam = torch.optim.Adam([w.requires_grad_() for w in rows.values()], lr=self.lr)
        for _ in range(self.updates):
            if not given.left(self.least()):
                break
            z, t, goal, _ = lessons.draw(self.batch, g)
            which = torch.randint(0, len(prompts), (self.batch,), generator=g)
            cond = encoded_with(model, prompts, mark, rows)[which.to(model.device)]
            lessons.loss(z, t, goal, cond, weights).backward()
            adam.step()
            adam.zero_grad()


def nearest(given: Attacked) -> str:
    """The word nearest to the concept that shares no token with any of its names."""
    model, name = given.model, given.concept.name
    tokenizer = next(iter(model.family.encoders.values()))
    mine = {i for n in given.concept.names for i in ids_in(model, tokenizer, n)}
    words = [w for w in given.words if not mine & set(ids_in(model, tokenizer, w))]
    if not words:
        return "object"
    return words[int(distances(model, [name], words)[0].argmin())]


def elsewhere(w: Tensor, g: torch.Generator) -> Tensor:
    """A random vector of the same length, (1, D)."""
    away = torch.randn(w.shape, generator=g).to(w)
    turned: Tensor = away / away.norm() * w.norm()
    return turned


def size(given: Attacked, rows: dict[str, Tensor]) -> float:
    """Length of the vectors, in units of the median token vector's; the largest over encoders."""
    return max(
        float(w.norm() / token_table(given.model, k).float().norm(dim=1).median())
        for k, w in rows.items()
    )
