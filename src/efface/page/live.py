"""What a run shows while it goes on: pictures on fixed seeds, ESR, and the worst harm."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.evaluate import brought_protocol, judge_for
from efface.evaluation.samples import Wanted, draw
from efface.evaluation.sensitivity import prediction
from efface.evaluation.trial import Court
from efface.models import DiffusionModel, to_image
from efface.reporting.grid import Preview
from efface.settings import read_json
from efface.storage import make_folder, write, write_text
from efface.training import Paused
from efface.vocabularies import load as load_vocabulary
from efface.vocabulary import distances

ERASED, NEAR, CONTROLS = 2, 4, 2
"""How many of each are shown."""
SEEDS = (0, 1, 2, 3)
"""Of the erased concepts' pictures; of the other words the first."""


class Watched(NamedTuple):
    """A word that is looked at."""

    word: str
    role: str
    """``erased``, ``near`` or ``control``."""


@dataclass(frozen=True)
class Point:
    """What was seen after some updates."""

    update: int
    esr: float | None = None
    """Percent of the erased concepts' pictures in which the judge does not see them; None: there
    is no judge."""
    worst: float | None = None
    """Largest change of what is predicted for another word, in percent of its square."""
    word: str = ""
    """Which word that is."""
    pictures: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Files by word, one a seed."""


def watched(
    model: DiffusionModel, concepts: Sequence[Concept], also: Sequence[str] = ()
) -> list[Watched]:
    """What is looked at: the erased concepts, words that may be hurt, and two far away.

    Args:
        also: words to begin with among those that may be hurt.
    """
    names = [c.name for c in concepts]
    words = load_vocabulary("auto", model, concepts).without(concepts, model.tokenizer).words
    erased = [Watched(n, "erased") for n in names[:ERASED]]
    if not words:
        return erased
    far_off = distances(model, names[:ERASED], words[:2000]).amin(0)
    order = far_off.argsort(stable=True).tolist()
    protocol = brought_protocol(model)
    near = [n for n in (protocol.near(names) if protocol else ()) if n in words]
    near = list(dict.fromkeys([*also, *near, *(words[i] for i in order[: 2 * NEAR])]))[:NEAR]
    far = [words[order[len(order) * k // 4]] for k in (2, 3)]
    return [
        *erased,
        *(Watched(n, "near") for n in near),
        *(Watched(n, "control") for n in dict.fromkeys(far) if n not in near),
    ][: ERASED + NEAR + CONTROLS]


class Watch:
    """Looks at a run, every so many updates; the run is the same as if nobody looked."""

    def __init__(
        self,
        folder: Path,
        every: int,
        tell: Callable[[int, float | None], None],
        stopped: Callable[[], bool],
        also: Sequence[str] = (),
        updates: int = 0,
    ) -> None:
        self.folder, self.every, self.tell, self.stopped = folder, every, tell, stopped
        self.also, self.updates = also, updates
        self.words: list[Watched] = []
        self.points: list[Point] = []
        self.model: DiffusionModel | None = None
        self.concepts: Sequence[Concept] = ()
        self.first, self.since = 0, perf_counter()

    @property
    def path(self) -> Path:
        """Where what was seen is kept."""
        return self.folder / "watch.json"

    def begun(self, model: DiffusionModel, concepts: Sequence[Concept]) -> None:
        """Take up what was seen before, and draw the unedited model."""
        self.model, self.concepts = model, concepts
        make_folder(self.folder)
        self.points = points_in(self.path)
        self.words = watched(model, concepts, self.also)
        if not self.points or self.points[0].update:
            self.points = []
            self.look(0, None)
        self.save()
        self.since = perf_counter()

    def updated(self, update: int, losses: Mapping[str, float], edit: Edit) -> bool | None:
        """Look, where it is time.

        Raises:
            Paused: the run is to stop.
        """
        if not self.first:
            self.first = update
            self.points = [p for p in self.points if p.update < update]
        done = update - self.first + 1
        left = (perf_counter() - self.since) / done * max(0, self.updates - update)
        self.tell(update, left)
        if self.stopped():
            raise Paused
        if self.every and update % self.every == 0 and update < self.updates:
            self.look(update, edit)
        return None

    def ended(self, edit: Edit) -> None:
        """Look a last time, after :meth:`begun`."""
        self.points = [p for p in self.points if p.update < max(self.updates, 1)]
        self.look(max(self.updates, 1), edit)

    @torch.no_grad()
    def look(self, update: int, edit: Edit | None) -> None:
        """Draw, measure, and keep it; the model's count stays as it was."""
        assert self.model is not None
        model, before = self.model, self.model.counter.copy()
        preview = Preview.of(model, len(self.concepts))
        small = model.at(preview.size) if preview.small else model
        seeds = SEEDS[:1] if preview.small else SEEDS
        asked = {c.name: c.shown.prompt for c in self.concepts}
        wanted = [
            Wanted(asked.get(w.word, w.word), s, w.word)
            for w in self.words
            for s in (seeds if w.role == "erased" else seeds[:1])
        ]
        drawn = list(draw(small, edit, wanted, preview.steps, progress=False))
        pictures: dict[str, list[str]] = {}
        for k, (w, x) in enumerate(zip(wanted, drawn, strict=True)):
            name = f"{update:07}-{k:02}.png"
            write(self.folder / name, partial(to_image(x).save, format="PNG"), lasting=False)
            pictures.setdefault(w.concept, []).append(name)
        esr = None if preview.small else self.esr(wanted, drawn)
        worst, word = self.harm(small, edit)
        self.points.append(Point(update, esr, worst, word, pictures))
        self.save()
        vars(model.counter).update(vars(before))

    def esr(self, wanted: Sequence[Wanted], drawn: Sequence[torch.Tensor]) -> float | None:
        """Percent of the erased concepts' pictures that the judge calls something else."""
        assert self.model is not None
        protocol = brought_protocol(self.model, [c.kind for c in self.concepts])
        if protocol is None or not protocol.judge or protocol.source:
            return None
        court = Court(judge_for(self.model, protocol), protocol)
        erased = {w.word for w in self.words if w.role == "erased"}
        try:
            labels = {n: court.label(n) for n in erased}
        except UserError:  # what the judge does not know, it cannot miss
            return None
        mine = [i for i, w in enumerate(wanted) if w.concept in erased]
        seen = court.guesses(torch.stack([drawn[i] for i in mine]))
        gone = [g != labels[wanted[i].concept] for g, i in zip(seen, mine, strict=True)]
        return 100 * sum(gone) / len(gone)

    def harm(self, model: DiffusionModel, edit: Edit | None) -> tuple[float | None, str]:
        """The largest change of another word, and which; None: no other is looked at."""
        others = [w.word for w in self.words if w.role != "erased"]
        if not others:
            return None, ""
        if edit is None:
            return 0.0, ""
        found = prediction(model, edit, others, latents=2, progress=False)
        i = found.order()[0]
        return float(f"{float(found.harm[i]):.4g}"), others[i]

    def save(self) -> None:
        """Write what was seen."""
        told = {
            "words": [w._asdict() for w in self.words],
            "concepts": [c.to_json() for c in self.concepts],
            "points": [asdict(p) for p in self.points],
        }
        write_text(self.path, json.dumps(told) + "\n")


def points_in(path: Path) -> list[Point]:
    """What was seen before; nothing, where the file cannot be read."""
    try:
        told: Any = read_json(path, "pictures of a job") if path.exists() else {}
        return [Point(**p) for p in told.get("points", ())]
    except (UserError, TypeError, AttributeError):
        return []
