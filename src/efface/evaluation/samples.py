"""Pictures on disk, each with its prompt, seed and concept; scoring them is separate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.models import DiffusionModel, Weights
from efface.models.identity import identity
from efface.settings import checked, read
from efface.storage import PART, hold, make_folder, read_text, sweep, write, write_text

ABOUT, LOG = "samples.json", "samples.jsonl"


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
        plain = plain.encode()[:120].decode(errors="ignore")  # file systems count bytes
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
    model: str = ""
    """Hash of all that draws: weights and configs of every part, tokenizers, scheduler."""


@dataclass(frozen=True)
class Row(Wanted):
    """A picture that was asked for: a line of ``samples.jsonl``."""

    batch: int = -1
    """Number of the pictures' batch, which are drawn together each time; -1: of none."""
    of: int = 0
    """How many are in it."""

    @property
    def wanted(self) -> Wanted:
        """The picture."""
        return Wanted(self.prompt, self.seed, self.concept)


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
        """A finished or unfinished sample set: the pictures that are there.

        Raises:
            UserError: not a folder of ours; names the file, and the field or line.
        """
        for name in (ABOUT, LOG):
            if not (folder / name).exists():
                raise UserError(
                    f"{str(folder)!r} is no folder of samples ({ABOUT} and {LOG}): no {name}."
                )
        settings = read(Settings, folder / ABOUT, "samples' settings")
        rows = dict.fromkeys(r.wanted for r in read_log(folder / LOG).rows)
        return cls(folder, tuple(w for w in rows if (folder / w.file).exists()), settings)


class Log(NamedTuple):
    """What ``samples.jsonl`` says."""

    rows: list[Row]
    end: int
    """Bytes of it; what comes behind is what a killed process began to write."""


def read_log(path: Path) -> Log:
    """The rows of a file at whose end may be half a line, or half a batch.

    Raises:
        UserError: a line that is no row; names it.
    """
    rows: list[Row] = []
    lines = read_text(path, "samples").splitlines(keepends=True)
    for i, line in enumerate(lines, 1):
        where = f"{str(path)!r}, line {i}"
        if not line.endswith("\n"):
            lines.pop()
            break
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{where} is broken JSON.") from None
        rows.append(checked(Row, found, where))
    last = rows[-1] if rows else Row("", 0, "")
    n = sum(r.batch == last.batch for r in rows[-last.of :]) if last.of else 0
    if n < last.of:
        del rows[-n:], lines[-n:]
    return Log(rows, sum(len(line.encode()) for line in lines))


def load_image(path: Path) -> Tensor:
    """A picture file as (3, H, W) in [0, 1].

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as found:
            values = np.array(found.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise UserError(
            f"the picture {str(path)!r} cannot be read ({e}): delete it, and make it again."
        ) from None
    return torch.from_numpy(values).permute(2, 0, 1).float() / 255


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
        identity(model),
    )


Apart = Callable[[Sequence[Sequence[Wanted]]], Iterable[tuple[Sequence[Wanted], Sequence[Tensor]]]]
"""Draws batches elsewhere, and gives each once it is drawn, in any order: pictures as bytes."""


class Painter:
    """Draws what is drawn together."""

    def __init__(self, model: DiffusionModel, edit: Edit | None) -> None:
        self.model, self.edit = model, edit

    @cached_property
    def weights(self) -> Weights | None:
        """What lies over the model's own, whatever the prompt."""
        return self.edit.on(self.model) if self.edit else None

    def drawn(self, batch: Sequence[Wanted], steps: int | None, guidance: float | None) -> Tensor:
        """The pictures of a batch, (N, 3, H, W) in bytes; where there are gates, of one prompt."""
        weights = self.weights
        if self.edit is not None and self.edit.gates:
            weights = self.edit.on(self.model, batch[0].prompt)
        prompts, seeds = [w.prompt for w in batch], [w.seed for w in batch]
        pictures = self.model.generate(
            prompts, seeds, steps, guidance, weights, batch=len(batch), output_type="pt"
        )
        return torch.stack([(x * 255).round().byte() for x in pictures])


def generate(
    model: DiffusionModel,
    wanted: Sequence[Wanted],
    folder: Path,
    edit: Edit | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    progress: bool = True,
    apart: Apart | None = None,
) -> Samples:
    """Make the pictures that are not there yet.

    Killed and started again, it ends with the same pictures, byte for byte: each is drawn in the
    batch that the log says. Several processes may fill one folder.

    Args:
        folder: made where it is missing.
        edit: None: the base model.
        apart: draws batches elsewhere; None: here, one after the other.

    Raises:
        UserError: the folder holds something else, other settings, or cannot be written.
    """
    settings = settings_of(model, edit, steps, guidance)
    if edit is not None:
        edit.check(model)
    prepare(folder, settings)
    sweep(folder)
    missing = [b for b in batches(model, edit, wanted, folder) if not all(there(folder, b))]
    total = sum(map(len, missing))
    bar = tqdm(total=total, desc="generate", unit="picture", disable=not (progress and missing))
    painter = Painter(model, edit)

    def here() -> Iterator[tuple[Sequence[Wanted], Sequence[Tensor]]]:
        for some in missing:
            note(folder / LOG, some)
            known = all(there(folder, some))  # another process may have been quicker
            yield some, () if known else list(painter.drawn(some, steps, guidance))

    for some in missing if apart is not None else ():
        note(folder / LOG, some)
    for batch, pictures in apart(missing) if apart is not None else here():
        for w, picture in zip(batch, pictures, strict=False):
            if not (folder / w.file).exists():
                image = Image.fromarray(picture.permute(1, 2, 0).numpy())
                write(folder / w.file, partial(image.save, format="PNG"), lasting=False)
        bar.update(len(batch))
    bar.close()
    note(folder / LOG, wanted, begun=False)  # what is there already, but as something else
    return Samples(folder, tuple(dict.fromkeys(wanted)), settings)


def there(folder: Path, some: Sequence[Wanted]) -> list[bool]:
    """Whether each picture is there."""
    return [(folder / w.file).exists() for w in some]


def batches(
    model: DiffusionModel, edit: Edit | None, wanted: Sequence[Wanted], folder: Path
) -> list[list[Wanted]]:
    """What is drawn together: batches that were begun, then the rest of ``wanted`` in order.

    A picture differs in its last bit with what is drawn beside it.
    """
    begun: dict[int, list[Wanted]] = {}
    home: dict[str, int] = {}
    for row in read_log(folder / LOG).rows:
        if row.batch >= 0 and home.setdefault(row.file, row.batch) == row.batch:
            begun.setdefault(row.batch, []).append(row.wanted)
    asked: dict[str, Wanted] = {}
    for w in wanted:
        asked.setdefault(w.file, w)
    again = dict.fromkeys(home[file] for file in asked if file in home)
    fresh = [w for file, w in asked.items() if file not in home and not (folder / file).exists()]
    size = max(1, model.at_once // 4)
    alike = [fresh]
    if edit is not None and edit.gates:  # they open for one prompt at a time
        alike = [list(some) for _, some in groupby(fresh, lambda w: w.prompt)]
    new = [some[i : i + size] for some in alike for i in range(0, len(some), size)]
    return [*(begun[i] for i in again), *new]


def note(log: Path, some: Sequence[Wanted], begun: bool = True) -> None:
    """Put pictures into the log that are not in it, each once.

    Processes that fill one folder wait for each other here.

    Args:
        begun: they are a batch that is about to be drawn.
    """
    try:
        with log.open("r+b") as f:
            hold(f)
            rows, end = read_log(log)
            known = {r.wanted for r in rows}
            new = [w for w in dict.fromkeys(some) if w not in known]
            if new:
                number = max((r.batch for r in rows), default=-1) + 1 if begun else -1
                of = len(new) if begun else 0
                made = [Row(w.prompt, w.seed, w.concept, number, of) for w in new]
                text = "".join(json.dumps(asdict(row)) + "\n" for row in made)
                f.seek(end)
                f.truncate()
                f.write(text.encode())
                f.flush()
    except OSError as e:
        raise UserError(f"cannot write {str(log)!r}: {e.strerror}.") from None


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


def prepare(folder: Path, settings: Settings) -> None:
    """Make or check a sample folder.

    Raises:
        UserError: it holds something else, other settings, or cannot be made.
    """
    about = folder / ABOUT
    if about.exists():
        sweep(folder)
        found = Samples.open(folder)
        if found.settings != settings:
            differ = [k for k, v in asdict(settings).items() if asdict(found.settings)[k] != v]
            raise UserError(
                f"{str(folder)!r} holds pictures made with another {', '.join(differ)}; "
                "name another folder."
            )
        return
    if folder.is_dir() and any(not begun(p.name) for p in folder.iterdir()):
        raise UserError(
            f"{str(folder)!r} is not empty and holds no samples of ours; name another folder."
        )
    make_folder(folder)
    (folder / LOG).touch()  # another process may have begun it
    write_text(about, json.dumps(asdict(settings)) + "\n")


def begun(name: str) -> bool:
    """Whether a file is what another process writes first into a folder of samples."""
    return name in (ABOUT, LOG) or PART.fullmatch(name) is not None
