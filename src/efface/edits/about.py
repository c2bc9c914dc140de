"""What an edit says of itself, and how it must look."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from efface.errors import UserError
from efface.settings import checked, shown


@dataclass(frozen=True)
class About:
    """What is read of an edit's metadata, and how it must look; methods may add to it."""

    method: str = ""
    model: str | None = None
    base: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    concepts: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    gates: list[list[str]] = field(default_factory=list)
    strength: float = 1.0
    whole: str = ""
    """Digest of the edit that this is a part or a multiple of."""


def known_meta(text: str, where: str) -> dict[str, Any]:
    """An edit's metadata.

    Args:
        where: what it is, for messages.

    Raises:
        UserError: no JSON, or a field of another type than :class:`About` says.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is broken JSON: {e}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{where} is {shown(found)}; an object is needed.")
    known = {f.name for f in fields(About)}
    about = checked(About, {k: v for k, v in found.items() if k in known}, where)
    for i, c in enumerate(about.concepts):
        if not all(isinstance(c.get(k), str) for k in ("name", "anchor")):
            raise UserError(f"{where}: concepts[{i}] is {shown(c)}; a name and an anchor it needs.")
    return found
