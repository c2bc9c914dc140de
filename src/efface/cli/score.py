"""``efface score``: ESR and PSR of an edit beside the unedited model's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from efface.cli.terminal import parsed, show
from efface.edits.edit import Edit
from efface.evaluation.scoring import ask, keep, scored
from efface.models import load
from efface.scores import Score


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
    protocol: str = ""
    """A shipped protocol, or a JSON file; one whose prompts come from a file needs --prompts.
    Default: the one in the model's folder, or emoji-objects."""
    prompts: Path | None = None
    """A CSV of prompts and seeds, or a wheel or zip file that holds the protocol's."""
    limit: int = 0
    """Only the first so many prompts of the file; 0: all."""
    clip: str = ""
    """A CLIP by path or hub id; default: the shipped tiny one, for the shipped model only."""
    json: bool = False
    """Print the result as JSON."""


def score(args: list[str]) -> int:
    """``efface score RUN``."""
    o = parsed(ScoreOptions, args, "efface score")
    edit = None if o.run == "unedited" else Edit.load(Path(o.run))
    model = load(o.model or (edit.meta["model"] if edit else "emoji"))
    question = ask(
        model,
        o.protocol,
        pictures=o.pictures,
        concepts=o.concept,
        steps=o.steps,
        prompts=o.prompts,
        limit=o.limit,
        clip=o.clip,
    )
    home = Path(o.run) if edit and Path(o.run).is_dir() else None
    answer = scored(model, edit, question, home)
    if home is not None:
        keep(answer, question, home)
    found = answer.to_json()
    if o.json:
        print(json.dumps({k: v for k, v in found.items() if k != "concepts"}, indent=1))
    elif "scores" in found:
        rows = [[k, str(s), str(s.n)] for k, s in answer.table.items()]
        show(rows, [question.protocol.name, "score [95 %]", "n"])
    else:
        print_scores(found)
    return 0


def print_scores(found: dict[str, Any]) -> None:
    """Scores as a table."""
    edited = found.get("edited", found["unedited"])
    rows = []
    for k, v in edited.items():
        s, row = Score(**v), [k]
        was = found["unedited"].get(k) if "edited" in found else None
        row += [str(s), str(Score(**was)) if was else ""]
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
