"""What is given up for what: the weight of preservation, the updates, and the weights trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from efface.methods.ap import AP
from efface.reporting.figures import OTHER, OURS, QUIET, panels, svg
from efface.studies import grid
from efface.studies.lab import Lab

BASE = AP.presets()["away"]


def run(
    lab: Lab,
    weights: tuple[float, ...] = (0.03, 0.1, 0.3, 1, 3),
    updates: tuple[int, ...] = (50, 100, 200, 400),
    groups: tuple[str, ...] = ("kv", "xattn", "selfattn", "noxattn", "full"),
    seeds: int = 1,
    erased: tuple[str, ...] = grid.ERASED,
) -> dict[str, Any]:
    """AP with one of the three varied, the others at their defaults."""

    def choices(_: int) -> list[grid.Choice]:
        return [
            *(grid.Choice(f"lambda {w:g}", replace(BASE, preserve=w)) for w in weights),
            *(grid.Choice(f"{n} updates", replace(BASE, updates=n)) for n in updates),
            *(grid.Choice(f"group {g}", replace(BASE, group=g)) for g in groups),
        ]

    return grid.run(lab, choices, seeds, erased)


def figure(found: Mapping[str, Any]) -> str:
    """ESR-1 against PSR-1, one curve for each thing varied."""
    drawing, (axes,) = panels(7.5, 4.8)
    for kind, colour in (("lambda", OURS), ("updates", OTHER), ("group", QUIET)):
        names = [n for n in grid.labels(found) if kind in n]
        points = [[grid.score(found, n, k).value for n in names] for k in ("gone", "kept")]
        axes.plot(*points, "o" if kind == "group" else "o-", color=colour, label=kind)
        for n, x, y in zip(names, *points, strict=True):
            axes.annotate(n, (x, y), (5, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="ESR-1, %", ylabel="PSR-1, %")
    axes.legend(frameon=False)
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""

    def mean(label: str) -> float:
        a, b = (grid.score(found, label, k).value for k in ("gone", "kept"))
        return 2 * a * b / (a + b) if a + b else 0.0

    best = max(grid.labels(found), key=mean)
    return (
        f"{grid.intro(found)} AP's preset away with one thing varied. The largest harmonic mean "
        f"of ESR-1 and PSR-1 is that of {best} ({mean(best):.1f}).\n\n{grid.table(found, 'varied')}"
    )
