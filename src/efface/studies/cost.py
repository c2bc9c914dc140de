"""What does quality cost? Evaluations against what is erased, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from efface.errors import UserError
from efface.evaluation.bench import Cell, label
from efface.evaluation.metrics.worst import tail_score
from efface.evaluation.protocols import load as load_protocol
from efface.models import MODELS
from efface.reporting.figures import OTHER, OURS, QUIET, panels, svg
from efface.scores import Score
from efface.studies import grid
from efface.studies.lab import Lab

PROTOCOL = "emoji-objects-2"
"""Of the shipped model."""
UPDATES: Mapping[str, Sequence[int]] = {
    "esd": (100, 200, 400),
    "age": (100, 200, 400),
    "ap-official": (25, 50, 100),
    "ap": (50, 100, 200, 400),
}
"""Of each line of the benchmark; an update of the authors' form of AP takes many times another's
evaluations."""
COLOURS = (OTHER, "#2b7a4b", QUIET, OURS, "#b8860b")
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Of the figure, thousand evaluations."""
SHOWN = ("ESR-5", "PSR-1", "worst tenth")


def run(
    lab: Lab,
    trained: Mapping[str, Sequence[int]] = UPDATES,
    split: str = "1",
    seeds: int = 3,
    gone: int = 8,
    kept: int = 2,
    some: int = 75,
) -> dict[str, Any]:
    """Erase a split by lines of the benchmark with so many updates, each a training of its own.

    Args:
        trained: numbers of updates, by line.
        gone: pictures of each erased concept and seed.
        kept: pictures of each held-out concept and seed, two or more.
        some: about so many of the held-out concepts, evenly chosen, or all where there are fewer.

    Raises:
        UserError: no such split, or no name is held out.
    """
    shipped = lab.model.name in MODELS
    protocol = load_protocol(PROTOCOL) if shipped else lab.protocol
    where = PROTOCOL if shipped else str(lab.model.folder / "protocol.json")  # type: ignore[operator]
    erased = protocol.erased(split)
    held = [n for n in protocol.held_out if n not in erased]
    if not held:
        raise UserError(f"the protocol {protocol.name!r} holds no name out: nothing can be judged.")
    held = held[:: max(len(held) // some, 1)]

    def choices(seed: int) -> list[grid.Choice]:
        cells = [Cell(where, split, name, seed, n) for name, some in trained.items() for n in some]
        return [grid.Choice("", None)] + [
            grid.Choice(f"{c.method}: {c.updates}", c.config(lab.names)) for c in cells
        ]

    return {**grid.run(lab, choices, seeds, erased, gone, kept, held), "split": split}


def scores(found: Mapping[str, Any], row: str) -> dict[str, Score]:
    """ESR-1, ESR-5, PSR-1 and the worst tenth of a line."""
    kept = grid.hits(found, row, "kept")
    cells = sum(r["label"] == row for r in found["rows"])
    values = 100 * kept.hits.double().view(cells, len(found["others"]), -1)
    return {
        **{f"ESR-{k}": grid.score(found, row, "gone", k) for k in (1, 5)},
        "PSR-1": grid.score(found, row, "kept"),
        "worst tenth": tail_score(values),
    }


def spent(found: Mapping[str, Any], row: str) -> float:
    """Evaluations of a training, forward and backward, anchors and bank included."""
    costs = [r["cost"] for r in found["rows"] if r["label"] == row]
    return float(sum(c["forward"] + c["backward"] for c in costs) / len(costs))


def lines(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """The trained rows of each line of the benchmark, as they were trained."""
    rows: dict[str, list[str]] = {}
    for row in filter(None, grid.labels(found)):
        rows.setdefault(row.partition(":")[0], []).append(row)
    return rows


def figure(found: Mapping[str, Any]) -> str:
    """Each score against the evaluations, a curve a method; dotted: the unedited model."""
    drawing, axes = panels(12, 3.8, len(SHOWN))
    plain = scores(found, "")
    costs = [spent(found, r) / 1000 for rows in lines(found).values() for r in rows]
    ticks = [n for n in TICKS if min(costs) <= n <= max(costs)]
    for (name, rows), colour in zip(lines(found).items(), COLOURS, strict=False):
        x, own = [spent(found, r) for r in rows], [scores(found, r) for r in rows]
        for ax, score in zip(axes, SHOWN, strict=True):
            ax.plot(x, [s[score].value for s in own], "o-", color=colour, label=label(name))
            ends = [s[score].ends for s in own]
            ax.vlines(x, [e[0] for e in ends], [e[1] for e in ends], color=colour, lw=0.7)
    for ax, score in zip(axes, SHOWN, strict=True):
        if score != "ESR-5":
            ax.axhline(plain[score].value, color=QUIET, ls=":", lw=1)
        held = "" if score == "ESR-5" else ", held-out names"
        ax.set(xscale="log", xlabel="thousand evaluations", title=f"{score}{held}, %")
        ax.set_xticks([1000 * n for n in ticks], list(map(str, ticks)))
        ax.minorticks_off()
    axes[1].legend(loc="center right", bbox_to_anchor=(1, 0.42), frameon=False)
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    head = ["method", "updates", "evaluations", "ESR-1", "ESR-5", "PSR-1", "worst tenth"]
    table = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    plain = scores(found, "")
    table.append(f"| Unedited | – | – | – | – | {plain['PSR-1']} | {plain['worst tenth']} |")
    good = []
    for name, rows in lines(found).items():
        for row in rows:
            own, took = scores(found, row), spent(found, row)
            cells = [label(name), row.partition(": ")[2], f"{took:,.0f}", *map(str, own.values())]
            table.append(f"| {' | '.join(cells)} |")
            if own["ESR-5"].value >= 99:
                good.append((took, label(name), own["worst tenth"].value))
    least = min(good, default=None)
    said = (
        f" The least that erases 99 of 100 pictures (ESR-5) is {least[1]}'s {least[0]:,.0f} "
        f"evaluations, with {least[2]:.1f} of the worst tenth."
        if least
        else ""
    )
    return (
        f"{grid.intro(found)} These were held out, and the methods have the benchmark's settings "
        "and whatever evaluations they take for anchors and latents; each row is a training of its "
        f"own.{said}\n\n" + "\n".join(table)
    )
