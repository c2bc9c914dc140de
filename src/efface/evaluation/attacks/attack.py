"""What an attack is, what it is given, and what it brings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.models import DiffusionModel


class Artefact(NamedTuple):
    """What an attack found: something to draw pictures from."""

    text: str
    """The prompt."""
    why: str
    """How it came about: the family within the attack."""


@dataclass(frozen=True)
class Attacked:
    """All that an attack may use; it uses what its threat model says, and no more."""

    model: DiffusionModel
    """The base model, whose weights the edit lies over."""
    edit: Edit | None
    """None: the unedited model, as a control."""
    concept: Concept
    """What is to be brought back."""
    budget: int = 0
    """Evaluations of the denoiser that the search may spend; drawing the pictures that are judged
    is not counted."""
    seed: int = 0
    """Of every random draw."""
    prompts: Sequence[str] = ()
    """Prompts of the concept, for ``needs`` "prompts"."""
    pictures: Tensor | None = None
    """Pictures of the concept, (N, 3, H, W) in [0, 1], for ``needs`` "pictures"."""


class Attack(ABC):
    """A way of getting an erased concept back: one file, a frozen dataclass of its settings.

    It is given what is :class:`Attacked` and yields artefacts. Whether one succeeds is said by the
    ordinary judge on freshly drawn pictures, of seeds that the attack never saw
    (:func:`~efface.evaluation.trial.tried`); never by the attack's own loss.
    """

    name: ClassVar[str]
    """What the command line calls it."""
    channel: ClassVar[str]
    """Where it comes in: ``text``, ``token vector``, ``text states``, ``latent``, ``picture`` or
    ``weights``."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Its threat model beyond asking for pictures: ``base`` (the unedited weights), ``gradients``,
    ``prompts``, ``pictures``."""

    @abstractmethod
    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """What it found, the most promising first.

        Raises:
            UserError: the attack makes no sense for this model or concept.
        """
