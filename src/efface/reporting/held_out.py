"""Tables of protocols that hold names out: both halves, the worst tenth, drift, a second judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from efface.evaluation.bench import UNEDITED
from efface.evaluation.metrics import tail_score, worst_tenths
from efface.evaluation.metrics.worst import SHARE
from efface.evaluation.protocols import Protocol, load
from efface.intervals import likely, resamples
from efface.reporting.tables import (
    CAPTION,
    Row,
    alike,
    costs,
    drawn,
    fastest,
    named,
    of_split,
    place_of,
    placed,
    places,
    read,
    score,
    splits,
)
from efface.scores import Score, concept_rate

AWAY = 2.0
"""Points by which the second judge must differ to be printed as well."""
DRAWS = 500
"""Of the bootstrap over concepts."""

HEAD = (
    "method",
    "cells",
    "ESR-1",
    "ESR-5",
    "PSR-1, shown names",
    "PSR-1, held-out names",
    "worst tenth of the held-out",
    "drift (worst tenth)",
    "place [95 %]",
    "evaluations per update",
    "minutes",
)

CAPTIONS = (
    "Worst tenth: PSR-1 of the tenth of the held-out names that suffers most, found on half of "
    "the pictures and scored on the other, both ways. Drift: how far the held-out names' pictures "
    "moved, as the judge's network sees it (0: not at all), and those of the worst tenth. Place: "
    "by the harmonic mean of ESR-1 and that worst tenth. In round brackets what the second judge "
    "says, where it is more than 2 points away."
)


def cellwise(rows: Sequence[Row], names: Sequence[str], field: str = "hits", k: int = 0) -> Tensor:
    """A number of every picture of the names in every cell, (cells, concepts, pictures).

    Args:
        field: ``hits``, ``witness`` (0 or 1, by ``k``), or ``moved``.
    """
    found = []
    for r in in_order(rows):
        some = [r[field][c] for c in names]
        found.append([x if field == "moved" else x[k] for x in some])
    return torch.tensor(found, dtype=torch.float64)


def rate(values: Tensor, rows: Sequence[Row] = ()) -> Score:
    """A share in percent over cells, concepts and training seeds like these.

    Args:
        values: of :func:`cellwise`.
        rows: the cells, where they are of several splits, which are no seeds of each other.
    """
    cells, concepts, _ = values.shape
    which = torch.arange(concepts).view(1, -1, 1).expand(values.shape).flatten()
    runs = torch.tensor([[0, i] for i in range(cells)])
    if rows:
        order = splits({"": rows})
        runs = torch.tensor([[order.index(r["split"]), r["seed"]] for r in in_order(rows)])
    each = runs[:, None, None].expand(*values.shape, 2).flatten(0, 2)
    return concept_rate(values.bool().flatten(), which, each)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The cells by their seeds."""
    return sorted(rows, key=lambda r: r["seed"])


def both(
    rows: Sequence[Row], names: Sequence[str], k: int, flip: bool, ask: Callable[[Tensor], Score]
) -> str:
    """A score by the first judge, and by the second where that is far from it."""
    made = []
    for field in ("hits", "witness"):
        if field == "witness" and any(field not in r for r in rows):
            continue
        values = cellwise(rows, names, field, k)
        made.append(ask(1 - values if flip else values))
    return judged(made[0], made[1].value if len(made) > 1 else None)


def judged(one: Score, other: float | None, always: bool = False) -> str:
    """A score by the first judge, and the second's value where that is far from it."""
    first = str(one) if one.low is not None else f"{one.value:.1f}"
    told = other is not None and (always or far(one, other))
    return f"{first} ({other:.1f})" if told else first


def far(one: Score, other: float | None) -> bool:
    """Whether the second judge's value is to be told."""
    return other is not None and abs(other - one.value) > AWAY


def halves(rows: Sequence[Row], p: Protocol) -> tuple[list[str], list[str]]:
    """The preserved names that a method was shown, and those held out."""
    first = rows[0]
    others = [c for c in first["hits"] if c not in first["erased"]]
    held = set(p.held_out)
    return [c for c in others if c not in held], [c for c in others if c in held]


def of_one(found: Mapping[str, Sequence[Row]], p: Protocol) -> list[str]:
    """The table of one split, line by line."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    places = ranking(found, p)
    for name, rows in found.items():
        erased, (shown, held) = list(rows[0]["erased"]), halves(rows, p)
        cells = [named(name), str(len(rows))]
        gone = [both(rows, erased, k, True, rate) for k in (0, 1)]
        cells += ["–", "–"] if name == UNEDITED else gone
        cells += [both(rows, some, 0, False, rate) for some in (shown, held)]
        cells.append(both(rows, held, 0, False, lambda v: tail_score(100 * v)))
        cells.append("–" if name == UNEDITED else moved(rows, held))
        cells.append(place_of(places[name]) if name in places else "–")
        lines.append(f"| {' | '.join([*cells, *costs(rows)[:2]])} |")
    return lines


def moved(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Mean drift, and that of the worst tenth."""
    values = cellwise(rows, names, "moved")
    worst = -float(worst_tenths(-values).mean())
    return f"{float(values.mean()):.1f} ({worst:.1f})"


def ranking(
    found: Mapping[str, Sequence[Row]], p: Protocol, draws: int = DRAWS
) -> dict[str, Score]:
    """Each method's place by harmonic mean of ESR-1 and the held-out names' worst tenth.

    Methods that lack a cell of the others' have none, nor has one that is alone. The interval is
    what either of two leaves possible: a bootstrap, which draws concepts and training seeds, the
    same ones for all methods, and the rates of other concepts like these (:func:`likely`).
    """
    some = {n: sorted(rows, key=lambda r: r["seed"]) for n, rows in alike(found).items()}
    if len(some) < 2:
        return {}
    first = next(iter(some.values()))
    erased, (_, held) = list(first[0]["erased"]), halves(first, p)
    gone = torch.stack([1 - cellwise(rows, erased).mean(2) for rows in some.values()])
    kept = [cellwise(rows, held) for rows in some.values()]
    g = torch.Generator().manual_seed(0)
    cells = gone.shape[1]
    weights = drawn(len(erased), draws, g)
    pairs = []
    for rows in some.values():
        gone_of, kept_of = 1 - cellwise(rows, erased), cellwise(rows, held)
        worst = likely(kept_of.sum(2), kept_of.shape[2], draws, g, SHARE)
        pairs.append((likely(gone_of.sum(2), gone_of.shape[2], draws, g), worst))
    seeds, pick = resamples(draws, g, cells, len(held))
    e = torch.einsum("mdce,de->dm", gone[:, seeds], weights) / cells
    w = [worst_tenths(x[seeds[:, :, None], pick[:, None]]).mean(1) for x in kept]
    e = torch.cat([gone.mean((1, 2))[None], e])  # (1 + draws, methods): first as it is
    b = torch.cat([torch.stack([worst_tenths(x).mean() for x in kept])[None], torch.stack(w, 1)])
    others = [torch.stack(x) for x in zip(*pairs, strict=True)]
    over = "new concepts and training seeds" if cells > 1 else "new concepts"
    return placed(some, places(e.T, b.T), places(*others), len(erased), over)


FRONT = ("unedited", "ap", "ap-official-full", "spm", "spm@auto", "age", "esd", "uce")
"""The lines of the short table."""

FRONT_HEAD = (
    "method",
    "seeds",
    "erased: ESR-5",
    "kept, held-out names: PSR-1",
    "their worst tenth",
    "minutes",
    "evaluations",
)


class Beside(NamedTuple):
    """Further columns of the short table."""

    heads: tuple[str, ...] = ()
    cells: Mapping[str, Sequence[str]] = {}
    """By method; dashes for others."""
    said: str = ""
    """What the caption says of them."""


NOTHING = Beside()


def short(out: Path, protocol: str, beside: Beside = NOTHING) -> str:
    """A few methods in a few numbers, over the cells of all splits, in Markdown.

    A method without a cell of every split is left out.

    Raises:
        UserError: no finished cells, or cells that do not belong together.
    """
    found, p = read(out, protocol), load(protocol)
    head = (*FRONT_HEAD[:-2], *beside.heads, *FRONT_HEAD[-2:])
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    apart = [of_split(found, s) for s in splits(found)]
    lineup = {n: [some[n] for some in apart] for n in FRONT if all(n in some for some in apart)}
    scored: dict[str, list[tuple[Score, float | None]]] = {}
    for name, parts in lineup.items():
        rows = [r for part in parts for r in part]
        held = halves(rows, p)[1]
        whole = cellwise(rows, held)
        scores = [score(rows, "erased", 5, protocol), rate(whole, rows), tail_score(100 * whole)]
        scored[name] = list(zip(scores, second(rows, held), strict=True))
    told = [any(far(*x) for x in column) for column in zip(*scored.values(), strict=True)]
    for name, parts in lineup.items():
        rows = [r for part in parts for r in part]
        cells = [named(name), " + ".join(str(len(part)) for part in parts)]
        cells += [judged(*x, also) for x, also in zip(scored[name], told, strict=True)]
        cells[2] = "–" if name == UNEDITED else cells[2]
        cells += beside.cells.get(name, ["–"] * len(beside.heads))
        lines.append(f"| {' | '.join([*cells, *totals(rows)])} |")
    return "\n".join([*lines, "", " ".join([FRONT_CAPTION, *filter(None, [beside.said])])])


def second(rows: Sequence[Row], held: Sequence[str]) -> list[float | None]:
    """What the second judge says: ESR-5, PSR-1 of the held-out names, their worst tenth.

    None where a cell has not been shown to it.
    """
    if any("witness" not in r for r in rows):
        return [None] * 3
    gone = [1 - hit for r in rows for c in r["erased"] for hit in r["witness"][c][1]]
    kept = cellwise(rows, held, "witness")
    worst = float(worst_tenths(kept).mean())
    return [100 * sum(gone) / len(gone), 100 * float(kept.mean()), 100 * worst]


FRONT_CAPTION = (
    "In percent, over the cells of both splits, with 95 % intervals for other concepts like these "
    "and, where there are several, training seeds. Seeds of the first and second split. "
    "Minutes: of the fastest cell on one thread; most had other work beside them. "
    "Evaluations: of the denoiser, forward + backward, in thousands. In round brackets what a "
    "second judge says. –: not measured."
)


def totals(rows: Sequence[Row]) -> list[str]:
    """Minutes of a whole erasure, the least of the cells, and evaluations, their mean."""
    spent = [r["cost"] for r in rows if r.get("cost")]
    if not spent:
        return ["–", "–"]
    f, b = (sum(c[k] for c in spent) / len(spent) / 1000 for k in ("forward", "backward"))
    return [fastest(rows), f"{f:.1f} + {b:.1f}" if f else "none"]


def markdown(out: Path, protocol: str) -> str:
    """A table for each split, in Markdown.

    Raises:
        UserError: no finished cells, or cells that do not belong together.
    """
    found, p, lines = read(out, protocol), load(protocol), list[str]()
    for split in splits(found):
        some = of_split(found, split)
        erased = ", ".join(next(iter(some.values()))[0]["erased"])
        lines += [f"Split {split}: {erased}.", "", *of_one(some, p), ""]
    return "\n".join([*lines, CAPTIONS, "", CAPTION])
