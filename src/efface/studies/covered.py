"""The answer and the picture of ``coverage``, from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from efface.reporting.figures import OTHER, OURS, QUIET, panels, svg
from efface.scores import Score

COLOURS = (QUIET, "#2b7a4b", OURS, "#b8860b", OTHER, "#7a2b6f")
SCORES = ("worst tenth", "PSR-1")


def answer(found: Mapping[str, Any]) -> str:
    """In one sentence: up to how many draws per word a search beats random words, if anywhere."""
    every = [(x, Score(**x["worst tenth"])) for x in found["differences"]]
    clear = [(x, s) for x, s in every if s.low is not None and s.low > 0]
    if not clear:
        x, s = max(every, key=lambda e: e[1].value)
        return (
            f"Search pays nowhere that was tried: the most that any gains over random words is "
            f"{s} points of the worst tenth ({x['search']} at {x['draws']:g} draws per word)."
        )
    most = max(x["draws"] for x, _ in clear)
    x, s = max((e for e in clear if e[0]["draws"] == most), key=lambda e: e[1].value)
    above = sorted({y["draws"] for y, _ in every if y["draws"] > most})
    rest = (
        f"above, at {' and '.join(f'{d:g}' for d in above)}, random words do as well."
        if above
        else "more draws than that were not tried."
    )
    return (
        f"Search pays up to {most:g} draws per word, where {x['search']} gains {s} points of the "
        f"worst tenth over random words; {rest}"
    )


def figure(found: Mapping[str, Any]) -> str:
    """Worst tenth and PSR-1 against draws per word, a line a search."""
    drawing, axes = panels(11, 4, len(SCORES))
    names = list(dict.fromkeys(x["search"] for x in found["levels"]))
    ticks = sorted({x["draws"] for x in found["levels"]})
    for ax, score in zip(axes, SCORES, strict=True):
        for i, name in enumerate(names):
            some = [x for x in found["levels"] if x["search"] == name]
            at, s = [x["draws"] for x in some], [Score(**x[score]) for x in some]
            colour = COLOURS[i % len(COLOURS)]
            ax.plot(at, [v.value for v in s], "o-", color=colour, label=name)
            ax.vlines(at, [v.ends[0] for v in s], [v.ends[1] for v in s], color=colour, lw=0.7)
        ax.set(xscale="log", xlabel="draws per word", title=f"{score} of held-out names, %")
        ax.set_xticks(ticks, [f"{d:g}" for d in ticks])
        ax.minorticks_off()
    axes[0].legend()
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    apart = {(x["search"], x["draws"]): x for x in found["differences"]}
    head = ["draws per word", "search", "trainings", "worst tenth", "less random words", "PSR-1"]
    head += ["less random words", "ESR-1", "evaluations"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for x in sorted(found["levels"], key=lambda x: x["draws"]):
        own = apart.get((x["search"], x["draws"]))
        cells = [f"{x['draws']:g}", x["search"], str(x["cells"])]
        for score in SCORES:
            cells += [str(Score(**x[score])), str(Score(**own[score])) if own else "–"]
        cells += [f"{erased(found, x):.1f}", f"{x['evaluations']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    kinds = list(dict.fromkeys(r["vocabulary"] for r in found["rows"]))
    sizes = [max(r["words"] for r in found["rows"] if r["vocabulary"] == k) for k in kinds]
    held = ", ".join(f"{k} ({n:,})" for k, n in zip(kinds, sizes, strict=True))
    became = ", ".join(f"{e} → {a}" for e, a in found["erased"].items())
    return (
        f"{answer(found)} {became}, by AP with {found['updates']} updates; preserved words are "
        f"drawn from: {held}. Judged on {found['judged']} held-out names, {found['pictures']} "
        "pictures each, that no vocabulary holds. Intervals draw names and trainings; "
        f"{len(found['differences'])} differences were looked at, none corrected for that. "
        "Evaluations are of a training, its search included.\n\n" + "\n".join(lines)
    )


def erased(found: Mapping[str, Any], level: Mapping[str, Any]) -> float:
    """ESR-1 of a search at so many draws."""
    hits: list[int] = [
        h
        for r in found["rows"]
        if (r["search"], r["draws"]) == (level["search"], level["draws"])
        for h in r["gone"][0]
    ]
    return 100 * (1 - sum(hits) / len(hits))
