"""The small commands: generate, inspect, merge, and what there is."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from efface.card import card
from efface.commands.terminal import first_line, parsed, show
from efface.concepts import parse
from efface.edit import Edit, merge, merge_single
from efface.errors import UserError, pick
from efface.lora import FORMS, factorise
from efface.lora import save as save_lora
from efface.methods import METHODS, PRESETS
from efface.models import FAMILIES, MODELS, load
from efface.samples import Wanted
from efface.samples import generate as generate_samples
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
    model = load(o.model, o.dtype, o.device)
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
    if o.json:
        print(json.dumps({"digest": edit.digest, **edit.meta, "weights": sizes}, indent=1))
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
            ["cost", json.dumps(m.get("cost", {}))],
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


@dataclass(frozen=True)
class Merge:
    """An edit, and where the whole model goes."""

    edit: tyro.conf.Positional[Path]
    """A run's folder or an edit file."""
    out: tyro.conf.Positional[Path]
    """The diffusers folder to be written, or, ending in ``.safetensors``, one file in the original
    layout for A1111 and ComfyUI; must not exist."""
    model: str = ""
    """The base model; default: the one that the edit was made for."""


def merge_command(args: list[str]) -> int:
    """``efface merge EDIT OUT``."""
    o = parsed(Merge, args, "efface merge")
    edit = Edit.load(o.edit)
    scores = (o.edit if o.edit.is_dir() else o.edit.parent) / "scores.json"
    found = json.loads(scores.read_text(encoding="utf8")) if scores.exists() else None
    model = load(o.model or edit.meta["model"])
    if o.out.suffix == ".safetensors":
        print(merge_single(model, edit, o.out))
    else:
        print(merge(model, edit, o.out, card(edit, found)))
    return 0


@dataclass(frozen=True)
class LoraOptions:
    """An edit, and where its LoRA goes."""

    edit: tyro.conf.Positional[Path]
    """A run's folder or an edit file."""
    out: tyro.conf.Positional[Path]
    """The safetensors file to be written; must not exist."""
    rank: int = 16
    """Rank of the LoRA: exact where the edit's changes have no higher one."""
    form: str = "peft"
    """Key names: peft (diffusers), or kohya (A1111, ComfyUI, diffusers)."""
    allow_error: float = 0.1
    """The largest part of the change that may be left out, 0 to 1."""
    model: str = ""
    """The base model; default: the one that the edit was made for."""
    json: bool = False
    """Print the result as JSON."""


def lora(args: list[str]) -> int:
    """``efface lora EDIT OUT``."""
    o = parsed(LoraOptions, args, "efface lora")
    edit = Edit.load(o.edit)
    pick(FORMS, o.form, "form")
    model = load(o.model or edit.meta["model"])
    found = factorise(model, edit, o.rank)
    if found.error > o.allow_error:
        raise UserError(
            f"a LoRA of rank {o.rank} leaves out {found.error:.1%} of the edit's change: "
            f"give a higher --rank, or --allow-error {math.ceil(100 * found.error) / 100:g} to "
            "write it all the same."
        )
    save_lora(model, found, o.out, o.form)
    told = {"lora": str(o.out), "rank": o.rank, "left_out": round(found.error, 6)}
    print(json.dumps(told)) if o.json else show(
        [["left out of the change", f"{found.error:.2%}"]], ["LoRA", str(o.out)]
    )
    return 0


def models(args: list[str]) -> int:
    """``efface models``."""
    rows = [[n, s.about] for n, s in MODELS.items()]
    rows += [
        ["DIR", "a local diffusers folder of Stable Diffusion 1.x or 2.x (safetensors)"],
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
                "settings": asdict(m()),
                "presets": {p: asdict(c) for p, c in PRESETS.get(n, {}).items()},
            }
            for n, m in METHODS.items()
        }
        print(json.dumps(found, indent=1))
        return 0
    show(
        [[n, first_line(m), ", ".join(PRESETS.get(n, {}))] for n, m in METHODS.items()],
        ["method", "is", "presets"],
    )
    print(
        "\nweight groups: " + "; ".join(f"{f.name}: {', '.join(f.groups)}" for f in FAMILIES) + "\n"
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
