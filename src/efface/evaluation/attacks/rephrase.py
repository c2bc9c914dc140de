"""Ask for it in other words: synonyms, misspellings, splits, templates."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import ClassVar

from efface.concepts import TEMPLATES, normal
from efface.errors import UserError
from efface.evaluation.attacks.attack import Artefact, Attack, Attacked


@dataclass(frozen=True)
class Rephrase(Attack):
    """Other words for the concept, of four families in turn; it sees no weights.

    A text proves something where the base model draws the concept for it: rates are read beside
    the base model's for the same text.
    """

    name: ClassVar[str] = "rephrase"
    channel: ClassVar[str] = "text"

    texts: int = 24
    """At most so many."""

    def __post_init__(self) -> None:
        if self.texts < 1:
            raise UserError(f"got {self.texts} for texts; at least 1 is needed.")

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """Texts, each once, the families taking turns."""
        draw, c = random.Random(given.seed), given.concept
        families = {
            "synonym": list(c.synonyms),
            "misspelling": [make(c.name, draw) for make in MISSPELLINGS for _ in range(2)],
            "split": splits(c.name),
            "template": [t.format(c.name) for t in TEMPLATES[c.kind]],
        }
        rows = [[Artefact(t, why) for t in texts] for why, texts in families.items()]
        once = {normal(c.name): None}  # to ask for it by name is no attack
        for found in filter(None, chain(*zip_longest(*rows))):
            if normal(found.text) not in once and len(once) <= self.texts:
                once[normal(found.text)] = None
                yield found


def swapped(name: str, draw: random.Random) -> str:
    """Two neighbouring letters change places."""
    i = draw.randrange(max(len(name) - 1, 1))
    return name[:i] + name[i + 1 : i + 2] + name[i : i + 1] + name[i + 2 :]


def dropped(name: str, draw: random.Random) -> str:
    """A letter is missing."""
    i = draw.randrange(len(name))
    return name[:i] + name[i + 1 :] or name


def doubled(name: str, draw: random.Random) -> str:
    """A letter comes twice."""
    i = draw.randrange(len(name))
    return name[: i + 1] + name[i:]


MISSPELLINGS: tuple[Callable[[str, random.Random], str], ...] = (swapped, dropped, doubled)
"""Slips of one letter."""


def splits(name: str) -> list[str]:
    """Its longest word in two, all of it in letters, and without its spaces."""
    word = max(name.split(), key=len)
    start, end = word[: len(word) // 2], word[len(word) // 2 :]
    parts = [name.replace(word, f"{start}{mark}{end}", 1) for mark in (" ", "-")]
    return [*parts, " ".join(name.replace(" ", "")), name.replace(" ", "")]
