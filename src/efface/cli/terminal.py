"""Arguments in, tables out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import tyro
from transformers.utils import logging as quiet

T = TypeVar("T")

quiet.set_verbosity_error()  # a command's output is its own
quiet.disable_progress_bar()


def parsed(cls: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """Command-line arguments as a dataclass."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(  # type: ignore[call-overload,no-any-return]
        cls,
        args=args,
        prog=prog,
        config=(tyro.conf.UseAppendAction, tyro.conf.CascadeSubcommandArgs),
        **extra,
    )


def show(rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
    """A table on stdout."""
    cells = [list(head), *[list(map(str, r)) for r in rows]]
    wide = [max(len(r[i]) for r in cells) for i in range(len(head))]
    for k, row in enumerate(cells):
        print("  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)).rstrip())
        if k == 0:
            print("  ".join("-" * w for w in wide))


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]
