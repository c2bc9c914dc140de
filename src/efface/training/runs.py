"""Where a run keeps what it needs to go on after a kill, and who watches it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.edits.unfinished import CHECKPOINT as CHECKPOINT
from efface.edits.unfinished import EDIT as EDIT
from efface.errors import UserError
from efface.models import Counter, DiffusionModel
from efface.models.files.tensors import save
from efface.names import quoted
from efface.settings import check_ranges, checked, read_json
from efface.storage import locked, make_folder, sweep, write_text
from efface.training.trial import Trial

OnUpdate = Callable[[int, Mapping[str, float], Edit], bool | None]
"""Called after every weight update with its number (from 1), its losses and the edit as it is.

The edit's weights are those in training: use or save them before the next update. True ends the
training with these weights.
"""


class Paused(Exception):
    """Raised by ``on_update``: the training is kept as it is, to go on another time, and left."""


ANCHORS = "anchors.json"
"""The anchors that were found so far, until the edit is saved."""


@dataclass(frozen=True)
class Noted:
    """What :data:`ANCHORS` holds."""

    run: Mapping[str, Any]
    """What makes the run this run."""
    anchors: Mapping[str, str]
    """By the name of the concept."""
    cost: Counter
    """Of all of them."""


class Notes:
    """The anchors that a run has found so far, which a killed one takes up again.

    Args:
        path: of its file; None: nothing is kept.
        about: what makes the run this run; notes of another one are not looked at.
        counter: counts what those cost that were found by an earlier process.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any], counter: Counter) -> None:
        self.path, self.counter = path, counter
        self.run = json.loads(json.dumps(about))
        self.anchors: dict[str, str] = {}
        self.before, self.began = counter.copy(), perf_counter()
        if path is None or not path.is_file():
            return
        try:
            had = checked(Noted, read_json(path, "list of found anchors"), "its notes")
        except UserError as e:
            raise damaged(path, str(e)) from None
        if had.run == self.run:
            self.anchors = dict(had.anchors)
            counter.add(had.cost)

    def keep(self, concept: str, anchor: str) -> None:
        """Note one more."""
        self.anchors[concept] = anchor
        if self.path is None:
            return
        spent = self.counter.since(self.before)
        spent.seconds += perf_counter() - self.began
        make_folder(self.path.parent)
        write_text(self.path, json.dumps(asdict(Noted(self.run, self.anchors, spent))) + "\n")


OnAnchors = Callable[[DiffusionModel, Sequence[Concept]], None]
"""Called once it is known what every concept is to become."""


@dataclass(frozen=True)
class Run:
    """Where a run keeps what it needs to go on after a kill, and who watches it."""

    folder: Path | None = None
    """Holds the checkpoint, and in the end the edit; None: nothing is kept. A text is a path."""
    on_update: OnUpdate | None = None
    """Called after every update with (update, {"loss": …}, edit); True ends the training, and
    :class:`Paused` leaves it to go on another time."""
    progress: bool = True
    """Show a bar on stderr."""
    checkpointing: bool = False
    """Compute activations again for the gradient instead of keeping them: less memory, more time,
    the same weights."""
    on_anchors: OnAnchors | None = None
    """Called before anything is trained, with the model and the concepts with their anchors."""
    words: str = ""
    """Where anchors are searched for, as a vocabulary; "": in the method's own, or in auto."""
    trial: Trial | None = None
    """Only try it out; see :func:`efface.training.forecast.forecast`."""

    def __post_init__(self) -> None:
        if isinstance(self.folder, str) and self.folder:
            object.__setattr__(self, "folder", Path(self.folder).expanduser())
        if not isinstance(self.folder, Path | None):
            raise UserError(f"got {quoted(self.folder)} for folder; a path is needed.")
        for name in ("on_update", "on_anchors"):
            told = getattr(self, name)
            if told is not None and not callable(told):
                raise UserError(f"got {quoted(told)} for {name}; a function is needed.")
        check_ranges(self)

    def part(
        self,
        i: int,
        about: Mapping[str, Any],
        make: Callable[[], dict[str, Tensor]],
        counter: Counter,
    ) -> dict[str, Tensor]:
        """The tensors of a run's ``i``-th part, kept until :meth:`forget` once they are made.

        Args:
            about: what makes the run this run.
            counter: counts what the part took, also where it was made by an earlier process.

        Raises:
            UserError: a part of another run is in the folder, or a damaged one.
        """
        if self.folder is None:
            return make()
        path, said = self.folder / f"part-{i}.safetensors", json.dumps(about, sort_keys=True)
        if not path.exists():
            before, began = counter.copy(), perf_counter()
            tensors = make()
            spent = counter.since(before)
            spent.seconds += perf_counter() - began
            save(path, tensors, {"run": said, "cost": json.dumps(asdict(spent))})
        else:
            tensors, meta = opened(path)
            if meta.get("run") != said:
                raise foreign(self.folder)
            counter.add(cost_in(meta, path))
        own = self.folder / CHECKPOINT
        if own.exists() and opened(own)[1].get("run") == said:
            own.unlink()  # the state of this part's training
        return tensors

    def notes(self, about: Mapping[str, Any], counter: Counter, mine: bool = True) -> Notes:
        """The anchors that were found so far.

        Args:
            about: what is asked, but for the anchors.
            mine: keep them; False: another process of the same run does.
        """
        told = self.folder is not None and not (self.folder / EDIT).exists() and self.trial is None
        path = self.folder / ANCHORS if told and self.folder else None
        found = Notes(path, asked(about), counter)
        if not mine:
            found.path = None
        return found

    def free(self, about: Mapping[str, Any]) -> None:
        """Refuse a folder that holds another edit, which would be lost.

        Args:
            about: what the edit to be made will remember.

        Raises:
            UserError: says which edit is there; or it is damaged.
        """
        if self.folder is None or not (self.folder / EDIT).exists():
            return
        had, mine = asked(Edit.load(self.folder).meta), asked(json.loads(json.dumps(about)))
        differ = [k for k in mine if had.get(k) != mine[k]]
        if differ:
            raise UserError(
                f"{str(self.folder)!r} holds another edit, which differs in: {', '.join(differ)}; "
                "name another folder, or delete it."
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out of the run's folder, and sweep up what dead ones left.

        Raises:
            UserError: another process works there.
        """
        if self.folder is None:
            yield
            return
        make_folder(self.folder)
        with locked(self.folder):
            sweep(self.folder)
            yield

    def forget(self) -> None:
        """Delete what a run goes on from, once its edit is saved."""
        if self.folder is not None:
            own = (self.folder / n for n in (CHECKPOINT, ANCHORS))
            for path in (*own, *self.folder.glob("part-*.safetensors")):
                path.unlink(missing_ok=True)


HARMLESS = ("save_every",)
"""Settings that change no weight: a run goes on with others."""


def asked(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was asked, without what changes nothing of its edit."""
    config = about.get("config")
    if not isinstance(config, Mapping):
        return dict(about)
    return {**about, "config": {k: v for k, v in config.items() if k not in HARMLESS}}


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of an unfinished run's file.

    Raises:
        UserError: it is damaged.
    """
    try:
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise damaged(path, str(e)) from None


def cost_in(meta: Mapping[str, str], path: Path) -> Counter:
    """What a kept part of a run has cost.

    Raises:
        UserError: its file is damaged.
    """
    try:
        return checked(Counter, json.loads(meta["cost"]), "its cost")
    except (KeyError, ValueError, RecursionError, UserError) as e:
        raise damaged(path, str(e)) from None


def damaged(path: Path, why: str) -> UserError:
    """A file of an unfinished run that cannot be used."""
    return UserError(f"the checkpoint {str(path)!r} is damaged ({why}); delete it to start afresh.")


def foreign(folder: Path) -> UserError:
    """A run of other settings is in the folder."""
    return UserError(
        f"{str(folder)!r} holds an unfinished run with other settings; "
        "give another --out, or delete it to start afresh."
    )
