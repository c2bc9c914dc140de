"""A trained judge's two files: its weights, and ``judge.json``, which says what they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from efface.errors import UserError
from efface.settings import checked, read_json
from efface.storage import make_folder, write, write_text

C = TypeVar("C")
DESCRIPTION = "judge.json"


def described(folder: Path, weights: str, of: type[C]) -> tuple[C, str]:
    """What a judge's folder says of it, and the hash of its weights' file.

    Args:
        weights: the name of that file.
        of: the dataclass of the description.

    Raises:
        UserError: one of both files is missing or damaged, or they do not belong together.
    """
    for name in (weights, DESCRIPTION):
        if not (folder / name).exists():
            raise UserError(f"no judge in {str(folder)!r}: it has no file {name}.")
    path = folder / DESCRIPTION
    told, found = read_json(path, "judge"), short_hash(folder / weights)
    recorded = told.pop("sha256", None) if isinstance(told, dict) else None
    config = checked(of, told, f"the judge {str(path)!r}")
    if found != recorded:
        raise UserError(
            f"{str(folder / weights)!r} has the hash {found}, but {DESCRIPTION} says {recorded}: "
            "take both files from the same training run."
        )
    return config, found


def keep(folder: Path, weights: str, tensors: dict[str, Tensor], config: Any) -> str:
    """Write both files; gives the hash of the weights'."""
    make_folder(folder)
    write(folder / weights, lambda path: save_file(tensors, path))
    found = short_hash(folder / weights)
    told = json.dumps({**asdict(config), "sha256": found}, indent=1) + "\n"
    write_text(folder / DESCRIPTION, told)
    return found


def shipped(version: str, own: str) -> None:
    """Refuse another version than the one that ships.

    Raises:
        UserError: names both.
    """
    if version != own:
        raise UserError(f"no judge {version!r} ships; the shipped one is {own!r}.")


def short_hash(path: Path) -> str:
    """The first 12 digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
