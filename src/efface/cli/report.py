"""``efface report``: an HTML page about one or more runs."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

from efface.cli.terminal import parsed
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.evaluate import samples_folder, unedited_folder
from efface.evaluation.scoring import ask, keep, scored
from efface.models import load
from efface.reporting.page import page, run_part
from efface.settings import read_json
from efface.storage import write_text


@dataclass(frozen=True)
class Report:
    """Which runs, and where the page goes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, each with its edit."""
    out: Path | None = None
    """The page; default: report.html in the first run's folder."""
    pictures: int = 4
    """Pictures of each concept that are scored; missing ones are made."""
    json: bool = False
    """Print where the page is as JSON."""


def report(args: list[str]) -> int:
    """``efface report RUN …``."""
    o = parsed(Report, args, "efface report")
    if not o.runs:
        raise UserError("no run to report on; name the folder of a run (efface erase makes one).")
    parts = []
    for folder in o.runs:
        edit = Edit.load(folder)
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is a file; a report needs the run's folder.")
        model = load(edit.meta["model"])
        erased = [c["name"] for c in edit.meta["concepts"]]
        question = ask(model, pictures=o.pictures)
        protocol, answer = question.protocol, scored(model, edit, question, folder)
        kept, found = keep(answer, question, folder), answer.to_json()
        folders = (unedited_folder(model, protocol), samples_folder(folder, model, protocol))
        title = f"{edit.meta['method']}: {', '.join(erased)}"
        again = commands(folder, o.pictures)
        others = [read_json(p, "scores") for p in sorted(folder.glob("scores-*.json")) if p != kept]
        more = [told for told in others if "scores" in told]  # of prompts from a file
        sense = None
        if (folder / "sensitivity.json").exists():
            told = json.loads((folder / "sensitivity.json").read_text(encoding="utf8"))
            sense = (told, folder / "sensitivity.svg")
        parts.append(run_part(title, edit, found, folders, protocol, again, more, sense))
    out = o.out or o.runs[0] / "report.html"
    html = page(parts)
    write_text(out, html)
    print(json.dumps({"report": str(out)}) if o.json else out)
    return 0


def commands(folder: Path, pictures: int) -> list[str]:
    """How to do the run and its report again."""
    try:
        told = json.loads((folder / "run.json").read_text(encoding="utf8"))["command"]
        first = shlex.join(["efface", *told[1:]])
    except (OSError, ValueError, KeyError):
        first = "# the command of this run is not on record (run.json is missing)"
    again = ["efface", "report", str(folder), "--pictures", str(pictures)]
    return [first, shlex.join(again)]
