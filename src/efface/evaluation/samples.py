"""Pictures on disk, each with its prompt, seed and concept; scoring them is separate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.models import DiffusionModel, to_image
from efface.storage import write, write_text


@dataclass(frozen=True)
class Wanted:
    """A picture to be made."""

    prompt: str
    seed: int
    concept: str
    """What it ought to show."""

    @property
    def file(self) -> str:
        """Its file name: readable, and its own."""
        plain = "".join(c if c.isalnum() else "-" for c in self.prompt.lower())[:60]
        own = hashlib.sha256(self.prompt.encode()).hexdigest()[:6]
        return f"{plain}_{own}_{self.seed}.png"


@dataclass(frozen=True)
class Settings:
    """What makes two sample sets comparable."""

    base: str
    """Hash of the base model."""
    edit: str
    """Digest of the edit; "" for the base model itself."""
    sampler: str
    """Class of the scheduler."""
    steps: int
    guidance: float
    size: str
    """Width x height, in pixels."""
    dtype: str


@dataclass(frozen=True)
class Samples:
    """A folder of pictures with ``samples.jsonl`` (a row each) and ``samples.json`` (settings)."""

    folder: Path
    rows: tuple[Wanted, ...]
    settings: Settings

    def images(self) -> Tensor:
        """All pictures in the order of the rows, (N, 3, H, W) in [0, 1]."""
        return torch.stack([load_image(self.folder / r.file) for r in self.rows])

    @classmethod
    def open(cls, folder: Path) -> Samples:
        """A finished or unfinished sample set.

        Raises:
            UserError: not a folder of ours.
        """
        try:
            settings = Settings(**json.loads((folder / "samples.json").read_text(encoding="utf8")))
            lines = (folder / "samples.jsonl").read_text(encoding="utf8").splitlines()
            rows = tuple(dict.fromkeys(Wanted(**row) for row in whole_rows(lines)))
        except (OSError, ValueError, TypeError):
            raise UserError(
                f"{str(folder)!r} is no folder of samples (samples.json and samples.jsonl)."
            ) from None
        return cls(folder, rows, settings)


def whole_rows(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a file that a killed run may have left with half a line at its end."""
    rows = []
    for i, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if i + 1 < len(lines):
                raise
    return rows


def load_image(path: Path) -> Tensor:
    """A picture file as (3, H, W) in [0, 1]."""
    return (
        torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
    )


def settings_of(
    model: DiffusionModel, edit: Edit | None, steps: int | None, guidance: float | None
) -> Settings:
    """The settings that a generation would have.

    Raises:
        UserError: a number of steps that is not possible.
    """
    steps = model.steps if steps is None else steps
    model.check_steps(steps)
    side = "x".join(str(n) for n in model.picture_size)
    return Settings(
        model.base,
        edit.digest if edit else "",
        type(model.scheduler).__name__,
        steps,
        model.guidance if guidance is None else guidance,
        side,
        model.precision,
    )


def generate(
    model: DiffusionModel,
    wanted: Sequence[Wanted],
    folder: Path,
    edit: Edit | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    progress: bool = True,
) -> Samples:
    """Make the pictures that are not there yet.

    Killed and started again, it makes what is missing; no picture is lost or made twice.

    Args:
        folder: made where it is missing.
        edit: None: the base model.

    Raises:
        UserError: the folder holds something else, other settings, or cannot be written.
    """
    settings = settings_of(model, edit, steps, guidance)
    if edit is not None:
        edit.check(model)
    noted = prepare(folder, settings)
    missing = list({w.file: w for w in wanted if not (folder / w.file).exists()}.values())
    pictures = draw(model, edit, missing, steps, guidance, progress)
    with (folder / "samples.jsonl").open("a", encoding="utf8") as log:

        def note(w: Wanted) -> None:
            if w not in noted:
                log.write(json.dumps(asdict(w)) + "\n")  # one write: processes do not mix theirs
                log.flush()
                noted.add(w)

        for w, picture in zip(missing, pictures, strict=True):
            write(folder / w.file, partial(to_image(picture).save, format="PNG"))
            note(w)
        for w in wanted:  # made, but killed before it was noted; or asked for as something else
            note(w)
    return Samples(folder, tuple(dict.fromkeys(wanted)), settings)


def draw(
    model: DiffusionModel,
    edit: Edit | None,
    wanted: Sequence[Wanted],
    steps: int | None = None,
    guidance: float | None = None,
    progress: bool = True,
) -> Iterator[Tensor]:
    """Make pictures, each with the edit's gates as its prompt opens them.

    Yields:
        (3, H, W) in [0, 1], in the order of ``wanted``.
    """
    if edit is None or not edit.gates:
        weights = edit.on(model) if edit else None
        prompts, seeds = [w.prompt for w in wanted], [w.seed for w in wanted]
        yield from model.generate(
            prompts, seeds, steps, guidance, weights, progress=progress, output_type="pt"
        )
        return
    bar = tqdm(total=len(wanted), desc="generate", unit="picture", disable=not progress)
    for prompt, some in groupby(wanted, lambda w: w.prompt):
        seeds = [w.seed for w in some]
        weights = edit.on(model, prompt)
        yield from model.generate(
            [prompt] * len(seeds), seeds, steps, guidance, weights, output_type="pt"
        )
        bar.update(len(seeds))
    bar.close()


def begun(name: str) -> bool:
    """Whether a file is what another process writes first into a folder of samples."""
    return name in ("samples.jsonl", "samples.json") or name.startswith(".samples.json.")


def prepare(folder: Path, settings: Settings) -> set[Wanted]:
    """Make or check a sample folder; what is in it already."""
    about = folder / "samples.json"
    if about.exists():
        found = Samples.open(folder)
        if found.settings != settings:
            differ = [k for k, v in asdict(settings).items() if asdict(found.settings)[k] != v]
            raise UserError(
                f"{str(folder)!r} holds pictures made with another {', '.join(differ)}; "
                "name another folder."
            )
        log = folder / "samples.jsonl"
        text = log.read_text(encoding="utf8")
        if text and not text.endswith("\n"):  # killed while writing a row
            whole = text[: text.rfind("\n") + 1]
            write_text(log, whole)
        return set(found.rows)
    if folder.is_dir() and any(not begun(p.name) for p in folder.iterdir()):
        raise UserError(
            f"{str(folder)!r} is not empty and holds no samples of ours; name another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make {str(folder)!r}: {e.strerror}.") from None
    (folder / "samples.jsonl").touch()  # another process may have begun it
    write(about, lambda p: p.write_text(json.dumps(asdict(settings)) + "\n", encoding="utf8"))
    return set()
