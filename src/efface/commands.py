"""What each command of the command line does."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro
from transformers.utils import logging as quiet

from efface import __version__
from efface.benchmark import cache_folder, evaluate, judge_for, shipped
from efface.concepts import Concept, check_keep, parse, read
from efface.edit import Edit, merge, write
from efface.errors import UserError, pick
from efface.methods import METHODS, PRESETS
from efface.metrics import psr_difference, table
from efface.models import GROUPS, MODELS, DiffusionModel, load
from efface.report import before_after
from efface.samples import Wanted
from efface.samples import generate as generate_samples
from efface.scores import Score
from efface.sensitivity import moved
from efface.training import Run, provenance
from efface.vocabulary import load as load_vocabulary

T = TypeVar("T")

quiet.set_verbosity_error()  # a command's output is its own
quiet.disable_progress_bar()


def parsed(cls: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """Command-line arguments as a dataclass."""
    extra = {} if default is None else {"default": default}
    return tyro.cli(
        cls,
        args=args,
        prog=prog,
        config=(tyro.conf.UseAppendAction,),
        **extra,
    )  # type: ignore[call-overload,no-any-return]


def show(rows: Sequence[Sequence[str]], head: Sequence[str]) -> None:
    """A table on stdout."""
    cells = [list(head), *[list(map(str, r)) for r in rows]]
    wide = [max(len(r[i]) for r in cells) for i in range(len(head))]
    for k, row in enumerate(cells):
        print("  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)).rstrip())
        if k == 0:
            print("  ".join("-" * w for w in wide))


# -- erase -------------------------------------------------------------------------------------


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
    return run_erase(name, found.method, found.common)


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
    if name not in PRESETS:
        raise UserError(f"the method {name!r} has no presets; these have: {', '.join(PRESETS)}.")
    return pick(PRESETS[name], chosen, "preset"), rest


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


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


def run_folder(o: Erase, name: str, concepts: Sequence[Concept]) -> Path:
    """The run's folder, made; refused where something else is in it."""
    slug = "-".join(c.name.replace(" ", "_").replace("/", "_") for c in concepts)[:60]
    out = o.out or Path("runs") / f"{name}-{slug}"
    if out.exists() and not out.is_dir():
        raise UserError(f"{str(out)!r} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / "run.json").exists():
        raise UserError(f"{str(out)!r} is not empty and holds no run of ours; name another folder.")
    return out


def run_erase(name: str, method: Any, o: Erase) -> int:
    """Erase, keep everything in the run's folder, and say what came out."""
    concepts = wanted_concepts(o)
    check_keep(concepts, method.keep)
    out = run_folder(o, name, concepts)
    model = load(o.model, o.dtype, o.device)
    about = provenance(name, method, model, concepts)
    fresh = begin_run(out, about)
    edit = finished(out)
    if edit is None:
        try:
            edit = method.erase(model, concepts, Run(out))
            edit.save(out / "edit.safetensors")
        except UserError:
            if fresh and len(list(out.iterdir())) == 1:  # nothing but our run.json
                (out / "run.json").unlink()
                out.rmdir()
            raise
    else:
        print(f"{out} is finished already; nothing was trained.", file=sys.stderr)
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


def begin_run(out: Path, about: dict[str, Any]) -> bool:
    """Write ``run.json`` (true), or check that it is of the same run (false)."""
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
        return False
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make {str(out)!r}: {e.strerror}.") from None
    versions = {
        "efface": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    text = json.dumps({"run": plain, "versions": versions, "command": sys.argv}, indent=1) + "\n"
    write(path, lambda p: p.write_text(text, encoding="utf8"))
    return True


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
    far = moved(model, edit, words.words)
    top = far.topk(min(n, len(far)))
    return {
        words.words[i]: round(v, 4)
        for v, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    }


# -- score -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored, and how."""

    run: tyro.conf.Positional[str] = "unedited"
    """A run's folder, an edit file, or ``unedited`` for the base model."""
    model: str = ""
    """The base model; default: the one that the edit was made for."""
    pictures: int = 4
    """Pictures of each concept, seeds 0, 1, …"""
    concept: tuple[str, ...] = ()
    """Score only these preserved concepts (again for more); default: all that the judge knows."""
    steps: int | None = None
    """Sampling steps; default: the model's."""
    json: bool = False
    """Print the result as JSON."""


def score(args: list[str]) -> int:
    """``efface score RUN``."""
    o = parsed(ScoreOptions, args, "efface score")
    if o.pictures < 1:
        raise UserError(f"got {o.pictures} pictures a concept; at least 1 is needed.")
    edit = None if o.run == "unedited" else Edit.load(Path(o.run))
    model = load(o.model or (edit.meta["model"] if edit else "emoji"))
    erased = [c["name"] for c in edit.meta["concepts"]] if edit else []
    found = scored(model, edit, erased, o.concept, o.pictures, o.steps, folder_of(o.run, edit))
    if edit and Path(o.run).is_dir():
        text = json.dumps(found, indent=1) + "\n"
        write(Path(o.run) / "scores.json", lambda p: p.write_text(text, encoding="utf8"))
    if o.json:
        print(json.dumps(found, indent=1))
        return 0
    print_scores(found)
    return 0


def folder_of(run: str, edit: Edit | None) -> Path | None:
    """Where the edit's pictures go."""
    if edit is None:
        return None
    path = Path(run)
    return path / "samples" if path.is_dir() else cache_folder() / "edits" / edit.digest


def scored(
    model: DiffusionModel,
    edit: Edit | None,
    erased: Sequence[str],
    only: Sequence[str],
    n: int,
    steps: int | None,
    folder: Path | None,
) -> dict[str, Any]:
    """Scores of an edit beside the unedited model's, as JSON."""
    judge, bench = judge_for(model), shipped(model.name)
    for c in (*erased, *only):
        judge.index(c)
    concepts = list(dict.fromkeys([*erased, *(only or bench.names)]))
    if edit:  # a synonym of what is erased is no preserved concept
        also = {s for c in edit.meta["concepts"] for s in c["synonyms"]}
        concepts = [c for c in concepts if c not in also]
    seeds, near = range(n), bench.near(erased)
    base = evaluate(model, None, None, concepts, seeds, judge, steps)
    result: dict[str, Any] = {
        "judge": f"{judge.config.version} {judge.sha256}",
        "pictures": n,
        "erased": list(erased),
        "unedited": {k: s.to_json() for k, s in table(base, erased, near).items()},
    }
    if edit:
        seen = evaluate(model, edit, folder, concepts, seeds, judge, steps)
        result["edited"] = {k: s.to_json() for k, s in table(seen, erased, near).items()}
        others = [c for c in concepts if c not in set(erased)]
        result["difference"] = {
            f"PSR-{k}": psr_difference(seen, base, others, k).to_json() for k in (1, 5)
        }
    return result


def print_scores(found: dict[str, Any]) -> None:
    """Scores as a table."""
    edited = found.get("edited", found["unedited"])
    rows = []
    for k, v in edited.items():
        s, row = Score(**v), [k]
        row += [str(s), str(Score(**found["unedited"][k])) if "edited" in found else ""]
        d = found.get("difference", {}).get(k)
        rows.append([*row, str(Score(**d)) if d else "", str(s.n)])
    show(
        rows,
        [
            "percent [95 %]",
            "edited" if "edited" in found else "unedited",
            "unedited",
            "difference",
            "n",
        ],
    )


# -- the small ones ----------------------------------------------------------------------------


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
    """The diffusers folder to be written; must not exist."""
    model: str = ""
    """The base model; default: the one that the edit was made for."""


def merge_command(args: list[str]) -> int:
    """``efface merge EDIT OUT``."""
    o = parsed(Merge, args, "efface merge")
    edit = Edit.load(o.edit)
    print(merge(load(o.model or edit.meta["model"]), edit, o.out))
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
        f"\nweight groups: {', '.join(GROUPS)}\n"
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


def demo(args: list[str]) -> int:
    """``efface demo``."""
    from efface.demo import run

    return run(args)
