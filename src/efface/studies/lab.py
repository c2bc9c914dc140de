"""What every study has: the model, its judge, and a folder where nothing is done twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.evaluate import (
    judge_for,
    of_ones_own,
    own_protocol,
    pictures,
    unedited_folder,
)
from efface.evaluation.metrics import Seen, see
from efface.evaluation.samples import Samples, generate
from efface.evaluation.sensitivity import Moved, picture
from efface.models import DiffusionModel, load
from efface.training import EDIT, Method, Run, provenance


class Lab:
    """Edits and pictures of a study, made where they are missing."""

    def __init__(
        self, folder: Path, model: str | DiffusionModel = "emoji", progress: bool = True
    ) -> None:
        self.folder, self.progress = folder, progress
        self.model = load(model)
        self.protocol = own_protocol(self.model)
        self.judge: Any = judge_for(self.model, self.protocol)
        self.names: tuple[str, ...] = tuple(self.judge.concept_names)

    def edit(
        self, method: Method, concepts: Sequence[Concept], model: DiffusionModel | None = None
    ) -> Edit:
        """The edit that a method makes of these concepts; a killed training goes on.

        Args:
            model: None: the lab's own.
        """
        model = model or self.model
        folder = self.place(method.name, provenance(method, model, concepts))
        if (folder / EDIT).exists():
            return Edit.load(folder)
        return method.erase(model, concepts, Run(folder, progress=self.progress))

    def place(self, name: str, about: Mapping[str, Any]) -> Path:
        """A folder for what depends on ``about`` and the model, made where it is missing.

        Raises:
            UserError: it cannot be made.
        """
        told = json.dumps({**about, **of_ones_own(self.model)}, sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()[:12]
        folder = self.folder / f"{name}-{key}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make {str(folder)!r}: {e.strerror}.") from None
        return folder

    def samples(self, edit: Edit | None, names: Sequence[str], n: int, first: int = 0) -> Samples:
        """``n`` pictures of each concept, from seed ``first`` on; None: the unedited model's."""
        where = unedited_folder(self.model, self.protocol)
        if edit is not None:
            where = self.folder / "pictures" / edit.digest
        wanted = pictures(self.protocol, names, range(first, first + n))
        p = self.protocol
        return generate(self.model, wanted, where, edit, p.steps, p.guidance, self.progress)

    def seen(self, edit: Edit | None, names: Sequence[str], n: int, first: int = 0) -> Seen:
        """What the judge sees in them."""
        p = self.protocol
        return see(self.samples(edit, names, n, first), self.judge, p.head, p.labels)

    def lost(self, edit: Edit, names: Sequence[str], n: int) -> Moved:
        """The fall of the CLIP score at equal seeds."""
        return picture(self.samples(None, names, n), self.samples(edit, names, n))

    def about(self, edits: Sequence[Edit] = ()) -> dict[str, Any]:
        """What a result depends on."""
        return {
            "model": f"{Path(self.model.name).name} {self.model.base}",  # a folder's name, no path
            "judge": f"{self.judge.version} {self.judge.sha256}",
            "edits": [{"config": e.meta["config"], "cost": e.meta["cost"]} for e in edits],
        }
