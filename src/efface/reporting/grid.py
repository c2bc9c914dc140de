"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import escaped
from efface.evaluation.samples import Wanted, draw
from efface.models import DiffusionModel, to_image
from efface.storage import write

CELL = 96
"""Side of a picture in a grid, in pixels."""
PICTURE = "before-after.png"
"""The grid of a run, in its folder."""
MOST = 20
"""Erased concepts that are shown, of more."""
SLOW = 1e11
"""Numbers of a denoiser times positions of a latent from which on a CPU takes long for a picture:
Stable Diffusion's at 512 pixels are 3.5e12, the shipped model's 3e9."""


@dataclass(frozen=True)
class Preview:
    """How many pictures a run is shown by, and how large."""

    erased: int
    """Erased concepts that are shown."""
    hurt: int = 5
    """Preserved concepts, worst hurt first."""
    seeds: int = 2
    """Pictures of each."""
    steps: int | None = None
    """Sampling steps; None: the model's."""
    size: int = 0
    """Side in pixels; 0: the model's."""
    words: int = 400
    """Candidates for the worst hurt."""

    @classmethod
    def of(cls, model: DiffusionModel, erased: int) -> Preview:
        """As a model is wont to be shown; fewer and smaller where that would take long.

        Args:
            erased: how many concepts are.
        """
        numbers = sum(p.numel() for p in model.parameters().values())
        positions = model.latent_shape[1] * model.latent_shape[2]
        erased = min(erased, MOST)
        if model.device.type != "cpu" or numbers * positions < SLOW:
            return cls(erased)
        side = min(256, *model.picture_size)
        return cls(min(erased, 2), 2, 1, min(15, model.steps), side, 16)

    @property
    def small(self) -> bool:
        """Whether it is less than usual."""
        return self.size > 0

    @property
    def pictures(self) -> int:
        """How many are drawn, twice."""
        return (self.erased + self.hurt) * self.seeds

    def evaluations(self, model: DiffusionModel) -> int:
        """What drawing them takes, of the edited and of the unedited model."""
        each = (self.steps or model.steps) * (2 if model.guides == "cfg" else 1)
        return 2 * self.pictures * each

    def share(self, model: DiffusionModel) -> float:
        """Positions of a latent, in units of the model's own."""
        return (self.size / model.picture_size[0]) ** 2 if self.size else 1.0


def before_after(
    model: DiffusionModel,
    edit: Edit,
    erased: Sequence[str],
    hurt: Sequence[str],
    path: Path,
    preview: Preview | None = None,
) -> Path:
    """A grid: a column a concept and seed, the unedited model above the edited one, at equal seeds.

    Args:
        erased: concepts of the left block.
        hurt: preserved concepts of the right block, worst hurt first.
        preview: how many, and how large; a bar is shown where they are small, as they take long.
    """
    p = preview or Preview.of(model, len(erased))
    erased, hurt = erased[: p.erased], hurt[: p.hurt]
    columns = [(c, s) for c in (*erased, *hurt) for s in range(p.seeds)]
    wanted = [Wanted(c, s, c) for c, s in columns]
    drawn = model.at(p.size) if p.small else model
    rows = [list(draw(drawn, e, wanted, p.steps, progress=p.small)) for e in (None, edit)]
    sheet = grid(rows, [c for c, _ in columns], len(erased) * p.seeds, p.seeds)
    write(path, lambda p: sheet.save(p, format="PNG"))
    return path


def becomes(
    model: DiffusionModel,
    concepts: Sequence[Concept],
    path: Path,
    seeds: Sequence[int] = (0, 1),
) -> Path:
    """A grid: a column a concept and seed, the concept above its anchor, by the unedited model.

    A style and its anchor are shown by a thing in them.
    """
    columns = [(c, s) for c in concepts for s in seeds]
    texts = [[c.shown.prompt for c, _ in columns], [c.shown.instead for c, _ in columns]]
    rows = [
        list(draw(model, None, [Wanted(n, s, n) for n, (_, s) in pairs], progress=False))
        for pairs in (list(zip(some, columns, strict=True)) for some in texts)
    ]
    names = [f"{c.name} -> {c.anchor}" for c, _ in columns]
    sheet = grid(rows, names, len(columns), len(seeds), ("now", "to be"))
    write(path, lambda p: sheet.save(p, format="PNG"))
    return path


def grid(
    rows: Sequence[Sequence[torch.Tensor]],
    names: Sequence[str],
    split: int,
    span: int,
    labels: Sequence[str] = ("before", "after"),
    kept: str = "preserved, worst hurt first",
) -> Image.Image:
    """Rows of pictures under their columns' names.

    A gap comes after ``split`` columns; ``span`` columns share a name.

    Args:
        labels: what stands before each row.
        kept: what stands over the columns after the gap.
    """
    top, left, gap = 62, 70, 24
    font, bold = ImageFont.load_default(13), ImageFont.load_default(15)
    beside, width = left + CELL * split + gap, left + CELL * len(names) + gap + 10
    if split < len(names):
        width = max(width, beside + round(bold.getlength(kept)) + 10)
    sheet = Image.new("RGB", (width, top + len(rows) * (CELL + 6) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((left, 6), "erased", font=bold, fill="#b00020")
    if split < len(names):
        draw.text((beside, 6), kept, font=bold, fill="#1a6b2f")
    for k, name in enumerate(names):
        x = left + CELL * k + (gap if k >= split else 0)
        if k % span == 0:
            text, own = legible(escaped(name), 13)
            for i, line in enumerate(wrap(draw, text, own, CELL * span - 6)):
                draw.text((x, 28 + 15 * i), line, font=own, fill="black")
        for y, row in enumerate(rows):
            sheet.paste(
                to_image(row[k]).resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS),
                (x, top + y * (CELL + 6)),
            )
    for y, label in enumerate(labels[: len(rows)]):
        draw.text((10, top + y * (CELL + 6) + CELL // 2 - 8), label, font=font, fill="black")
    return sheet


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def legible(text: str, size: int) -> tuple[str, Font]:
    """A text, and a font that has its signs: Pillow's own, matplotlib's, or one of the system's.

    A sign that none of them has is written as its number.
    """
    if text.isascii():  # more has Pillow's own font not
        return text, ImageFont.load_default(size)
    from matplotlib import get_data_path

    first = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    wanted = set(map(ord, text))
    if not wanted <= signs(first):
        from matplotlib.font_manager import fontManager

        for path in (entry.fname for entry in fontManager.ttflist):
            if "LastResort" in path:  # has a box for every sign
                continue
            if wanted <= signs(path):
                with suppress(OSError):  # one of coloured pictures has no such size
                    return text, ImageFont.truetype(path, size)
    known = signs(first) | {0x200D}
    told = "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)
    return told, ImageFont.truetype(first, size)


@cache
def signs(path: str) -> frozenset[int]:
    """The numbers of the signs that a font has; none, of a damaged one."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def wrap(draw: ImageDraw.ImageDraw, text: str, font: Font, room: int, most: int = 2) -> list[str]:
    """Lines of a text that fit into ``room`` pixels; what more than ``most`` would hold is cut."""

    def fits(line: str) -> bool:
        return draw.textlength(line, font=font) <= room

    lines = [""]
    for word in text.split():
        if fits(f"{lines[-1]} {word}".strip()):
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines += [""] * bool(lines[-1])
        for letter in word:  # one that is longer than a line goes on in the next
            lines += [""] * (not fits(lines[-1] + letter))
            lines[-1] += letter
    if len(lines) > most:
        last = lines[most - 1]
        while last and not fits(f"{last}..."):
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last}..."]
    return lines
