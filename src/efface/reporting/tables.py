"""Tables and figures of the benchmark, from its JSON files alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.evaluation import answers
from efface.evaluation.bench import UNEDITED, label, lineup
from efface.evaluation.protocols import load
from efface.evaluation.standing import BEFORE, SAME
from efface.intervals import likely
from efface.scores import Score, concept_rate, paired_difference
from efface.vocabularies import INLINE

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
        answers.read(answers.Cell, p, "result") for p in sorted(out.glob(f"{stem}-*.json"))
    ]
    rows = [r for r in rows if r["protocol"].split()[:1] == [name]]
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


def none_yet(out: Path, name: str) -> str:
    """How to make results of a benchmark, where there is none; else ""."""
    there = any(out.glob(f"{Path(name).stem}-*.json"))
    return "" if there else f"No result yet: `efface bench {name}` makes them."


def settings(row: Row) -> str:
    """A cell's method settings but for the seed, and for the names that its split lets it see."""
    had = row.get("config") or {}
    config = {**BEFORE, **had, "seed": None}
    for k, v in BEFORE.items():
        if isinstance(v, Mapping) and isinstance(had.get(k), Mapping):
            config[k] = {**v, **had[k]}
    if str(config.get("vocabulary", "")).startswith(INLINE):
        config["vocabulary"] = INLINE
    if "tuning" in config:  # cells of earlier versions
        config["tuning"] = {**config["tuning"], "seed": None}
    told = {k: v for k, v in config.items() if BEFORE.get(k) is not SAME}
    return json.dumps(told, sort_keys=True)


class Hits:
    """Hits of cells on some concepts, picture by picture."""

    def __init__(self, rows: Sequence[Row], concepts: str, k: int, protocol: str) -> None:
        found, which, runs = [], [], []
        ids: dict[str, int] = {}
        p, order = load(protocol), sorted({r["split"] for r in rows})
        for r in sorted(rows, key=lambda r: (r["split"], r["seed"])):
            near = set(p.near(r["erased"]))
            for c, hits in r["hits"].items():
                kind = "erased" if c in r["erased"] else "preserved"
                if concepts == kind or (concepts == "neighbours" and c in near):
                    own = hits[0 if k == 1 else 1]
                    found += own
                    which += [ids.setdefault(c, len(ids))] * len(own)
                    runs += [(order.index(r["split"]), r["seed"])] * len(own)
        self.hits: Tensor = torch.tensor(found, dtype=torch.bool)
        """(N,)."""
        self.concepts: Tensor = torch.tensor(which)
        """An integer for each concept, the same in all splits, (N,)."""
        self.runs: Tensor = torch.tensor(runs)
        """The split, as an integer, and the training seed, (N, 2)."""


def score(rows: Sequence[Row], concepts: str, k: int, protocol: str) -> Score:
    """ESR-k (``erased``) or PSR-k (``preserved``, ``neighbours``) over cells, in percent.

    Pictures of all seeds and splits are counted alike; the interval is over concepts like these
    and, where a split has several, training seeds.
    """
    h = Hits(rows, concepts, k, protocol)
    return concept_rate(~h.hits if concepts == "erased" else h.hits, h.concepts, h.runs)


def difference(
    a: Sequence[Row], b: Sequence[Row], k: int, protocol: str, concepts: str = "preserved"
) -> Score:
    """ESR-k (``erased``) or PSR-k of ``a`` minus that of ``b`` in points, on cells that both have.

    The same pictures on both sides; the interval is over concepts and training seeds like these.
    """
    both = shared(a, b)
    x, y = (
        Hits([r for r in rows if (r["split"], r["seed"]) in both], concepts, k, protocol)
        for rows in (a, b)
    )
    sides = (~x.hits, ~y.hits) if concepts == "erased" else (x.hits, y.hits)
    return paired_difference(*sides, x.concepts, x.runs)


def shared(a: Sequence[Row], b: Sequence[Row]) -> set[tuple[str, int]]:
    """Splits and seeds that two methods both have cells of."""
    return cells_of(a) & cells_of(b)


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


def alike(found: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    """The methods that have the same cells, as many as any has; only they can be ranked."""
    cells = {n: frozenset(cells_of(rows)) for n, rows in found.items() if n != UNEDITED}
    sets = list(cells.values())
    most = max(sets, key=lambda s: (len(s), sets.count(s)), default=frozenset())
    return {n: found[n] for n, s in cells.items() if s == most}


def cells_of(rows: Sequence[Row]) -> set[tuple[str, int]]:
    """The split and the training seed of each cell."""
    return {(r["split"], r["seed"]) for r in rows}


def shares(rows: Sequence[Row], names: Sequence[str]) -> Tensor:
    """Share of hits of each concept with each training seed, (k, seeds)."""
    table = [[sum(r["hits"][c][0]) / len(r["hits"][c][0]) for r in rows] for c in names]
    return torch.tensor(table, dtype=torch.float64)


def ranking(found: Mapping[str, Sequence[Row]], draws: int = 2000) -> dict[str, Score]:
    """Each method's place by harmonic mean of ESR-1 and PSR-1 (1 is best), with a 95 % interval.

    Methods that lack a cell of the others' have none, nor has one alone. The interval is what
    either of two leaves possible. A bootstrap draws whole concepts, and training seeds where there
    are several, the same ones for all methods; one fewer than there are, since the full number
    varies too little. But five concepts without a miss leave it nothing to draw, so that the rates
    of other concepts like these are drawn as well (:func:`efface.intervals.likely`).

    Args:
        found: cells of one split.

    Source: Rao & Wu, J. Am. Stat. Assoc. 83 (1988).
    """
    some = {n: sorted(rows, key=lambda r: r["seed"]) for n, rows in alike(found).items()}
    if len(some) < 2:
        return {}
    first = next(iter(some.values()))[0]
    erased = sorted(first["erased"])
    others = sorted(c for c in first["hits"] if c not in first["erased"])
    base = found.get(UNEDITED)  # relative to the unedited model, as the mean beside it
    whole = [h for r in base for c in others for h in r["hits"][c][0]] if base else [1]
    gone = torch.stack([1 - shares(rows, erased) for rows in some.values()])  # (methods, k, seeds)
    kept = torch.stack([shares(rows, others) for rows in some.values()]) * len(whole) / sum(whole)
    g = torch.Generator().manual_seed(0)
    seeds = drawn(gone.shape[2], draws, g)

    def mean(x: Tensor) -> Tensor:
        """The mean of every draw, the first one of all, (methods, draws + 1)."""
        pick = torch.einsum("dk,mks,ds->md", drawn(x.shape[1], draws, g), x, seeds)
        return torch.cat([x.mean((1, 2))[:, None], pick], 1)

    drawings = places(mean(gone), mean(kept))
    scale = len(whole) / sum(whole)
    rates = [possible(rows, erased, others, draws, g) for rows in some.values()]
    of_others = places(
        *(torch.stack(x) for x in zip(*((a, scale * b) for a, b in rates), strict=True))
    )
    over = "new concepts and training seeds" if gone.shape[2] > 1 else "new concepts"
    n = len(erased) if min(len(erased), len(others)) > 1 else 1
    return placed(some, drawings, of_others, n, over)


def possible(
    rows: Sequence[Row],
    erased: Sequence[str],
    others: Sequence[str],
    draws: int,
    g: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Rates of erased and of kept concepts like these that a method's hits leave possible."""
    found = []
    for names, miss in ((erased, True), (others, False)):
        first = [[r["hits"][c][0] for c in names] for r in rows]
        n = len(first[0][0])
        hits = torch.tensor([[n * sum(x) / len(x) for x in some] for some in first]).round()
        found.append(likely(n - hits if miss else hits, n, draws, g))
    return found[0], found[1]


def places(gone: Tensor, kept: Tensor) -> Tensor:
    """Each method's place by the harmonic mean of two rates, in every draw, as their shape is.

    Args:
        gone, kept: (methods, draws).
    """
    value = torch.where(gone + kept > 0, 2 * gone * kept / (gone + kept), 0.0)
    return ((value[None] > value[:, None] + 1e-12).sum(1) + 1).double()


def placed(
    names: Iterable[str], drawings: Tensor, of_others: Tensor, n: int, over: str
) -> dict[str, Score]:
    """Places with the intervals that either kind of draws leaves possible.

    Args:
        drawings: (methods, 1 + draws), first as it is.
        of_others: (methods, draws).
        n: erased concepts; with one there is no interval.
    """
    level = torch.tensor([0.025, 0.975], dtype=torch.float64)
    one, two = (torch.quantile(x, level, dim=1) for x in (drawings[:, 1:], of_others))
    low, high = torch.minimum(one[0], two[0]).tolist(), torch.maximum(one[1], two[1]).tolist()
    return {
        m: Score(place, a if n > 1 else None, b if n > 1 else None, n, "concepts", over)
        for m, place, a, b in zip(names, drawings[:, 0].tolist(), low, high, strict=True)
    }


def drawn(n: int, draws: int, g: torch.Generator) -> Tensor:
    """Weights of n things in each draw of n - 1 of them, rows of sum 1, (draws, n)."""
    size = max(n - 1, 1)
    pick = torch.randint(0, n, (draws, size), generator=g)
    one = torch.ones(draws, size, dtype=torch.float64)
    return torch.zeros(draws, n, dtype=torch.float64).scatter_add_(1, pick, one) / size


def markdown(out: Path, protocol: str) -> str:
    """A table for each split, and AP's paired differences to the others, in Markdown."""
    found = read(out, protocol)
    lines: list[str] = []
    for split in splits(found):
        some = of_split(found, split)
        erased = ", ".join(next(iter(some.values()))[0]["erased"])
        lines += [f"Split {split}: {erased}.", "", *of_one(some, protocol), ""]
    lines += [CAPTION, ""]
    ours = found.get(OURS)
    if ours:
        lines += [
            "AP (ours) minus the others, in points, over the cells that both have, paired by "
            "picture; above 0, ours is better; intervals as above:",
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


POOLED = ("method", "cells", "ESR-1", "PSR-1", "AP minus it, PSR-1")
"""Columns of a table over all splits, but for the costs."""


def pooled(out: Path, protocol: str) -> str:
    """One line a method over the cells of all splits, in Markdown; of none, how to make some."""
    if empty := none_yet(out, protocol):
        return empty
    found = read(out, protocol)
    head = (*POOLED, *HEAD[-3:])
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, rows in found.items():
        gone = "–" if name == UNEDITED else said(score, rows, "erased", 1, protocol)
        row = [named(name), str(len(rows)), gone, said(score, rows, "preserved", 1, protocol)]
        far = OURS in found and name not in (OURS, UNEDITED)
        row.append(said(difference, found[OURS], rows, 1, protocol) if far else "–")
        lines.append(f"| {' | '.join([*row, *costs(rows)])} |")
    return "\n".join([*lines, "", CAPTION.partition(" Places are")[0]])


CAPTION = (
    "The intervals are 95 %, for other concepts like these and other training seeds; for other "
    "concepts only where a method has a single cell, and none where there is a single concept. "
    "For new pictures of the same concepts they would be narrower: docs/intervals.md. Places are "
    "among the methods that have the same cells, as many as any has; the others have none."
)
"""Which question the tables' intervals answer."""

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
    return s.said(0)


def fastest(rows: Sequence[Row]) -> str:
    """Minutes of the cell on a CPU that took the least: the others had other work beside them.

    Where all were made on something else, that is named.
    """
    by: dict[str, list[float]] = {}
    for r in rows:
        if "seconds" in (r.get("cost") or {}):
            by.setdefault(str(r.get("machine", "")).rpartition(", ")[2], []).append(
                r["cost"]["seconds"]
            )
    if not by:
        return "–"
    kind = "cpu" if "cpu" in by else min(by)
    least = min(by[kind])
    minutes = f"{least / 60:.1f}" if least > 3 else "< 0.1"
    return minutes if kind in ("cpu", "") else f"{minutes} ({kind})"


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
        fastest(rows),
        f"{max(memory) / 1024:.1f}" if memory else "–",
    ]
