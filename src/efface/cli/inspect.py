"""``efface inspect``: what an edit holds and where it came from, or what a folder lost."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from efface.cli.apply import told
from efface.cli.runfolder import scores_of
from efface.cli.terminal import Json, parsed, show
from efface.edits.edit import Edit
from efface.edits.ledger import Ledger, checked
from efface.scores import Score


@dataclass(frozen=True)
class Options:
    """What is looked at."""

    edit: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FOLDER")]
    """A run's folder, an edit file, or a diffusers folder that edits were applied to."""
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface inspect EDIT``."""
    o = parsed(Options, args, "efface inspect")
    if (o.edit / "model_index.json").is_file():
        return folder(o.edit, o.json)
    edit = Edit.load(o.edit)
    sizes = {k: list(w.shape) for k, w in edit.weights.items()}
    found = scores_of(o.edit, edit) or {}
    known = ("protocol", "judge", "edited", "difference")
    scores: dict[str, Any] = {k: found[k] for k in known if k in found}
    if o.json:
        said = {"digest": edit.digest, **edit.meta, "scores": scores or None, "weights": sizes}
        print(json.dumps(said, indent=1))
        return 0
    m = edit.meta
    show(
        [
            ["erases", "; ".join(map(arrow, m.get("concepts", [])))],
            ["base model", f"{m.get('model')} (hash {m.get('base')})"],
            ["settings", json.dumps(m.get("config", {}))],
            ["strength", f"{edit.strength:g}"],
            ["precision", ", ".join(str(m[k]) for k in ("dtype", "quantised") if k in m)],
            ["cost", json.dumps(m.get("cost", {}))],
            ["scores", summary(scores) if scores else unscored(o.edit)],
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


def arrow(concept: Mapping[str, Any]) -> str:
    """An erased concept, and what it is steered to."""
    return f"{concept['name']} -> {concept['anchor']}".removesuffix(" -> ")


def unscored(path: Path) -> str:
    """What is said where there are no scores."""
    if path.is_dir():
        return f"none yet: efface score {shlex.quote(str(path))}"
    return "none: they are kept in a run's folder"


def folder(path: Path, as_json: bool) -> int:
    """What was erased from a model's folder, by its ledger."""
    ledger = Ledger.read(path)
    if ledger is not None:
        files = checked(path)
        if as_json:
            found = {**asdict(ledger), "checked": dict(files)}
            print(json.dumps(found, indent=1))
            return 0
        told(path, ledger, as_json)
        print()
        show([list(row) for row in files], ["file", "state"])
        return 0
    said = f"{path}: nothing was erased from it; it has no ledger (erasures.json)."
    print("null" if as_json else said)
    return 0


def summary(found: Mapping[str, Any]) -> str:
    """Scores in a line."""
    parts = [f"{k} {Score(**s)}" for k, s in found.get("edited", {}).items()]
    return f"{'; '.join(parts)} ({found.get('protocol', 'emoji-objects')}, {found.get('judge')})"
