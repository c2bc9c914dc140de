"""Where a vocabulary comes from: a name, a list of the model's, a shipped one, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from efface.concepts import Concept
from efface.errors import UserError, pick
from efface.names import (
    COMMAS,
    at,
    bare,
    by_commas,
    clean,
    json_of,
    lines,
    meant,
    normal,
    quoted,
    text_of,
    words,
)
from efface.vocabulary import Vocabulary, stems_of
from efface.wordlists import SHIPPED, called, known, relatives, shipped, whole_words

if TYPE_CHECKING:
    from efface.models import DiffusionModel

INLINE = "words:"
"""What a vocabulary that is written out begins with."""
MOST = 1000
"""Candidates of a concept where ``auto`` is the shipped lists: so many are searched in reasonable
time."""
KINDS = ("auto", "names", "tags", "nouns", "styles", "people", "tokens")
"""Vocabularies by name."""


def from_file(path: Path) -> Vocabulary:
    """One word or phrase a line; empty lines and ``#`` comments are skipped, doubles dropped.

    Raises:
        UserError: unreadable, no text, empty, or a line that is no word, or several.
    """
    found = []
    for i, line in enumerate(map(str.strip, lines(text_of(path, "word list"))), 1):
        with at(f"{str(path)!r}, line {i}"):
            if not line or line.startswith("#"):
                continue
            found.append(bare(clean(line, "word")))
            if any(c in COMMAS for c in line):
                asked = meant(by_commas(line), "words")
                raise UserError(f"a comma in {quoted(line)}: {asked} Give a line each.")
    found = [w for w in found if w]  # of characters that cannot be seen alone
    if not found:
        raise UserError(f"the word list {str(path)!r} is empty.")
    return Vocabulary(tuple(dict.fromkeys(found)), str(path))


def from_tokenizer(tokenizer: object) -> Vocabulary:
    """Every whole-word token of letters, in order of its id (the commoner, the earlier).

    Raises:
        UserError: the tokenizer does not mark where words begin or end.
    """
    return Vocabulary(whole_words(tokenizer), "tokens")


def brings(model: DiffusionModel) -> bool:
    """Whether a model's folder says which concepts it draws, in ``concepts.json``."""
    return model.folder is not None and (model.folder / "concepts.json").exists()


def brought(folder: Path, name: str, field: str) -> Vocabulary:
    """The concept names or the search tags that a model's folder brings.

    Raises:
        UserError: ``concepts.json`` is broken, or holds no such words.
    """
    path = folder / "concepts.json"
    about = json_of(path, "list of concepts")
    rows = about.get("concepts") if isinstance(about, dict) else about
    found: list[str] = []
    with at(repr(str(path))):
        if not isinstance(about, dict) or not isinstance(rows, list):
            raise UserError(f"concepts: a list of names with tags is needed, got {quoted(rows)}.")
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise UserError(f"concepts[{i}]: a name with tags is needed, got {quoted(row)}.")
            if field == "names":
                found.append(clean(row.get("name"), f"concepts[{i}].name"))
                if not found[-1]:
                    raise UserError(f"concepts[{i}].name is empty.")
            else:
                found += words(row.get("tags"), f"concepts[{i}].tags")
    if not found:
        raise UserError(f"{str(path)!r} holds no {field}.")
    return Vocabulary(tuple(dict.fromkeys(found)), f"{name} {field}")


def styles_of(model: DiffusionModel) -> tuple[str, ...]:
    """How a model's folder says that its styles are asked for (``style_names``); mostly nothing.

    Raises:
        UserError: ``concepts.json`` is broken.
    """
    if model.folder is None or not brings(model):
        return ()
    path = model.folder / "concepts.json"
    about = json_of(path, "list of concepts")
    with at(repr(str(path))):
        return words(about.get("style_names", ()) if isinstance(about, dict) else (), "style_names")


def told(model: DiffusionModel, concepts: Sequence[Concept]) -> tuple[Concept, ...]:
    """Concepts of the kind that their names tell: those of styles, the model's or shipped ones."""
    own = called() | {normal(s) for s in styles_of(model)}
    return tuple(replace(c, kind="style") if normal(c.name) in own else c for c in concepts)


def tags_of(model: DiffusionModel, name: str) -> tuple[str, ...]:
    """What else a model's folder calls one of its concepts: its search tags; mostly nothing.

    Raises:
        UserError: ``concepts.json`` is broken.
    """
    if model.folder is None or not brings(model):
        return ()
    about = json_of(model.folder / "concepts.json", "list of concepts")
    rows = about.get("concepts", ()) if isinstance(about, dict) else ()
    found = [r.get("tags", ()) for r in rows if isinstance(r, dict) and r.get("name") == name]
    return words(found[0], "tags") if found else ()


def load(
    source: str,
    model: DiffusionModel,
    concepts: Sequence[Concept] = (),
    beside: Sequence[Concept] = (),
) -> Vocabulary:
    """A vocabulary by name or from a file.

    Args:
        source: ``auto`` (the names that the model's folder brings, else the shipped ``nouns``, with
            what the concepts' kind harms beside them), ``names``, ``tags``, ``nouns``, ``styles``
            (the folder's own, else the shipped ones), ``people``, ``tokens``, ``words: castle, fox,
            …``, or the path of a word list.
        concepts: what is erased, for the shipped lists.
        beside: what is erased with them.

    Raises:
        UserError: an unknown name, or an unreadable file.
    """
    if source.startswith(INLINE):
        with at("the words given"):
            given = [bare(clean(w, "word")) for w in by_commas(source.removeprefix(INLINE))]
        if not any(given):
            raise UserError(f"got {quoted(source)} for a vocabulary, which holds no word.")
        return Vocabulary(tuple(dict.fromkeys(w for w in given if w)), "words given")
    if source == "auto":
        return automatic(model, concepts, beside)
    if source == "styles" and (own := styles_of(model)):
        return Vocabulary(own, f"{model.name} styles")
    if source in ("names", "tags"):
        if model.folder is None or not brings(model):
            raise UserError(
                f"the model {model.name!r} brings no list of {source}; "
                "use 'nouns', 'tokens' or a word list file."
            )
        return brought(model.folder, model.name, source)
    if source in SHIPPED:
        return of_shipped(source, model, (*concepts, *beside))
    if source == "tokens":
        return from_tokenizer(model.tokenizer)
    if not Path(source).exists() and "/" not in source and "." not in source:
        pick(dict.fromkeys(KINDS), source, "vocabulary (or file)")
    return from_file(Path(source))


def hash_list(source: str) -> str:
    """Hash of a word list that is a file: 16 hex digits; "": the source is none.

    Raises:
        UserError: it cannot be read.
    """
    if source.startswith(INLINE) or source in ("", *KINDS) or not Path(source).is_file():
        return ""
    said = "\n".join(from_file(Path(source)).words)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def of_shipped(name: str, model: DiffusionModel, concepts: Sequence[Concept]) -> Vocabulary:
    """What a model knows of a shipped list.

    Raises:
        UserError: nothing.
    """
    erased = {s for c in concepts for n in c.names for s in stems_of(n)}
    found = known(shipped(name, erased), model.tokenizer)
    if not found:
        raise UserError(
            f"the tokenizer of {model.name!r} knows none of the shipped {name}: give a word list "
            "file in its language."
        )
    return Vocabulary(found, f"{len(found):,} shipped {name}")


def automatic(
    model: DiffusionModel, concepts: Sequence[Concept], beside: Sequence[Concept]
) -> Vocabulary:
    """The names that a model's folder brings, else the shipped things, each with their relatives.

    Relatives are what an erasure of the concepts' kind harms beside things; of a model that says
    what it draws, the styles that it names, too, and no other.

    Raises:
        UserError: the tokenizer knows none of them.
    """
    wanted = relatives(told(model, concepts))
    erased, says = (*concepts, *beside), brings(model)
    if says:
        wanted = ("styles",) if "styles" in wanted and styles_of(model) else ()
    kin = [load(name, model, erased) for name in wanted]
    parts = [*kin, load("names" if says else "nouns", model, erased)]
    return Vocabulary(
        tuple(dict.fromkeys(w for v in parts for w in v.words)),
        ", ".join(v.source for v in reversed(parts)),
        0 if says else MOST,
        frozenset(w for v in kin for w in v.words),
    )
