"""What attacks found, kept on disk where somebody asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from efface.evaluation.trial import Found, Keep
from efface.models import to_image
from efface.models.files.tensors import save
from efface.names import slug
from efface.storage import make_folder, write, write_text


class Finds:
    """A folder of artefacts: what was said, its tensors, and its pictures side by side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keeper(self, unit: str) -> Keep:
        """Keeps what a unit finds, under its name."""
        attack, role, concept = unit.split("/", 2)
        stem = "-".join([attack, role, slug([concept])])
        number = iter(range(10**9))

        def keep(found: Found) -> None:
            make_folder(self.folder)
            path = self.folder / f"{stem}-{next(number)}"
            told = {"at": found.row.at, **found.artefact.said(), "hits": list(found.row.hits)}
            write_text(path.with_suffix(".json"), json.dumps(told, indent=1) + "\n")
            tensors = found.artefact.tensors()
            if tensors:
                plain = {k: w.detach().cpu().float().contiguous() for k, w in tensors.items()}
                save(path.with_suffix(".safetensors"), plain, {"kind": found.artefact.kind})
            if found.pictures is not None:
                strip = to_image(torch.cat(list(found.pictures), 2))
                png: Callable[[Path], object] = partial(strip.save, format="PNG")
                write(path.with_suffix(".png"), png, lasting=False)

        return keep
