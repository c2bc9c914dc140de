"""The whole way in three calls: open a model, erase, score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.methods import METHODS
from efface.models import load as load_model
from efface.training import Method, Run

__all__ = ["erase", "load_model"]


def erase(
    model: Any,
    concepts: str | Concept | Sequence[str | Concept],
    method: str | Method = "ap",
    keep: str | Sequence[str] = (),
    run: Run = Run(),
    preset: str = "",
    **settings: Any,
) -> Edit:
    """Make an edit of a model in which concepts cannot be asked for.

    Args:
        model: a diffusers pipeline (taken as it is, and left unchanged), a model that
            :func:`load_model` opened, or what that takes.
        concepts: names, ``name -> anchor``, ``name | synonym, synonym``, or Concepts.
        method: a name of :data:`efface.METHODS`, or a method with its settings.
        keep: words to be preserved.
        run: where it is kept, and who watches it.
        preset: named settings of the method to set out from.
        settings: fields of the method: ``updates``, ``lr``, ``batch``, ``seed``, ``vocabulary``, …

    Raises:
        UserError: an unknown method, preset or setting, and whatever the method cannot do.
    """
    if isinstance(method, str):
        cls = pick(METHODS, method, "method")
        chosen = pick(cls.presets(), preset, "preset") if preset else cls()
    else:
        chosen = method
        if preset:
            raise UserError("give a preset with the name of a method, not with a method.")
    words = (keep,) if isinstance(keep, str) else tuple(keep)
    if words:
        settings = {"keep": words, **settings}
    known = dict.fromkeys(chosen.__dataclass_fields__)  # type: ignore[attr-defined]
    for name in settings:
        pick(known, name, f"setting of {chosen.name}:")
    return replace(chosen, **settings).erase(model, concepts, run)  # type: ignore[type-var]
