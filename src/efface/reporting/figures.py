"""Figures, as SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from efface.errors import UserError
from efface.evaluation.bench import UNEDITED, label
from efface.evaluation.metrics import tail_score
from efface.evaluation.protocols import load
from efface.evaluation.sensitivity import Moved
from efface.reporting.held_out import cellwise, halves
from efface.reporting.tables import Row, alike, of_split, read, score, splits
from efface.scores import Score

OURS, OTHER, QUIET = "#b00020", "#30507a", "#9aa2b1"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "efface",  # the same figure, the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
}


def panels(wide: float, high: float, n: int = 1, **options: Any) -> tuple[Any, list[Any]]:
    """A figure of ``n`` panels side by side, in inches, that belongs to no window."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(wide, high), layout="constrained")
        axes = figure.subplots(1, n, squeeze=False, **options)[0]
    return figure, list(axes)


def svg(figure: Any) -> str:
    """The figure as SVG, the same bytes every time; a ``$`` in a name is no formula.

    Text stays text, so that a sign that the measuring font lacks is drawn by the reader's own.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    out = io.StringIO()
    for text in figure.findobj(Text):
        if text.get_text():  # those of logarithmic axes are formulas, and still to be written
            text.set_parse_math(False)
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


class Mark(NamedTuple):
    """A method in the Pareto picture."""

    label: str
    erased: Score
    kept: Score
    ours: bool


def marks(found: Mapping[str, Sequence[Row]], protocol: str) -> list[Mark]:
    """Every method's ESR-1, and its PSR-1 as percent of the unedited model's.

    Args:
        found: cells of one split.
    """
    whole = score(found[UNEDITED], "preserved", 1, protocol).value / 100
    result = []
    for name, rows in found.items():
        if name != UNEDITED:
            p = score(rows, "preserved", 1, protocol)
            low, high = (None if e is None else e / whole for e in (p.low, p.high))
            kept = replace(p, value=p.value / whole, low=low, high=high)
            result.append(Mark(label(name), score(rows, "erased", 1, protocol), kept, name == "ap"))
    return result


def hard_marks(found: Mapping[str, Sequence[Row]], protocol: str) -> list[Mark]:
    """Every method's ESR-5, and the worst tenth of the names that were held out from it.

    Args:
        found: cells of one split.
    """
    result, p = [], load(protocol)
    for name, rows in found.items():
        if name != UNEDITED:
            kept = tail_score(100 * cellwise(rows, halves(rows, p)[1]))
            gone = score(rows, "erased", 5, protocol)
            result.append(Mark(label(name), gone, kept, name == "ap"))
    return result


def pareto(out: Path, protocol: str) -> str:
    """What was erased against what was kept, a panel a split; 95 % intervals, top right is best.

    Of the methods that have the same cells, as many as any has. ESR-5 and the worst tenth of the
    held-out names; where a protocol holds none out, ESR-1 and relative PSR-1.

    Raises:
        UserError: a split without a cell of the unedited model.
    """
    found, hard = read(out, protocol), bool(load(protocol).held_out)
    wanted = splits(found)
    what = ("ESR-1, %", "PSR-1, % of the unedited model's")
    if hard:
        what = ("ESR-5, %", "PSR-1 of the worst tenth, held out, %")
    figure, planes = panels(8.4 * len(wanted), 5, len(wanted))
    for split, axes in zip(wanted, planes, strict=True):
        cells = of_split(found, split)
        if UNEDITED not in cells:
            raise UserError(
                f"no cell of the unedited model on split {split} in {str(out)!r}: run it with the "
                "others."
            )
        ranked: dict[str, Sequence[Row]] = {UNEDITED: cells[UNEDITED], **alike(cells)}
        some = hard_marks(ranked, protocol) if hard else marks(ranked, protocol)
        low = min(m.kept.ends[0] for m in some) - 4
        high = max(101.5, max(m.kept.ends[1] for m in some))
        axes.set(xlabel=what[0], ylabel=what[1], ylim=(low, high))
        axes.set_xlim(min(m.erased.ends[0] for m in some) - 4, 101.5)
        axes.set_title(f"split {split}", loc="left")
        heights = spread([(m.kept.value - low) / (high - low) for m in some])
        for m, at in zip(some, heights, strict=True):
            colour, (x, y) = OURS if m.ours else OTHER, (m.erased.value, m.kept.value)
            axes.plot(m.erased.ends, [y, y], color=colour)
            axes.plot([x, x], m.kept.ends, color=colour)
            axes.plot(x, y, "o", color=colour)
            axes.annotate(
                m.label,
                (x, y),
                (1.03, at),
                textcoords="axes fraction",
                va="center",
                color=colour,
                arrowprops={"arrowstyle": "-", "color": QUIET, "lw": 0.6},
            )
    return svg(figure)


def strength_curve(curve: Mapping[float, Mapping[str, Score]]) -> str:
    """ESR-1 and PSR-1 against an edit's strength, with 95 % intervals where there are any."""
    figure, (axes,) = panels(4.6, 2.6)
    for name, colour in (("ESR-1", OURS), ("PSR-1", OTHER)):
        at = [(s, found[name]) for s, found in sorted(curve.items()) if name in found]
        if at:
            x, y = [s for s, _ in at], [score.value for _, score in at]
            axes.plot(x, y, "o-", color=colour, label=name)
            axes.vlines(x, *zip(*(score.ends for _, score in at), strict=True), color=colour)
    axes.set(xlabel="strength of the edit", ylabel="%", ylim=(-4, 104))
    axes.legend(frameon=False)
    return svg(figure)


def spread(heights: Sequence[float], room: float = 0.05) -> list[float]:
    """Heights of labels between 0 and 1, moved apart so that they do not overlap."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    found = list(heights)
    for a, b in pairwise(order):
        found[b] = max(found[b], found[a] + room)
    over = max(max(found) - 1, 0) if found else 0
    return [h - over for h in found]


def short(name: str) -> str:
    """A name that leaves room for the rest of a figure."""
    return name if len(name) <= 40 else f"{name[:39]}…"


def sensitivity(found: Moved, similarity: Sequence[float], erased: str, top: int = 20) -> str:
    """What an edit harms: the worst words with intervals, the spectrum of all, and a map.

    Args:
        similarity: of every word's text to the erased concept's.
        erased: its name.
        top: words that are named.
    """
    order, words, erased = found.order(), list(map(short, found.words)), short(erased)
    some = order[:top]
    figure, (bars, all_words, plane) = panels(15, 0.24 * len(some) + 1.6, 3)
    scores = [found.score(i) for i in some]
    bars.barh(range(len(some)), [s.value for s in scores], color=OTHER)
    bars.hlines(range(len(some)), *zip(*(s.ends for s in scores), strict=True), color="#111")
    bars.set_yticks(range(len(some)), [words[i] for i in some])
    bars.invert_yaxis()
    bars.set(xlabel=found.unit, title=f"harmed most by erasing {erased}")
    harm = found.harm.tolist()
    all_words.plot(range(1, len(order) + 1), [harm[i] for i in order], ".-", ms=3, color=OTHER)
    all_words.set(xlabel="rank among all words", ylabel=found.unit, title="spectrum")
    named = [order[round(k * (len(order) - 1) / 7)] for k in range(8)] if order else []
    for i in dict.fromkeys(named):
        at = (order.index(i) + 1, harm[i])
        all_words.annotate(words[i], at, (4, 6), textcoords="offset points", fontsize=8)
    plane.plot(similarity, harm, ".", ms=4, color=QUIET)
    plane.set(xlabel=f"cosine of text to {erased}", ylabel=found.unit, title="similarity and harm")
    for i in some[:8]:
        here = (similarity[i], harm[i])
        plane.annotate(words[i], here, (4, 3), textcoords="offset points", fontsize=8)
    return svg(figure)
