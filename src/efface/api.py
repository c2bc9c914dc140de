"""The whole way in three calls: open a model, erase, score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.evaluation.protocols import Protocol
from efface.evaluation.scoring import PICTURES, Scores, ask, place_for, scored
from efface.evaluation.scoring import keep as keep_scores
from efface.methods import METHODS
from efface.models import load as load_model
from efface.models.placement import DTYPES
from efface.names import quoted, words
from efface.training import Method, Run

__all__ = ["erase", "load_model", "score"]


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
    if not isinstance(chosen, Method):
        raise UserError(
            f"got {quoted(chosen)} for method; a name ({', '.join(METHODS)}) is needed, or a "
            "method with its settings, such as efface.ESD(lr=1e-5)."
        )
    kept = words(keep, "keep")
    if kept:
        settings = {"keep": kept, **settings}
    known = dict.fromkeys(chosen.__dataclass_fields__)
    for name in settings:
        pick(known, name, f"setting of {chosen.name}:")
    return replace(chosen, **settings).erase(model, concepts, run)


def score(
    model: Any,
    edit: Edit | str | Path | None = None,
    protocol: str | Path | Protocol = "",
    pictures: int = PICTURES,
    concepts: str | Sequence[str] = (),
    keep_in: str | Path | None = None,
    prompts: str | Path | None = None,
) -> Scores:
    """What a protocol says of an edit beside the unedited model.

    Args:
        model: a diffusers pipeline (taken as it is), a model that :func:`load_model` opened, or
            what that takes.
        edit: an edit, or a run's folder or file; None: the model as it is.
        protocol: a shipped one's name, a file, or a Protocol; "": the model's own.
        pictures: of each prompt, seeds 0, 1, …
        concepts: only these preserved concepts; empty: the protocol's.
        keep_in: a folder for the edit's pictures and for the scores as JSON, such as the run's, of
            other strengths in ``strength-…`` in it; None: the pictures are kept in the cache
            folder.
        prompts: the file of a protocol that reads its prompts from one.

    Raises:
        UserError: the edit is not of this model, the model has no protocol or judge, or something
            that a metric needs is missing.
    """
    opened = load_model(model)
    edit = edit if edit is None or isinstance(edit, Edit) else Edit.load(edit)
    only = words(concepts, "concepts")
    question = ask(
        opened,
        protocol,
        edit,
        pictures=pictures,
        concepts=only,
        prompts=None if prompts is None else Path(prompts),
    )
    home = None if keep_in is None else place_for(Path(keep_in), edit)
    found = scored(opened, edit, question, home)
    if home is not None:
        short = next(k for k, v in DTYPES.items() if v == opened.dtype)
        keep_scores(found, question, home, short, opened.size)
    return found
