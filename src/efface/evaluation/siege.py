"""All attacks on an edit: which concepts, which controls, one after the other, kept as they end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from tqdm import tqdm

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError, out_of_memory, pick
from efface.evaluation.answers import Siege as Kept
from efface.evaluation.answers import read
from efface.evaluation.attacks import ATTACKS, Attack, Attacked
from efface.evaluation.baselines import NoAttack, SeedSearch
from efface.evaluation.evaluate import sampler_of
from efface.evaluation.finds import Finds, all_there, write_finds
from efface.evaluation.references import References
from efface.evaluation.trial import Court, Row, tried
from efface.evaluation.verdicts import ROLES, Line, curve, lines
from efface.models import DiffusionModel
from efface.settings import checked, to_json
from efface.storage import VERSION, write_text

FLOOR: tuple[type[Attack], ...] = (NoAttack, SeedSearch)
"""What every table begins with."""


class Unit(NamedTuple):
    """What is done, or not, as a whole."""

    attack: Attack
    role: str
    """A key of :data:`~efface.evaluation.verdicts.ROLES`."""
    concept: str

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.attack.name}/{self.role}/{self.concept}"

    def __str__(self) -> str:
        return self.key


class Done(NamedTuple):
    """What came of a unit."""

    told: dict[str, Any]
    """As the file holds it: its rows, and what it took."""
    files: Mapping[str, bytes]
    """What was found, where that is kept, by file name."""


Work = Callable[[Sequence[Unit]], Iterable[tuple[Unit, Done]]]
"""Does some units, and gives each once it has ended."""


@dataclass
class Siege:
    """Attacks on one edit of one model; :meth:`run` goes on where it was stopped."""

    model: DiffusionModel
    edit: Edit
    court: Court
    attacks: Sequence[Attack]
    references: References
    """Pictures to attack with, and other concepts as controls."""
    sample: int = 3
    """Concepts that attacks run on which search with the denoiser."""
    budget: int | None = None
    """Evaluations that each search may spend; None: what its settings take."""
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else makes these results these."""
    keeping: bool = False
    """Whether what is found is kept, beside the file."""
    plan: Sequence[Unit] = ()
    """What there is to do; empty: every attack with all of its controls."""

    @property
    def concepts(self) -> list[Concept]:
        """What the edit erased, by its record."""
        return self.references.concepts

    def about(self) -> dict[str, Any]:
        """What makes results these; those of another are not gone on with."""
        judge, protocol = self.court.judge, self.court.protocol
        return {
            "edit": self.edit.digest,
            "method": self.edit.meta.get("method", ""),
            "erased": [c.name for c in self.concepts],
            "model": self.model.name,
            "base": self.model.base,
            "judge": f"{judge.version} {judge.sha256}" if judge else "",
            "protocol": f"{protocol.name} {protocol.digest}" if judge else "",
            "sampler": sampler_of(self.model, protocol),
            "redraws": len(self.court.seeds),
            "sample": self.sample,
            "budget": self.budget,
            "seed": self.seed,
            "efface": VERSION,
            **self.options,
        }

    def settings(self, attack: Attack) -> dict[str, Any]:
        """An attack's settings as JSON."""
        return json.loads(json.dumps(to_json(attack)))  # type: ignore[no-any-return]

    def units(self) -> list[Unit]:
        """What there is to do, cheap attacks first.

        Controls run on one concept; those that an attack is relative to, and those that search
        nothing, on as many as the attack.
        """
        if self.plan:
            return list(self.plan)
        floor = [kind() for kind in FLOOR] if self.court.judge else []
        found = []
        for attack in [*floor, *sorted(self.attacks, key=lambda a: a.searches)]:
            names = [c.name for c in self.concepts]
            names = self.references.sample(self.sample) if attack.searches else names
            roles = [r for r in ROLES if r in self.roles(attack)]
            found += [
                Unit(attack, role, name)
                for role in roles
                for name in (names if role == "edited" else names[:1])
            ]
        return found

    def roles(self, attack: Attack) -> Sequence[str]:
        """The controls that make sense for an attack."""
        if isinstance(attack, FLOOR):
            return ("edited", "base", "unrelated")
        if self.court.judge is None:
            return ("edited", "random") if attack.name != "reading" else tuple(ROLES)
        return tuple(r for r in ROLES if r != "base" or not attack.relative)

    def given(self, unit: Unit) -> tuple[Attacked, str]:
        """What an attack is given, and what the judge is asked for."""
        concept = next(c for c in self.concepts if c.name == unit.concept)
        judged = concept.name
        if unit.role == "unrelated":
            concept = Concept(self.references.unrelated(concept), kind=concept.kind)
        pictures = None
        if "pictures" in unit.attack.needs or unit.role == "unknown":
            pictures = self.references.pictures(concept, unit.attack.wanted())
        negative = unit.role == "unknown"
        protocol = self.court.protocol
        return (
            Attacked(
                self.model,
                None if unit.role == "base" else self.edit,
                concept,
                self.budget,
                self.seed,
                self.references.prompts(concept),
                1 - pictures if negative and pictures is not None else pictures,
                self.references.words,
                unit.role == "random",
                negative,
                protocol.guidance,
                protocol.steps,
            ),
            judged,
        )

    def refused(self) -> dict[str, str]:
        """Attacks that make no sense on this edit or model, with the reason."""
        found = {}
        for attack in self.attacks:
            try:
                if self.court.judge is None and attack.judged:
                    raise UserError("only a judge can say what comes of it, and there is none.")
                if self.budget is not None and attack.searches and self.budget < attack.least():
                    raise UserError(
                        f"its first step takes {attack.least()} evaluations, and the budget is "
                        f"{self.budget}."
                    )
                attack.check(self.given(Unit(attack, "edited", self.concepts[0].name))[0])
            except UserError as e:
                found[attack.name] = str(e)
        return found

    def run(
        self,
        path: Path,
        work: Work | None = None,
        progress: bool = True,
        watch: Callable[[int, int, float | None], None] | None = None,
    ) -> Results:
        """Do what is not done yet; each unit is in the file once it has ended.

        Args:
            work: does some units elsewhere, :meth:`whole` of each, in any order; None: here.
            watch: called at the start and after each unit with (evaluations done, evaluations
                there are, seconds left, None: not known).

        Raises:
            UserError: the file holds other results, or memory ran out; what is done is kept.
        """
        done = self.begun(path)
        units = self.units()
        rest = [u for u in units if u.key not in done or self.lacks(done[u.key], path)]
        total = sum(self.effort(u) for u in rest)
        bar = tqdm(total=total, desc="attack", unit="ev", unit_scale=True, disable=not progress)
        spent, began = 0, perf_counter()
        if watch is not None:
            watch(spent, total, None)
        for unit, found in work(rest) if work else ((u, self.whole(u)) for u in rest):
            write_finds(path.with_suffix(""), found.files)
            done[unit.key] = found.told
            keys = [u.key for u in units if u.key in done]
            done = {k: done[k] for k in dict.fromkeys([*(k for k in done if k not in keys), *keys])}
            self.keep(path, done)
            bar.set_postfix_str(unit.key)
            bar.update(self.effort(unit))
            spent += self.effort(unit)
            if watch is not None:
                left = (perf_counter() - began) / spent * (total - spent) if spent else None
                watch(spent, total, left)
        bar.close()
        return self.results(done)

    def lacks(self, told: Mapping[str, Any], path: Path) -> bool:
        """Whether what a unit found is to be kept, and is not there."""
        return self.keeping and not all_there(path.with_suffix(""), told.get("kept"))

    def whole(self, unit: Unit) -> Done:
        """A unit with its rows and what it took; pictures to attack with are not counted.

        Raises:
            UserError: memory ran out.
        """
        finds = Finds(unit.key)
        keep = finds.keep if self.keeping else None
        try:
            given, judged = self.given(unit)
            began, before = perf_counter(), self.model.counter.copy()
            rows = tried(unit.attack, given, self.court, judged, keep)
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e):
                raise
            raise UserError(
                f"out of memory in {unit.key}: give smaller batches, --dtype bf16, or leave the "
                "attack out; what is done is kept, and the same command goes on."
            ) from None
        spent = self.model.counter.since(before)
        told = {
            "settings": self.settings(unit.attack),
            "seconds": round(perf_counter() - began, 2),
            "evaluations": spent.forward + spent.backward,
            "rows": [asdict(r) for r in rows],
            "kept": sorted(finds.files) if self.keeping else None,
        }
        return Done(told, finds.files)

    def effort(self, unit: Unit) -> int:
        """About how many evaluations a unit takes, for the time that is left."""
        steps = self.court.protocol.steps or self.model.steps
        search = unit.attack.evaluations() * (unit.role not in ("random",))
        if self.budget is not None:
            search = min(search, self.budget)
        concept = next(c for c in self.concepts if c.name == unit.concept)
        found = unit.attack.count(len(self.references.prompts(concept)))
        drawn = found * len(self.court.seeds) * 2 * steps
        twice = unit.attack.relative and unit.role == "edited"
        return search + drawn * (1 + twice)

    def begun(self, path: Path) -> dict[str, Any]:
        """What a file holds of these results.

        Raises:
            UserError: it is damaged, or holds others.
        """
        if not path.exists():
            return {}
        found = read(Kept, path, "results of attacks")
        mine = json.loads(json.dumps(self.about()))
        if found["about"] != mine:
            differ = [k for k in mine if found["about"].get(k) != mine[k]]
            raise UserError(
                f"{str(path)!r} holds attacks with another {', '.join(differ) or 'record'}: move "
                "it away, or give another --out."
            )
        own = {a.name: self.settings(a) for a in (*(k() for k in FLOOR), *self.attacks)}
        units: dict[str, Any] = found["units"]
        for key, unit in units.items():
            name = key.split("/")[0]
            if name in own and unit["settings"] != own[name]:
                raise UserError(
                    f"{str(path)!r} holds the attack {name!r} with other settings: move it away, "
                    "or give another --out."
                )
        return units

    def keep(self, path: Path, units: Mapping[str, Any]) -> None:
        """Write the file."""
        found = self.results(units)
        told = {"about": self.about(), **found.to_json(), "units": units}
        write_text(path, json.dumps(told, indent=1) + "\n")

    def results(self, units: Mapping[str, Any]) -> Results:
        """The table of what is done, those attacks included that are not asked for now."""
        rows: dict[str, dict[str, list[Row]]] = {}
        seconds: dict[str, float] = {}
        for key, unit in units.items():
            name, role, _ = key.split("/", 2)
            some = rows.setdefault(name, {}).setdefault(role, [])
            some += [checked(Row, r, f"the unit {key!r}") for r in unit["rows"]]
            seconds[name] = seconds.get(name, 0.0) + unit["seconds"]
        known = {k.name: k for k in FLOOR}
        found = []
        for name, roles in rows.items():
            attack = known.get(name) or type(self.by_name(name))
            settings = next(u["settings"] for k, u in units.items() if k.split("/")[0] == name)
            made = checked(attack, settings, f"the settings of {name!r}")
            found.append((made, lines(name, made.channel, made.headline, roles)))
        return Results(found, seconds)

    def by_name(self, name: str) -> Attack:
        """An attack, asked for now or before.

        Raises:
            UserError: there is none of this name.
        """
        return pick(ATTACKS, name, "attack")()


class Results(NamedTuple):
    """What came of all attacks."""

    tables: Sequence[tuple[Attack, Sequence[Line]]]
    seconds: Mapping[str, float]

    @property
    def lines(self) -> Iterator[Line]:
        """All of them."""
        for _, some in self.tables:
            yield from some

    @property
    def headlines(self) -> dict[str, str]:
        """Attack -> the point that stands for it."""
        return {a.name: a.headline for a, _ in self.tables}

    def curves(self) -> dict[str, dict[str, float]]:
        """Half point and area of each curve."""
        floor = next((x for x in self.lines if x.attack == "none"), None)
        base = floor.rates.get("base") if floor else None
        height = base.value if base is not None else 100.0
        found = {a.name: curve(some, height) for a, some in self.tables if a.rising}
        return {k: v for k, v in found.items() if v}

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "lines": [x.to_json() for x in self.lines],
            "verdicts": {
                a.name: next((x.verdict for x in some if x.at == a.headline), "")
                for a, some in self.tables
            },
            "curves": self.curves(),
            "seconds": {k: round(v, 1) for k, v in self.seconds.items()},
        }


def file_name(about: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """The name of the results' file: another where another question is asked than by default.

    Args:
        about: all that is asked.
        plain: the same by default.
    """
    if about == plain:
        return "attacks.json"
    told = json.dumps(about, sort_keys=True)
    return f"attacks-{hashlib.sha256(told.encode()).hexdigest()[:8]}.json"
