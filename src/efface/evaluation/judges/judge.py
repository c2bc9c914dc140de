"""What a judge is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor


class Judgement(NamedTuple):
    """The best guesses on N pictures, most likely first; log-probabilities in nats."""

    concepts: Tensor
    """Concept indices (N, k)."""
    concept_logprobs: Tensor
    """Their log-probabilities (N, k)."""
    styles: Tensor
    """Style indices (N, S), of all S styles."""
    style_logprobs: Tensor
    """Their log-probabilities (N, S)."""


class Judge(ABC):
    """Says what a picture shows: one file.

    It is given pictures (N, 3, H, W) in [0, 1] and gives a :class:`Judgement`; a protocol's
    ``judge`` is its name, a hyphen and which of its kind (``emoji-2``, ``imagenet-resnet50-v2``).
    """

    name: ClassVar[str]
    """What a protocol's ``judge`` begins with."""
    version: str
    """The whole of it: scores of different versions do not compare."""
    sha256: str
    """Of its weights; "" where the version says it all."""
    concept_names: tuple[str, ...]
    """All that it knows by name; empty: a protocol lists what it preserves, with ``labels``."""

    @classmethod
    @abstractmethod
    def opened(cls, version: str) -> Judge:
        """The judge of a version, ready for use.

        Raises:
            UserError: no such version, or one that is not installed.
        """

    @abstractmethod
    def classify(self, images: Tensor, batch: int = 32, k: int = 5) -> Judgement:
        """The ``k`` likeliest concepts of pictures, ``batch`` at a time."""

    @abstractmethod
    def label(
        self, name: str, head: str = "concept", labels: Mapping[str, str] | None = None
    ) -> int:
        """The index of a concept (or, by ``head``, of a style) in its judgements.

        Args:
            labels: of a protocol: what the judge calls it, where that is not its name.

        Raises:
            UserError: it does not know it.
        """
