"""``efface erase``: erase, keep everything in the run's folder, and say what came out."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, get_args, get_type_hints

import tyro

from efface.cli import runfolder
from efface.cli.opening import OfModel, Opening, opened
from efface.cli.picture import pictured, tell_preview
from efface.cli.plan import dry_run
from efface.cli.terminal import Flag, Json, Place, Unless, first_line, parsed, show
from efface.cli.watching import Live, both, watcher
from efface.concepts import Concept, check, few, parse, read
from efface.edits.edit import Edit
from efface.errors import UserError, escaped, pick
from efface.evaluation.evaluate import brought_protocol
from efface.methods import METHODS
from efface.models import DiffusionModel
from efface.names import COMMAS, by_commas, meant, quoted
from efface.reporting.grid import Preview, becomes
from efface.training import AUTO, EDIT, Run, Tuning, join, provenance
from efface.training.forecast import memory_plan


@dataclass(frozen=True)
class Erase:
    """What is common to all methods."""

    concepts: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="CONCEPT …", help_behavior_hint=""),
    ] = ()
    """What to erase: a name, ``name -> anchor``, or ``name | synonym, synonym``."""
    concept: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CONCEPT")] = ()
    """The same as an option; again for more."""
    concepts_file: Place = None
    """A file of concepts: one a line, or JSON."""
    out: Place = None
    """The run's folder. Default: runs/METHOD-CONCEPT."""
    opening: OfModel = Opening()
    checkpointing: Flag = False
    """Compute activations again for the gradient instead of keeping them: less memory, more time,
    the same edit."""
    quantise: Annotated[str, tyro.conf.arg(metavar="{nf4}", help_behavior_hint="")] = ""
    """Frozen linear layers of the denoiser in four bits (bitsandbytes)."""
    log: Annotated[str, tyro.conf.arg(metavar="{tensorboard}", help_behavior_hint="")] = ""
    """Keep the losses of every update in the run's folder, for TensorBoard."""
    picture: Unless = True
    """Draw no before/after picture."""
    dry_run: Flag = False
    """Only print what it will take and write: memory, evaluations, time (of two updates)."""
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface erase METHOD CONCEPT …``."""
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    name, rest = args[0], args[1:]
    if name.startswith("-"):
        raise UserError(f"name the method first: efface erase {next(iter(METHODS))} {name} …")
    start = preset(name, rest)
    found: Any = parsed(options(name, start), rest, f"efface erase {name}")
    check_kinds(found.common.concepts, start)
    check_commas(found.method)
    return run_erase(found.method, found.common, ["efface", "erase", *args])


def usage() -> str:
    """The methods."""
    wide = max(map(len, METHODS))
    lines = "\n".join(f"  {n:<{wide}}  {first_line(m)}" for n, m in METHODS.items())
    return (
        f"usage: efface erase METHOD CONCEPT …\n\nmethods:\n{lines}\n\n"
        "efface erase METHOD --help shows its settings."
    )


def options(name: str, start: Any) -> Any:
    """The dataclass of a method's command line.

    Args:
        start: the method with the settings to set out from.
    """
    known = ", ".join(METHODS[name].presets()) or "this method has none"
    about = f"Named settings to set out from: {known}."
    hint = tyro.conf.arg(metavar="NAME", help=about, help_behavior_hint="")
    made = dataclasses.make_dataclass(
        "Erase" + type(start).__name__,
        [
            ("common", Annotated[Erase, tyro.conf.arg(name="")], field(default=Erase())),
            ("preset", Annotated[str, hint], field(default="")),
            ("method", Annotated[type(start), tyro.conf.arg(name="")], field(default=start)),
        ],
        frozen=True,
    )
    made.__doc__ = first_line(start)
    return made


def preset(name: str, args: Sequence[str]) -> Any:
    """The method's settings to set out from: those of ``--preset NAME``, else its defaults.

    Raises:
        UserError: no such method, or no such preset of it.
    """
    cls, chosen = pick(METHODS, name, "method"), None
    for a, following in zip(args, (*args[1:], ""), strict=False):
        if a == "--preset":
            chosen = following
        elif a.startswith("--preset="):
            chosen = a.partition("=")[2]
    if chosen is None:
        return cls()
    if not cls.presets():
        have = ", ".join(n for n, m in METHODS.items() if m.presets())
        raise UserError(f"the method {name!r} has no presets; these have: {have}.")
    return pick(cls.presets(), chosen, "preset")


def check_kinds(concepts: Sequence[str], method: Any) -> None:
    """Refuse a misspelt ``search:KIND``, which would be taken for a concept."""
    hints = get_type_hints(type(method))
    for text in concepts:
        head, colon, tail = text.partition(":")
        kinds = [k for k in get_args(hints.get(head)) if hasattr(k, "kind")]
        if colon and kinds:
            pick({k.kind: k for k in kinds}, tail, f"kind of {head}")


def check_commas(method: Any) -> None:
    """Refuse a list behind one ``--keep``, which would be taken for one word."""
    for word in method.keep:
        if any(c in COMMAS for c in word):
            some = by_commas(word)
            raise UserError(
                f"a comma in --keep {quoted(word)}: {meant(some, 'words')} Give "
                f"{' '.join(f'--keep {quoted(p)}' for p in some[:3])}; a word with a comma in it "
                "needs keep=[…] in Python."
            )


def wanted_concepts(o: Erase) -> list[Concept]:
    """The concepts that the options name.

    Raises:
        UserError: none.
    """
    found = list(read(o.concepts_file)) if o.concepts_file else []
    found += [parse(text) for text in (*o.concepts, *o.concept)]
    if not found:
        raise UserError(
            "no concept to erase; give --concept NAME (again for more), the name alone, or "
            "--concepts-file FILE."
        )
    return list(dict.fromkeys(found))


def steered_by(method: Any, concepts: Sequence[Concept]) -> list[Concept]:
    """The concepts with the method's anchor, where that is a word."""
    word = "" if method.anchor == AUTO else method.anchor
    return [dataclasses.replace(c, anchor=c.anchor or word) for c in concepts]


def run_erase(method: Any, o: Erase, command: Sequence[str], live: Live | None = None) -> int:
    """Erase, keep everything in the run's folder, and say what came out.

    Args:
        command: what was typed, for the record.
        live: shows it while it runs; changes nothing of it.
    """
    rank, world = join()  # before the model is loaded: each process has a device of its own
    concepts, _ = check(steered_by(method, wanted_concepts(o)), method.keep)
    out = runfolder.folder_for(o.out, method.name, concepts)
    watch = watcher(o.log, method, out / "tensorboard") if rank == 0 else None
    if o.dry_run and world > 1:
        raise UserError("--dry-run is for one process: start it without torchrun.")
    how: dict[str, Any] = {"quantise": o.quantise}
    how["maps_only"] = method.closed_form and not o.quantise
    if isinstance(method, Tuning):
        how["keep"] = method.group
    model = opened(o.opening, None, rank == 0, **how)
    if o.dry_run:
        return dry_run(method, model, concepts, out, o.checkpointing, o.picture, o.json)
    about = provenance(method, model, concepts)
    made = runfolder.begin(out, about, command) if rank == 0 else None
    edit = runfolder.finished(out)
    if edit is None:
        if rank == 0:
            tell_memory(model, method, o)
            if o.picture:
                tell_preview(model, concepts)
            runfolder.sit(out, str(model.device))
        began = perf_counter()
        try:
            quick = o.picture and not Preview.of(model, len(concepts)).small
            steer = partial(tell_anchors, method, out if quick and rank == 0 else None, live)
            run = Run(
                out, both(watch, live), rank == 0, o.checkpointing, steer if rank == 0 else None
            )
            edit = method.erase(model, concepts, run)
        except (UserError, OSError, MemoryError, RuntimeError):
            if made is not None:
                runfolder.take_back(out, made)
            raise
        finally:
            if rank == 0 and (out / runfolder.RECORD).exists():  # a sitting that was killed, too
                runfolder.spent(out, perf_counter() - began)
    elif rank == 0:
        runfolder.tidy(out)
        print(f"{out} is finished already; nothing was trained.", file=sys.stderr)
    if rank == 0:  # the first process tells
        found = result(edit, out)
        if not o.json:
            tell(found, edit, concepts, model)
        if o.picture:  # the result does not wait for it
            found |= pictured(model, method, edit, concepts, out)
            if not o.json:
                hurt = ", ".join(found["moved_most"])
                print(f"\nmoved most  {escaped(hurt)}\npicture     {escaped(found['picture'])}")
        if o.json:
            print(json.dumps(found, indent=1))
    return 0


TOLD = 20
"""Concepts whose anchors are said and shown."""


def tell_anchors(
    method: Any,
    out: Path | None,
    live: Live | None,
    model: DiffusionModel,
    concepts: Sequence[Concept],
) -> None:
    """Say on stderr what each concept is to become, where that was searched for.

    Args:
        out: where a picture of it goes; None: none is drawn.
        live: is told as well.
    """
    if live is not None:
        live.begun(model, concepts)
    if method.anchor != AUTO:
        return
    for c in concepts[:TOLD]:
        found = escaped(c.anchor) or "nothing else (no other style is known)"
        print(f"{escaped(c.name)} is to become: {found}", file=sys.stderr)
    if len(concepts) > TOLD:
        print(f"… ({len(concepts):,} concepts; efface inspect says all)", file=sys.stderr)
    how = "another: --anchor WORD, or 'name -> anchor'"
    if out is not None:
        how += f"; {becomes(model, concepts[:TOLD], out / runfolder.ANCHORS)}"
    print(f"({how})", file=sys.stderr)


def result(edit: Edit, out: Path) -> dict[str, Any]:
    """What came out, as JSON."""
    cost = {**edit.meta["cost"], "seconds": runfolder.record(out).get("seconds")}
    return {
        "run": str(out),
        "edit": str(out / EDIT),
        "weights": len(edit.weights),
        "cost": cost,
    }


def tell(
    found: dict[str, Any], edit: Edit, concepts: Sequence[Concept], model: DiffusionModel
) -> None:
    """Print what came out, and what looks at it: scores, or a report where no judge scores."""
    cost, after = found["cost"], "scores"
    with suppress(UserError):  # a broken protocol: efface score says so
        after = "scores" if brought_protocol(model) else "report"
    show(
        [
            ["edit", found["edit"]],
            ["changed weights", f"{sum(w.numel() for w in edit.weights.values()):,}"],
            ["time", took(cost["seconds"])],
            ["network evaluations", f"{cost['forward']:,} forward, {cost['backward']:,} backward"],
            *preserved(edit),
            *([["known of it", edit.meta["said"]]] if "said" in edit.meta else []),
            [after, f"efface {after.removesuffix('s')} {shlex.quote(str(found['run']))}"],
        ],
        ["erased", few([c.name for c in concepts])],
    )
    sys.stdout.flush()


def preserved(edit: Edit) -> list[list[str]]:
    """A line on the candidates of a search and the lists that they are from, or that none is kept.

    Nothing, where a method knows no words to keep.
    """
    config, had = edit.meta.get("config", {}), edit.meta.get("candidates")
    if config.get("vocabulary") == "" and not config.get("keep"):
        how = "none: --vocabulary auto preserves a list, --keep WORD one more"
        return [["preserved words", how]]
    if not had or not had.get("from"):
        return []
    return [["candidates", f"{had['words']:,} words of: {', '.join(had['from'])}"]]


def took(seconds: float | None) -> str:
    """The time of all sittings in words."""
    return "not counted: a sitting was killed" if seconds is None else f"{seconds:.0f} s"


LARGE = 100_000_000
"""Numbers of a denoiser from which on it is worth saying what a training takes."""


def tell_memory(model: DiffusionModel, method: Any, o: Erase) -> None:
    """Say on stderr what a training of a large model will take."""
    if (
        not isinstance(method, Tuning)
        or sum(p.numel() for p in model.parameters().values()) < LARGE
    ):
        return
    found = memory_plan(method, model, 0, o.checkpointing)
    how = [model.precision, *([model.quantised] if model.quantised else [])]
    how += ["checkpointing"] * o.checkpointing + ["8-bit Adam"] * method.adam_8bit
    print(f"{model.family.label}, {method.group}, {', '.join(how)}: {found}", file=sys.stderr)
