"""Arguments in, tables out."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import groupby, pairwise
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import Annotated, Any, TypeVar

import tyro
from transformers.utils import logging as quiet

from efface.edits.edit import STRENGTHS
from efface.errors import UserError, escaped
from efface.names import quoted
from efface.settings import check_ranges, vanishes

T = TypeVar("T")

quiet.set_verbosity_error()  # a command's output is its own
quiet.disable_progress_bar()

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""Off, unless one flag switches it on."""
Unless = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
"""On, unless one flag (``--no-…``) switches it off; its help says what the flag does."""
Json = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
"""``--json``."""
Edited = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
"""The edit that a command is about: a run's folder or an edit file."""
Strength = Annotated[float, STRENGTHS, tyro.conf.arg(help_behavior_hint="")]
"""How much of an edit, 0 too."""
Written = Annotated[float, STRENGTHS._replace(open_low=True), tyro.conf.arg(help_behavior_hint="")]
"""How much of an edit is written to a file: 0 would be the base model."""
Place = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
"""A file or folder that may be left out."""
Text = Annotated[str, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
"""A text whose default the help says in words."""

RULE = re.compile(r"\s*[─╰-]{2}|Got errors")
"""What ends a part of tyro's boxes, on any terminal."""
HOME = re.compile(r"^(--[\w.-]+=)?~/")
"""A path in the user's home, which shells leave as it is behind ``--out=`` and in quotes."""
CONFIG = (tyro.conf.UseAppendAction, tyro.conf.CascadeSubcommandArgs)


def parsed(
    cls: type[T],
    args: Sequence[str],
    prog: str,
    default: T | None = None,
    config: Sequence[Any] = CONFIG,
) -> T:
    """Command-line arguments as a dataclass, its numbers checked.

    Args:
        config: tyro's; a list whose default is not empty is not to be added to.

    Raises:
        UserError: an unknown option (with the nearest one), or a value that it cannot take.
    """
    args = [HOME.sub(lambda m: (m[1] or "") + os.path.expanduser("~/"), a) for a in args]
    extra = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            found, unknown = tyro.cli(  # type: ignore[call-overload]
                cls, args=args, prog=prog, config=config, return_unknown_args=True, **extra
            )
    except SystemExit as e:
        if not e.code:  # --help
            raise
        known = known_options(cls, args, prog, **extra)
        odd = [a for a in args if is_option(a) and spelt(a) not in known]
        if odd and known:  # tyro takes it for a value, or says what else is wrong
            raise UserError(stray(odd, known, prog)) from None
        raise UserError(refusal(told.getvalue(), args, prog)) from None
    sys.stderr.write(told.getvalue())  # warnings of what was read
    if unknown:
        raise UserError(stray(unknown, known_options(cls, args, prog, **extra), prog))
    for flag, following in pairwise((*args, "")):
        name, own, given = flag.partition("=")
        given = given if own else following
        if is_option(flag) and vanishes(given):
            raise UserError(f"got {quoted(given)} for {name}; that is too small to be told from 0.")
    for part in (found, *(getattr(found, f.name) for f in fields(found))):
        if is_dataclass(part):
            check_ranges(part)
    return found  # type: ignore[no-any-return]


def known_options(cls: type[Any], args: Sequence[str], prog: str, **extra: Any) -> list[str]:
    """The options that there are beside some arguments; none where these cannot be helped."""
    kinds = [a for a in args if re.fullmatch(r"[a-z]+:[a-z0-9-]+", a)]
    said = helped(cls, kinds, prog, **extra) or helped(cls, [], prog, **extra)
    return flags(said)


def is_option(text: str) -> bool:
    """Whether an argument is an option by its looks, and no negative number."""
    return bool(re.match("--?[A-Za-z]", text)) and not re.match("-(inf|nan)", text)


def spelt(option: str) -> str:
    """An option's name as the help has it."""
    return option.partition("=")[0].replace("_", "-")


def helped(cls: type[Any], args: Sequence[str], prog: str, **extra: Any) -> str:
    """What ``--help`` says after some arguments, on a terminal where no option is broken."""
    told, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "120"  # of more, tyro makes columns
    try:
        with redirect_stdout(told), redirect_stderr(told), suppress(SystemExit):
            tyro.cli(cls, args=[*args, "--help"], prog=prog, config=CONFIG, **extra)
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if columns is None else {"COLUMNS": columns}
    return told.getvalue()


def flags(said: str) -> list[str]:
    """Every option that a help text names."""
    return list(dict.fromkeys(re.findall(r"(?<=[ │|(])--[a-z][\w-]*(?:\.[\w-]+)*", said)))


def stray(unknown: Sequence[str], known: Sequence[str], prog: str) -> str:
    """What to say of arguments that nothing reads."""
    first = next((a for a in unknown if a.startswith("-")), "").partition("=")[0]
    if not first:
        return f"nothing reads {unknown[0]!r}; {prog} --help lists what can be given."
    names = [k.lstrip("-") for k in known]  # dashes alike make no two options alike
    near = get_close_matches(first.lstrip("-").replace("_", "-"), names, n=1, cutoff=0.6)
    hint = f"did you mean '--{near[0]}'?" if near else f"{prog} --help lists those that there are."
    return f"unknown option {first!r}; {hint}"


def refusal(told: str, args: Sequence[str], prog: str) -> str:
    """What tyro says in a box, in one line: without the frame, and without its help."""
    lines = [re.sub(r"^[│| ] ?|\s*[│|]?\s*$", "", x) for x in told.splitlines()[1:]]
    blocks = [list(b) for rule, b in groupby(lines, lambda x: bool(RULE.match(x))) if not rule]
    head = blocks[0] if blocks else []
    if head and head[0].startswith("Missing from"):
        missing = ", ".join(x.strip() for x in head[1:] if re.match(r" {4}\S", x))
        return f"{missing} is missing; {prog} --help says what can be given."
    said = " ".join(" ".join(head).split()).rstrip(".")
    lone = re.match(r"Missing value for argument '\W*(--[\w.-]+)", said)
    if lone is not None:
        return f"{lone[1]} needs a value; {prog} --help says which."
    wrong = re.match(r"Error parsing (--[\w.-]+)", said)
    if wrong is None:
        return f"{said}; {prog} --help says more."
    flag = wrong[1]
    value = next((b for a, b in pairwise(args) if spelt(a) == flag), "")
    value = next((a.partition("=")[2] for a in args if "=" in a and spelt(a) == flag), value)
    for name, kind in (("int", "a whole number"), ("float", "a number")):
        if re.search(rf"class '{name}'|{name}\(\)|to {name}", told):
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
    """A table on stdout; on a terminal its last column is folded to fit."""
    cells = [list(head), *[[escaped(str(c)) for c in r] for r in rows]]
    wide = [max(len(r[i]) for r in cells) for i in range(len(head))]
    room = get_terminal_size().columns - sum(wide[:-1]) - 2 * len(wide[:-1])
    if sys.stdout.isatty() and 20 <= room < wide[-1]:
        wide[-1] = room
    for k, row in enumerate(cells):
        folded = wrap(row[-1], wide[-1]) or [""]
        for some in ([*row[:-1], folded[0]], *[["" for _ in row[:-1]] + [x] for x in folded[1:]]):
            print("  ".join(c.ljust(w) for c, w in zip(some, wide, strict=True)).rstrip())
        if k == 0:
            print("  ".join("-" * w for w in wide))


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]
