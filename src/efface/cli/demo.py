"""Erase one everyday concept from the shipped model, and show what it cost: ``make demo``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from efface.cli import runfolder
from efface.cli.erase import Erase, run_erase
from efface.cli.opening import DEFAULT, Opening
from efface.cli.score import keep, print_scores
from efface.cli.terminal import parsed
from efface.concepts import Concept, parse
from efface.edits.edit import Edit
from efface.errors import pick
from efface.evaluation.protocols import load as load_protocol
from efface.evaluation.scoring import ask, scored
from efface.methods.ap import AP
from efface.models import load
from efface.reporting.grid import PICTURE
from efface.settings import Range
from efface.storage import ASSETS
from efface.vocabularies import brought

HELD_OUT = "emoji-objects-2"
"""The protocol that is asked."""
SPREAD = 30
"""Every so manieth of the model's names is looked at as well."""


@dataclass(frozen=True)
class Options:
    """What the demo erases, and how long it takes over it."""

    concept: str = "beer mug"
    """One of the shipped model's concepts."""
    updates: Annotated[int, Range(1, 1_000_000)] = 150
    """Weight updates, 1 to 1,000,000."""
    pictures: Annotated[int, Range(2, 10_000)] = 4
    """Pictures of each concept that are scored, 2 to 10,000, before and after; seeds from 0 on."""
    out: Path = Path("runs/demo")
    """The run's folder."""


def drawn(text: str, names: Sequence[str]) -> Concept:
    """The concept that is asked for, refused before anything is trained where nobody could judge.

    Raises:
        UserError: it is none that the shipped model draws.
    """
    concept = parse(text)
    pick({n: n for n in names}, concept.name, "concept of the shipped model")
    return concept


def command(args: list[str]) -> int:
    """Erase with adversarial preservation, score, and say where the picture is."""
    o = parsed(Options, args, "efface demo")
    names = brought(ASSETS / "emoji", "emoji", "names").words
    concept = drawn(o.concept, names)
    near = load_protocol(HELD_OUT).near([concept.name])
    method = AP(updates=o.updates)
    print(f"Erasing {concept.name!r} from the shipped model with adversarial preservation …\n")
    erase = Erase(concepts=(o.concept,), out=o.out, opening=Opening(model=DEFAULT))
    run_erase(method, erase, ["efface", "demo", *args])
    edit, model = Edit.load(o.out), load(DEFAULT)
    hurt = list(runfolder.record(o.out)["moved_most"])
    others = dict.fromkeys([*near, *hurt, *[n for n in names[::SPREAD] if n != concept.name]])
    question = ask(model, protocol=HELD_OUT, pictures=o.pictures, concepts=tuple(others))
    found = scored(model, edit, question, o.out)
    keep(found, question, o.out, erase.opening)
    print(
        f"\nOf {o.pictures} pictures of {concept.name!r} and of {len(others)} other concepts: its "
        "neighbours, those that the edit\nmoved most, and a few of all. ESR: pictures without the "
        "erased concept. PSR: pictures that still\nshow what they should; worst tenth: of the "
        "concepts that suffer most. Perceived: how far pictures moved."
    )
    print_scores(found.to_json())
    print(
        f"\nMoved most: {', '.join(hurt)}.\n"
        f"Look at {o.out / PICTURE} (above: before, below: after, same seeds)."
    )
    return 0
