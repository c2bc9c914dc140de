"""The shipped word lists: things, styles and people that a picture can show, and who knows them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from efface.concepts import Concept
from efface.errors import UserError
from efface.names import normal
from efface.storage import ASSETS, read_text

SHIPPED = {"nouns": ("nouns",), "styles": ("styles", "artists"), "people": ("people",)}
"""What each list is put together from."""
NUDITY = frozenset(
    (
        *("nudity", "nude", "nudes", "naked", "nakedness", "topless", "undressed", "unclothed"),
        *("nsfw", "sex", "sexual", "sexuality", "sexy", "erotic", "erotica", "porn", "porno"),
        *("pornography", "pornographic", "genitals", "breasts", "nipples"),
    )
)
"""Words that make a concept one of nudity."""
WHOLE = ("([a-z]{2,})</w>", "▁([a-z]{2,})", "Ġ([a-z]{2,})")
"""Tokens that are a word: CLIP's, SentencePiece's (T5, Gemma), those of byte-level BPE (Qwen)."""


@cache
def held() -> Mapping[str, Any]:
    """What ``words.json`` holds: the lists, and which things are kinds of which."""
    found: Mapping[str, Any] = json.loads(read_text(ASSETS / "words.json", "word lists"))
    return found


def shipped(name: str, erased: Collection[str] = ()) -> tuple[str, ...]:
    """One of the lists of :data:`SHIPPED`; the more familiar and concrete, the earlier.

    Args:
        erased: names in their normal form. What asks for one of them as well is left out: its kinds
            ("beagle" of "dog"), what is composed with it ("church tower"), and artists whose
            surname is part of it ("Claude Monet" where "style of monet" is erased).
    """
    words = dict.fromkeys(w for part in SHIPPED[name] for w in held()[part])
    if not erased:
        return tuple(words)
    said = {w for n in erased for w in n.split()}
    own = {w for w in held()["artists"] if normal(w).split()[-1] in said}
    own |= kinds(erased)
    return tuple(w for w in words if w not in own and not composed(w, erased))


def kinds(erased: Collection[str]) -> set[str]:
    """The shipped nouns that are kinds of, or other words for, something; not itself."""
    narrower = {normal(w): some for w, some in held()["kinds"].items()}
    found, left = set[str](), list(erased)
    while left:
        for word in narrower.get(left.pop(), ()):
            if word not in found:
                found.add(word)
                left.append(normal(word))
    return {w for w in found if normal(w) not in erased}


def broader(erased: Collection[str]) -> set[str]:
    """The shipped nouns that some names are kinds of, or other words for; not themselves.

    Args:
        erased: names in their normal form.
    """
    wider: dict[str, set[str]] = {}
    for word, some in held()["kinds"].items():
        for narrow in some:
            wider.setdefault(normal(narrow), set()).add(word)
    found, left = set[str](), list(erased)
    while left:
        for word in wider.get(left.pop(), set()) - found:
            found.add(word)
            left.append(normal(word))
    return {w for w in found if normal(w) not in erased}


def composed(word: str, names: Collection[str]) -> bool:
    """Whether a word is composed of one of some names and more."""
    plain = normal(word)
    return plain not in names and any(f" {n} " in f" {plain} " for n in names)


def known(words: Sequence[str], tokenizer: object) -> tuple[str, ...]:
    """Those of some words that a tokenizer knows: in few pieces, each of them known.

    Few are three for a name of one word, and one more for every further word. What is written in
    more is spelt out rather than known, and its text states say little.
    """
    found = tokenizer(list(words), add_special_tokens=False).input_ids  # type: ignore[operator]
    unknown = getattr(tokenizer, "unk_token_id", None)
    pairs = zip(words, found, strict=True)
    return tuple(w for w, ids in pairs if few(w, ids) and unknown not in ids)


def few(word: str, ids: Sequence[int]) -> bool:
    """Whether a name is few tokens."""
    return 0 < len(ids) <= 2 + len(word.split())


def whole_words(tokenizer: object) -> tuple[str, ...]:
    """Every token of letters that is a whole word, in order of its id.

    Told by the marks of the tokenizer's kind: behind a word's end (CLIP), before its beginning
    (:data:`WHOLE`), or ``##`` before what goes on (WordPiece: BERT).

    Raises:
        UserError: it has no such marks.
    """
    vocab: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    tokens = sorted(vocab, key=vocab.__getitem__)
    for mark in WHOLE:
        found = [m[1] for t in tokens if (m := re.fullmatch(mark, t))]
        if found:
            return tuple(dict.fromkeys(found))
    if any(t.startswith("##") for t in tokens):
        return tuple(t for t in tokens if re.fullmatch("[a-z]{2,}", t))
    raise UserError(
        "this model's tokenizer does not mark where words begin or end: give 'nouns' or a word "
        "list file instead of 'tokens'."
    )


def relatives(concepts: Sequence[Concept]) -> tuple[str, ...]:
    """The lists with what an erasure of such concepts harms beside things.

    Styles for a style, people for nudity. A style is what says so (its kind), or what is called as
    one of the shipped styles and artists; an artist's surname is enough where it is no thing's name
    ("Monet", not "church").
    """
    wanted = {"styles": any(map(is_style, concepts)), "people": any(map(is_nudity, concepts))}
    return tuple(name for name, yes in wanted.items() if yes)


def is_style(concept: Concept) -> bool:
    """Whether a concept is a style or an artist."""
    return concept.kind == "style" or any(normal(n) in called() for n in concept.names)


def styles_among(words: Collection[str], own: Collection[str] = ()) -> tuple[str, ...]:
    """Those of some words that are styles and no artist's name.

    Args:
        own: styles besides the shipped ones.
    """
    known = {normal(w) for w in (*held()["styles"], *own)}
    return tuple(w for w in words if normal(w) in known)


def is_nudity(concept: Concept) -> bool:
    """Whether a concept is one of nudity, by a word of one of its names."""
    return any(NUDITY & set(normal(n).split()) for n in concept.names)


@cache
def called() -> frozenset[str]:
    """How the shipped styles and artists are called, in their normal form."""
    things = {normal(w) for w in held()["nouns"]}
    artists = [normal(w).split() for w in held()["artists"]]
    names = {normal(w) for w in shipped("styles")}
    short = {" ".join(parts[i:]) for parts in artists for i in range(1, len(parts))}
    return frozenset((names | short) - things)
