"""Names: how they are kept, when two are the same, and the files that list them."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import Repr

from efface.errors import UserError

LONGEST = 1000
"""Letters of a name or a word; what is longer is no name."""
LARGEST = 1 << 26
"""Bytes of a list of names; what is larger is none."""
COMMAS = ",，、،"
CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of what no name holds: control characters, half characters, line breaks."""
JOINERS = "\u200c\u200d"
"""They cannot be seen, but emoji and Persian and Indic words are written with them."""
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""They cannot be seen either, but count as letters."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks, and how what follows is written; the longer ones first."""

_brief = Repr()
_brief.maxstring = _brief.maxother = 60
quoted = _brief.repr
"""A value in a message: quoted, escaped, shortened."""


def clean(text: object, what: str) -> str:
    """A name as it is kept: NFC, without blanks around it and what cannot be seen.

    Warns where it drops what cannot be seen.

    Args:
        what: which field it is, for the message.

    Raises:
        UserError: no text, too long, or with control characters in it.
    """
    if not isinstance(text, str):
        raise UserError(f"{what}: text is needed, got {quoted(text)} ({type(text).__name__}).")
    shown = visible(text).strip()
    if shown != text.strip():
        warnings.warn(
            f"dropped characters that cannot be seen from the {what} {quoted(text)}.", stacklevel=3
        )
    for c in shown:
        if unicodedata.category(c) in CONTROL:
            raise UserError(f"{what}: the control character {c!a} in {quoted(shown)}.")
    if len(shown) > LONGEST:
        raise UserError(
            f"{what}: {len(shown):,} letters, beginning with {quoted(shown)}; "
            f"{LONGEST} are allowed."
        )
    return unicodedata.normalize("NFC", shown)


def words(some: object, what: str) -> tuple[str, ...]:
    """A list of words, each once; a string is one word, never its letters.

    Args:
        what: which field it is, for the message.

    Raises:
        UserError: no list of words, or a string that holds several.
    """
    if isinstance(some, str):
        if any(c in COMMAS for c in some):
            raise UserError(f"{what}: a string is one word; give a list for {quoted(some)}.")
        some = (some,)
    if not isinstance(some, (list, tuple)):
        raise UserError(
            f"{what}: a list of words is needed, got {quoted(some)} ({type(some).__name__})."
        )
    return tuple(dict.fromkeys(bare(clean(w, what)) for w in some))


QUOTES = ('""', "''", "“”", "‘’", "«»", "„“", "``")
"""Pairs of quotation marks."""


def bare(name: str) -> str:
    """A name without quotation marks around it, which lists copied from elsewhere have.

    A text encoder reads them as words, so that the name in them would hardly be erased.
    """
    inner = name[1:-1].strip()
    paired = len(name) > 2 and name[0] + name[-1] in QUOTES
    return inner if paired and not {name[0], name[-1]} & set(inner) else name


def one(text: object, what: str) -> str:
    """A name where there is room for one only: :func:`clean`, without a comma.

    Args:
        what: which field it is, for the message.

    Raises:
        UserError: as :func:`clean`, or a comma.
    """
    name = bare(clean(text, what))
    if any(c in COMMAS for c in name):
        raise UserError(
            f"{what}: a comma in {quoted(name)}: one name is needed; one with a comma in it can be "
            "given to Concept in Python alone, or in a JSON file of concepts."
        )
    return name


def by_commas(text: str) -> list[str]:
    """What stands between the commas of a text; of a text without one, the text."""
    return [p for p in map(str.strip, re.split(f"[{COMMAS}]", text)) if p]


def meant(some: Sequence[str], what: str) -> str:
    """What to ask of a text with commas where one name is needed.

    Args:
        some: :func:`by_commas` of it.
        what: what they are, in the plural.
    """
    if not some:
        return "there is nothing beside it."
    return f"did you mean {quoted(some[0]) if len(some) == 1 else f'{len(some)} {what}'}?"


def visible(text: str) -> str:
    """A text without what cannot be seen; joiners stay inside words that may need them."""
    if text.isascii():
        return text
    shown = "".join(c for c in text if c in JOINERS or not hidden(c))
    return re.sub(f"(?<![^\x00-\x7f])[{JOINERS}]+|[{JOINERS}]+(?![^\x00-\x7f])", "", shown)


def hidden(c: str) -> bool:
    """Whether a character cannot be seen."""
    return c in FILLERS or unicodedata.category(c) == "Cf"


def normal(name: str) -> str:
    """A name without what a text encoder or a reader would not tell apart.

    That is case, hyphens, underscores, doubled spaces, curly apostrophes, and what cannot be seen.
    """
    if not name.isascii():
        name = "".join(
            " " if unicodedata.category(c) == "Pd" else c
            for c in unicodedata.normalize("NFC", name).replace("’", "'")
            if not hidden(c) and c not in "\ufe0e\ufe0f"
        )
        name = unicodedata.normalize("NFC", name.casefold())
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())


def same(a: str, b: str) -> bool:
    """Whether two names ask for the same thing: equal in their :func:`normal` form."""
    return normal(a) == normal(b)


def apart(names: Iterable[str], gone: Iterable[str]) -> tuple[str, ...]:
    """The names that are the :func:`same` as none of ``gone``, in their order."""
    away = {normal(n) for n in gone}
    return tuple(n for n in names if normal(n) not in away)


def among(names: Iterable[str], wanted: Iterable[str]) -> tuple[str, ...]:
    """The names that are the :func:`same` as one of ``wanted``, in their order."""
    known = {normal(n) for n in wanted}
    return tuple(n for n in names if normal(n) in known)


def twice(names: Iterable[str]) -> str:
    """The first name that is the :func:`same` as one before it; "": none."""
    seen: set[str] = set()
    for n in names:
        if normal(n) in seen:
            return n
        seen.add(normal(n))
    return ""


def ids_of(tokenizer: object, text: str) -> tuple[int, ...]:
    """The token ids of a text, without start and end."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)  # type: ignore[operator]


def key(name: str, tokenizer: object = None) -> Hashable:
    """What two names have in common that ask for the same thing.

    The :func:`normal` form; with a tokenizer its token ids, which other spellings may share.
    """
    plain = normal(name)
    return plain if tokenizer is None else ids_of(tokenizer, plain) or plain


def keys(names: Sequence[str], tokenizer: object) -> list[Hashable]:
    """The :func:`key` of each of many names, by one call of the tokenizer."""
    if not names:
        return []
    plain = [normal(n) for n in names]
    ids = tokenizer(plain, add_special_tokens=False).input_ids  # type: ignore[operator]
    return [tuple(found) or name for found, name in zip(ids, plain, strict=True)]


def slug(names: Sequence[str]) -> str:
    """A file name for some names, at most 60 bytes, never empty.

    ASCII letters, digits, ``-`` and ``_`` stay, a blank becomes ``_``. Where anything else was left
    out or the end is cut, a hash of the names tells them apart.
    """
    names = [unicodedata.normalize("NFC", n) for n in names]
    whole = "-".join(n.replace(" ", "_") for n in names)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "", whole).strip("-_")
    if plain and plain == whole and len(plain) <= 60:
        return plain
    tail = hashlib.sha256("\n".join(names).encode("utf8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[:51].rstrip('-_')}-{tail}".lstrip("-")


def text_of(path: Path, what: str) -> str:
    """What a text file says: UTF-8, or UTF-16 and UTF-32 with a byte-order mark.

    Warns where it drops characters that cannot be seen.

    Args:
        what: what kind of file it is, for the message.

    Raises:
        UserError: unreadable, too large, or no text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as e:  # ValueError: a path that cannot be one
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"cannot read the {what} {quoted(str(path))}: {reason}.") from None
    if len(data) > LARGEST:
        raise UserError(f"the {what} {str(path)!r} is larger than {LARGEST >> 20} MB.")
    encoding = next((e for mark, e in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as e:
        line = len(lines(data[: e.start].decode(encoding, "ignore")))
        raise UserError(
            f"{str(path)!r}, line {line}: no {encoding.upper()} text; save the {what} as UTF-8."
        ) from None
    shown = visible(text)
    if shown != text:
        pairs = enumerate(zip(lines(text), lines(shown), strict=True), 1)
        first = next(i for i, (a, b) in pairs if a != b)
        warnings.warn(
            f"{str(path)!r}, line {first}: dropped characters that cannot be seen.", stacklevel=3
        )
    return shown


def json_of(path: Path, what: str) -> object:
    """What a JSON file holds.

    Args:
        what: what kind of file it is, for the message.

    Raises:
        UserError: as :func:`text_of`; broken JSON, or a field that is given twice.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i]))
            raise UserError(f"{str(path)!r}: the field {quoted(twice)} twice in {quoted(found)}.")
        return found

    try:
        found: object = json.loads(text_of(path, what), object_pairs_hook=once)
    except json.JSONDecodeError as e:
        raise UserError(f"{str(path)!r}, line {e.lineno}: broken JSON: {e.msg}.") from None
    except (ValueError, RecursionError) as e:  # a number of 5,000 digits; a thousand brackets
        raise UserError(f"{str(path)!r} is no {what}: {e}.") from None
    return found


def lines(text: str) -> list[str]:
    """The lines of a text, whichever system wrote it; other breaks are no line's end."""
    return re.split("\r\n|\r|\n", text)


@contextmanager
def at(where: str) -> Iterator[None]:
    """Say where a mistake is: the file and the line."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
