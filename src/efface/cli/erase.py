"""``efface erase``: erase, keep everything in the run's folder, and say what came out."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from efface.cli.terminal import first_line, parsed, show
from efface.concepts import Concept, check, parse, read
from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.evaluation.sensitivity import prediction
from efface.methods import METHODS
from efface.models import DiffusionModel, load, plan
from efface.reporting.grid import before_after
from efface.storage import VERSION, write_text
from efface.training import Run, Tuning, join, provenance
from efface.vocabulary import load as load_vocabulary


@dataclass(frozen=True)
class Erase:
    """What is common to all methods."""

    concept: tuple[str, ...] = ()
    """A concept to erase; again for more. ``name -> anchor`` and ``name | synonym, synonym`` are
    understood."""
    concepts_file: Path | None = None
    """A file of concepts: one a line, or JSON."""
    anchor: str = ""
    """What the concepts given by --concept are steered to; "" is the null prompt."""
    model: str = "emoji"
    """A shipped model, a diffusers folder, or a hub id."""
    out: Path | None = None
    """The run's folder; default: runs/METHOD-CONCEPT."""
    dtype: str = "fp32"
    """Precision of the frozen model: fp32, bf16 or fp16; what is trained stays fp32."""
    device: str | None = None
    """A torch device; default: the best there is."""
    size: int = 0
    """Side of a picture in pixels; 0: what the model was made for."""
    checkpointing: bool = False
    """Compute activations again for the gradient instead of keeping them: less memory, more time,
    the same edit."""
    quantise: str = ""
    """nf4: frozen linear layers of the denoiser in four bits (bitsandbytes)."""
    picture: bool = True
    """Draw a before/after picture."""
    json: bool = False
    """Print the result as JSON."""


def erase(args: list[str]) -> int:
    """``efface erase METHOD …``."""
    if not args or args[0].startswith("-"):
        lines = "\n".join(f"  {n:<5} {first_line(m)}" for n, m in METHODS.items())
        print(
            f"usage: efface erase METHOD --concept …\n\nmethods:\n{lines}\n\n"
            "efface erase METHOD --help shows its settings."
        )
        return 0 if args else 2
    name, rest = args[0], args[1:]
    cls = pick(METHODS, name, "method")
    start, rest = take_preset(name, rest)
    both = dataclasses.make_dataclass(
        "Erase" + cls.__name__,
        [
            ("common", Annotated[Erase, tyro.conf.arg(name="")], field(default=Erase())),
            ("method", Annotated[cls, tyro.conf.arg(name="")], field(default=start)),
        ],
        frozen=True,
    )
    found: Any = parsed(both, rest, f"efface erase {name}")
    return run_erase(found.method, found.common, ["efface", "erase", *args])


def take_preset(name: str, args: list[str]) -> tuple[Any, list[str]]:
    """The method's settings to start from, and the arguments without ``--preset NAME``."""
    rest, chosen = [], None
    it = iter(args)
    for a in it:
        if a == "--preset":
            chosen = next(it, "")
        elif a.startswith("--preset="):
            chosen = a.partition("=")[2]
        else:
            rest.append(a)
    if chosen is None:
        return METHODS[name](), rest
    known = METHODS[name].presets()
    if not known:
        have = ", ".join(n for n, m in METHODS.items() if m.presets())
        raise UserError(f"the method {name!r} has no presets; these have: {have}.")
    return pick(known, chosen, "preset"), rest


def wanted_concepts(o: Erase) -> list[Concept]:
    """The concepts that the options name."""
    found = list(read(o.concepts_file)) if o.concepts_file else []
    for text in o.concept:
        c = parse(text)
        found.append(dataclasses.replace(c, anchor=c.anchor or o.anchor))
    if not found:
        raise UserError(
            "no concept to erase; give --concept NAME (again for more) or --concepts-file FILE."
        )
    return list(dict.fromkeys(found))


def run_folder(o: Erase, name: str, concepts: Sequence[Concept], rank: int = 0) -> Path:
    """The run's folder; the first process refuses one where something else is in it."""
    slug = "-".join(c.name.replace(" ", "_").replace("/", "_") for c in concepts)[:60]
    out = o.out or Path("runs") / f"{name}-{slug}"
    if rank:
        return out
    if out.exists() and not out.is_dir():
        raise UserError(f"{str(out)!r} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "run.json").exists():
        raise UserError(f"{str(out)!r} is not empty and holds no run of ours; name another folder.")
    return out


def run_erase(method: Any, o: Erase, command: Sequence[str]) -> int:
    """Erase, keep everything in the run's folder, and say what came out.

    Args:
        command: what was typed, for the record.
    """
    rank, _ = join()  # before the model is loaded: each process has a device of its own
    concepts, _ = check(wanted_concepts(o), method.keep)
    out = run_folder(o, method.name, concepts, rank)
    group = {"keep": method.group} if isinstance(method, Tuning) else {}
    model = load(o.model, o.dtype, o.device, o.size, o.quantise, **group)
    about = provenance(method, model, concepts)
    made = begin_run(out, about, command) if rank == 0 else None
    edit = finished(out)
    if edit is None:
        if rank == 0:
            tell_memory(model, method, o)
        try:
            run = Run(out, None, rank == 0, o.checkpointing)
            edit = method.erase(model, concepts, run)
        except UserError:
            if made is not None and len(list(out.iterdir())) == 1:  # nothing but our run.json
                (out / "run.json").unlink()
                for folder in made:
                    folder.rmdir()
            raise
    elif rank == 0:
        print(f"{out} is finished already; nothing was trained.", file=sys.stderr)
    if rank:  # the first process tells
        return 0
    result: dict[str, Any] = {
        "run": str(out),
        "edit": str(out / "edit.safetensors"),
        "weights": len(edit.weights),
        "cost": edit.meta["cost"],
    }
    if o.picture:
        source = getattr(method, "vocabulary", "") or "auto"
        hurt = most_moved(model, edit, concepts, source)
        result["moved_most"] = hurt
        result["picture"] = str(
            before_after(
                model, edit, [c.name for c in concepts], list(hurt), out / "before-after.png"
            )
        )
    if o.json:
        print(json.dumps(result, indent=1))
    else:
        cost = edit.meta["cost"]
        show(
            [
                ["edit", result["edit"]],
                ["changed weights", f"{sum(w.numel() for w in edit.weights.values()):,}"],
                ["time", f"{cost['seconds']:.0f} s"],
                [
                    "network evaluations",
                    f"{cost['forward']:,} forward, {cost['backward']:,} backward",
                ],
                *(
                    [
                        ["moved most", ", ".join(result["moved_most"])],
                        ["picture", result["picture"]],
                    ]
                    if o.picture
                    else []
                ),
                ["scores", f"efface score {out}"],
            ],
            ["erased", ", ".join(c.name for c in concepts)],
        )
    return 0


LARGE = 100_000_000
"""Numbers of a denoiser from which on it is worth saying what a training takes."""


def tell_memory(model: DiffusionModel, method: Any, o: Erase) -> None:
    """Say on stderr what a training of a large model will take."""
    if (
        not isinstance(method, Tuning)
        or sum(p.numel() for p in model.parameters().values()) < LARGE
    ):
        return
    rows = method.batch * (2 if hasattr(method, "preserve") or hasattr(method, "prior") else 1)
    found = plan(model, method.group, rows, method.rank, o.checkpointing, method.adam_8bit)
    how = [model.precision, *([model.quantised] if model.quantised else [])]
    how += ["checkpointing"] * o.checkpointing + ["8-bit Adam"] * method.adam_8bit
    print(f"{model.family.label}, {method.group}, {', '.join(how)}: {found}", file=sys.stderr)


def begin_run(out: Path, about: dict[str, Any], command: Sequence[str]) -> list[Path] | None:
    """Write ``run.json`` and give the folders made for it; None where the same run is there."""
    path = out / "run.json"
    plain = json.loads(json.dumps(about))
    if path.exists():
        try:
            had = json.loads(path.read_text(encoding="utf8"))["run"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{str(path)!r} is no run of ours, or damaged; name another folder."
            ) from None
        if had != plain:
            differ = [k for k in plain if had.get(k) != plain[k]]
            raise UserError(
                f"{str(out)!r} holds a run with another {', '.join(differ)}; give another --out."
            )
        return None
    made = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make {str(out)!r}: {e.strerror}.") from None
    versions = {
        "efface": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    text = (
        json.dumps({"run": plain, "versions": versions, "command": list(command)}, indent=1) + "\n"
    )
    write_text(path, text)
    return made


def finished(out: Path) -> Edit | None:
    """The edit of a run that has ended."""
    return Edit.load(out) if (out / "edit.safetensors").exists() else None


def most_moved(
    model: DiffusionModel, edit: Edit, concepts: Sequence[Concept], source: str, n: int = 5
) -> dict[str, float]:
    """The preserved words that the edit moved most, by the change of predicted noise."""
    words = load_vocabulary(source, model)
    words = dataclasses.replace(words, words=words.words[:2000])  # of tokens, the commonest
    words = words.without(concepts, model.tokenizer)
    words = words.pool(model, concepts[0], 0, 400, "nearest")
    found = prediction(model, edit, words.words, latents=2)
    return {found.words[i]: round(float(found.harm[i]) / 100, 4) for i in found.order()[:n]}
