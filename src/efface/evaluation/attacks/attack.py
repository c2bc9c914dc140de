"""What an attack is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.artefacts import Artefact, Victim
from efface.models import Counter, DiffusionModel
from efface.seeds import generator

A = TypeVar("A", bound="Attack")

CHANNELS = ("text", "token vector", "text states", "latent", "picture", "weights")
"""Where an attack can come in, from the outside in."""


@dataclass(frozen=True)
class Attacked:
    """All that an attack may use; it uses what its threat model says, and no more."""

    model: DiffusionModel
    """The base model, whose weights the edit lies over."""
    edit: Edit | None
    """None: the unedited model, as a control."""
    concept: Concept
    """What is to be brought back."""
    budget: int | None = None
    """Evaluations of the denoiser, forward and backward, that the search may spend; drawing the
    pictures that are judged is not counted. None: what its settings take."""
    seed: int = 0
    """Of every random draw."""
    prompts: Sequence[str] = ()
    """Prompts of the concept; empty: its name."""
    pictures: Tensor | None = None
    """Pictures of the concept, (N, 3, H, W) in [0, 1], for ``needs`` "pictures"."""
    words: Sequence[str] = ()
    """What the model can draw: for the nearest words, and for a ranking."""
    blind: bool = False
    """A control: nothing is searched, and random artefacts of the same kind and number come."""
    negative: bool = False
    """A control: what is to be brought back is the concept in negative colours, which no model ever
    drew; ``pictures`` are negatives already."""
    guidance: float | None = None
    """Scale of guidance; None: the model's own."""
    steps: int | None = None
    """Of a picture; None: the model's own."""
    look: Callable[[Tensor], Sequence[bool]] | None = None
    """The judge, for an attack that stops where it succeeds: whether pictures, which it draws with
    seeds of its own, show the concept. None: there is none."""
    start: Counter = field(default_factory=Counter)
    """The model's count where the search began."""

    @property
    def asked(self) -> Sequence[str]:
        """Prompts of the concept."""
        return self.prompts or (self.concept.name,)

    @cached_property
    def victim(self) -> Victim:
        """The model under attack."""
        return Victim(self.model, self.edit, self.steps, self.guidance)

    @cached_property
    def base(self) -> Victim:
        """The unedited model."""
        return Victim(self.model, None, self.steps, self.guidance)

    def generator(self, *path: str | int) -> torch.Generator:
        """The generator of the draw that ``path`` names."""
        return generator(self.seed, "attack", self.concept.name, *path)

    def remaining(self) -> int | None:
        """Evaluations that are left of the budget; None: it has no end."""
        if self.budget is None:
            return None
        spent = self.model.counter.since(self.start)
        return self.budget - spent.forward - spent.backward

    def left(self, more: int = 0) -> bool:
        """Whether the budget allows ``more`` evaluations."""
        remaining = self.remaining()
        return remaining is None or more <= remaining

    def succeeds(self, prompt: str, seed: int) -> bool:
        """Whether one picture of a prompt shows the concept to the judge, where there is one."""
        if self.look is None or not self.left(self.cost()):
            return False
        return self.look(self.victim.pictures(prompt, [seed]))[0]

    def cost(self) -> int:
        """Evaluations of a picture."""
        return 2 * (self.steps or self.model.steps)

    def shown(self) -> Tensor:
        """The concept's pictures.

        Raises:
            UserError: there are none.
        """
        if self.pictures is None or not len(self.pictures):
            raise UserError(f"there are no pictures of {self.concept.name!r} to attack with.")
        return self.pictures

    def starts(self) -> Tensor:
        """Pictures to set out from: the concept's; blind, as many of nothing in particular.

        Raises:
            UserError: there are none.
        """
        pictures = self.shown()
        if not self.blind:
            return pictures
        seeds = torch.randint(2**31, (len(pictures),), generator=self.generator("blind"))
        return self.base.pictures("", seeds.tolist())


class Attack(ABC):
    """A way of getting an erased concept back: one file, a frozen dataclass of its settings.

    It is given what is :class:`Attacked` and yields artefacts. Whether one succeeds is said by the
    ordinary judge on freshly drawn pictures, of seeds that the attack never saw
    (:func:`~efface.evaluation.trial.tried`); never by the attack's own loss.
    """

    name: ClassVar[str]
    """What the command line calls it."""
    channel: ClassVar[str]
    """Where it comes in: one of :data:`CHANNELS`."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Its threat model beyond asking for pictures: ``base`` (the unedited weights), ``weights``
    (the edited ones), ``gradients``, ``encoder``, ``pictures``."""
    searches: ClassVar[bool] = False
    """Whether it evaluates the denoiser before there is an artefact; such an attack runs on a
    sample of the concepts."""
    judged: ClassVar[bool] = True
    """Whether only a judge can say what came of it."""
    rising: ClassVar[bool] = False
    """Whether the points of its curve are numbers, and the attack grows stronger with them."""
    relative: ClassVar[bool] = False
    """Whether an artefact counts only where the base model draws the concept for it."""

    @property
    def headline(self) -> str:
        """The point of its curve that stands for it; "": all together."""
        return ""

    def curve(self) -> Sequence[str] | None:
        """The points that its curve can have; empty: it has none; None: nobody knows yet."""
        return None

    def within(self, budget: int | None) -> Sequence[str] | None:
        """The points of :meth:`curve` that a search of so many evaluations reaches; None: all."""
        return self.curve()

    def full(self: A) -> A:
        """The same with the settings of its paper, for ``--budget full``."""
        return self

    def wanted(self) -> int:
        """Pictures of the concept that it is to be given."""
        return 8

    def least(self) -> int:
        """Evaluations without which its search is none."""
        return 1

    def count(self, prompts: int) -> int:
        """About how many artefacts that are drawn it yields, for the time that is left.

        Args:
            prompts: of the concept.
        """
        return 1

    def evaluations(self) -> int:
        """About what its search takes, forward and backward, for the time that is left."""
        return 0

    def check(self, given: Attacked) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse a model or an edit on which it makes no sense, before anything is searched.

        Raises:
            UserError: says why.
        """

    @abstractmethod
    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """What it found, the most promising first.

        Raises:
            UserError: the attack makes no sense for this model or concept.
        """


def no_gates(given: Attacked, name: str) -> None:
    """Refuse an edit whose weights depend on the prompt.

    Raises:
        UserError: it has gates.
    """
    if given.edit is not None and given.edit.gates:
        raise UserError(
            f"the attack {name!r} needs one set of edited weights, and this edit has gates that "
            "each prompt opens in its own way: use rephrase, completion, img2img or inpaint."
        )
