"""``efface attack``: what brings an erased concept back, channel by channel, beside controls."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from efface.cli.gate import Gate
from efface.cli.opening import Jobs, OfModel, Opening, Ray, crew, opened
from efface.cli.terminal import Flag, Json, Place, first_line, makeable, parsed, show
from efface.edits.edit import Edit
from efface.errors import UserError, escaped, pick
from efface.evaluation.attacks import ATTACKS, CHANNELS, Attack
from efface.evaluation.evaluate import brought_protocol, judge_for
from efface.evaluation.protocols import Protocol
from efface.evaluation.references import References, erased_by
from efface.evaluation.siege import Done, Results, Siege, Unit, file_name
from efface.evaluation.tasks import every
from efface.evaluation.trial import SEEDS, Court
from efface.evaluation.verdicts import ROLES, Line
from efface.models import DiffusionModel
from efface.settings import Range, to_json
from efface.storage import make_folder
from efface.vocabularies import load as load_vocabulary

BUDGETS = ("small", "full")


@dataclass(frozen=True)
class Common:
    """Which edit is attacked, by what, and how much of it."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run's folder, or an edit file."""
    attack: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """One of the attacks (again for more). Default: all that make sense."""
    budget: Annotated[str, tyro.conf.arg(metavar="{small,full,INT}")] = "small"
    """small: settings for two cores and a small model; full: the papers' settings; or the
    evaluations of the denoiser that each search may spend."""
    sample: Annotated[int, Range(1, 10_000)] = 2
    """Erased concepts that are attacked by what searches with the denoiser, 1 to 10,000: spread
    over how strongly the edit changed them. Other attacks take all."""
    redraws: Annotated[int, Range(4, 1000)] = len(SEEDS)
    """Fresh pictures that are judged of everything found, 4 to 1,000."""
    pictures: Place = None
    """Folder of pictures of the concept to attack with; of several concepts, a folder each.
    Default: the unedited model draws them."""
    require: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="TEXT", help_behavior_hint=""),
    ] = ()
    """A gate, such as "completion<=10,relearn@25<=20" (again for more): exit with 1 where the upper
    end of an interval is over its bound, in percent."""
    keep_artefacts: Flag = False
    """Keep what was found (prompts, vectors, latents, pictures) in the run's folder."""
    seed: Annotated[int, Range(0, 2**31)] = 0
    """Of every random draw of the attacks, 0 to 2,147,483,648."""
    jobs: Jobs = 1
    ray: Ray = None
    opening: OfModel = Opening()
    out: Place = None
    """The results. Default: attacks.json in the run's folder; attacks-HASH.json where the question
    is not the usual one."""
    json: Json = False
    """Print the results as JSON."""


def options(start: Mapping[str, Attack]) -> Any:
    """The dataclass of the command line: what is common, and every attack's settings.

    Args:
        start: attacks with the settings to set out from.
    """
    parts = [
        (name.replace("-", "_"), type(attack), field(default=attack))
        for name, attack in start.items()
        if fields(attack)  # type: ignore[arg-type]
    ]
    made = make_dataclass("Options", parts, bases=(Common,), frozen=True)
    made.__doc__ = first_line(sys.modules[__name__])
    return made


Options = options({n: a() for n, a in ATTACKS.items()})
"""What the command line takes."""


def command(args: list[str], watch: Callable[[int, int, float | None], None] | None = None) -> int:
    """``efface attack RUN``.

    Args:
        watch: of :meth:`~efface.evaluation.siege.Siege.run`.
    """
    o, siege, out, refusals, bounds = prepared(args)
    workers = crew(o.jobs, o.ray).for_a(siege.model.device)
    desk = Desk(at_home(o, siege), replace(siege.edit, base=None))
    elsewhere = partial(every, workers, desk, what="attacks")
    results = siege.run(out, None if workers.alone else elsewhere, watch=watch)
    said, wrong = bounds.verdict(results)
    if o.json:
        told = {**siege.about(), **results.to_json(), "refused": refusals}
        told["broken"] = said if wrong is None else [str(wrong)]
        print(json.dumps(told, indent=1))
    else:
        tell(results, refusals, siege)
        print(f"\n{out}")
    if wrong is not None:
        raise wrong
    for line in said:
        print(f"efface: not let through: {escaped(line)}", file=sys.stderr)
    return 1 if said else 0


class Prepared(NamedTuple):
    """What an attack sets out with."""

    options: Common
    siege: Siege
    out: Path
    refusals: Mapping[str, str]
    bounds: Gate


def prepared(args: list[str]) -> Prepared:
    """Everything up to the first attack.

    Raises:
        UserError: what cannot be, and an attack that was asked for and makes no sense.
    """
    start = settings_for(args)
    config = (tyro.conf.CascadeSubcommandArgs,)  # a curve's points replace the usual ones
    found: Any = parsed(options(start), args, "efface attack", config=config)
    o: Common = found
    bounds = Gate.of(o.require)
    crew(o.jobs, o.ray)
    for name in o.attack:
        pick(ATTACKS, name, "attack")
    attacks = [
        getattr(found, name.replace("-", "_"), made)
        for name, made in start.items()
        if name in (o.attack or start)
    ]
    files = [o.out] if o.out else home_of(o).glob("attacks*.json")
    bounds.foresee(attacks, files, evaluations(o.budget))
    siege, out = besieged(o, attacks)
    refusals = siege.refused()
    for attack in attacks:
        if attack.name in o.attack and attack.name in refusals:
            raise UserError(f"the attack {attack.name!r} cannot be run: {refusals[attack.name]}")
    siege = replace(siege, attacks=[a for a in attacks if a.name not in refusals])
    bounds.check(siege, out, refusals)
    return Prepared(o, siege, out, refusals, bounds)


@dataclass(frozen=True)
class Desk:
    """What another process, maybe on another machine, needs to attack."""

    options: Common
    """The model and the pictures are read there."""
    edit: Edit

    def open(self) -> Callable[[Unit], Done]:
        """What does a unit.

        Raises:
            UserError: the model or the pictures are not on that machine.
        """
        o = self.options
        with redirect_stderr(io.StringIO()):  # said once already
            return sieged(o, (), opened(o.opening, self.edit), self.edit).whole


def at_home(o: Common, siege: Siege) -> Common:
    """Options that mean the same in another process: those of all attacks, with absolute paths."""
    plain = Common(**{f.name: getattr(o, f.name) for f in fields(Common)})
    device = str(siege.model.device)
    opening = replace(o.opening, model=siege.model.name, device=device)
    pictures = o.pictures and o.pictures.absolute()
    return replace(plain, opening=opening, pictures=pictures)


def settings_for(args: Sequence[str]) -> dict[str, Attack]:
    """Every attack with the settings of the budget that is asked for.

    Raises:
        UserError: an unknown budget.
    """
    chosen = "small"
    for a, following in zip(args, (*args[1:], ""), strict=False):
        if a == "--budget":
            chosen = following
        elif a.startswith("--budget="):
            chosen = a.partition("=")[2]
    evaluations(chosen)
    made = {name: attack() for name, attack in ATTACKS.items()}
    return {n: a.full() for n, a in made.items()} if chosen == "full" else made


def evaluations(budget: str) -> int | None:
    """The evaluations that a budget allows each search; None: what the settings take.

    Raises:
        UserError: no budget.
    """
    if budget in BUDGETS:
        return None
    if not budget.isascii() or not budget.isdigit() or not 0 < int(budget) < 2**53:
        raise UserError(
            f"got {budget!r} for --budget; small, full, or a number of evaluations, 1 or more, is "
            "needed."
        )
    return int(budget)


def besieged(o: Common, attacks: Sequence[Attack]) -> tuple[Siege, Path]:
    """What is attacked, and where the results go.

    Raises:
        UserError: no edit, one of another model, no pictures, or a place that cannot be written.
    """
    edit, home = Edit.load(o.run), home_of(o)
    erased_by(edit)  # before a model is opened
    if o.out is not None and o.out.suffix.lower() != ".json":
        raise UserError(f"got {str(o.out)!r} for the attacks; its name must end in .json.")
    makeable((o.out or home / "attacks.json").absolute().parent)
    model = opened(o.opening, edit)
    edit.check(model)
    siege = sieged(o, attacks, model, edit)
    references = siege.references
    if o.pictures is not None:  # before anything is drawn; controls need them in every attack
        for concept in siege.concepts:
            references.pictures(concept, max(a.wanted() for a in attacks))
    out = o.out or home / file_name(question(siege, o), plain(siege, o))
    make_folder(out.absolute().parent)
    return siege, out


def home_of(o: Common) -> Path:
    """The folder of the edit, where the results go unasked."""
    return o.run if o.run.is_dir() else o.run.parent


def sieged(o: Common, attacks: Sequence[Attack], model: DiffusionModel, edit: Edit) -> Siege:
    """Attacks on an edit, with all that they are given."""
    court = court_for(model, edit, o.redraws)
    words = load_vocabulary("auto", model).words
    references = References(model, edit, court, words, o.pictures, o.seed)
    folder = {"pictures": str(o.pictures.absolute())} if o.pictures else {}
    size = {"size": o.opening.size, "dtype": model.precision}
    return Siege(
        model,
        edit,
        court,
        attacks,
        references,
        o.sample,
        evaluations(o.budget),
        o.seed,
        {**folder, **size},
        o.keep_artefacts,
    )


def question(siege: Siege, o: Common) -> dict[str, Any]:
    """All that is asked, without what it is asked of."""
    settings = {a.name: json.loads(json.dumps(to_json(a))) for a in siege.attacks}
    rest = {k: siege.about()[k] for k in ("redraws", "sample", "budget", "seed", *siege.options)}
    return {"settings": settings, **rest}


def plain(siege: Siege, o: Common) -> dict[str, Any]:
    """The same, as it is by default."""
    settings = {a.name: json.loads(json.dumps(to_json(type(a)()))) for a in siege.attacks}
    rest = {"redraws": len(SEEDS), "sample": 2, "budget": None, "seed": 0}
    return {"settings": settings, **rest, "size": 0, "dtype": "float32"}


def court_for(model: DiffusionModel, edit: Edit, redraws: int) -> Court:
    """The model's own judge and protocol for an edit; without one nobody, which is said."""
    seeds = range(SEEDS[0], SEEDS[0] + redraws)
    protocol = brought_protocol(model, [c.kind for c in erased_by(edit)])
    if protocol is not None and protocol.judge and not protocol.source:
        return Court(judge_for(model, protocol), protocol, seeds)
    print(
        f"efface: {model.name!r} brings no judge: only attacks run of which something can be said "
        "without one, and that is no verdict.",
        file=sys.stderr,
    )
    return Court(None, Protocol("none"), seeds)


def tell(results: Results, refusals: Mapping[str, str], siege: Siege) -> None:
    """The table on stdout."""
    judged = siege.court.judge is not None
    order = {c: i for i, c in enumerate(CHANNELS)}
    some = sorted(results.lines, key=lambda x: order.get(x.channel, len(order)))
    rows = [row(x) for x in some]
    unit = "% shown" if judged else "% of the way back"
    controls = [r for r in ROLES if r != "edited"]
    show(rows, ["channel", "attack", f"{unit} [95 %]", *controls, "evaluations", "verdict"])
    for name, found in results.curves().items():
        told = ", ".join(f"{k} {v:.1f}" for k, v in found.items())
        print(f"{name}: {told}")
    for line in some:
        if line.measured:
            told = ", ".join(f"{k} {v:.3g}" for k, v in line.measured.items())
            print(f"{line.key}: {told}")
    for name, why in refusals.items():
        print(f"{name}: not run: {escaped(why)}")


def row(x: Line) -> list[str]:
    """A line as cells."""
    controls = []
    for role in ROLES:
        s = x.rates.get(role)
        said = "–" if s is None else f"{s.value:.0f}"
        if role == "unrelated" and x.called:
            said += f" ({x.called})"
        controls.append(said)
    edited = x.rates.get("edited")
    spent = f"{x.forward + x.backward:,}"
    return [x.channel, x.key, str(edited) if edited else "–", *controls[1:], spent, x.verdict]
