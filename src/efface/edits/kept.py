"""The base model's own values of what edits change, kept beside the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from efface.edits.contents import KEPT, Contents
from efface.edits.edit import Edit
from efface.edits.rounding import Stored, lost, tell
from efface.errors import UserError
from efface.models.files.stored import hash_tensors
from efface.models.files.tensors import header, patch, save
from efface.storage import make_folder

Values = dict[str, Tensor]
"""A file's tensors by name, some of them."""


class Kept:
    """Own values of a denoiser's files, each by its path in the folder."""

    NAME: ClassVar[str] = "base.safetensors"

    def __init__(self, folder: Path, here: Contents, base: str) -> None:
        self.folder, self.base = folder, base
        self.own = list(here.own)
        self.values: dict[str, Values] = {name: {} for name in (*here.own, *here.alike)}
        self.lost: dict[str, float] = {}
        """Part of the changes that rounding took from each file, once they were added."""
        self.inside = {name: header(folder / name).tensors for name in self.values}
        for key, w in self.check(folder, base).items():
            name, _, tensor = key.rpartition(":")
            self.values.setdefault(name, {})[tensor] = w

    @classmethod
    def check(cls, folder: Path, base: str) -> Values:
        """What is kept in a folder, by ``FILE:TENSOR``; nothing, where nothing is.

        Raises:
            UserError: it is damaged, or of another base than ``base``.
        """
        path = folder / KEPT / cls.NAME
        if not path.exists():
            return {}
        try:
            with safe_open(path, "pt") as f:
                meta, found = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as e:
            raise UserError(f"{str(path)!r} cannot be read: truncated or damaged ({e}).") from None
        if meta.get("hash") != hash_tensors(getters(found)):
            raise UserError(f"{str(path)!r} is damaged: its content is not what was written.")
        if meta.get("base") != base:
            raise UserError(
                f"{str(path)!r} belongs to another base model (hash {meta.get('base')}) than this "
                f"folder holds (hash {base}): if the model was replaced, delete {KEPT!r} in it."
            )
        return found

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Take the own values of more names, before anything changes them.

        Raises:
            UserError: a name or shape that the model does not have.
        """
        own = {k: e.shape for name in self.own for k, e in self.inside[name].items()}
        for k, w in weights.items():
            if k not in own:
                raise UserError(f"the edit is of another architecture: no weight {k!r} here.")
            if own[k] != tuple(w.shape):
                raise UserError(
                    f"the edit is of another architecture: {k!r} is {tuple(w.shape)} in the edit, "
                    f"{own[k]} in the model."
                )
        for name, values in self.values.items():
            with safe_open(self.folder / name, "pt") as f:
                values |= {
                    k: f.get_tensor(k)
                    for k in weights
                    if k in self.inside[name] and k not in values
                }

    def base_values(self) -> Values:
        """The base's own values of what is kept, by the names of the weights that are opened."""
        return {k: w for name in self.own for k, w in self.values[name].items()}

    def save(self) -> None:
        """Write what is kept, with the hash of the base that it belongs to."""
        found = {f"{n}:{k}": w for n, values in self.values.items() for k, w in values.items()}
        make_folder(self.folder / KEPT)
        about = {"base": self.base, "hash": hash_tensors(getters(found))}
        save(self.folder / KEPT / self.NAME, found, about)

    def with_changes(self, edits: Sequence[Edit]) -> dict[str, Values]:
        """What the kept names are with edits in them, file by file.

        Changes add up in fp32. They are those of the weights that are opened; other precisions take
        the same.

        Raises:
            UserError: a value that the stored precision cannot hold.
        """
        changes: Values = {}
        for name in self.own:
            for k, own in self.values[name].items():
                for e in edits:
                    if k in e.weights:
                        change = e.change(k, own)
                        changes[k] = changes[k] + change if k in changes else change
        found: dict[str, Values] = {}
        for name, values in self.values.items():
            found[name] = {
                k: (own.float() + changes[k]).to(own.dtype) if k in changes else own
                for k, own in values.items()
            }
            fits(found[name], self.folder / name)
            now = found[name]
            self.lost[name] = lost(
                Stored(changes[k], own, now[k]) for k, own in values.items() if k in changes
            )
        return found

    def tell(self) -> None:
        """Warn of files whose precision took much of the changes."""
        for name, share in self.lost.items():
            for w in list(self.values[name].values())[:1]:
                tell(share, repr(str(self.folder / name)), w.dtype)

    def put(
        self,
        edits: Sequence[Edit],
        now: Mapping[str, str],
        later: Mapping[str, str],
        look: bool = True,
    ) -> None:
        """Write the values with edits in them into the files, each whole or not at all.

        Args:
            now: hash of each file.
            later: what it is to be.
            look: whether that is still to be compared with what is kept.

        Raises:
            UserError: what is kept does not lead there.
        """
        changed = {
            name: values
            for name, values in self.with_changes(edits).items()
            if now[name] != later[name]
        }
        for name, values in changed.items() if look else ():
            if hash_file(self.folder / name, values) != later[name]:
                raise UserError(
                    f"{str(self.folder / KEPT)!r} does not hold what {name!r} is to become: fetch "
                    "the model again, and apply the edits to that."
                )
        for name, values in changed.items():
            patch(self.folder / name, values)


def fits(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that overflow the precision that they are stored in."""
    for name, w in weights.items():
        if not torch.isfinite(w).all():
            raise UserError(
                f"{name!r} overflows {str(w.dtype).removeprefix('torch.')} in {str(path)!r}: the "
                "model's folder cannot hold this edit; merge it into a model stored in bf16 or "
                "fp32."
            )


def hash_file(path: Path, instead: Mapping[str, Tensor] | None = None) -> str:
    """First 16 hex digits of the SHA-256 over a file's tensors.

    Args:
        instead: values to be taken for the file's own.
    """
    with safe_open(path, "pt") as f:
        found = {k: partial(f.get_tensor, k) for k in f.keys()}  # noqa: SIM118 (no mapping)
        return hash_tensors({**found, **getters(instead or {})})


def getters(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors as functions that give them."""
    return {k: partial(Tensor.detach, w) for k, w in tensors.items()}
