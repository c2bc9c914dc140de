"""The fixed benchmark set of the shipped model, and one evaluation of an edit under it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from efface.edit import Edit
from efface.errors import UserError
from efface.metrics import Judge, Seen, see
from efface.models import MODELS, DiffusionModel
from efface.samples import Wanted, generate, settings_of


@dataclass(frozen=True)
class Benchmark:
    """What is erased, what must survive, and what the model knows."""

    names: tuple[str, ...]
    """Every concept of the model."""
    erasable: tuple[str, ...]
    """Ten concepts of everyday relevance."""
    splits: dict[str, tuple[str, ...]]
    """Five of them each, erased at once: the analogue of the four splits of Imagenette in
    arXiv:2410.15618."""
    neighbours: dict[str, tuple[str, ...]]
    """Named relatives of each, that must survive."""
    styles: tuple[str, ...]
    """How five styles are asked for."""

    def near(self, erased: Sequence[str]) -> tuple[str, ...]:
        """The named neighbours of what is erased, each once, without the erased."""
        found = dict.fromkeys(n for c in erased for n in self.neighbours.get(c, ()))
        return tuple(n for n in found if n not in set(erased))


@cache
def shipped(model: str = "emoji") -> Benchmark:
    """The benchmark set of a shipped model."""
    folder = MODELS[model].folder
    raw = json.loads((folder / "benchmark.json").read_text(encoding="utf8"))
    names = json.loads((folder / "concepts.json").read_text(encoding="utf8"))["concepts"]
    return Benchmark(
        tuple(c["name"] for c in names),
        tuple(raw["erasable"]),
        {k: tuple(v) for k, v in raw["splits"].items()},
        {k: tuple(v) for k, v in raw["neighbours"].items()},
        tuple(raw["styles"]),
    )


def pictures(concepts: Sequence[str], seeds: Sequence[int]) -> list[Wanted]:
    """One picture a (concept, seed); the prompt is the bare name."""
    return [Wanted(c, s, c) for c in concepts for s in seeds]


def cache_folder() -> Path:
    """Where pictures of unedited models are kept: ``$EFFACE_CACHE`` or ``~/.cache/efface``."""
    return Path(os.environ.get("EFFACE_CACHE", "~/.cache/efface")).expanduser()


def evaluate(
    model: DiffusionModel,
    edit: Edit | None,
    folder: Path | None,
    concepts: Sequence[str],
    seeds: Sequence[int],
    judge: Judge,
    steps: int | None = None,
    progress: bool = True,
) -> Seen:
    """Make (or find) the pictures of these concepts and judge them.

    Args:
        edit: None: the unedited model, whose pictures are kept in the cache folder.
        folder: where the edit's pictures go.

    Raises:
        UserError: a concept that the judge does not know.
    """
    for c in concepts:
        judge.index(c)
    if folder is None:
        s = settings_of(model, edit, steps, None)
        folder = cache_folder() / "unedited" / f"{s.base}-{s.steps}-{s.guidance:g}-{s.dtype}"
    return see(
        generate(model, pictures(concepts, seeds), folder, edit, steps, progress=progress), judge
    )


def judge_for(model: DiffusionModel) -> Judge:
    """The shipped judge; it knows the shipped model's concepts only.

    Raises:
        UserError: another model.
    """
    if model.name not in MODELS:
        raise UserError(
            f"no judge ships for {model.name!r}; scores need one of: {', '.join(MODELS)}."
        )
    return Judge.load()
