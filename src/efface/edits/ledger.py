"""A model folder that accounts for what was erased from it: ``erasures.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.models import DiffusionModel, family_of, hash_stored, weight_files
from efface.storage import write, write_text

NAME = "erasures.json"
KEPT = "erasures"
"""Folder beside it: the edits, and the base model's own values of what they change."""


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

    @classmethod
    def of(cls, edit: Edit, scores: Mapping[str, Any] | None = None) -> Erasure:
        """The entry of an edit, now."""
        return cls(
            edit.digest,
            tuple(c["name"] for c in edit.meta.get("concepts", ())),
            str(edit.meta.get("method", "")),
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            scores,
        )


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

    @classmethod
    def read(cls, folder: Path) -> Ledger | None:
        """A folder's ledger; None where nothing was erased.

        Raises:
            UserError: it cannot be read.
        """
        try:
            found = json.loads((folder / NAME).read_text(encoding="utf8"))
            entries = tuple(
                Erasure(**{**e, "concepts": tuple(e["concepts"])}) for e in found.pop("erasures")
            )
            return cls(**found, erasures=entries)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise UserError(f"{str(folder / NAME)!r} is no ledger of efface: {e!r}.") from None

    def write(self, folder: Path) -> None:
        """Keep it, whole or not at all."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_text(folder / NAME, text)


def opened(folder: Path) -> tuple[str, Ledger]:
    """The denoiser's name in a diffusers folder, and its ledger; a broken-off change is finished.

    Raises:
        UserError: no such folder, or weights that something else has changed since.
    """
    part = family_of(folder).denoiser
    if not weight_files(folder / part):
        raise UserError(f"no *.safetensors in {str(folder / part)!r}.")
    found = Ledger.read(folder)
    if found is None:
        own = hash_stored(folder / part)
        return part, Ledger(own, own)
    if not found.now:
        return part, settle(folder, part, found)
    if found.now != hash_stored(folder / part):
        raise UserError(
            f"the weights in {str(folder / part)!r} were changed since {NAME} was written, by "
            "something else than efface: fetch the model again, and apply the edits to that."
        )
    return part, found


def apply(folder: Path, edit: Edit, scores: Mapping[str, Any] | None = None) -> Ledger:
    """Put an edit into a diffusers folder, in place; :func:`remove` takes it out bit for bit.

    Several edits add up. A change that is killed is finished by the next command.

    Args:
        scores: what was measured of the edit, for the ledger.

    Raises:
        UserError: an edit of another base or architecture, one that is there already, values that
            the stored precision cannot hold, or a folder that cannot be written.
    """
    part, ledger = opened(folder)
    if not ledger.removable:
        raise UserError(
            f"{str(folder)!r} was written with its edits in it, without the base model's values: "
            "combine the edits and merge them into the base model."
        )
    base = edit.meta.get("base")
    if base and base != ledger.base:
        raise UserError(
            f"the edit was made for {edit.meta.get('model', 'another model')!r} (hash {base}); "
            f"{str(folder)!r} has hash {ledger.base}: apply it to the model it was made for."
        )
    if any(e.edit == edit.digest for e in ledger.erasures):
        raise UserError(f"this edit ({edit.digest}) is in {str(folder)!r} already.")
    if edit.gates:
        raise UserError(
            "this edit has gates that each prompt opens in its own way, which stored weights "
            "cannot do: make it with --no-gated, or use it with efface generate."
        )
    keep = folder / KEPT
    own = Kept(keep / "base.safetensors", folder / part)
    own.add(edit.weights)
    fits(own.with_changes([*edits_of(folder, ledger), edit]))
    own.save()
    edit.save(keep / f"{edit.digest}.safetensors")
    later = replace(ledger, now="", erasures=(*ledger.erasures, Erasure.of(edit, scores)))
    later.write(folder)
    return settle(folder, part, later)


def note_merged(
    out: Path, model: DiffusionModel, edit: Edit, scores: Mapping[str, Any] | None
) -> None:
    """Write the ledger of a merged folder: its edit, after what its base model had erased."""
    before = None if model.folder is None else Ledger.read(model.folder)
    base, earlier = (model.base, ()) if before is None else (before.base, before.erasures)
    own = hash_stored(out / model.family.denoiser)
    Ledger(base, own, (*earlier, Erasure.of(edit, scores)), removable=False).write(out)


def remove(folder: Path, which: str = "") -> Ledger:
    """Take an edit out of a folder that it was applied to, or all of them.

    Args:
        which: digest of the edit, or the beginning of one; "": all.

    Raises:
        UserError: nothing to be removed, no such edit, or a folder that cannot be written.
    """
    part, ledger = opened(folder)
    if not ledger.erasures:
        raise UserError(f"nothing was erased from {str(folder)!r}.")
    if not ledger.removable:
        raise UserError(
            f"{str(folder)!r} was written with its edits in it, without the base model's values: "
            "use the base model itself."
        )
    gone = [e for e in ledger.erasures if e.edit.startswith(which)]
    if not gone or (which and len(gone) > 1):
        known = ", ".join(f"{e.edit} ({', '.join(e.concepts)})" for e in ledger.erasures)
        what = "no edit" if not gone else "more than one edit"
        raise UserError(f"{what} in {str(folder)!r} is called {which!r}; there are: {known}.")
    left = tuple(e for e in ledger.erasures if e not in gone)
    later = replace(ledger, now="", erasures=left)
    later.write(folder)
    return settle(folder, part, later)


def settle(folder: Path, part: str, ledger: Ledger) -> Ledger:
    """Make the weights what the ledger says, and note that they are."""
    keep = folder / KEPT
    own = Kept(keep / "base.safetensors", folder / part)
    own.put(fits(own.with_changes(edits_of(folder, ledger))))
    done = replace(ledger, now=hash_stored(folder / part))
    done.write(folder)
    there = {f"{e.edit}.safetensors" for e in ledger.erasures}
    for path in keep.glob("*.safetensors"):
        if path.name not in there and (ledger.erasures == () or path.name != "base.safetensors"):
            path.unlink()
    if not ledger.erasures:
        (folder / NAME).unlink()
        with suppress(OSError):  # something else lies in it
            keep.rmdir()
    return done


def edits_of(folder: Path, ledger: Ledger) -> list[Edit]:
    """The edits that are in a folder."""
    return [Edit.load(folder / KEPT / f"{e.edit}.safetensors") for e in ledger.erasures]


def fits(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Refuse weights that overflow the precision that they are stored in."""
    for name, w in weights.items():
        if not torch.isfinite(w).all():
            raise UserError(
                f"{name!r} overflows {str(w.dtype).removeprefix('torch.')}: the model's folder "
                "cannot hold this edit; merge it into a model stored in bf16 or fp32."
            )
    return weights


class Kept:
    """A denoiser's files, and the base model's values of what edits change."""

    def __init__(self, base: Path, denoiser: Path) -> None:
        self.path, self.shards = base, weight_files(denoiser)
        self.base: dict[str, Tensor] = load_file(base) if base.exists() else {}
        self.where: dict[str, Path] = {}
        for shard in self.shards:
            with safe_open(shard, "pt") as f:
                self.where |= dict.fromkeys(f.keys(), shard)

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Take the base model's values of more names, before anything changes them.

        Raises:
            UserError: a name or shape that the model does not have.
        """
        new: dict[str, Tensor] = {}
        for name, w in weights.items():
            if name not in self.where:
                raise UserError(f"the edit is of another architecture: no weight {name!r} here.")
            if name in self.base:
                continue
            with safe_open(self.where[name], "pt") as f:
                own = f.get_tensor(name)
            if own.shape != w.shape:
                raise UserError(
                    f"the edit is of another architecture: {name!r} is {tuple(w.shape)} in the "
                    f"edit, {tuple(own.shape)} in the model."
                )
            new[name] = own
        self.base |= new

    def save(self) -> None:
        """Write what is kept."""
        try:
            self.path.parent.mkdir(exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make {str(self.path.parent)!r}: {e.strerror}.") from None
        write(self.path, lambda p: save_file(self.base, p))

    def with_changes(self, edits: list[Edit]) -> dict[str, Tensor]:
        """What the kept names are with edits in them: their changes add up, in fp32."""
        found = {}
        for name, own in self.base.items():
            changes = [e.change(name, own) for e in edits if name in e.weights]
            total = own.float()
            for change in changes:
                total = total + change
            found[name] = total.to(own.dtype) if changes else own
        return found

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Write values into the files, each whole or not at all."""
        for shard in self.shards:
            mine = {k: w for k, w in weights.items() if self.where[k] == shard}
            if not mine:
                continue
            with safe_open(shard, "pt") as f:
                meta = f.metadata()
            tensors = load_file(shard)
            if all(torch.equal(tensors[k], w) for k, w in mine.items()):
                continue
            tensors |= {k: w.contiguous() for k, w in mine.items()}
            write(shard, partial(save_file, tensors, metadata=meta))
