"""A model folder that accounts for what was erased from it: ``erasures.json``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from efface.edits.contents import KEPT, Contents, contents
from efface.edits.contents import LEDGER as NAME
from efface.edits.edit import Edit
from efface.edits.kept import hash_file
from efface.errors import UserError
from efface.models import DiffusionModel, hash_stored
from efface.settings import read
from efface.storage import write_text

EDITED, LEFT, OTHER, HIDDEN = "edited", "left out", "not a denoiser", "not looked into"
"""What became of a file that can hold weights."""


@dataclass(frozen=True)
class Erasure:
    """One edit that is in a model."""

    edit: str
    """Its digest."""
    concepts: tuple[str, ...]
    method: str
    when: str
    """UTC, ISO 8601."""
    scores: Mapping[str, Any] | None = None
    """What was measured of it, if it was."""
    strength: float = 1.0
    """How much of it is in there."""
    whole: str = ""
    """Digest of the whole edit, where that is another."""

    @classmethod
    def of(cls, edit: Edit, scores: Mapping[str, Any] | None = None) -> Erasure:
        """The entry of an edit, now."""
        return cls(
            edit.digest,
            tuple(c["name"] for c in edit.meta.get("concepts", ())),
            str(edit.meta.get("method", "")),
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            scores,
            edit.strength,
            str(edit.meta.get("whole", "")),
        )


@dataclass(frozen=True)
class Filed:
    """One file that can hold weights."""

    state: str
    """``edited``, ``left out``, ``not a denoiser`` or ``not looked into``."""
    now: str = ""
    """Hash of an edited one's tensors."""
    later: str = ""
    """What that becomes, while it is being written."""


@dataclass(frozen=True)
class Ledger:
    """What was erased from a model folder."""

    base: str
    """Hash of the base model's denoiser."""
    now: str
    """Hash of the denoiser with the edits in it; "": it is being written."""
    erasures: tuple[Erasure, ...] = ()
    removable: bool = True
    """Whether the base model's values are kept beside the ledger."""
    files: Mapping[str, Filed] = field(default_factory=dict)
    """Every file that can hold weights, by its path in the folder."""
    removed: tuple[str, ...] = ()
    """Digests of edits that were taken out again."""

    @classmethod
    def read(cls, folder: Path) -> Ledger | None:
        """A folder's ledger; None where nothing was erased.

        Raises:
            UserError: it cannot be read; names the field or line.
        """
        if not (folder / NAME).exists():
            return None
        found = read(cls, folder / NAME, "ledger")
        if found.erasures and not found.files:
            raise UserError(f"{str(folder / NAME)!r} names no files: an older efface wrote it.")
        return found

    def write(self, folder: Path) -> None:
        """Keep it, whole or not at all."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_text(folder / NAME, text)


def states(found: Contents, edited: Iterable[str], left: Iterable[str] = ()) -> dict[str, Filed]:
    """What became of each file of a model folder, without hashes."""
    told = dict.fromkeys(found.other, Filed(OTHER)) | dict.fromkeys(found.hidden, Filed(HIDDEN))
    told |= dict.fromkeys(left, Filed(LEFT)) | dict.fromkeys(edited, Filed(EDITED))
    return dict(sorted(told.items()))


def compare(folder: Path, here: Contents, found: Ledger) -> dict[str, str]:
    """The hash of each edited file; refuses a folder whose files are not what its ledger says.

    Raises:
        UserError: changed, missing or added weights of the denoiser, by the file's name.
    """
    known = {name for name, f in found.files.items() if f.state == EDITED}
    there = {*here.own, *here.alike}
    added = sorted({*there, *here.foreign} - known)
    if added:
        raise UserError(
            f"{', '.join(map(repr, added))} in {str(folder)!r} came after {NAME} was written, and "
            "may draw what is erased: take it out of the folder."
        )
    now = {name: hash_file(folder / name) if name in there else "" for name in sorted(known)}
    for name, own in now.items():
        f = found.files[name]
        if own not in (f.now, f.later or f.now):
            raise UserError(
                f"the weights in {str(folder / name)!r} were changed since {NAME} was written, by "
                "something else than efface: fetch the model again, and apply the edits to that "
                f"(if this is the model again, delete {NAME} and {KEPT} in it)."
            )
    return now


def checked(folder: Path) -> list[tuple[str, str]]:
    """Every file of a folder that can hold weights, with its state, compared with the ledger.

    Raises:
        UserError: nothing was erased there, a change that was broken off, or as :func:`compare`.
    """
    here, found = contents(folder), Ledger.read(folder)
    if found is None:
        raise UserError(f"nothing was erased from {str(folder)!r} by efface: it has no {NAME}.")
    if not found.now:
        raise UserError(
            f"a change of {str(folder)!r} was broken off: give its command (efface apply, efface "
            "remove) again."
        )
    compare(folder, here, found)
    return [(name, f.state) for name, f in found.files.items()]


def note_merged(
    out: Path,
    model: DiffusionModel,
    edit: Edit,
    left: Iterable[str],
    scores: Mapping[str, Any] | None = None,
) -> Ledger:
    """Write the ledger of a merged folder: its edit, after what its base model had erased.

    Args:
        left: what the base model's folder has and this one has not.
    """
    before = None if model.folder is None else Ledger.read(model.folder)
    if before is not None and before.now != model.base:
        raise UserError(
            f"{str(model.folder)!r} is not what its {NAME} says, or is being changed: efface "
            "inspect says more."
        )
    base, earlier = (model.base, ()) if before is None else (before.base, before.erasures)
    here = contents(out)
    files = {
        k: Filed(EDITED, hash_file(out / k)) if f.state == EDITED else f
        for k, f in states(here, here.own, left).items()
    }
    own = hash_stored(out / here.part)
    found = Ledger(base, own, (*earlier, Erasure.of(edit, scores)), False, files)
    found.write(out)
    return found
