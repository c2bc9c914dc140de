"""One evaluation of an edit: make the pictures that are missing, and judge them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface.edit import Edit
from efface.errors import UserError
from efface.metrics import Judge, Seen, see
from efface.metrics.imagenet import ImageNetJudge
from efface.models import MODELS, DiffusionModel, cache_folder
from efface.protocols import Protocol, load
from efface.samples import Wanted, generate, settings_of

OBJECTS = "emoji-objects"
"""The shipped model's own protocol."""


def pictures(protocol: Protocol, concepts: Sequence[str], seeds: Sequence[int]) -> list[Wanted]:
    """One picture a (concept, prompt, seed)."""
    return [Wanted(p, s, c) for c in concepts for p in protocol.prompts(c) for s in seeds]


def unedited_folder(model: DiffusionModel, protocol: Protocol, steps: int | None = None) -> Path:
    """Where the unedited model's pictures are, a folder for each way of sampling."""
    s = settings_of(model, None, protocol.steps if steps is None else steps, protocol.guidance)
    name = f"{s.base}-{s.sampler}-{s.steps}-{s.guidance:g}-{s.size}-{s.dtype}"
    return cache_folder() / "unedited" / name


def evaluate(
    model: DiffusionModel,
    edit: Edit | None,
    folder: Path | None,
    wanted: Sequence[Wanted],
    judge: Any,
    protocol: Protocol | None = None,
    steps: int | None = None,
    progress: bool = True,
) -> Seen:
    """Make (or find) these pictures and judge them.

    Args:
        edit: None: the unedited model, whose pictures are kept in the cache folder, for all
            methods.
        folder: where the edit's pictures go.
        protocol: None: the shipped model's.
        steps: sampling steps; None: the protocol's.

    Raises:
        UserError: a concept that the judge does not know.
    """
    protocol = protocol or load(OBJECTS)
    for c in dict.fromkeys(w.concept for w in wanted):
        judge.label(c, protocol.head, protocol.labels)
    steps = protocol.steps if steps is None else steps
    folder = folder or unedited_folder(model, protocol, steps)
    samples = generate(model, wanted, folder, edit, steps, protocol.guidance, progress)
    return see(samples, judge, protocol.head, protocol.labels)


def judge_for(model: DiffusionModel, protocol: Protocol | None = None) -> Any:
    """The judge of a protocol; the shipped one knows the shipped model's concepts only.

    Raises:
        UserError: a judge that does not know this model's pictures, or is not installed.
    """
    name = protocol.judge if protocol else "emoji-2"
    if name.startswith("imagenet-"):
        return ImageNetJudge(name.removeprefix("imagenet-"))
    if model.name not in MODELS:
        raise UserError(
            f"no judge ships for {model.name!r}; scores need one of: {', '.join(MODELS)}."
        )
    return Judge.load()
