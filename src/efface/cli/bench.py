"""``efface bench``: methods under one protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.opening import OfModel, Opening, chosen
from efface.cli.terminal import Json, makeable, parsed, show
from efface.errors import UserError, pick
from efface.evaluation.bench import Cell, label, lineup, run_all
from efface.evaluation.protocols import load
from efface.scores import Score
from efface.settings import Range


@dataclass(frozen=True)
class Options:
    """What is compared, and where the results go."""

    protocol: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROTOCOL")]
    """A shipped protocol, or a JSON file."""
    method: tuple[str, ...] = ()
    """One of the line-up (again for more). Default: all."""
    split: tuple[str, ...] = ()
    """One of the protocol's splits (again for more). Default: the first."""
    seeds: Annotated[int, Range(1, 1000)] = 3
    """How many seeds of each cell, 1 to 1,000: from 0 on."""
    opening: OfModel = Opening()
    updates: Annotated[int, Range(1, 10**7)] = 400
    """Weight updates of every fine-tuned method, 1 to 10,000,000."""
    out: Path = Path("bench/results")
    """Folder of the results, a JSON a cell; a cell that is there is not run again."""
    work: Path = Path("runs/bench")
    """Folder of edits and pictures."""
    jobs: Annotated[int, Range(1, 1024)] = 1
    """Cells at a time, 1 to 1,024, each a process of its own: not more than there are cores."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Run on Ray: the address of a cluster, or ``local``."""
    json: Json = False
    """Print the scores as JSON."""


def command(args: list[str]) -> int:
    """``efface bench PROTOCOL``."""
    o = parsed(Options, args, "efface bench")
    protocol = load(o.protocol)
    methods = o.method or tuple(lineup())
    if protocol.source:
        raise UserError(
            f"the protocol {protocol.name!r} reads its prompts from a file: "
            f"efface score RUN --protocol {protocol.name} --prompts FILE."
        )
    for m in methods:
        pick(lineup(), m, "method of the benchmark")
    splits = o.split or tuple(protocol.splits)[:1]
    for s in splits:
        protocol.erased(s)
    makeable(o.out)
    makeable(o.work)
    model, how = chosen(o.opening), (o.opening.dtype, o.opening.device, o.opening.size)
    cells = [
        Cell(o.protocol, split, method, seed, o.updates, model, *how)
        for seed in range(o.seeds)
        for split in splits
        for method in methods
    ]
    failed = run_all(cells, o.out, o.work, o.ray, o.jobs)
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
                    *(str(Score(**r["scores"][k])) for k in keys),
                ]
                for r in rows
            ],
            ["method", "split", "seed", *keys],
        )
    for f in failed:
        print(f"FAILED twice: {f.cell.file}: {f.why}; the same command tries it again.")
    return 1 if failed else 0
