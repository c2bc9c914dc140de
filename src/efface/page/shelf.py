"""The model that the page itself holds, and the pictures that it draws with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from time import time

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.samples import Wanted, draw
from efface.models import MODELS, DiffusionModel, load, to_image
from efface.page.places import Places
from efface.page.wish import Wish, holds
from efface.reporting.grid import Preview
from efface.storage import make_folder, write
from efface.training import EDIT

STRONGEST = 1.5
"""How far the slider goes."""
OLD = 86400.0
"""Seconds after which a picture may go when a page starts."""


class Shelf:
    """One model at a time, used by one tab at a time, and a folder of pictures."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.folder = places.own / "pictures"
        self._lock = RLock()
        self._model: tuple[str, DiffusionModel] | None = None
        self._edit: tuple[Path, float, Edit] | None = None

    @contextmanager
    def model(self, name: str) -> Iterator[DiffusionModel]:
        """A model, opened where it is another than before.

        Raises:
            UserError: it may not be opened, cannot be, or is not there any more.
        """
        known = self.places.model(name)
        with self._lock:
            if self._model is None or self._model[0] != known:
                self._model = None  # not two at a time
                self._model = (known, load(known))
            yield self._model[1]

    def clear(self) -> None:
        """Hold no model: a job opens its own. What ships is small, and stays."""
        with self._lock:
            if self._model is not None and self._model[0] not in MODELS:
                self._model = None

    def finished(self, wish: Wish) -> bool:
        """Whether a run has its edit, in a folder that another run has not taken since."""
        return (self.places.run(wish.home) / EDIT).exists() and holds(wish, self.places)

    def edit(self, wish: Wish) -> Edit:
        """The edit of a finished run.

        Raises:
            UserError: it is not finished, damaged, or another run's.
        """
        folder = self.places.run(wish.home)
        path = self.places.inside(str(folder / EDIT))
        if not path.exists():
            raise UserError("This run is not finished: train it first.")
        if not holds(wish, self.places):
            raise UserError(f"{wish.home!r} holds another run by now: choose it under “Run”.")
        age = path.stat().st_mtime
        with self._lock:
            if self._edit is None or self._edit[:2] != (path, age):
                self._edit = (path, age, Edit.load(path))
            return self._edit[2]

    def pictures(
        self,
        model: DiffusionModel,
        edit: Edit | None,
        prompts: Sequence[str],
        seeds: Sequence[int],
    ) -> list[list[str]]:
        """File names of pictures, a list a prompt, one a seed; drawn where they are not there."""
        wanted = [Wanted(p, s, p) for p in prompts for s in seeds]
        names = [self.name(model, edit, w) for w in wanted]
        missing = [i for i, n in enumerate(names) if not (self.folder / n).exists()]
        if missing:
            make_folder(self.folder)
            preview = Preview.of(model, 1)
            small = model.at(preview.size) if preview.small else model
            some = [wanted[i] for i in missing]
            with self._lock:
                drawn = draw(small, edit, some, preview.steps, progress=False)
                for i, x in zip(missing, drawn, strict=True):
                    save = partial(to_image(x).save, format="PNG")
                    write(self.folder / names[i], save, lasting=False)
        n = len(seeds)
        return [names[i : i + n] for i in range(0, len(names), n)]

    def name(self, model: DiffusionModel, edit: Edit | None, w: Wanted) -> str:
        """The file name of a picture: a hash of all that makes it."""
        told = [model.base, model.name, edit.digest if edit else "", w.prompt, str(w.seed)]
        return f"{hashlib.sha256(chr(0).join(told).encode()).hexdigest()[:24]}.png"

    def sweep(self) -> None:
        """Delete pictures that nobody looked at for long."""
        for path in self.folder.glob("*.png") if self.folder.is_dir() else ():
            if path.stat().st_mtime < time() - OLD:
                path.unlink(missing_ok=True)
