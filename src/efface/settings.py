"""Settings: frozen dataclasses as JSON and back, and the ranges of their numbers."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from efface.errors import UserError, pick

T = TypeVar("T")


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
        UserError: a field that it does not have, or values that it refuses.
    """
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in found:
        pick(known, key, f"field of {cls.__name__}:")
    try:
        return cls(**{k: _typed(hints[k], v) for k, v in found.items()})
    except TypeError as e:
        raise UserError(f"these are no settings of {cls.__name__}: {e}.") from None


def _typed(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = {c.kind: c for c in get_args(hint) if hasattr(c, "kind")}
        if kinds and isinstance(value, Mapping):
            rest = {k: v for k, v in value.items() if k != "kind"}
            return from_json(pick(kinds, str(value.get("kind")), "kind"), rest)
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return from_json(typing.cast(type[Any], hint), value)
    return tuple(value) if isinstance(value, list) else value


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
        if self.high == math.inf:
            return f"more than {self.low:,}" if self.open_low else f"{self.low:,} or more"
        low = f"more than {self.low:,}, up" if self.open_low else f"{self.low:,}"
        return f"{low} to {self.high:,}"


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


def check_ranges(config: Any) -> None:
    """Refuse numbers outside the range that their field names; None, an optional one, passes.

    Raises:
        UserError: what was got, for which field, and what is allowed.
    """
    for name, allowed in ranges(type(config)).items():
        value = getattr(config, name)
        for x in value if isinstance(value, tuple) else (value,):
            if x is not None and x not in allowed:
                raise UserError(f"got {x} for {name}; {allowed} is needed.")
