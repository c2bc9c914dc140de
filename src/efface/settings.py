"""Settings as JSON and back: frozen dataclasses, whose unions say their kind."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

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
