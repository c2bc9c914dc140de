"""Attacks on every edit of a benchmark: a cell is a method, a split and a seed, and one JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from efface.edits.edit import Edit
from efface.evaluation import answers
from efface.evaluation.attacks import Attack
from efface.evaluation.attacks.completion import Completion
from efface.evaluation.attacks.img2img import Img2Img
from efface.evaluation.attacks.inversion import Inversion
from efface.evaluation.attacks.null_text import NullText
from efface.evaluation.attacks.reading import Reading
from efface.evaluation.attacks.relearn import Relearn
from efface.evaluation.attacks.rephrase import Rephrase
from efface.evaluation.attacks.ring_a_bell import RingABell
from efface.evaluation.attacks.unlearndiffatk import UnlearnDiffAtk
from efface.evaluation.baselines import NoAttack, SeedSearch
from efface.evaluation.bench import UNEDITED, Cell, Opened, machine_of
from efface.evaluation.references import References
from efface.evaluation.siege import Siege, Unit
from efface.evaluation.standing import standing
from efface.evaluation.trial import SEEDS, Court
from efface.settings import read_json, to_json
from efface.storage import VERSION, make_folder, write_text
from efface.vocabularies import load as load_vocabulary

BENCHES: Mapping[str, str] = MappingProxyType({"emoji-attacks": "emoji-objects-2"})
"""Benchmarks of attacks by name, each with the protocol whose edits are attacked."""
AT: Mapping[str, Attack] = MappingProxyType(
    {
        a.name: a
        for a in (
            NoAttack(),
            SeedSearch(),
            Rephrase(texts=6),
            RingABell(),
            UnlearnDiffAtk(levels=5),
            Inversion(),
            Completion(),
            Img2Img(strengths=(0.7,)),
            NullText(),
            Relearn(),
            Reading(),
        )
    }
)
"""The attacks, at a budget that an edit can be given every one of in about five minutes."""
REDRAWS = 4
"""Pictures that are judged of everything found."""
SAMPLE = 2
"""Concepts that attacks run on which search with the denoiser."""
CONTROLLED = ("ap",)
"""Methods whose edits are attacked with the controls as well; they say what the judge and the
attacks do by themselves, which hardly depends on the edit."""
CONTROLS = ("random", "unrelated", "unknown")
"""The controls beside the unedited model, which is a line of its own."""


@dataclass(frozen=True)
class AttackCell:
    """Attacks on the edit of one cell of the benchmark."""

    edited: Cell
    attacks: tuple[Attack, ...] = tuple(AT.values())
    """Those that are asked for now; others that are there stay."""
    name: str = "emoji-attacks"

    @property
    def file(self) -> str:
        """Its file name."""
        c = self.edited
        return f"{self.name}-{c.split}-{c.method}-{c.seed}.json"

    @property
    def controlled(self) -> bool:
        """Whether it has the controls."""
        return self.edited.method in CONTROLLED

    def __str__(self) -> str:
        return self.file

    def there(self, out: Path, opened: Opened | None = None) -> bool:
        """Whether every attack that is asked for is there.

        Args:
            opened: as of :meth:`~efface.evaluation.bench.Cell.there`.
        """
        opened = opened or Opened(self.edited)
        return not missing(self, begun(self, out, self.identity(opened)))

    def check(self, opened: Opened, out: Path) -> None:
        """Refuse a result of other settings in its file.

        Raises:
            UserError: says which.
        """
        begun(self, out, self.identity(opened))

    def run(self, out: Path, work: Path) -> dict[str, Any]:
        """As :func:`run_attacks`."""
        return run_attacks(self, out, work)

    def erased(self, opened: Opened) -> tuple[str, ...]:
        """What its split erases; ``opened`` may be another split's cell."""
        return opened.protocol.erased(self.edited.split)

    def sample(self, erased: Sequence[str]) -> list[str]:
        """Whom attacks run on that search with the denoiser: with other seeds the next ones."""
        n, k = min(SAMPLE, len(erased)), len(erased)
        return [erased[(n * self.edited.seed + i) % k] for i in range(n)]

    def identity(self, opened: Opened) -> dict[str, Any]:
        """All that decides its result but the attacks' settings and the code."""
        return {
            **opened.identity_of(self.edited),
            "bench": self.name,
            "redraws": REDRAWS,
            "sample": self.sample(self.erased(opened)),
            "controls": list(CONTROLS) if self.controlled else [],
        }

    def units(self, attack: Attack, erased: Sequence[str]) -> list[Unit]:
        """What an attack does: every concept, or the sample; and the controls on the first."""
        names = self.sample(erased) if attack.searches else list(erased)
        if self.edited.method == UNEDITED:
            return [Unit(attack, "base", n) for n in names]
        roles: tuple[str, ...] = CONTROLS if self.controlled else ()
        if isinstance(attack, NoAttack):
            roles = tuple(r for r in roles if r == "unrelated")
        if isinstance(attack, SeedSearch):
            roles = ()
        return [Unit(attack, "edited", n) for n in names] + [
            Unit(attack, role, names[0]) for role in roles
        ]

    def wanted(self) -> Iterator[Attack]:
        """The attacks that are asked for and make sense; seeds are searched beside controls."""
        for attack in self.attacks:
            if self.controlled or not isinstance(attack, SeedSearch):
                yield attack

    def siege(self, opened: Opened, edit: Edit) -> Siege:
        """Who attacks, without a plan."""
        seeds = range(SEEDS[0], SEEDS[0] + REDRAWS)
        court = Court(opened.judge, opened.protocol, seeds)
        words = load_vocabulary("auto", opened.model).words
        references = References(opened.model, edit, court, words, seed=self.edited.seed)
        return Siege(opened.model, edit, court, (), references, SAMPLE, seed=self.edited.seed)

    def expected(self, opened: Opened) -> int:
        """About how many evaluations it takes."""
        siege = self.siege(opened, nothing(self.edited, opened))
        return sum(
            siege.effort(u) for a in self.wanted() for u in self.units(a, self.erased(opened))
        )


def nothing(cell: Cell, opened: Opened) -> Edit:
    """An edit that changes no weight, and names what its cell is about: the unedited model."""
    concepts = [c.to_json() for c in cell.concepts(opened.model)]
    return Edit({}, {"concepts": concepts, "method": UNEDITED, "base": opened.model.base})


def settings_of(attack: Attack) -> dict[str, Any]:
    """An attack's settings as JSON."""
    told: dict[str, Any] = json.loads(json.dumps(to_json(attack)))
    return told


def begun(cell: AttackCell, out: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a cell as far as it is there.

    Raises:
        UserError: one of other settings is there.
    """
    found = standing(answers.AttackedCell, out / cell.file, identity)
    return {**identity, "attacks": {}} if found is None else found


def missing(cell: AttackCell, row: Mapping[str, Any]) -> list[Attack]:
    """The attacks that are asked for, and not there with these settings."""
    done = row["attacks"]
    return [
        a for a in cell.wanted() if a.name not in done or done[a.name]["settings"] != settings_of(a)
    ]


def run_attacks(cell: AttackCell, out: Path, work: Path, progress: bool = True) -> dict[str, Any]:
    """Attack the edit of a cell, made where it is missing; what is there is not done again.

    The file holds each attack once it has ended; of one that was stopped, what ended of it is in
    ``work``.

    Args:
        out: folder of the results.
        work: folder of edits, the benchmark's own.

    Raises:
        UserError: a result of other settings is in its file, or whatever its method cannot.
    """
    opened = Opened(cell.edited)
    row = begun(cell, out, cell.identity(opened))
    asked = missing(cell, row)
    if not asked:
        return row
    edit = opened.erase(work, progress)
    make_folder(opened.folder(work))
    siege = cell.siege(opened, edit or nothing(cell.edited, opened))
    make_folder(out)
    for attack in asked:
        row["attacks"][attack.name] = attacked(cell, siege, attack, opened, work, progress)
        row |= {
            "edit": edit.digest if edit else "",
            "efface": VERSION,
            "torch": torch.__version__,
            "machine": machine_of(opened.model.device),
        }
        write_text(out / cell.file, json.dumps(row) + "\n")
    return row


def attacked(
    cell: AttackCell, siege: Siege, attack: Attack, opened: Opened, work: Path, progress: bool
) -> dict[str, Any]:
    """What came of one attack: its settings, what it took, and its rows; or why it makes none."""
    plan = cell.units(attack, list(opened.erased))
    siege = replace(siege, attacks=[attack], plan=plan)
    told: dict[str, Any] = {"settings": settings_of(attack)}
    refused = siege.refused() if opened.cell.method != UNEDITED else {}
    if refused:
        return {**told, "refused": refused[attack.name]}
    asked = json.dumps([siege.about(), told, [u.key for u in plan]], sort_keys=True)
    own = hashlib.sha256(asked.encode()).hexdigest()[:8]
    path = opened.folder(work) / f"attack-{attack.name}-{own}.json"
    siege.run(path, progress=progress)
    units = read_json(path, "results of attacks")["units"]
    return {
        **told,
        "seconds": round(sum(u["seconds"] for u in units.values()), 1),
        "evaluations": sum(u["evaluations"] for u in units.values()),
        "rows": [
            {"role": key.split("/")[1], **short(r)} for key, u in units.items() for r in u["rows"]
        ],
    }


def short(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a result keeps of a row: no picture's seed and nothing that was found."""
    kept = ("concept", "at", "why", "hits", "base", "called", "measured")
    told = {k: row[k] for k in kept if row[k]}
    spent = {k: v for k, v in row["spent"].items() if v}
    return {**told, **({"spent": spent} if spent else {})}
