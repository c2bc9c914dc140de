"""``efface report``: an HTML page about one or more runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from efface.cli.opening import OfModel, Opening, opened
from efface.cli.runfolder import RECORD, record
from efface.cli.score import keep
from efface.cli.terminal import Json, Place, Unless, makeable, parsed
from efface.concepts import Concept, few
from efface.edits.edit import STRENGTHS, Edit
from efface.errors import UserError
from efface.evaluation.answers import Answer, Sensitivity, read
from efface.evaluation.bound import forecast
from efface.evaluation.evaluate import (
    brought_protocol,
    own_protocol,
    sampler_of,
    samples_folder,
    unedited_folder,
)
from efface.evaluation.protocols import Protocol
from efface.evaluation.samples import Wanted, generate
from efface.evaluation.scoring import PICTURES, Question, Scores, ask, scored, strength_folder
from efface.models import DiffusionModel
from efface.reporting.attacked import attacked
from efface.reporting.grid import Preview
from efface.reporting.page import SHOWN, page, run_part, unjudged
from efface.scores import Score
from efface.settings import Range, from_json
from efface.storage import make_folder, write_text
from efface.vocabularies import load as load_vocabulary
from efface.vocabularies import told


@dataclass(frozen=True)
class Options:
    """Which runs, and where the page goes."""

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN …", help_behavior_hint=""),
    ] = ()
    """Folders of runs, each with its edit."""
    out: Place = None
    """The page. Default: report.html in the first run's folder."""
    opening: OfModel = Opening()
    pictures: Annotated[int, Range(1, 10_000)] = PICTURES
    """Pictures of each concept that are scored, 1 to 10,000, seeds from 0 on; missing ones are
    made."""
    strength: Annotated[tuple[float, ...], STRENGTHS] = ()
    """A further strength of the edit that is scored, 0 to 10; again for more. The curve has 0, 0.5
    and 1 in any case."""
    curve: Unless = True
    """Score no other strength than 1: half of the pictures, and no curve."""
    json: Json = False
    """Print where the page is as JSON."""


def command(args: list[str]) -> int:
    """``efface report RUN …``."""
    o = parsed(Options, args, "efface report")
    if not o.runs:
        raise UserError("no run to report on; name the folder of a run (efface erase makes one).")
    edits = [Edit.load(folder) for folder in o.runs]
    for folder in o.runs:
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is a file; a report needs the run's folder.")
    out = o.out or o.runs[0] / "report.html"
    if out.is_dir():
        raise UserError(f"{str(out)!r} is a folder; name the file of the page.")
    makeable(out.absolute().parent)
    parts = [part(folder, edit, o) for folder, edit in zip(o.runs, edits, strict=True)]
    make_folder(out.absolute().parent)
    write_text(out, page(parts))
    print(json.dumps({"report": str(out)}) if o.json else out)
    return 0


def part(folder: Path, edit: Edit, o: Options) -> dict[str, Any]:
    """What the page says of a run, by the protocol of its own model; scores what is missing."""
    model = opened(o.opening, edit)
    title = f"{edit.meta.get('method', 'edit')}: {few([c['name'] for c in edit.meta['concepts']])}"
    again = commands(folder, o.pictures)
    files = sorted(folder.glob("scores-*.json"))
    others = {p: read(Answer, p, "scores") for p in files}  # before anything is drawn
    sense = sensed(folder, edit)
    siege = attacked(folder, edit.digest)
    ahead = "" if any(told.get("forecast") for told, _ in sense) else foretold(model, edit)
    if brought_protocol(model) is None:
        if o.strength:
            own_protocol(model, edit)
        known = [t for t in others.values() if "scores" in t]
        pictures = looked_at(model, edit, folder, o.pictures)
        return unjudged(title, edit, *pictures, again, known, sense, siege, ahead)
    question = ask(model, edit=edit, pictures=o.pictures)
    protocol = question.protocol
    answer = scored(model, edit, question, folder)
    kept, found = keep(answer, question, folder, o.opening), answer.to_json()
    points = curve(model, edit, question, folder, answer, o) if o.curve else {}
    folders = (unedited_folder(model, protocol), samples_folder(folder, model, protocol))
    more = [t for p, t in others.items() if p != kept and "scores" in t]  # of prompts from a file
    return run_part(title, edit, found, folders, protocol, again, more, sense, points, siege, ahead)


class Looked(NamedTuple):
    """Pictures for the eye, where no judge scores."""

    blocks: dict[str, dict[str, str]]
    """Prompts by title, with what is said of each."""
    seeds: int
    folders: tuple[Path, Path]
    """Of the unedited pictures, and of the edited ones."""
    sampler: str


def looked_at(model: DiffusionModel, edit: Edit, folder: Path, pictures: int) -> Looked:
    """Draw what is missing of the erased concepts, the kept words, and what the edit moved most.

    Fewer and smaller ones where a picture takes long.
    """
    concepts = told(model, [from_json(Concept, c) for c in edit.meta["concepts"]])
    p = Preview.of(model, len(concepts))
    seeds = min(SHOWN, pictures, p.seeds if p.small else SHOWN)
    drawn, steps = (model.at(p.size) if p.small else model), p.steps
    moved = record(folder).get("moved_most", {}) if (folder / RECORD).exists() else {}
    kept = [w for w in edit.meta.get("config", {}).get("keep", ()) if w]
    blocks = {
        "Erased": {c.shown.prompt: "" for c in concepts[: p.erased]},
        "To be kept": dict.fromkeys(kept[: p.hurt], ""),
        "Moved most": {w: f"moved by {x:.1%}" for w, x in list(moved.items())[: p.hurt]},
    }
    prompts = dict.fromkeys(w for some in blocks.values() for w in some)
    wanted = [Wanted(w, s, w) for w in prompts for s in range(seeds)]
    told_by = Protocol("pictures", steps=steps)
    folders = unedited_folder(drawn, told_by), samples_folder(folder, drawn, told_by)
    for home, one in zip(folders, (None, edit), strict=True):
        generate(drawn, wanted, home, one, steps)
    side = " of {} × {} pixels".format(*drawn.picture_size)
    return Looked(blocks, seeds, folders, sampler_of(drawn, told_by) + side)


def foretold(model: DiffusionModel, edit: Edit) -> str:
    """What no edit of the text maps can do for these concepts; "": nothing can be said."""
    concepts = [from_json(Concept, c) for c in edit.meta["concepts"]]
    try:
        words = load_vocabulary("auto", model, concepts).without(concepts, model.tokenizer)
    except UserError:  # no list that the model knows
        return ""
    found = forecast(model, concepts, words.words)
    return found.said if found else ""


def sensed(folder: Path, edit: Edit) -> list[tuple[dict[str, Any], Path]]:
    """What ``efface sensitivity`` said of this edit, with its figures; the usual question first."""
    found = []
    for path in sorted(folder.glob("sensitivity*.json"), key=lambda p: (len(p.stem), p.stem)):
        told, drawn = read(Sensitivity, path, "sensitivity"), path.with_suffix(".svg")
        if drawn.exists() and told.get("edit", edit.digest) == edit.digest:
            found.append((told, drawn))
    return found


MIDDLE = 0.5
"""The strength between 0 and 1 that every curve has."""


def curve(
    model: DiffusionModel,
    edit: Edit,
    question: Question,
    folder: Path,
    whole: Scores,
    o: Options,
) -> dict[float, Mapping[str, Score]]:
    """The scores at each strength; pictures and scores are kept in the run's folder.

    Args:
        whole: the answer at strength 1, whose unedited side is strength 0.
    """
    found = {0.0: whole.unedited, 1.0: whole.table}
    for s in {MIDDLE, *o.strength} - set(found):
        home = strength_folder(folder, s)
        answer = scored(model, edit.scaled(s, model), question, home)
        keep(answer, question, home, o.opening)
        found[s] = answer.table
    return dict(sorted(found.items()))


def commands(folder: Path, pictures: int) -> list[str]:
    """How to do the run and its report again."""
    first = "# the command of this run is not on record (run.json is missing)"
    if (folder / RECORD).exists():
        first = shlex.join(["efface", *record(folder).get("command", ())[1:]])
    again = ["efface", "report", str(folder), "--pictures", str(pictures)]
    return [first, shlex.join(again)]
