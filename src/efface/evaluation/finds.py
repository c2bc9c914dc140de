"""What attacks found, as files, where somebody asks for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save

from efface.evaluation.trial import Found
from efface.models import to_image
from efface.names import slug
from efface.storage import make_folder, write


class Finds:
    """Files of what a unit found: what was said, its tensors, and its pictures side by side.

    They are held in memory: a unit is done as a whole or not at all, and maybe elsewhere.
    """

    def __init__(self, unit: str) -> None:
        attack, role, concept = unit.split("/", 2)
        self.stem = "-".join([attack, role, slug([concept])])
        self.files: dict[str, bytes] = {}
        self.number = 0

    def keep(self, found: Found) -> None:
        """Take something in."""
        name = f"{self.stem}-{self.number}"
        self.number += 1
        told = {"at": found.row.at, **found.artefact.said(), "hits": list(found.row.hits)}
        self.files[f"{name}.json"] = (json.dumps(told, indent=1) + "\n").encode()
        tensors = found.artefact.tensors()
        if tensors:
            plain = {k: w.detach().cpu().float().contiguous() for k, w in tensors.items()}
            self.files[f"{name}.safetensors"] = save(plain, {"kind": found.artefact.kind})
        if found.pictures is not None:
            png = BytesIO()
            to_image(torch.cat(list(found.pictures), 2)).save(png, format="PNG")
            self.files[f"{name}.png"] = png.getvalue()


def all_there(folder: Path, names: Sequence[str] | None) -> bool:
    """Whether a unit's files were written, and still are in their folder.

    Args:
        names: as its record has them; None: they were not kept.
    """
    return names is not None and all((folder / n).is_file() for n in names)


def write_finds(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their names.

    Raises:
        UserError: one cannot be written.
    """
    if files:
        make_folder(folder)
    for name, content in files.items():

        def put(path: Path, content: bytes = content) -> None:
            path.write_bytes(content)

        write(folder / name, put, lasting=not name.endswith(".png"))
