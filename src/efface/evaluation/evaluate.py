"""One evaluation of an edit: make the pictures that are missing, and judge them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.judges import Judge, named
from efface.evaluation.judges.emoji import EmojiJudge
from efface.evaluation.metrics import Seen, see
from efface.evaluation.protocols import Protocol, load
from efface.evaluation.samples import Apart, Samples, Wanted, generate, settings_of
from efface.models import MODELS, DiffusionModel
from efface.models.identity import identity
from efface.storage import cache_folder

OBJECTS, STYLES = "emoji-objects", "emoji-styles"
"""The shipped model's own protocol, and where nothing but styles is erased."""


def brought_protocol(model: DiffusionModel, kinds: Collection[str] = ()) -> Protocol | None:
    """The model's own protocol: ``protocol.json`` in its folder, or the shipped model's; or None.

    Args:
        kinds: of the erased concepts; the shipped model has a protocol of its own for styles.

    Raises:
        UserError: its file is broken.
    """
    path = None if model.folder is None else model.folder / "protocol.json"
    if path is not None and path.exists():
        return load(str(path))
    if model.name not in MODELS:
        return None
    return load(STYLES if set(kinds) == {"style"} else OBJECTS)


def own_protocol(model: DiffusionModel, edit: Edit | None = None) -> Protocol:
    """The model's own protocol, see :func:`brought_protocol`.

    Args:
        edit: what is scored.

    Raises:
        UserError: it has none.
    """
    erased = () if edit is None else edit.meta.get("concepts", ())
    found = brought_protocol(model, [c.get("kind", "") for c in erased])
    if found is None:
        raise UserError(
            f"{model.name!r} does not say how it is scored: its folder holds no protocol.json, and "
            "no judge ships for it. Bring one, or name a protocol for its scores: efface score "
            "--protocol NAME."
        )
    return found


def of_ones_own(model: DiffusionModel) -> dict[str, str]:
    """What a result depends on beside the base's hash: nothing, where the model is a shipped one.

    Its other parts (text encoder, autoencoder, tokenizer, scheduler), and the words that its folder
    brings.
    """
    if model.name in MODELS:
        return {}
    path = None if model.folder is None else model.folder / "concepts.json"
    words = path.read_bytes() if path is not None and path.is_file() else b""
    return {"drawn by": identity(model), "brought words": hashlib.sha256(words).hexdigest()[:16]}


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
    name = f"{s.base}-{s.model}-{s.sampler}-{s.steps}-{s.guidance:g}-{s.size}-{s.dtype}"
    return cache_folder() / "unedited" / name


def edit_folder(model: DiffusionModel, edit: Edit) -> Path:
    """Where an edit's pictures are, where no run's folder takes them: one for each model."""
    return cache_folder() / "edits" / f"{edit.digest}-{identity(model)}"


def samples_folder(
    home: Path, model: DiffusionModel, protocol: Protocol, steps: int | None = None
) -> Path:
    """Where an edit's pictures are: ``samples`` as the model draws by itself, else by settings.

    Args:
        home: the run's folder.
        steps: None: the protocol's.
    """
    own = brought_protocol(model)
    mine = (own.steps, own.guidance) if own is not None else (None, None)
    usual = settings_of(model, None, *mine)
    s = settings_of(model, None, protocol.steps if steps is None else steps, protocol.guidance)
    if s == usual and not model.size and s.dtype == "float32":
        return home / "samples"
    return home / f"samples-{s.sampler}-{s.steps}-{s.guidance:g}-{s.size}-{s.dtype}"


def evaluate(
    model: DiffusionModel,
    edit: Edit | None,
    folder: Path | None,
    wanted: Sequence[Wanted],
    judge: Judge,
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
    samples = drawn(model, edit, folder, wanted, protocol, steps, progress)
    return see(samples, judge, protocol.head, protocol.labels)


def drawn(
    model: DiffusionModel,
    edit: Edit | None,
    folder: Path | None,
    wanted: Sequence[Wanted],
    protocol: Protocol,
    steps: int | None = None,
    progress: bool = True,
    apart: Apart | None = None,
) -> Samples:
    """Make (or find) these pictures as a protocol has them made; see :func:`evaluate`."""
    steps = protocol.steps if steps is None else steps
    folder = folder or unedited_folder(model, protocol, steps)
    return generate(model, wanted, folder, edit, steps, protocol.guidance, progress, apart)


def judge_for(model: DiffusionModel, protocol: Protocol | None = None) -> Judge:
    """The judge that a protocol names: the one in the model's folder, in ``judge``, or a known one.

    Args:
        protocol: None: the model's own.

    Raises:
        UserError: the protocol names none, an unknown one, or one that is not installed.
    """
    protocol = protocol or own_protocol(model)
    own = None if model.folder is None else model.folder / "judge"
    brought = EmojiJudge.load(own) if own is not None and own.exists() else None
    if brought is not None and brought.version == protocol.judge:
        return brought
    if not protocol.judge:
        raise UserError(f"the protocol {protocol.name!r} names no judge, and one is needed here.")
    try:
        return named(protocol.judge)
    except UserError as e:
        also = f" The model's folder brings {brought.version!r}." if brought else ""
        raise UserError(
            f"the protocol {protocol.name!r} asks for the judge {protocol.judge!r}: {e}{also}"
        ) from None
