"""``efface bench``: methods under one protocol."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.opening import OfModel, Opening, Ray, chosen, crew
from efface.cli.terminal import Json, makeable, parsed, show
from efface.errors import UserError, pick
from efface.evaluation.attack_bench import AT, BENCHES, AttackCell
from efface.evaluation.attacks import Attack
from efface.evaluation.bench import Cell, Opened, entry, label, plain
from efface.evaluation.cells import Lost, ready, run_all
from efface.evaluation.protocols import PROTOCOLS, load
from efface.evaluation.tasks import Crew
from efface.models.placement import pick_device
from efface.reporting.besieged import COLUMNS, said_of, spent
from efface.scores import Score
from efface.settings import Range


@dataclass(frozen=True)
class Options:
    """What is compared, and where the results go."""

    protocol: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROTOCOL")]
    """A shipped protocol, a JSON file, or emoji-attacks: attacks on emoji-objects-2's edits."""
    method: tuple[str, ...] = ()
    """One of the line-up (again for more); with @auto (esd@auto) its concepts become what AP
    searches for, with @prompts each is erased in 16 prompts. Default: all without either."""
    split: tuple[str, ...] = ()
    """One of the protocol's splits (again for more). Default: the first."""
    seeds: Annotated[int, Range(1, 1000)] = 3
    """How many seeds of each cell, 1 to 1,000: from 0 on."""
    attack: tuple[str, ...] = ()
    """Of emoji-attacks: one of its attacks (again for more). Default: all."""
    opening: OfModel = Opening()
    updates: Annotated[int, Range(1, 10**7)] = 400
    """Weight updates of every fine-tuned method, 1 to 10,000,000."""
    out: Path = Path("bench/results")
    """Folder of the results, a JSON a cell; a cell that is there is not run again."""
    work: Path = Path("runs/bench")
    """Folder of edits and pictures."""
    jobs: Annotated[int, Range(1, 1024)] = 1
    """Cells at a time, 1 to 1,024, each a process of its own: not more than there are cores."""
    ray: Ray = None
    json: Json = False
    """Print the scores as JSON."""


def command(args: list[str]) -> int:
    """``efface bench PROTOCOL``."""
    o = parsed(Options, args, "efface bench")
    if not o.protocol.lower().endswith(".json"):
        pick({**PROTOCOLS, **BENCHES}, o.protocol, "protocol (or file)")
    attacks = asked_for(o)
    protocol = load(BENCHES.get(o.protocol, o.protocol))
    methods = tuple(dict.fromkeys(o.method)) or plain()
    if protocol.source:
        raise UserError(
            f"the protocol {protocol.name!r} reads its prompts from a file: "
            f"efface score RUN --protocol {protocol.name} --prompts FILE."
        )
    for m in methods:
        entry(m)
    splits = tuple(dict.fromkeys(o.split)) or tuple(protocol.splits)[:1]
    for s in splits:
        protocol.erased(s)
    makeable(o.out)
    makeable(o.work)
    crew_of(o)
    model, how = chosen(o.opening), (o.opening.dtype, o.opening.device, o.opening.size)
    where = BENCHES.get(o.protocol, o.protocol)
    where = str(Path(where).absolute()) if where.lower().endswith(".json") else where
    cells = [
        Cell(where, split, method, seed, o.updates, model, *how)
        for seed in range(o.seeds)
        for split in splits
        for method in methods
    ]
    if attacks:
        return besieged([AttackCell(c, attacks, o.protocol) for c in cells], o)
    ready(cells, o.out, o.work)
    failed = run_all(cells, o.out, o.work, crew_of(o))
    rows = [
        json.loads((o.out / c.file).read_text(encoding="utf8"))
        for c in cells
        if c not in {f.cell for f in failed}
    ]
    if o.json:
        single = ("hits", "witness", "moved")  # a number for every picture
        print(json.dumps([{k: r[k] for k in r if k not in single} for r in rows], indent=1))
    else:
        keys = list(dict.fromkeys(k for r in rows for k in r["scores"]))
        show(
            [
                [
                    label(r["method"]),
                    r["split"],
                    str(r["seed"]),
                    *(str(Score(**r["scores"][k])) if k in r["scores"] else "–" for k in keys),
                ]
                for r in rows
            ],
            ["method", "split", "seed", *keys],
        )
    return ended(failed)


def crew_of(o: Options) -> Crew:
    """Who runs the cells.

    Raises:
        UserError: both ``--jobs`` and ``--ray``, no Ray, or no such device.
    """
    return crew(o.jobs, o.ray).for_a(pick_device(o.opening.device))


def ended(failed: Sequence[Lost]) -> int:
    """Say which cells failed; the exit code."""
    for f in failed:
        print(f"FAILED: {f.cell.file}: {f.why.rstrip('.')}; the same command tries it again.")
    return 1 if failed else 0


def asked_for(o: Options) -> tuple[Attack, ...]:
    """The attacks of a benchmark of attacks; none of another.

    Raises:
        UserError: an unknown attack, or what makes no sense together.
    """
    if o.protocol not in BENCHES:
        if o.attack:
            raise UserError(
                f"--attack is for {', '.join(BENCHES)}; the protocol is {o.protocol!r}."
            )
        return ()
    return tuple(pick(AT, name, "attack of the benchmark") for name in o.attack or AT)


def besieged(cells: Sequence[AttackCell], o: Options) -> int:
    """Attack the edits of cells, and show what came of it, attack by attack."""
    ready(cells, o.out, o.work)
    first = Opened(cells[0].edited)
    total = sorted(c.expected(first) for c in cells)
    print(
        f"efface: {len(cells)} cells of about {total[0]:,} to {total[-1]:,} evaluations each; "
        "those that are there are not run again.",
        file=sys.stderr,
    )
    failed = run_all(cells, o.out, o.work, crew_of(o))
    found = [
        json.loads((o.out / c.file).read_text(encoding="utf8"))
        for c in cells
        if c not in {f.cell for f in failed}
    ]
    if o.json:
        print(json.dumps(found, indent=1))
    else:
        heads = [c.head for c in COLUMNS]
        rows = [
            [label(r["method"]), r["split"], str(r["seed"]), *said_of(r), f"{spent(r):,}"]
            for r in found
        ]
        show(rows, ["method", "split", "seed", *heads, "evaluations"])
    return ended(failed)
