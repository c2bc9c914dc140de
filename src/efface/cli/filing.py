"""``efface merge``, ``lora``, ``apply``, ``remove``, ``combine`` and ``diff``: edits as files."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from efface.cli.terminal import parsed, show
from efface.edits.combine import ALIKE, combinable, combine, diff, overlaps
from efface.edits.edit import Edit
from efface.edits.ledger import Ledger, apply, note_merged, remove
from efface.edits.lora import FORMS, factorise
from efface.edits.lora import save as save_lora
from efface.edits.merge import merge, merge_single
from efface.errors import UserError, pick
from efface.methods import METHODS
from efface.models import load
from efface.reporting.card import card
from efface.training.joint import jointly


def scores_of(path: Path) -> dict[str, Any] | None:
    """The ``scores.json`` beside an edit, if it was scored."""
    scores = (path if path.is_dir() else path.parent) / "scores.json"
    found: dict[str, Any] | None = (
        json.loads(scores.read_text(encoding="utf8")) if scores.exists() else None
    )
    return found


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
    found = scores_of(o.edit)
    model = load(o.model or edit.meta["model"], device="cpu")
    if o.out.suffix == ".safetensors":
        print(merge_single(model, edit, o.out))
    else:
        merge(model, edit, o.out, card(edit, found))
        note_merged(o.out, model, edit, found)
        print(o.out)
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
    model = load(o.model or edit.meta["model"], device="cpu")
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


@dataclass(frozen=True)
class Apply:
    """An edit, and the model that it goes into."""

    edit: tyro.conf.Positional[Path]
    """A run's folder or an edit file."""
    folder: tyro.conf.Positional[Path]
    """A diffusers folder, which is changed in place; ``erasures.json`` in it accounts for it."""
    json: bool = False
    """Print the ledger as JSON."""


def apply_command(args: list[str]) -> int:
    """``efface apply EDIT FOLDER``."""
    o = parsed(Apply, args, "efface apply")
    return told(o.folder, apply(o.folder, Edit.load(o.edit), scores_of(o.edit)), o.json)


@dataclass(frozen=True)
class Remove:
    """A model, and the edit to be taken out of it."""

    folder: tyro.conf.Positional[Path]
    """A diffusers folder that edits were applied to."""
    edit: tyro.conf.Positional[str] = ""
    """Digest of an edit in its ``erasures.json``, or the beginning of one; default: all."""
    json: bool = False
    """Print the ledger as JSON."""


def remove_command(args: list[str]) -> int:
    """``efface remove FOLDER [EDIT]``."""
    o = parsed(Remove, args, "efface remove")
    return told(o.folder, remove(o.folder, o.edit), o.json)


def told(folder: Path, ledger: Ledger, as_json: bool) -> int:
    """Print what is erased from a folder."""
    if as_json:
        print(json.dumps(asdict(ledger), indent=1))
        return 0
    if not ledger.erasures:
        print(f"{folder}: nothing is erased; the weights are the base model's ({ledger.base}).")
        return 0
    show(
        [[e.edit, e.method, ", ".join(e.concepts), e.when] for e in ledger.erasures],
        ["edit", "method", "erases", "since"],
    )
    return 0


@dataclass(frozen=True)
class Combine:
    """Edits, and where the one that they become goes."""

    edits: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more run folders or edit files, of one base model."""
    out: Path = Path("combined.safetensors")
    """The edit file to be written; must not exist."""
    how: str = "sum"
    """sum: their changes add up; joint: solved again for all concepts (uce and speed)."""
    model: str = ""
    """The base model; default: the one that the edits were made for."""
    json: bool = False
    """Print the result as JSON."""


def combine_command(args: list[str]) -> int:
    """``efface combine EDIT EDIT … --out FILE``."""
    o = parsed(Combine, args, "efface combine")
    if o.out.exists():
        raise UserError(f"{str(o.out)!r} exists already; name a file that does not.")
    edits = [Edit.load(p) for p in o.edits]
    pick(dict.fromkeys(("sum", "joint")), o.how, "way to combine")
    combinable(edits)  # before a model is opened
    model = load(o.model or edits[0].meta["model"], device="cpu")
    made = jointly(model, edits, METHODS) if o.how == "joint" else combine(model, edits)
    met = overlaps(model, edits)
    made.save(o.out)
    for x in met:
        if x.share > ALIKE:
            warnings.warn(
                f"{x.one} and {x.two} touch the same directions (overlap {x.share:.2f}): look "
                "whether both are still erased (efface score).",
                stacklevel=1,
            )
    if o.json:
        found = {"edit": str(o.out), "digest": made.digest, "overlaps": [asdict(x) for x in met]}
        print(json.dumps(found, indent=1))
    else:
        show([[x.one, x.two, f"{x.share:.2f}"] for x in met], ["edit", "and", "overlap"])
        print(f"\nwritten: {o.out}")
    return 0


@dataclass(frozen=True)
class Diff:
    """Two models."""

    one: tyro.conf.Positional[str]
    """A shipped model, a diffusers folder, a single file, or a hub id."""
    two: tyro.conf.Positional[str]
    """The other one."""
    out: Path | None = None
    """Also write the difference as an edit of the first model; must not exist."""
    json: bool = False
    """Print the result as JSON."""


def diff_command(args: list[str]) -> int:
    """``efface diff MODEL MODEL``."""
    o = parsed(Diff, args, "efface diff")
    if o.out is not None and o.out.exists():
        raise UserError(f"{str(o.out)!r} exists already; name a file that does not.")
    found, edit = diff(load(o.one, device="cpu"), load(o.two, device="cpu"))
    if o.out is not None:
        edit.save(o.out)
    if o.json:
        print(json.dumps([asdict(d) for d in found], indent=1))
        return 0
    show(
        [
            [d.group, f"{d.changed} of {d.tensors}", f"{d.relative:.2%}", f"{d.rank:.1f}"]
            for d in found
        ],
        ["weight group", "tensors changed", "change", "effective rank"],
    )
    return 0
