"""Erase one everyday concept from the shipped model, and show what it cost: ``make demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efface.cli.erase import Erase, run_erase
from efface.cli.score import print_scores
from efface.cli.terminal import parsed
from efface.edits.edit import Edit
from efface.evaluation.evaluate import OBJECTS
from efface.evaluation.protocols import load as load_protocol
from efface.evaluation.scoring import ask, scored
from efface.methods.ap import AP
from efface.models import load
from efface.storage import ASSETS
from efface.vocabulary import brought


@dataclass(frozen=True)
class Demo:
    """What the demo erases, and how long it takes over it."""

    concept: str = "beer mug"
    """One of the shipped model's concepts."""
    updates: int = 150
    """Weight updates."""
    pictures: int = 4
    """Pictures of each concept that are scored, before and after."""
    out: Path = Path("runs/demo")
    """The run's folder."""


def run(args: list[str]) -> int:
    """Erase with adversarial preservation, score, and say where the picture is."""
    o = parsed(Demo, args, "efface demo")
    near = load_protocol(OBJECTS).near([o.concept])
    method = AP(updates=o.updates)
    print(f"Erasing {o.concept!r} from the shipped model with adversarial preservation …\n")
    run_erase(method, Erase(concept=(o.concept,), out=o.out), ["efface", "demo", *args])
    edit, model = Edit.load(o.out), load("emoji")
    names = brought(ASSETS / "emoji", "emoji", "names").words
    others = dict.fromkeys([*near, *[n for n in names[::8] if n != o.concept]])
    question = ask(model, pictures=o.pictures, concepts=tuple(others))
    found = scored(model, edit, question, o.out)
    print(
        "\nESR: pictures without the erased concept. "
        "PSR: pictures that still show what they should."
    )
    print_scores(found.to_json())
    print(f"\nLook at {o.out / 'before-after.png'} (above: before, below: after, same seeds).")
    return 0
