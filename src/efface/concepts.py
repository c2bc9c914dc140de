"""What a prompt can ask for, and the ways of asking."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efface.errors import UserError, pick

TEMPLATES = {
    "object": ("{}", "a picture of {}", "a drawing of {}", "{} emoji", "a photo of {}"),
    "style": ("{}", "a picture, {}", "a drawing, {}", "{} emoji", "art, {}"),
}
"""Prompt templates of each kind of concept; the bare name first."""


@dataclass(frozen=True)
class Concept:
    """Something that a model can draw.

    Raises:
        UserError: empty name, unknown kind, or a name equal to its own anchor.
    """

    name: str
    """How a prompt asks for it."""
    anchor: str = ""
    """What it is steered to when erased; ``""`` is the null prompt, another concept's name replaces
    it."""
    kind: str = "object"
    """``object`` or ``style``: which templates its prompts use."""
    synonyms: tuple[str, ...] = ()
    """Other words for it: erased with it, and never preserved."""
    pool: tuple[str, ...] = ()
    """Its own vocabulary to be preserved; empty: the common one."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise UserError("got an empty concept: name what is to be erased, as a prompt would.")
        if same(self.name, self.anchor):
            raise UserError(
                f"concept {self.name!r} is its own anchor: nothing would change; "
                "give another anchor, or none."
            )
        pick(TEMPLATES, self.kind, "kind of concept")
        for field in ("synonyms", "pool"):
            object.__setattr__(self, field, tuple(getattr(self, field)))

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    def prompts(self, n: int) -> list[str]:
        """``n`` prompts that ask for it: the templates of its kind, in order, over again."""
        templates = TEMPLATES[self.kind]
        return [templates[i % len(templates)].format(self.name) for i in range(n)]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


def same(a: str, b: str) -> bool:
    """Whether two names ask for the same thing but for case, spaces and hyphens."""
    return normal(a) == normal(b)


def normal(name: str) -> str:
    """A name without what a text encoder would not tell apart: case, hyphens, doubled spaces."""
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())


def parse(text: str) -> Concept:
    """``name``, ``name -> anchor``, either with ``| synonym, synonym`` behind it.

    Raises:
        UserError: as :class:`Concept`.
    """
    head, _, synonyms = text.partition("|")
    name, _, anchor = head.partition("->")
    also = tuple(s.strip() for s in synonyms.split(",") if s.strip())
    return Concept(name.strip(), anchor.strip(), synonyms=also)


def read(path: Path) -> list[Concept]:
    """The concepts of a file: JSON (a list of their fields) or one :func:`parse` line each.

    Raises:
        UserError: no such file, broken JSON, unknown fields, or no concept in it.
    """
    try:
        text = path.read_text(encoding="utf8")
    except OSError as e:
        raise UserError(f"cannot read the concepts file {str(path)!r}: {e.strerror}.") from None
    if path.suffix != ".json":
        lines = (line.strip() for line in text.splitlines())
        found = [parse(line) for line in lines if line and not line.startswith("#")]
    else:
        try:
            found = [
                Concept(**row) if isinstance(row, dict) else parse(row) for row in json.loads(text)
            ]
        except (ValueError, TypeError) as e:
            raise UserError(
                f"{str(path)!r} is no list of concepts (name, anchor, kind, synonyms, pool): {e}"
            ) from None
    if not found:
        raise UserError(f"the concepts file {str(path)!r} names no concept.")
    return found


def check_keep(concepts: Sequence[Concept], keep: Iterable[str]) -> None:
    """Refuse a keep list that holds what is to be erased.

    Raises:
        UserError: the same name on both sides.
    """
    erased = {normal(n): n for c in concepts for n in c.names}
    for word in keep:
        if normal(word) in erased:
            raise UserError(
                f"{word!r} is on the keep list and among the erased concepts "
                f"({erased[normal(word)]!r}): take it off one."
            )


def listed(concepts: str | Concept | Sequence[str | Concept]) -> list[Concept]:
    """Concepts from what a caller gives: one or several, each a Concept or a :func:`parse` line.

    Raises:
        UserError: none.
    """
    some = [concepts] if isinstance(concepts, (str, Concept)) else concepts
    found = [c if isinstance(c, Concept) else parse(c) for c in some]
    if not found:
        raise UserError("no concept to erase: name at least one.")
    return list(dict.fromkeys(found))
