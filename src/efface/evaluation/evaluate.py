"""One evaluation of an edit: make the pictures that are missing, and judge them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.judges.imagenet import ImageNetJudge
from efface.evaluation.metrics import Judge, Seen, see
from efface.evaluation.protocols import Protocol, load
from efface.evaluation.samples import Wanted, generate, settings_of
from efface.models import MODELS, DiffusionModel
from efface.storage import cache_folder

OBJECTS = "emoji-objects"
"""The shipped model's own protocol."""


def own_protocol(model: DiffusionModel) -> Protocol:
    """``protocol.json`` in the model's folder, where there is one; else the shipped model's."""
    path = None if model.folder is None else model.folder / "protocol.json"
    return load(str(path) if path and path.exists() else OBJECTS)


def pictures(protocol: Protocol, concepts: Sequence[str], seeds: Sequence[int]) -> list[Wanted]:
    """One picture a (concept, prompt, seed)."""
    return [Wanted(p, s, c) for c in concepts for p in protocol.prompts(c) for s in seeds]


def sampler_of(model: DiffusionModel, protocol: Protocol, steps: int | None = None) -> str:
    """How pictures are drawn, in words.

    Args:
        steps: None: the protocol's, or the model's own.
    """
    steps = steps or protocol.steps or model.steps
    guidance = model.guidance if protocol.guidance is None else protocol.guidance
    return f"{type(model.scheduler).__name__}, {steps} steps, guidance {guidance:g}"


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
        protocol: None: the model's own.
        steps: sampling steps; None: the protocol's.

    Raises:
        UserError: a concept that the judge does not know.
    """
    protocol = protocol or own_protocol(model)
    for c in dict.fromkeys(w.concept for w in wanted):
        judge.label(c, protocol.head, protocol.labels)
    steps = protocol.steps if steps is None else steps
    folder = folder or unedited_folder(model, protocol, steps)
    samples = generate(model, wanted, folder, edit, steps, protocol.guidance, progress)
    return see(samples, judge, protocol.head, protocol.labels)


def judge_for(model: DiffusionModel, protocol: Protocol | None = None) -> Any:
    """The judge of a protocol; the shipped one knows the shipped model's concepts only.

    A model's folder may bring a judge of its own, in ``judge``.

    Args:
        protocol: None: the model's own.

    Raises:
        UserError: a judge that does not know this model's pictures, or is not installed.
    """
    name = (protocol or own_protocol(model)).judge
    if name.startswith("imagenet-"):
        return ImageNetJudge(name.removeprefix("imagenet-"))
    own = None if model.folder is None else model.folder / "judge"
    if own is not None and own.exists():
        judge = Judge.load(own)
        if judge.version != name:
            raise UserError(
                f"the protocol asks for the judge {name!r}; {str(own)!r} holds {judge.version!r}."
            )
        return judge
    if model.name not in MODELS:
        raise UserError(
            f"no judge ships for {model.name!r}, nor is one in its folder; scores need one of: "
            f"{', '.join(MODELS)}."
        )
    return Judge.load()
