"""``efface score``: ESR and PSR of an edit beside the unedited model's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from efface.cli.opening import OfModel, Opening, opened
from efface.cli.terminal import Json, Place, Strength, Text, parsed, show
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation import scoring
from efface.evaluation.protocols import load as load_protocol
from efface.evaluation.scoring import PICTURES, Question, Scores, ask, scored, strength_folder
from efface.scores import Score
from efface.settings import Range


@dataclass(frozen=True)
class Options:
    """What is scored, and how."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = "unedited"
    """A run's folder, an edit file, or ``unedited`` for the base model."""
    strength: Strength = 1.0
    """How much of the edit, 0 to 10; 1, the default: all of it. Others are kept in the run's folder
    by themselves, in ``strength-…``."""
    opening: OfModel = Opening()
    pictures: Annotated[int, Range(1, 10_000)] = PICTURES
    """Pictures of each prompt, 1 to 10,000; seeds from 0 on."""
    concept: tuple[str, ...] = ()
    """Score only these preserved concepts (again for more). Default: all that the judge knows."""
    steps: Annotated[
        int | None, Range(1, 10_000), tyro.conf.arg(metavar="INT", help_behavior_hint="")
    ] = None
    """Sampling steps, 1 to 10,000. Default: the protocol's, or the model's."""
    protocol: Text = ""
    """A shipped protocol, or a JSON file; one whose prompts come from a file needs --prompts.
    Default: the model's own."""
    prompts: Place = None
    """A CSV of prompts and seeds, or a wheel or zip file that holds the protocol's."""
    limit: Annotated[int, Range(0), tyro.conf.arg(help_behavior_hint="")] = 0
    """Only so many prompts of the file, the first, 0 or more. 0, the default: all."""
    clip: Text = ""
    """A CLIP by path or hub id. Default: the shipped tiny one, for the shipped model only."""
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface score RUN``."""
    o = parsed(Options, args, "efface score")
    edit = None if o.run == "unedited" else Edit.load(Path(o.run))
    if o.protocol and load_protocol(o.protocol).source and o.pictures != PICTURES:
        raise UserError("--pictures does nothing where prompts come from a file: leave it out.")
    if edit is None and o.strength != 1:
        raise UserError("--strength is how much of an edit: name a run or an edit file.")
    model = opened(o.opening, edit)
    if edit is not None:
        edit = edit.scaled(o.strength, model)
    question = ask(
        model,
        o.protocol,
        edit,
        pictures=o.pictures,
        concepts=o.concept,
        steps=o.steps,
        prompts=o.prompts,
        limit=o.limit,
        clip=o.clip,
    )
    in_run = edit is not None and Path(o.run).is_dir()
    home = strength_folder(Path(o.run), o.strength) if in_run else None
    answer = scored(model, edit, question, home)
    if home is not None:
        keep(answer, question, home, o.opening)
    found = answer.to_json()
    if o.json:
        print(json.dumps({k: v for k, v in found.items() if k != "concepts"}, indent=1))
    elif "scores" in found:
        rows = [[k, str(s), s.drawn] for k, s in answer.table.items()]
        show(rows, [question.protocol.name, "score [95 %]", "n"])
    else:
        print_scores(found)
    return 0


def keep(found: Scores, question: Question, home: Path, how: Opening) -> Path:
    """Write an answer into a run's folder; those of other questions, or other pictures, stay.

    Args:
        how: the model was opened.
    """
    return scoring.keep(found, question, home, how.dtype, how.size)


def print_scores(found: dict[str, Any]) -> None:
    """Scores as a table; of the unedited model there is nothing to compare."""
    if "edited" not in found:
        alone = {k: Score(**v) for k, v in found["unedited"].items()}
        rows = [[k, str(s), s.drawn] for k, s in alone.items()]
        show(rows, ["percent [95 %]", "unedited", "n"])
        return
    rows = []
    for k, v in found["edited"].items():
        s, was, d = Score(**v), found["unedited"].get(k), found["difference"].get(k)
        told = [str(Score(**x)) if x else "" for x in (was, d)]
        rows.append([k, str(s), *told, s.drawn])
    show(rows, ["percent [95 %]", "edited", "unedited", "difference", "n"])
