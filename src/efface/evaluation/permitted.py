"""What a protocol lets a method see, where some names are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from efface.evaluation.judges import named
from efface.evaluation.protocols import Protocol
from efface.training import Method
from efface.vocabularies import INLINE


def shown(
    method: Method, protocol: Protocol, split: str, known: Sequence[str] | None = None
) -> Method:
    """The method with a vocabulary of what the protocol lets it see, where some is held out."""
    if not protocol.held_out or not getattr(method, "vocabulary", ""):
        return method
    changes: dict[str, Any] = {"vocabulary": usable(protocol, split, known)}
    return replace(method, **changes)


def usable(protocol: Protocol, split: str, known: Sequence[str] | None = None) -> str:
    """What the protocol lets a method see, as a vocabulary; "": no names are held out.

    Args:
        known: all that the judge knows; None: the judge is one that is found by its name alone,
            and none that a model brings.
    """
    if not protocol.held_out:
        return ""
    if not protocol.preserved and known is None:
        known = named(protocol.judge).concept_names
    return f"{INLINE} {', '.join(protocol.usable(protocol.erased(split), known or ()))}"
