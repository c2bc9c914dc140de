"""Settings: frozen dataclasses as JSON and back, and the ranges of their numbers."""

from __future__ import annotations

import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from efface.errors import UserError, pick
from efface.storage import read_text

T = TypeVar("T")

PLAIN: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    type(None): "null",
}
"""What a message calls the types of JSON."""


def to_json(config: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON types; of one kind among several also its ``kind``."""
    found = {f.name: _plain(getattr(config, f.name)) for f in fields(config)}
    kind = getattr(type(config), "kind", None)
    return found if kind is None else {"kind": kind, **found}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    return list(value) if isinstance(value, tuple) else value


def from_json(cls: type[T], found: Mapping[str, Any]) -> T:
    """A dataclass from what :func:`to_json` gave.

    Raises:
        UserError: as :func:`checked`.
    """
    return checked(cls, found, f"the settings of {cls.__name__}")


def read(cls: type[T], path: Path, what: str) -> T:
    """A dataclass from a JSON file; see :func:`checked`.

    Args:
        what: what the file is, for messages ("protocol").

    Raises:
        UserError: it cannot be read, or is no such thing; names the file, and the field or line.
    """
    return checked(cls, read_json(path, what), f"the {what} {str(path)!r}")


def read_json(path: Path, what: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, or is broken; names the file and the line.
    """
    try:
        return json.loads(read_text(path, what), parse_float=_float)
    except json.JSONDecodeError as e:
        raise UserError(
            f"the {what} {str(path)!r} is broken JSON in line {e.lineno}: {e.msg}."
        ) from None
    except (ValueError, RecursionError) as e:  # a number of 5,000 digits, a hill of brackets
        said = str(e).partition(";")[0]
        raise UserError(f"the {what} {str(path)!r} cannot be read: {said}.") from None


def _float(text: str) -> float:
    """A number of JSON; none that is there and would be read as 0."""
    if vanishes(text):
        raise ValueError(f"the number {text[:40]} is too small, and would be 0")
    return float(text)


def vanishes(text: str) -> bool:
    """Whether a text is a number that becomes 0, though it is none."""
    try:
        zero = float(text) == 0
    except ValueError:
        return False
    return zero and bool(re.search("[1-9]", text.lower().partition("e")[0]))


def checked(cls: type[T], found: object, where: str) -> T:
    """A dataclass from what somebody wrote: each value of its declared type, numbers finite.

    Lists stay lists where a sequence is declared, and become tuples where a tuple is.

    Args:
        where: what it is, for messages ("the protocol 'mine.json'").

    Raises:
        UserError: an unknown, missing or mistyped field, by its name; and what the class refuses.
    """
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    if not isinstance(found, Mapping):
        raise UserError(f"{where} is {shown(found)}; an object with fields is needed.")
    for key in found:
        pick(known, str(key), f"field of {where}:")
    for name, f in known.items():
        if name not in found and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where} has no field {name!r}.")
    hints = get_type_hints(cls)
    values = {k: typed(hints[k], v, f"{where}: {k}") for k, v in found.items()}
    try:
        return cls(**values)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None


def shown(value: object) -> str:
    """A value in a message: short, in one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def shown_plainly(value: object) -> str:
    """A value in a message, a text or a number as it is typed."""
    return str(value)[:60] if isinstance(value, (str, int, float)) else shown(value)


def typed(hint: Any, value: Any, where: str) -> Any:
    """The value, if it is what the hint declares; ``where`` ends in the field's name."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(args, value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        if hasattr(hint, "kind") and isinstance(value, Mapping):
            return _one_of((hint,), value, where)
        return checked(typing.cast(type[Any], hint), value, where)
    if _of(hint, value):
        if origin is None or origin is Literal:
            return value
        if issubclass(origin, Mapping):
            return {k: typed(args[1], v, f"{where}.{k}") for k, v in value.items()}
        if issubclass(origin, Sequence):
            if (
                args[0] in PLAIN
                and args[1:] in ((), (Ellipsis,))
                and all(_of(args[0], v) for v in value)
            ):  # a long list of numbers is read at once
                return tuple(value) if issubclass(origin, tuple) else list(value)
            each = args * len(value) if len(args) == 1 else args
            each = args[:1] * len(value) if args[-1] is Ellipsis else each
            if len(each) == len(value):
                items = zip(each, value, strict=True)
                made = [typed(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(items)]
                return tuple(made) if issubclass(origin, tuple) else made
    raise UserError(f"{where} is {shown(value)}; {_said(hint)} is needed.")


def _one_of(hints: Sequence[Any], value: Any, where: str) -> Any:
    kinds = {c.kind: c for c in hints if hasattr(c, "kind")}
    if kinds and isinstance(value, Mapping):
        rest = {k: v for k, v in value.items() if k != "kind"}
        return checked(pick(kinds, str(value.get("kind")), f"kind of {where}:"), rest, where)
    fit = [h for h in hints if _of(h, value)]
    if not fit:
        raise UserError(f"{where} is {shown(value)}; {' or '.join(map(_said, hints))} is needed.")
    return typed(fit[0], value, where)


def _of(hint: Any, value: Any) -> bool:
    """Whether a value is of a type, its parts aside."""
    origin = get_origin(hint) or hint
    if origin is Any:
        return True
    if origin is Literal:
        return value in get_args(hint)
    if origin in (int, float):
        number = isinstance(value, int if origin is int else (int, float))
        finite = origin is int or (number and abs(value) <= sys.float_info.max)
        return number and finite and not isinstance(value, bool)
    if origin is Path:
        return isinstance(value, (str, Path))
    if is_dataclass(origin):
        return isinstance(value, Mapping)
    if isinstance(value, str) and origin is not str:
        return False  # a text is no list of letters
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
        return isinstance(value, (list, tuple))
    return isinstance(value, origin)


def _said(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_said, args))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in PLAIN:
        return PLAIN[origin]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"an object of {_said(args[1])} each" if args else "an object"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_said(args[0])} each" if args else "a list"
    kind = getattr(origin, "kind", "")
    return "a path" if origin is Path else f"an object of kind {kind!r}" if kind else "an object"


class Range(NamedTuple):
    """What a number may be, in its field's annotation: ``Annotated[int, Range(1, 1000)]``."""

    low: float
    high: float = math.inf
    """The largest; infinity itself and NaN are never allowed."""
    open_low: bool = False
    """Whether ``low`` itself is too low."""

    def __contains__(self, x: object) -> bool:
        """Whether a number is finite and inside."""
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not -math.inf < x < math.inf:
            return False
        return (self.low < x if self.open_low else self.low <= x) and x <= self.high

    def __str__(self) -> str:
        """In words: what is allowed."""
        low, high = (f"{int(x) if x == x // 1 < math.inf else x:,}" for x in self[:2])
        if self.high == math.inf:
            return f"more than {low}" if self.open_low else f"{low} or more"
        return f"more than {low}, up to {high}" if self.open_low else f"{low} to {high}"


@cache
def ranges(cls: Any) -> dict[str, Range]:
    """The ranges of a dataclass's numbers, by field."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: r for name, hint in hints.items() for r in _ranges_in(hint)}


def _ranges_in(hint: Any) -> Iterator[Range]:
    yield from (m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Range))
    for inner in get_args(hint):
        if not isinstance(inner, Range):
            yield from _ranges_in(inner)


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The declared types of a dataclass's fields."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def is_of(hint: Any, value: Any) -> bool:
    """Whether a field may hold a value; what is no JSON type or dataclass of ours may be all."""
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(is_of(h, value) for h in args)
    if is_dataclass(origin) and isinstance(origin, type):
        return isinstance(value, origin)
    if origin is tuple:
        each = args[:1] if args[1:] == (Ellipsis,) else ()
        return isinstance(value, (list, tuple)) and all(is_of(h, v) for h in each for v in value)
    return origin not in (*PLAIN, Literal) or _of(hint, value)


def need(value: Any, name: str, allowed: Range, whole: bool = True) -> None:
    """Refuse an argument that is no number, or none in a range.

    Args:
        name: the argument's.
        whole: only whole numbers will do.

    Raises:
        UserError: what was got, for which argument, and what is allowed.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)  # numpy's, too
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number:
        told = f"{shown_plainly(value)} for {name}, {type(value).__name__}"
        raise UserError(f"got {told}; a {'whole ' if whole else ''}number, {allowed}, is needed.")
    if value not in allowed:
        raise UserError(f"got {value} for {name}; {allowed} is needed.")


def check_ranges(config: Any) -> None:
    """Refuse values of another type than their field declares, and numbers outside its range.

    Raises:
        UserError: what was got, for which field, and what is allowed.
    """
    cls: Any = type(config)
    allowed = ranges(cls)
    for name, hint in hints_of(cls).items():
        value = getattr(config, name)
        for x in value if isinstance(value, tuple) else (value,):
            number = isinstance(x, (int, float)) and not isinstance(x, bool)
            if number and name in allowed and x not in allowed[name]:
                told = str(allowed[name])
                if allowed[name].high == math.inf and not math.isfinite(x):
                    told = f"a finite number, {told},"  # "or more" alone sounds as if it were
                raise UserError(f"got {x} for {name}; {told} is needed.")
        if not is_of(hint, value):
            told = f"{shown_plainly(value)} for {name}, {type(value).__name__}"
            if isinstance(kind := getattr(value, "kind", None), str):
                told = f"{kind!r} for {name}"
            raise UserError(f"got {told}; {_said(hint)} is needed.")
