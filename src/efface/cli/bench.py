"""``efface bench``: methods under one protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from efface.cli.terminal import parsed, show
from efface.errors import UserError, pick
from efface.evaluation.bench import Cell, label, lineup, run_all
from efface.evaluation.protocols import load
from efface.scores import Score


@dataclass(frozen=True)
class Bench:
    """What is compared, and where the results go."""

    protocol: tyro.conf.Positional[str]
    """A shipped protocol, or a JSON file."""
    method: tuple[str, ...] = ()
    """One of the line-up (again for more); default: all."""
    split: tuple[str, ...] = ()
    """One of the protocol's splits (again for more); default: the first."""
    seeds: int = 3
    """Seeds 0, 1, … of each cell."""
    model: str = "emoji"
    """A shipped model, a diffusers folder, or a hub id."""
    updates: int = 400
    """Weight updates of every fine-tuned method."""
    out: Path = Path("bench/results")
    """Folder of the results, a JSON a cell; a cell that is there is not run again."""
    work: Path = Path("runs/bench")
    """Folder of edits and pictures."""
    ray: str | None = None
    """Run on Ray: the address of a cluster, or ``local``."""
    json: bool = False
    """Print the scores as JSON."""


def bench(args: list[str]) -> int:
    """``efface bench PROTOCOL``."""
    o = parsed(Bench, args, "efface bench")
    if o.seeds < 1:
        raise UserError(f"got {o.seeds} seeds; at least 1 is needed.")
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
    cells = [
        Cell(o.protocol, split, method, seed, o.updates, o.model)
        for seed in range(o.seeds)
        for split in splits
        for method in methods
    ]
    failed = run_all(cells, o.out, o.work, o.ray)
    rows = [
        json.loads((o.out / c.file).read_text(encoding="utf8"))
        for c in cells
        if c not in {f.cell for f in failed}
    ]
    if o.json:
        print(json.dumps([{**r, "hits": None} for r in rows], indent=1))
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
