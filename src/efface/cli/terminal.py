"""Arguments in, tables out."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from transformers.utils import logging as quiet

from efface.errors import UserError, visible
from efface.settings import check_ranges

T = TypeVar("T")

quiet.set_verbosity_error()  # a command's output is its own
quiet.disable_progress_bar()

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""On or off, by one flag."""
Json = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
"""``--json``."""
Edited = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
"""The edit that a command is about: a run's folder or an edit file."""
Place = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
"""A file or folder that may be left out."""
Text = Annotated[str, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
"""A text whose default the help says in words."""

CONFIG = (tyro.conf.UseAppendAction, tyro.conf.CascadeSubcommandArgs)


def parsed(cls: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """Command-line arguments as a dataclass, its numbers checked.

    Raises:
        UserError: an unknown option (with the nearest one), or a value that it cannot take.
    """
    extra = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            found, unknown = tyro.cli(  # type: ignore[call-overload]
                cls, args=args, prog=prog, config=CONFIG, return_unknown_args=True, **extra
            )
    except SystemExit as e:
        if not e.code:  # --help
            raise
        raise UserError(refusal(told.getvalue(), args, prog)) from None
    if unknown:
        raise UserError(stray(unknown, flags(cls, args, prog, **extra), prog))
    check_ranges(found)
    return found  # type: ignore[no-any-return]


def helped(cls: type[Any], args: Sequence[str], prog: str, **extra: Any) -> str:
    """What ``--help`` says after some arguments."""
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told), suppress(SystemExit):
        tyro.cli(cls, args=[*args, "--help"], prog=prog, config=CONFIG, **extra)
    return told.getvalue()


def flags(cls: type[Any], args: Sequence[str], prog: str, **extra: Any) -> list[str]:
    """Every option of a command, with those of the kinds that were chosen."""
    kinds = [a for a in args if re.fullmatch(r"[a-z]+:[a-z0-9-]+", a)]
    told = helped(cls, kinds, prog, **extra) or helped(cls, [], prog, **extra)
    return list(dict.fromkeys(re.findall(r"(?<=[ │(])--[a-z][\w-]*(?:\.[\w-]+)*", told)))


def stray(unknown: Sequence[str], known: Sequence[str], prog: str) -> str:
    """What to say of arguments that nothing reads."""
    first = next((a for a in unknown if a.startswith("-")), "").partition("=")[0]
    if not first:
        return f"nothing reads {unknown[0]!r}; {prog} --help lists what can be given."
    near = get_close_matches(first.replace("_", "-"), known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"{prog} --help lists those that there are."
    return f"unknown option {first!r}; {hint}"


def refusal(told: str, args: Sequence[str], prog: str) -> str:
    """What tyro says in a box, in one line: without the frame, and without its help."""
    lines = [re.sub(r"^\W*[│|] ?|\s*[│|]\s*$", "", x) for x in told.splitlines()[1:]]
    head: list[str] = []
    for line in lines:
        if head and re.match(r"\s*([─-]{3}|Got errors)", line):
            break
        head += line.split()
    said = " ".join(head).rstrip(".")
    wrong = re.match(r"Error parsing (--[\w.-]+)", said)
    if wrong is None:
        return f"{said}; {prog} --help says more."
    flag = wrong[1].split("/")[0]
    value = next((b for a, b in pairwise(args) if a == flag), "")
    value = next((a.partition("=")[2] for a in args if a.startswith(f"{flag}=")), value)
    for name, kind in (("int", "a whole number"), ("float", "a number")):
        if re.search(rf"class '{name}'|{name}\(\)|to {name}", " ".join(lines)):
            return f"got {value!r} for {flag}; {kind} is needed."
    return f"got {value!r} for {flag}: {said.partition(': ')[2]}; {prog} --help says more."


def makeable(path: Path) -> None:
    """Refuse, before any work, a folder that could not be made or written.

    Raises:
        UserError: there is a file in its place or above it, or it cannot be written to.
    """
    above = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    why = "" if above.is_dir() else "Not a directory"
    why = why or ("" if os.access(above, os.W_OK) else "Permission denied")
    if why:
        raise UserError(f"cannot make {str(path)!r}: {why}; name another folder.")


def new(path: Path, what: str = "file") -> None:
    """Refuse, before any work, a file or folder that is there already.

    Raises:
        UserError: it is, or the folder above it could not be made.
    """
    if path.exists():
        raise UserError(f"{str(path)!r} exists already; name a {what} that does not.")
    makeable(path.absolute().parent)


def output(where: Path | None, out: Path | None) -> Path:
    """What is to be written: the argument, or ``--out``.

    Raises:
        UserError: neither, or both.
    """
    given = [p for p in (where, out) if p is not None]
    if len(given) != 1:
        raise UserError(f"got {len(given)} places for the output; name one: OUT, or --out OUT.")
    return given[0]


def show(rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
    """A table on stdout."""
    cells = [list(head), *[[visible(str(c)) for c in r] for r in rows]]
    wide = [max(len(r[i]) for r in cells) for i in range(len(head))]
    for k, row in enumerate(cells):
        print("  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)).rstrip())
        if k == 0:
            print("  ".join("-" * w for w in wide))


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]
