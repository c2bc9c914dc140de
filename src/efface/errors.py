"""Mistakes of the user, said in one line."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake that the command line reports in one line, with exit code 2."""


SHORT = ("out of memory", "can't allocate memory", "not enough memory")
"""What PyTorch says, of an accelerator and of a CPU, where the memory ran out."""
LESS = "smaller batches, fewer pictures at once and --dtype bf16 need less"
"""What helps then."""


def out_of_memory(e: BaseException) -> bool:
    """Whether an error says that the memory ran out: Python's, or PyTorch's on any device."""
    return isinstance(e, MemoryError) or (
        isinstance(e, RuntimeError) and any(said in str(e) for said in SHORT)
    )


def pick(table: Mapping[str, T], name: str, what: str) -> T:
    """Return ``table[name]``, or say which names there are.

    Args:
        what: what kind of thing is looked up, in the singular ("method").

    Raises:
        UserError: no such name; names the nearest one and all that there are (the first 20).
    """
    if isinstance(name, str) and name in table:
        return table[name]
    near = get_close_matches(str(name), table, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    known = sorted(table)
    more = f", … ({len(known)} in all)" if len(known) > 20 else ""
    raise UserError(f"unknown {what} {name!r}{hint} Known: {', '.join(known[:20])}{more}.")


def escaped(text: str) -> str:
    """A text for one line of a terminal or a picture, in which nothing hides.

    Control characters, marks that turn the reading direction, and characters without a meaning are
    written as escapes; the joiner inside emoji stays.
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp") and c != "\u200d"
        else c
        for c in text
    )
