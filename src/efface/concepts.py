"""What a prompt can ask for, the ways of asking, and lists of what is to be erased."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from efface.errors import UserError, pick
from efface.names import (
    COMMAS,
    at,
    bare,
    by_commas,
    clean,
    json_of,
    key,
    lines,
    meant,
    quoted,
    same,
    text_of,
    words,
)
from efface.names import normal as normal
from efface.names import slug as slug
from efface.settings import Range

TEMPLATES = {
    "object": ("{}", "a picture of {}", "a drawing of {}", "{} emoji", "a photo of {}"),
    "style": ("{}", "a picture, {}", "a drawing, {}", "{} emoji", "art, {}"),
}
"""Prompt templates of each kind of concept; the bare name first."""

PLACES = (
    "on a white background",
    "seen from the side",
    "in bright colours",
    "at night",
    "in the snow",
    "on a table",
    "close up",
    "far away",
    "in black and white",
)
"""Where or how a template's picture shows what it shows."""

SUBJECTS = (
    *("cat", "dog", "house", "woman", "man", "forest", "flower", "car", "boat"),
    *("bird", "horse", "mountain", "chair", "bridge", "cup", "dress", "apple", "street"),
    *("piano", "river", "child", "cow", "bread", "book", "table", "garden", "rabbit"),
    *("ship", "train", "clock", "beach", "bear", "city", "hat", "king", "window"),
    *("elephant", "cloud", "guitar", "sheep", "castle", "lamp", "shoe", "butterfly", "ladder"),
)
"""Things that are drawn in a style, where several prompts ask for it: a style alone is no picture,
and no thing of the benchmark of styles is among them."""

MOST = 50
"""Prompts of a name that there are."""

Diversify = Annotated[int, Range(0, MOST)]
"""How many prompts stand for a name; 0: the bare name, or what the method has of its own."""


def templates(kind: str, n: int) -> tuple[str, ...]:
    """``n`` different prompt templates of a kind, the bare name first.

    For a thing :data:`TEMPLATES`, then each in a place; for a style :data:`SUBJECTS` in it.

    Args:
        n: up to :data:`MOST`; 0: :data:`TEMPLATES`.
    """
    plain = TEMPLATES[kind]
    if not n:
        return plain
    if kind == "style":
        return (plain[0], *(f"{thing}, {{}}" for thing in SUBJECTS), *plain[1:])[:n]
    return (*plain, *(f"{t}, {place}" for place, t in product(PLACES, plain)))[:n]


class Pair(NamedTuple):
    """A prompt that asks for an erased concept, and what stands in its place."""

    name: str
    """Which name of the concept it holds."""
    prompt: str
    instead: str
    """The same prompt with the anchor; the null prompt where that is the anchor."""
    subject: str
    """The prompt as far as the name goes: its last word is the name's."""
    instead_subject: str
    """The replacement as far as the anchor goes."""


@dataclass(frozen=True)
class Concept:
    """Something that a model can draw.

    Names are kept as they are written, in NFC, without what cannot be seen.

    Raises:
        UserError: an empty or unreadable name, unknown kind, or one that is its own anchor.
    """

    name: str
    """How a prompt asks for it."""
    anchor: str = ""
    """What it is steered to when erased; ``""`` is the null prompt, another concept's name replaces
    it."""
    kind: str = "object"
    """``object`` or ``style``: which templates its prompts use."""
    synonyms: tuple[str, ...] = ()
    """Other words for it: erased with it, and never preserved. A string is one word."""
    pool: tuple[str, ...] = ()
    """Its own vocabulary to be preserved; empty: the common one. A string is one word."""

    def __post_init__(self) -> None:
        for field in ("name", "anchor"):
            object.__setattr__(self, field, bare(clean(getattr(self, field), field)))
        for field in ("synonyms", "pool"):
            object.__setattr__(self, field, words(getattr(self, field), field))
        object.__setattr__(self, "synonyms", tuple(s for s in self.synonyms if s != self.name))
        clean(self.kind, "kind")
        pick(TEMPLATES, self.kind, "kind of concept")
        for name in self.names:
            if not normal(name):
                what = "an empty concept" if name == self.name else "an empty synonym"
                raise UserError(f"got {what}: name what is to be erased, as a prompt would.")
        for text in (*self.names, self.anchor):
            if "->" in text or "|" in text:
                raise UserError(
                    f"got {quoted(text)} as a name: Concept takes the name, its anchor and its "
                    "synonyms apart; only a line 'name -> anchor | synonym' has them together."
                )
        if self.anchor and any(same(n, self.anchor) for n in self.names):
            raise UserError(
                f"concept {self.name!r} is its own anchor: nothing would change; "
                "give another anchor, or none."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    @property
    def shown(self) -> Pair:
        """What a picture of it is drawn by, and one of its anchor: of a style, a thing in it."""
        return self.pairs(2)[1] if self.kind == "style" else self.pairs()[0]

    def prompts(self, n: int) -> list[str]:
        """``n`` prompts that ask for it: the templates of its kind, in order, over again."""
        templates = TEMPLATES[self.kind]
        return [templates[i % len(templates)].format(self.name) for i in range(n)]

    def pairs(self, n: int = 0) -> list[Pair]:
        """Prompts of every name beside their replacements, ``n`` for each; 0: the bare names.

        Without an anchor the null prompt replaces a thing's, and the rest of it a style's.
        """
        some = templates(self.kind, n) if n else ("{}",)
        found = []
        for name in self.names:
            for t in some:
                until = t[: t.index("{}") + 2]
                mine, theirs = (
                    [x.format(n) if n else "" for x in (t, until)] for n in (name, self.anchor)
                )
                if not self.anchor and self.kind == "style":
                    theirs[0] = t.format("").strip(" ,")
                found.append(Pair(name, mine[0], theirs[0], mine[1], theirs[1]))
        return found

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


def check(
    concepts: Sequence[Concept], keep: Sequence[str] | str = (), tokenizer: object = None
) -> tuple[tuple[Concept, ...], tuple[str, ...]]:
    """The concepts and the keep list, each once, if nothing contradicts.

    Names are compared by their :func:`key`.

    Args:
        tokenizer: the model's; without it by spelling alone.

    Raises:
        UserError: a concept given twice and differently, a name of two concepts, an erased anchor,
            or on the keep list an erased name or what is no name.
    """
    found = merged(concepts, tokenizer)
    owner: dict[Hashable, tuple[Concept, str]] = {}
    for c in found:
        for n in c.names:
            other, word = owner.setdefault(key(n, tokenizer), (c, n))
            if other is not c:
                raise UserError(
                    f"{said(n, word)} is a name of both {c.name!r} and {other.name!r}: "
                    "give it to one of them."
                )
    for c in found:
        k = key(c.anchor, tokenizer)
        if c.anchor and k in owner:
            other, word = owner[k]
            whose = "its own concept" if other is c else "erased itself"
            raise UserError(
                f"the anchor {said(c.anchor, word)} of {c.name!r} is {whose}: "
                "give another anchor, or none."
            )
    kept: dict[Hashable, str] = {}
    for w in words(keep, "keep"):
        if "->" in w or "|" in w:
            raise UserError(
                f"got {quoted(w)} on the keep list: words are kept as they are, each by itself; "
                "'->' and '|' are of concepts that are erased."
            )
        k = key(w, tokenizer)
        if k in owner:
            raise UserError(
                f"{w!r} is on the keep list and among the erased concepts ({owner[k][1]!r}): "
                "take it off one."
            )
        kept.setdefault(k, w)
    return tuple(found), tuple(kept.values())


def few(names: Sequence[str], most: int = 20) -> str:
    """Names in a line; of very many the first ones, and how many more there are."""
    more = [f"… ({len(names):,} in all)"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def said(a: str, b: str) -> str:
    """A name, and how the same one is written elsewhere."""
    return repr(a) if a == b else f"{a!r} (the same as {b!r})"


def merged(concepts: Sequence[Concept], tokenizer: object = None) -> list[Concept]:
    """Concepts each once, as first given; another spelling of one is a synonym of it.

    Raises:
        UserError: one is given twice, with another anchor, kind, synonyms or pool.
    """

    def rest(c: Concept) -> dict[str, object]:
        sets = {"synonyms": c.names, "pool": c.pool}
        plain = {f: frozenset(key(w, tokenizer) for w in some) for f, some in sets.items()}
        return {"anchor": key(c.anchor, tokenizer), "kind": c.kind, **plain}

    found: dict[Hashable, Concept] = {}
    for c in concepts:
        first = found.setdefault(key(c.name, tokenizer), c)
        if first is c:
            continue
        differ = [f for f, value in rest(c).items() if value != rest(first)[f]]
        if differ:
            one, other = (quoted(getattr(x, differ[0])) for x in (first, c))
            raise UserError(
                f"{said(c.name, first.name)} is to be erased twice, with another {differ[0]}: "
                f"{one} and {other}; give it once."
            )
        if c.name.lower() not in {n.lower() for n in first.names}:  # "t shirt" beside "t-shirt"
            more = replace(first, synonyms=(*first.synonyms, c.name))
            found[key(c.name, tokenizer)] = more
    return list(found.values())


def parse(text: str) -> Concept:
    """``name``, ``name -> anchor``, either with ``| synonym, synonym`` behind it.

    Raises:
        UserError: as :class:`Concept`; a comma before the synonyms, a second ``->`` or ``|``.
    """
    head, _, synonyms = text.partition("|")
    name, _, anchor = head.partition("->")
    if "|" in synonyms or "->" in anchor or "->" in synonyms:
        raise UserError(
            f"cannot read {quoted(text)}: one 'name', 'name -> anchor' or "
            "'name -> anchor | synonym, synonym' is needed."
        )
    if any(c in COMMAS for c in head):
        some = by_commas(head)
        raise UserError(
            f"a comma in {quoted(head.strip())}: {meant(some, 'concepts')} Give "
            f"{' '.join(f'--concept {quoted(p)}' for p in some[:3])}, or a line each; a name with "
            f"a comma in it needs Concept({quoted(head.strip())}) in Python or a JSON file."
        )
    return Concept(name.strip(), anchor.strip(), synonyms=tuple(by_commas(synonyms)))


def listed(concepts: str | Concept | Sequence[str | Concept]) -> list[Concept]:
    """Concepts from what a caller gives: one or several, each a Concept or a :func:`parse` line.

    Raises:
        UserError: none, or something else.
    """
    some = [concepts] if isinstance(concepts, (str, Concept)) else concepts
    if not isinstance(some, Sequence) or isinstance(some, (bytes, bytearray)):
        raise UserError(f"concepts: names or Concepts are needed, got {quoted(some)}.")
    found = [c if isinstance(c, Concept) else parse(clean(c, "concept")) for c in some]
    if not found:
        raise UserError("no concept to erase: name at least one.")
    return list(dict.fromkeys(found))


def read(path: Path) -> list[Concept]:
    """The concepts of a file, each once: JSON (a list of their fields), or :func:`parse` lines.

    Raises:
        UserError: unreadable, broken JSON, unknown fields, other types, contradictions, or no
            concept in it.
    """
    found = []
    if path.suffix.lower() == ".json":
        entries = json_of(path, "concepts file")
        if not isinstance(entries, list):
            raise UserError(f"{str(path)!r} is no list of concepts: got {quoted(entries)}.")
        for i, entry in enumerate(entries, 1):
            with at(f"{str(path)!r}, entry {i}"):
                found.append(from_entry(entry))
    else:
        for i, line in enumerate(map(str.strip, lines(text_of(path, "concepts file"))), 1):
            with at(f"{str(path)!r}, line {i}"):
                if line.startswith(("[", "{")):
                    raise UserError("this looks like JSON; let the file's name end in .json.")
                if line and not line.startswith("#"):
                    found.append(parse(line))
    if not found:
        raise UserError(f"the concepts file {str(path)!r} names no concept.")
    with at(repr(str(path))):
        return merged(found)


def from_entry(entry: object) -> Concept:
    """A concept from an entry of a JSON file: a :func:`parse` line, or its fields.

    Raises:
        UserError: no name, an unknown field, or a value of another type.
    """
    if isinstance(entry, str):
        return parse(entry)
    known = {f.name: f for f in fields(Concept)}
    if not isinstance(entry, dict):
        raise UserError(
            f"got {quoted(entry)} ({type(entry).__name__}); a name or the fields "
            f"{', '.join(known)} are needed."
        )
    for name in entry:
        pick(known, name, "field of a concept:")
    if "name" not in entry:
        raise UserError(f"no name in {quoted(entry)}.")
    return Concept(**entry)
