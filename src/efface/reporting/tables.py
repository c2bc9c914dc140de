"""Tables and figures of the benchmark, from its JSON files alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.evaluation.bench import UNEDITED, label, lineup
from efface.evaluation.protocols import load
from efface.scores import Score, paired_difference, rate

Row = Mapping[str, Any]
OURS = "ap"
"""The line that the others are compared to."""
COMMON = ("protocol", "base", "judge", "sampler")
"""What all cells of a table share."""


def read(out: Path, protocol: str) -> dict[str, list[Row]]:
    """The finished cells of a protocol by method, in the order of the line-up.

    Raises:
        UserError: none are there.
    """
    name = load(protocol).name
    stem = Path(protocol).stem
    rows: list[Row] = [
        json.loads(p.read_text(encoding="utf8")) for p in sorted(out.glob(f"{stem}-*.json"))
    ]
    rows = [r for r in rows if r["protocol"].split()[0] == name]
    common = {json.dumps([r.get(k) for k in COMMON]) for r in rows}
    if len(common) > 1:
        raise UserError(
            f"the cells in {str(out)!r} differ in one of: {', '.join(COMMON)}; "
            "run the benchmark again, which makes the old ones anew."
        )
    if not rows:
        raise UserError(f"no result of the protocol {protocol!r} in {str(out)!r}.")
    found = {m: [r for r in rows if r["method"] == m] for m in lineup()}
    for method, some in found.items():
        if len({settings(r) for r in some}) > 1:
            raise UserError(
                f"the cells of {method!r} in {str(out)!r} are of different settings: "
                "run the benchmark again, which makes the old ones anew."
            )
    return {m: some for m, some in found.items() if some}


def settings(row: Row) -> str:
    """A cell's method settings but for the seed."""
    config = dict(row.get("config") or {}) | {"seed": None}
    if "tuning" in config:  # cells of earlier versions
        config["tuning"] = {**config["tuning"], "seed": None}
    return json.dumps(config, sort_keys=True)


class Hits:
    """Hits of cells on some concepts, picture by picture."""

    def __init__(self, rows: Sequence[Row], concepts: str, k: int, protocol: str) -> None:
        found, groups = [], []
        ids: dict[tuple[str, str], int] = {}
        p = load(protocol)
        for r in sorted(rows, key=lambda r: (r["split"], r["seed"])):
            near = set(p.near(r["erased"]))
            for c, hits in r["hits"].items():
                kind = "erased" if c in r["erased"] else "preserved"
                if concepts == kind or (concepts == "neighbours" and c in near):
                    own = hits[0 if k == 1 else 1]
                    found += own
                    groups += [ids.setdefault((r["split"], c), len(ids))] * len(own)
        self.hits: Tensor = torch.tensor(found, dtype=torch.bool)
        """(N,)."""
        self.groups: Tensor = torch.tensor(groups)
        """An integer for each concept of each split, (N,)."""


def score(rows: Sequence[Row], concepts: str, k: int, protocol: str) -> Score:
    """ESR-k (``erased``) or PSR-k (``preserved``, ``neighbours``) over cells, in percent.

    Pictures of all seeds and splits are counted alike, with a Wilson interval; every cell has
    sampling seeds of its own.
    """
    hits = Hits(rows, concepts, k, protocol).hits
    return rate(~hits if concepts == "erased" else hits)


def difference(
    a: Sequence[Row], b: Sequence[Row], k: int, protocol: str, concepts: str = "preserved"
) -> Score:
    """ESR-k (``erased``) or PSR-k of ``a`` minus that of ``b`` in points, on cells that both have.

    The same pictures on both sides; the interval draws whole concepts.
    """
    both = shared(a, b)
    x, y = (
        Hits([r for r in rows if (r["split"], r["seed"]) in both], concepts, k, protocol)
        for rows in (a, b)
    )
    sides = (~x.hits, ~y.hits) if concepts == "erased" else (x.hits, y.hits)
    return paired_difference(*sides, x.groups)


def shared(a: Sequence[Row], b: Sequence[Row]) -> set[tuple[str, int]]:
    """Splits and seeds that two methods both have cells of."""
    return {(r["split"], r["seed"]) for r in a} & {(r["split"], r["seed"]) for r in b}


def harmonic(rows: Sequence[Row], base: Sequence[Row], protocol: str) -> float:
    """Harmonic mean of ESR-1 and of PSR-1 relative to the unedited model's, in percent."""
    esr = score(rows, "erased", 1, protocol).value
    kept = 100 * score(rows, "preserved", 1, protocol).value
    kept /= score(base, "preserved", 1, protocol).value
    return 2 * esr * kept / (esr + kept) if esr + kept else 0.0


def splits(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """The splits that some cell is of."""
    return sorted({r["split"] for rows in found.values() for r in rows})


def of_split(found: Mapping[str, Sequence[Row]], split: str) -> dict[str, list[Row]]:
    """The cells of one split by method; what has none there is left out."""
    some = {n: [r for r in rows if r["split"] == split] for n, rows in found.items()}
    return {n: rows for n, rows in some.items() if rows}


def ranking(found: Mapping[str, Sequence[Row]], draws: int = 500) -> dict[str, Score]:
    """Each method's place by harmonic mean of ESR-1 and PSR-1 (1 is best), with a 95 % interval.

    The bootstrap draws whole concepts, the same ones for all methods.

    Args:
        found: cells of one split.
    """
    cells = [r for n, rows in found.items() if n != UNEDITED for r in rows]
    if not cells:
        return {}
    erased = tuple(cells[0]["erased"])
    names = list(dict.fromkeys(r["method"] for r in cells))
    rates: dict[str, tuple[Tensor, Tensor]] = {}
    for n in names:
        rows = found[n]
        others = sorted(c for c in rows[0]["hits"] if c not in erased)
        gone, kept = (
            torch.tensor(
                [sum(sum(r["hits"][c][0]) / len(r["hits"][c][0]) for r in rows) for c in some],
                dtype=torch.float64,
            )
            / len(rows)
            for some in (sorted(erased), others)
        )
        rates[n] = (1 - gone, kept)
    base = found.get(UNEDITED)
    if base:  # relative to the unedited model, as the mean beside it
        whole = [h for r in base for c, x in r["hits"].items() if c not in erased for h in x[0]]
        share = sum(whole) / len(whole)
        rates = {n: (gone, kept / share) for n, (gone, kept) in rates.items()}
    g = torch.Generator().manual_seed(0)
    places = []
    sizes = [len(x) for x in rates[names[0]]]
    for draw in range(draws + 1):
        pick = [
            torch.arange(n) if draw == 0 else torch.randint(0, n, (n,), generator=g) for n in sizes
        ]
        means = [[float(x[p].mean()) for x, p in zip(rates[n], pick, strict=True)] for n in names]
        value = torch.tensor([2 * a * b / (a + b) if a + b else 0.0 for a, b in means])
        places.append((value[None] > value[:, None]).sum(1) + 1)
    drawn = torch.stack(places[1:]).double()
    bounds = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return {
        n: Score(float(places[0][i]), float(bounds[0, i]), float(bounds[1, i]), sum(sizes))
        for i, n in enumerate(names)
    }


def markdown(out: Path, protocol: str) -> str:
    """A table for each split, and AP's paired differences to the others, in Markdown."""
    found = read(out, protocol)
    lines: list[str] = []
    for split in splits(found):
        some = of_split(found, split)
        erased = ", ".join(next(iter(some.values()))[0]["erased"])
        lines += [f"Split {split}: {erased}.", "", *of_one(some, protocol), ""]
    ours = found.get(OURS)
    if ours:
        lines += [
            "AP (ours) minus the others, in points, over the cells that both have, paired by "
            "picture; above 0, ours is better:",
            "",
            "| minus | cells | ESR-1 | PSR-1 | PSR-1 of neighbours |",
            "|" + " --- |" * 5,
        ]
        for name, rows in found.items():
            if name not in (OURS, UNEDITED):
                far = [
                    said(difference, ours, rows, 1, protocol, c)
                    for c in ("erased", "preserved", "neighbours")
                ]
                cells = str(len(shared(ours, rows)))
                lines.append(f"| {' | '.join([named(name), cells, *far])} |")
    return "\n".join(lines).rstrip()


HEAD = (
    "method",
    "cells",
    "ESR-1",
    "ESR-5",
    "PSR-1",
    "PSR-5",
    "PSR-1 of neighbours",
    "harmonic mean",
    "place [95 %]",
    "evaluations per update",
    "minutes",
    "GB",
)


def named(name: str) -> str:
    """A method as the tables have it: ours stands out."""
    return f"**{label(name)}**" if name == OURS else label(name)


def of_one(found: Mapping[str, Sequence[Row]], protocol: str) -> list[str]:
    """The table of one split, line by line."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    base, place = found.get(UNEDITED), ranking(found)
    for name, rows in found.items():
        row = [named(name), str(len(rows))]
        for concepts, k in (
            ("erased", 1),
            ("erased", 5),
            ("preserved", 1),
            ("preserved", 5),
            ("neighbours", 1),
        ):
            whole = concepts == "erased" and name == UNEDITED
            row.append("–" if whole else said(score, rows, concepts, k, protocol))
        row.append(f"{harmonic(rows, base, protocol):.1f}" if base and name != UNEDITED else "–")
        row.append(place_of(place[name]) if name in place else "–")
        lines.append(f"| {' | '.join([*row, *costs(rows)])} |")
    return lines


def said(ask: Callable[..., Score], *args: Any) -> str:
    """A score in words; a dash where no picture has one."""
    try:
        return str(ask(*args))
    except ValueError:
        return "–"


def place_of(s: Score) -> str:
    """A place with its interval."""
    return f"{s.value:.0f} [{s.low:.0f}, {s.high:.0f}]"


def costs(rows: Sequence[Row]) -> list[str]:
    """Evaluations per update, minutes and peak memory of a method's cells."""
    c = [r["cost"] for r in rows if "cost" in r]
    if not c:
        return ["–"] * 3
    per = [
        sum(r["cost"][k] / r["updates"] for r in rows) / len(rows) for k in ("forward", "backward")
    ]
    memory = [x["peak_memory_mb"] for x in c if x.get("peak_memory_mb")]
    return [
        f"{per[0]:.1f} F + {per[1]:.1f} B" if per[0] else "none",
        f"{sum(x['seconds'] for x in c) / len(c) / 60:.1f}",
        f"{max(memory) / 1024:.1f}" if memory else "–",
    ]
