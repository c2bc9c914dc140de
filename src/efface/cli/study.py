"""``efface study``: one of the paper's questions, asked again on the shipped model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from efface.cli.terminal import parsed, show
from efface.errors import UserError, pick
from efface.storage import write_text
from efface.studies import STUDIES, Lab


@dataclass(frozen=True)
class StudyOptions:
    """Which study, and where its result goes."""

    name: tyro.conf.Positional[str]
    """One of those that ``efface study`` lists."""
    out: Path = Path("studies")
    """Folder of NAME.json and NAME.svg."""
    model: str = "emoji"
    """The shipped model, or a diffusers folder that brings its ``concepts.json``, ``protocol.json``
    and ``judge`` (``other-data`` needs one)."""
    work: Path = Path("runs/studies")
    """Folder of edits and pictures; what is there is not made again."""
    json: bool = False
    """Print the result as JSON."""


def study(args: list[str]) -> int:
    """``efface study NAME``."""
    if not args:
        show([[n, s.about] for n, s in STUDIES.items()], ["study", "question"])
        return 0
    o = parsed(StudyOptions, args, "efface study")
    chosen = pick(STUDIES, o.name, "study")
    try:
        o.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make {str(o.out)!r}: {e.strerror}.") from None
    found = chosen.run(Lab(o.work, o.model))
    text, svg = json.dumps(found) + "\n", chosen.figure(found)
    write_text(o.out / f"{o.name}.json", text)
    write_text(o.out / f"{o.name}.svg", svg)
    print(text if o.json else f"{chosen.words(found)}\n\n{o.out / f'{o.name}.svg'}")
    return 0
