"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
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


def before_after(
    model: DiffusionModel,
    edit: Edit,
    erased: Sequence[str],
    hurt: Sequence[str],
    path: Path,
    seeds: Sequence[int] = (0, 1),
    steps: int | None = None,
) -> Path:
    """A grid: a column a concept and seed, the unedited model above the edited one, at equal seeds.

    Args:
        erased: concepts of the left block.
        hurt: preserved concepts of the right block, worst hurt first.
    """
    columns = [(c, s) for c in (*erased, *hurt) for s in seeds]
    wanted = [Wanted(c, s, c) for c, s in columns]
    rows = [list(draw(model, e, wanted, steps, progress=False)) for e in (None, edit)]
    sheet = grid(rows, [c for c, _ in columns], len(erased) * len(seeds), len(seeds))
    write(path, lambda p: sheet.save(p, format="PNG"))
    return path


def becomes(
    model: DiffusionModel,
    concepts: Sequence[Concept],
    path: Path,
    seeds: Sequence[int] = (0, 1),
) -> Path:
    """A grid: a column a concept and seed, the concept above its anchor, by the unedited model."""
    columns = [(c, s) for c in concepts for s in seeds]
    texts = [[c.name for c, _ in columns], [c.anchor for c, _ in columns]]
    rows = [
        list(draw(model, None, [Wanted(n, s, n) for n, (_, s) in pairs], progress=False))
        for pairs in (list(zip(some, columns, strict=True)) for some in texts)
    ]
    names = [f"{c.name} → {c.anchor}" for c, _ in columns]
    sheet = grid(rows, names, len(columns), len(seeds), ("now", "to be"))
    write(path, lambda p: sheet.save(p, format="PNG"))
    return path


def grid(
    rows: Sequence[Sequence[torch.Tensor]],
    names: Sequence[str],
    split: int,
    span: int,
    labels: Sequence[str] = ("before", "after"),
) -> Image.Image:
    """Rows of pictures under their columns' names.

    A gap comes after ``split`` columns; ``span`` columns share a name.

    Args:
        labels: what stands before each row.
    """
    top, left, gap = 62, 70, 24
    width = left + CELL * len(names) + gap + 10
    sheet = Image.new("RGB", (width, top + len(rows) * (CELL + 6) + 8), "white")
    draw, font, bold = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(15)
    draw.text((left, 6), "erased", font=bold, fill="#b00020")
    if split < len(names):
        draw.text(
            (left + CELL * split + gap, 6), "preserved, worst hurt first", font=bold, fill="#1a6b2f"
        )
    for k, name in enumerate(names):
        x = left + CELL * k + (gap if k >= split else 0)
        if k % span == 0:
            room = CELL * span - 6
            for i, line in enumerate(wrap(draw, escaped(name), font, room)[:2]):
                draw.text((x, 28 + 15 * i), line, font=font, fill="black")
        for y, row in enumerate(rows):
            sheet.paste(
                to_image(row[k]).resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS),
                (x, top + y * (CELL + 6)),
            )
    for y, label in enumerate(labels[: len(rows)]):
        draw.text((10, top + y * (CELL + 6) + CELL // 2 - 8), label, font=font, fill="black")
    return sheet


def wrap(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    room: int,
) -> list[str]:
    """Lines of a text that fit into ``room`` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=font) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
