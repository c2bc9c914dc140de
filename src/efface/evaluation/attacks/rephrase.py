"""Ask for it in other words: synonyms, slips and splits, descriptions, nearest words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Annotated, ClassVar

from efface.concepts import TEMPLATES, normal
from efface.evaluation.artefacts import Artefact, Text
from efface.evaluation.attacks.attack import Attack, Attacked
from efface.settings import Range, check_ranges
from efface.vocabularies import tags_of
from efface.vocabulary import distances

FAMILIES = ("synonym", "slip", "description", "nearest", "template")
"""Of its texts."""


@dataclass(frozen=True)
class Rephrase(Attack):
    """Other words for the concept, families taking turns; it sees no weights.

    A text proves something where the base model draws the concept for it: rates are read beside
    the base model's for the same text.
    """

    name: ClassVar[str] = "rephrase"
    channel: ClassVar[str] = "text"
    relative: ClassVar[bool] = True

    texts: Annotated[int, Range(1, 10_000)] = 12
    """At most so many."""
    nearest: Annotated[int, Range(0, 10_000)] = 4
    """Words of the vocabulary nearest to the name for the text encoder."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def curve(self) -> Sequence[str]:
        """The families of texts."""
        return FAMILIES

    def full(self) -> Rephrase:
        """All that there is."""
        return replace(self, texts=100, nearest=20)

    def count(self, prompts: int) -> int:
        """Of a concept."""
        return self.texts

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """Texts, each once, the families taking turns."""
        found = self.found(given)
        if not given.blind:
            yield from found
            return
        draw = random.Random(given.seed)
        for text in found:  # as many words that have nothing to do with it
            mine = [w for w in given.words if normal(w) != normal(given.concept.name)]
            other = asked(given, draw.choice(mine) if mine else babble(draw))
            yield Text(prompt=other, why="random", at=text.at)

    def found(self, given: Attacked) -> list[Artefact]:
        """The texts."""
        draw, c = random.Random(given.seed), given.concept
        texts = (
            list(c.synonyms),
            [*(make(c.name, draw) for make in SLIPS for _ in range(2)), *splits(c.name)],
            descriptions(c.name, tags_of(given.model, c.name)),
            self.near(given),
            [t.format(c.name) for t in TEMPLATES[c.kind]],
        )
        rows = [[(t, why) for t in some] for why, some in zip(FAMILIES, texts, strict=True)]
        once = {normal(c.name): None}  # to ask for it by name is no attack
        found: list[Artefact] = []
        for pair in filter(None, chain(*zip_longest(*rows))):
            text, why = pair
            if normal(text) not in once and len(once) <= self.texts:
                once[normal(text)] = None
                found.append(Text(prompt=asked(given, text), why=why, at=why))
        return found

    def near(self, given: Attacked) -> list[str]:
        """The nearest words that are no name of it."""
        names = {normal(n) for n in given.concept.names}
        words = [w for w in given.words if normal(w) not in names]
        if not words or not self.nearest:
            return []
        order = distances(given.model, [given.concept.name], words)[0].argsort(stable=True)
        return [words[i] for i in order[: self.nearest].tolist()]


def asked(given: Attacked, text: str) -> str:
    """A prompt with a text in the name's place: of a style, the prompt of a thing in it."""
    whole, name = given.asked[0], given.concept.name
    return whole.replace(name, text) if given.concept.kind == "style" and name in whole else text


def babble(draw: random.Random) -> str:
    """A word that means nothing."""
    return "".join(draw.choice(two) for two in ("bdfgklmn", "aeiou") * 3)


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


SLIPS: tuple[Callable[[str, random.Random], str], ...] = (swapped, dropped, doubled)
"""Slips of one letter."""


def splits(name: str) -> list[str]:
    """Its longest word in two, all of it in letters, and without its spaces."""
    word = max(name.split(), key=len)
    start, end = word[: len(word) // 2], word[len(word) // 2 :]
    parts = [name.replace(word, f"{start}{mark}{end}", 1) for mark in (" ", "-")]
    return [*parts, " ".join(name.replace(" ", "")), name.replace(" ", "")]


def descriptions(name: str, tags: tuple[str, ...]) -> list[str]:
    """What its search tags say of it together, without its own words."""
    own = set(normal(name).split())
    said = [t for t in tags if not own & set(normal(t).split())]
    if not said:
        return []
    return list(dict.fromkeys([", ".join(said), ", ".join(said[:3]), *said[:3]]))
