"""The before/after picture of a run, and what it shows: drawn after everything else."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface.cli import runfolder
from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.evaluation.sensitivity import closed_form, prediction
from efface.models import DiffusionModel
from efface.reporting.grid import PICTURE, Preview, before_after
from efface.vocabularies import load as load_vocabulary
from efface.vocabularies import told


def tell_preview(model: DiffusionModel, concepts: Sequence[Concept]) -> None:
    """Say on stderr that the picture will take long."""
    p = Preview.of(model, len(concepts))
    if p.small:
        print(
            f"the edit is saved and told first; then {p.pictures} pictures of {p.size} pixels are "
            "drawn before and after it, which takes minutes on a CPU: --no-picture leaves them "
            "out, and the same command draws them later.",
            file=sys.stderr,
        )


def pictured(
    model: DiffusionModel, method: Any, edit: Edit, concepts: Sequence[Concept], out: Path
) -> dict[str, Any]:
    """What the edit moved most, and the picture, which is drawn where it is missing."""
    had, path = runfolder.record(out), out / PICTURE
    hurt, preview = had.get("moved_most"), Preview.of(model, len(concepts))
    if hurt is None:
        source = getattr(method, "vocabulary", "") or "auto"
        hurt = most_moved(model, edit, concepts, source, preview)
        runfolder.keep(out, {**had, "moved_most": hurt})
    if not path.exists():
        asked = [c.shown.prompt for c in told(model, concepts)]
        before_after(model, edit, asked, list(hurt), path, preview)
    return {"moved_most": hurt, "picture": str(path)}


def most_moved(
    model: DiffusionModel,
    edit: Edit,
    concepts: Sequence[Concept],
    source: str,
    preview: Preview,
    n: int = 5,
) -> dict[str, float]:
    """The preserved words that the edit moved most.

    By the change of predicted noise; where the denoiser is slow and the edit is of what reads the
    text alone, by the change of that.
    """
    words = load_vocabulary(source, model, concepts)
    words = dataclasses.replace(words, words=words.words[: words.most or 2000])  # the commonest
    words = words.without(concepts, model.tokenizer)
    text = preview.small and not edit.gates and set(edit.weights) <= set(model.text_maps())
    words = words.pool(model, concepts[0], 0, 400 if text else preview.words, "nearest")
    if text:
        found = closed_form(model, edit, words.words)
    else:
        slow = model.at(preview.size) if preview.small else model
        found = prediction(slow, edit, words.words, latents=1 if preview.small else 2)
    return {found.words[i]: round(float(found.harm[i]) / 100, 4) for i in found.order()[:n]}
