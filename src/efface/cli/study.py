"""``efface study``: one of the paper's questions, asked again on the shipped model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import tyro

from efface.cli.opening import OfModel, Opening, opened
from efface.cli.terminal import Flag, Json, Text, makeable, parsed, show
from efface.errors import UserError, pick
from efface.settings import Range
from efface.storage import make_folder, write_text
from efface.studies import STUDIES, Lab, Study


@dataclass(frozen=True)
class Options:
    """Which study, and where its result goes."""

    name: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="[STUDY]", help_behavior_hint="")
    ] = ""
    """One of those that are listed without a name."""
    out: Path = Path("studies")
    """Folder of NAME.json and NAME.svg."""
    opening: OfModel = Opening()
    work: Path = Path("runs/studies")
    """Folder of edits and pictures; what is there is not made again."""
    updates: Annotated[int, Range(0, 10**7)] = 0
    """Of each training, where the study has such a setting, 0 to 10,000,000; 0: the study's own."""
    seeds: Annotated[
        int | None, Range(1, 1000), tyro.conf.arg(metavar="INT", help_behavior_hint="")
    ] = None
    """How many training seeds, 1 to 1,000, where a study has them. Default: the study's own."""
    split: Text = ""
    """Whose concepts are erased, where it has such a setting. Default: the study's own."""
    quick: Flag = False
    """A smaller run, where a study has one (coverage: about an hour on one core)."""
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface study NAME``.

    A model must bring its ``concepts.json``, ``protocol.json`` and ``judge``.
    """
    o = parsed(Options, args, "efface study")
    if not o.name:
        alone(o)
        about = {n: s.about for n, s in STUDIES.items()}
        print(json.dumps(about, indent=1)) if o.json else show(
            list(about.items()), ["study", "question"]
        )
        return 0
    chosen = pick(STUDIES, o.name, "study")
    asked = settings(o, chosen)
    makeable(o.out)
    makeable(o.work)
    found = chosen.run(Lab(o.work, opened(o.opening)), **asked)
    make_folder(o.out)
    text, svg = json.dumps(found) + "\n", chosen.figure(found)
    write_text(o.out / f"{o.name}.json", text)
    write_text(o.out / f"{o.name}.svg", svg)
    print(text if o.json else f"{chosen.words(found)}\n\n{o.out / f'{o.name}.svg'}")
    return 0


def alone(o: Options) -> None:
    """Refuse whatever says how a study is to be run where none is named.

    Raises:
        UserError: something does.
    """
    told, plain = (asdict(x) | asdict(x.opening) for x in (o, Options(json=o.json)))
    more = [f"--{k}" for k in told if k != "opening" and told[k] != plain[k]]
    if more:
        raise UserError(f"{', '.join(more)}: of which study? efface study lists them.")


def settings(o: Options, study: Study) -> dict[str, Any]:
    """What is asked of a study besides its name.

    Raises:
        UserError: it has no such setting, or no smaller run.
    """
    if o.quick and not study.quick:
        raise UserError(f"the study {o.name!r} has no smaller run: leave --quick out.")
    asked = {k: v for k in ("updates", "seeds", "split") if (v := getattr(o, k))}
    known = signature(study.run).parameters
    for name, value in asked.items():
        if name not in known or not isinstance(value, type(known[name].default)):
            raise UserError(f"the study {o.name!r} has no setting --{name}: leave it out.")
    return {**(study.quick if o.quick else {}), **asked}
