"""What the stages share: folders, names, prompts, timing, and resuming."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
BUILD = HERE / "build"
ASSETS = HERE.parents[1] / "src" / "efface" / "assets" / "emoji"
SIZE = 64

STYLES = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat", "fxemoji", "streamline-emojis")
"""Icon sets that the model is trained on, in the order of their index in ``data.npz``."""
JUDGE_ONLY = ("noto-v1",)
"""Too close to noto to be a style of its own: more drawings for the concept judge."""
HELD_OUT = "emojione"
"""Never trained on by anything: it measures how far the judges generalise."""
WORDS = {
    "noto": "noto style",
    "twemoji": "twemoji style",
    "fluent-emoji": "fluent style",
    "fluent-emoji-flat": "flat style",
    "fxemoji": "firefox style",
    "streamline-emojis": "streamline style",
}
"""How a style is asked for in a prompt."""


def article(name: str) -> str:
    """``a dog face``, ``an eagle``; plurals and proper names keep theirs bare."""
    plural = (name.endswith("s") and not name.endswith(("ss", "us"))) or name in {
        "bacon",
        "bread",
        "rice",
    }
    if plural:
        return name
    return (
        f"an {name}"
        if name[0].lower() in "aeiou" and not name.lower().startswith(("uni", "eu"))
        else f"a {name}"
    )


@contextmanager
def stage(name: str) -> Iterator[dict[str, Any]]:
    """Time a stage, and write what it measured to ``build/<name>.json``."""
    BUILD.mkdir(exist_ok=True)
    report: dict[str, Any] = {}
    start = time.perf_counter()
    yield report
    report["minutes"] = round(report.get("minutes", 0) + (time.perf_counter() - start) / 60, 2)
    (BUILD / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{name}: {json.dumps(report)}")


def load_data(styles: tuple[str, ...] = STYLES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (N, 3, 64, 64) in [-1, 1], concept index (N,), style index (N,), of the named sets."""
    with np.load(BUILD / "data.npz") as f:
        names = json.loads((BUILD / "concepts.json").read_text())["styles"]
        keep = np.isin(f["style"], [names.index(s) for s in styles])
        x = torch.from_numpy(f["images"][keep]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return (
            x,
            torch.from_numpy(f["concept"][keep]).long(),
            torch.from_numpy(f["style"][keep]).long(),
        )


@cache
def concepts() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((BUILD / "concepts.json").read_text())["concepts"]
    return found


def checkpoint(name: str, state: Callable[[], dict[str, Any]]) -> Path:
    """Save a stage's state, whole or not at all, for ``resume``."""
    path = BUILD / f"{name}.ckpt"
    torch.save(state(), path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
    return path


def resume(name: str) -> dict[str, Any] | None:
    """The state that a killed run of this stage left, or None."""
    path = BUILD / f"{name}.ckpt"
    return torch.load(path, weights_only=True) if path.exists() else None


def augment(x: torch.Tensor, generator: torch.Generator, shift: int = 2) -> torch.Tensor:
    """Each picture (B, 3, H, W) flipped or not, and moved by up to ``shift`` pixels on white."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    padded = torch.nn.functional.pad(x, (shift,) * 4, value=1.0)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, len(x)), generator=generator).tolist()
    return torch.stack(
        [
            p[:, a : a + x.shape[-2], b : b + x.shape[-1]]
            for p, a, b in zip(padded, dy, dx, strict=True)
        ]
    )


TEMPLATES = *["{}"] * 6, "a picture of {}", "a drawing of {}", "{} emoji"
"""How a concept is asked for; the bare name most often."""


def captions(
    concept: int, style: int, draw: random.Random, tags: float, styled: float = 0.5
) -> tuple[str, int, int | None]:
    """A caption for a drawing, and the concept and (if it names one) the style in it.

    Args:
        tags: share of captions that give one of the concept's search tags instead of its name.
        styled: share of captions that name the style.
    """
    row = concepts()[concept]
    if row["tags"] and draw.random() < tags:
        words = draw.choice(row["tags"])
    else:
        words = draw.choice(TEMPLATES).format(
            article(row["name"]) if draw.random() < 1 / 3 else row["name"]
        )
    if draw.random() < styled:
        return f"{words}, {WORDS[STYLES[style]]}", concept, style
    return words, concept, None
