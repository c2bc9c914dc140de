"""What stands in a result's file already: taken where it is of these settings, else refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.evaluation import answers
from efface.settings import shown

SAME = object()
"""A setting's value of today."""
BEFORE: Mapping[str, Any] = {
    "anchor": "",
    "decay": 0.0,
    "average": 0.0,
    "diversify": 0,
    "invariants": True,
    "reuse": 0,
    "latents": {"anchored": 0},
    "search": {"among": 0},
    "styled": SAME,  # changes nothing of things, which older results are of
}
"""Settings that came later, at what older results were made with."""
HOW, OWN = ("dtype", "size"), ("drawn by", "brought words")
"""What a result says only where it is not the usual one: how opened, and a model of one's own."""


def standing(cls: type[Any], path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result that is there already; None where there is none, or a damaged one.

    Args:
        cls: the shape of such a file, of :mod:`efface.evaluation.answers`.
        identity: all that decides the result but the code.

    Raises:
        UserError: it was made with other settings, and would be lost; says with which.
    """
    try:
        row = answers.read(cls, path, "result")
    except UserError:
        return None
    if row.get("config"):
        row = {**row, "config": completed(row["config"], identity["config"] or {})}
    names = dict.fromkeys((*HOW, *identity, *OWN))
    found = list(differing({k: row.get(k) for k in names}, {k: identity.get(k) for k in names}))
    if found:
        said = "; ".join(found[:3]) + ("; …" if len(found) > 3 else "")
        raise UserError(
            f"{str(path)!r} is a result of other settings ({said}): name another folder by --out, "
            "or delete it."
        )
    return row


def completed(
    had: Mapping[str, Any], config: Mapping[str, Any], before: Mapping[str, Any] = BEFORE
) -> dict[str, Any]:
    """What a result was made with that may be older than some of today's settings."""
    found = dict(had)
    for k, v in before.items():
        if isinstance(v, Mapping):
            if isinstance(had.get(k), Mapping) and isinstance(config.get(k), Mapping):
                found[k] = completed(had[k], config[k], v)
        elif k in config:
            found.setdefault(k, config[k] if v is SAME else v)
    return found


def differing(had: Any, mine: Any, name: str = "") -> Iterator[str]:
    """In what two settings differ, setting by setting: ``updates is 400, not 40``."""
    if isinstance(had, Mapping) and isinstance(mine, Mapping):
        for k in dict.fromkeys((*had, *mine)):
            yield from differing(had.get(k), mine.get(k), f"{name}.{k}".removeprefix("."))
    elif had != mine:
        yield f"{name.removeprefix('config.')} is {shown(had)}, not {shown(mine)}"
