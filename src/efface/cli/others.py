"""The small commands: generate, inspect, merge, and what there is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from efface.cli.filing import scores_of
from efface.cli.terminal import first_line, parsed, show
from efface.concepts import parse
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.samples import Wanted
from efface.evaluation.samples import generate as generate_samples
from efface.methods import METHODS
from efface.models import FAMILIES, MODELS, load
from efface.scores import Score
from efface.settings import to_json
from efface.vocabulary import load as load_vocabulary


@dataclass(frozen=True)
class Generate:
    """What is drawn."""

    prompt: tuple[str, ...] = ()
    """A prompt; again for more."""
    out: Path = Path("pictures")
    """The folder for the pictures."""
    edit: Path | None = None
    """A run's folder or an edit file."""
    model: str = "emoji"
    """A shipped model, a diffusers folder, or a hub id."""
    seeds: int = 1
    """Pictures of each prompt, seeds 0, 1, …"""
    steps: int | None = None
    """Sampling steps; default: the model's."""
    guidance: float | None = None
    """Scale of classifier-free guidance; default: the model's."""
    size: int = 0
    """Side of a picture in pixels; 0: what the model was made for."""
    dtype: str = "fp32"
    """fp32, bf16 or fp16."""
    device: str | None = None
    """A torch device; default: the best there is."""
    json: bool = False
    """Print the result as JSON."""


def generate(args: list[str]) -> int:
    """``efface generate --prompt …``."""
    o = parsed(Generate, args, "efface generate")
    if not o.prompt:
        raise UserError("nothing to draw; give --prompt TEXT (again for more).")
    if o.seeds < 1:
        raise UserError(f"got {o.seeds} seeds; at least 1 is needed.")
    edit = Edit.load(o.edit) if o.edit else None
    model = load(o.model, o.dtype, o.device, o.size)
    wanted = [Wanted(p, s, p) for p in o.prompt for s in range(o.seeds)]
    made = generate_samples(model, wanted, o.out, edit, o.steps, o.guidance)
    rows = [[r.prompt, str(r.seed), str(made.folder / r.file)] for r in made.rows]
    print(
        json.dumps([dict(zip(("prompt", "seed", "file"), r, strict=True)) for r in rows], indent=1)
    ) if o.json else show(rows, ["prompt", "seed", "file"])
    return 0


@dataclass(frozen=True)
class OneEdit:
    """An edit."""

    edit: tyro.conf.Positional[Path]
    """A run's folder or an edit file."""
    json: bool = False
    """Print the result as JSON."""


def inspect(args: list[str]) -> int:
    """``efface inspect EDIT``."""
    o = parsed(OneEdit, args, "efface inspect")
    edit = Edit.load(o.edit)
    sizes = {k: list(w.shape) for k, w in edit.weights.items()}
    found = scores_of(o.edit) or {}
    known = ("protocol", "judge", "edited", "difference")
    scores: dict[str, Any] = {k: found[k] for k in known if k in found}
    if o.json:
        told = {"digest": edit.digest, **edit.meta, "scores": scores or None, "weights": sizes}
        print(json.dumps(told, indent=1))
        return 0
    m = edit.meta
    config = json.dumps(m.get("config", {}))
    show(
        [
            [
                "erases",
                "; ".join(
                    c["name"] + (f" -> {c['anchor']}" if c["anchor"] else "")
                    for c in m.get("concepts", [])
                ),
            ],
            ["base model", f"{m.get('model')} (hash {m.get('base')})"],
            ["settings", config],
            ["precision", ", ".join(str(m[k]) for k in ("dtype", "quantised", "adam") if k in m)],
            ["cost", json.dumps(m.get("cost", {}))],
            ["scores", summary(scores) if scores else f"none yet: efface score {o.edit}"],
            ["digest", edit.digest],
            ["efface", str(m.get("efface"))],
            [
                "weights",
                f"{len(sizes)} tensors, {sum(w.numel() for w in edit.weights.values()):,} numbers",
            ],
            *[["", f"{k} {tuple(v)}"] for k, v in list(sizes.items())[:6]],
            *([["", "…"]] if len(sizes) > 6 else []),
        ],
        ["method", str(m.get("method"))],
    )
    return 0


def summary(found: Mapping[str, Any]) -> str:
    """Scores in a line."""
    parts = [f"{k} {Score(**s)}" for k, s in found.get("edited", {}).items()]
    return f"{'; '.join(parts)} ({found.get('protocol', 'emoji-objects')}, {found.get('judge')})"


def models(args: list[str]) -> int:
    """``efface models``."""
    rows = [[n, s.about] for n, s in MODELS.items()]
    known = ", ".join(f.label for f in FAMILIES.values())
    rows += [
        [
            "DIR",
            f"a local diffusers folder (safetensors): {known}",
        ],
        ["FILE", "a .safetensors file of one of these in the original layout"],
        ["OWNER/NAME", "such a model on the Hugging Face hub"],
    ]
    print(
        json.dumps({n: s.about for n, s in MODELS.items()}, indent=1)
    ) if "--json" in args else show(rows, ["model", "is"])
    return 0


def methods(args: list[str]) -> int:
    """``efface methods``."""
    if "--json" in args:
        found = {
            n: {
                "about": first_line(m),
                "settings": to_json(m()),
                "presets": {p: to_json(c) for p, c in m.presets().items()},
            }
            for n, m in METHODS.items()
        }
        print(json.dumps(found, indent=1))
        return 0
    show(
        [[n, first_line(m), ", ".join(m.presets())] for n, m in METHODS.items()],
        ["method", "is", "presets"],
    )
    print(
        "\nweight groups: "
        + "; ".join(f"{f.label}: {', '.join(f.groups)}" for f in FAMILIES.values())
        + "\n"
        "efface erase METHOD --help shows a method's settings."
    )
    return 0


@dataclass(frozen=True)
class VocabularyOptions:
    """Which words."""

    source: tyro.conf.Positional[str] = "auto"
    """auto, names, tags, tokens, or a word list file."""
    concept: tuple[str, ...] = ()
    """Leave out what asks for this concept, and list the nearest to the first one."""
    nearest: int = 20
    """How many are listed."""
    model: str = "emoji"
    """A shipped model, a diffusers folder, or a hub id."""
    json: bool = False
    """Print the result as JSON."""


def vocabulary(args: list[str]) -> int:
    """``efface vocabulary``."""
    o = parsed(VocabularyOptions, args, "efface vocabulary")
    model = load(o.model)
    concepts = [parse(c) for c in o.concept]
    words = load_vocabulary(o.source, model).without(concepts, model.tokenizer)
    if concepts:
        words = words.pool(model, concepts[0], 0, min(o.nearest, len(words)), "nearest")
    listed = words.words[: o.nearest] if o.nearest else words.words
    print(json.dumps({"source": words.source, "words": listed}, indent=1)) if o.json else print(
        "\n".join(listed)
    )
    return 0
