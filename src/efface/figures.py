"""Figures of the benchmark, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from efface.bench import LABELS, UNEDITED
from efface.scores import Score
from efface.tables import read, score

WIDE, HIGH = 820, 520
LEFT, TOP, RIGHT, BOTTOM = 70, 24, 240, 60


class Mark(NamedTuple):
    """A method in the Pareto picture."""

    label: str
    erased: Score
    kept: Score
    ours: bool


def marks(out: Path, protocol: str) -> list[Mark]:
    """Every method's ESR-1, and its PSR-1 as percent of the unedited model's."""
    found = read(out, protocol)
    whole = score(found[UNEDITED], "preserved", 1, protocol).value / 100
    result = []
    for name, rows in found.items():
        if name != UNEDITED:
            p = score(rows, "preserved", 1, protocol)
            kept = Score(p.value / whole, p.low / whole, p.high / whole, p.n)
            label = LABELS[name].strip("*")
            result.append(Mark(label, score(rows, "erased", 1, protocol), kept, name == "ap"))
    return result


def pareto(out: Path, protocol: str) -> str:
    """ESR-1 against relative PSR-1, with the 95 % intervals as crosses; top right is best."""
    some = marks(out, protocol)
    x0 = max(min(m.erased.low for m in some) - 4, 0)
    y0 = max(min(m.kept.low for m in some) - 4, 0)
    x1, y1 = 101.5, max(101.5, max(m.kept.high for m in some))

    def x(v: float) -> float:
        return LEFT + (v - x0) / (x1 - x0) * (WIDE - LEFT - RIGHT)

    def y(v: float) -> float:
        return HIGH - BOTTOM - (v - y0) / (y1 - y0) * (HIGH - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>Erasing against preserving, protocol {escape(protocol)}</title>",
        f'<rect width="{WIDE}" height="{HIGH}" fill="#fff"/>',
    ]
    for v in ticks(x0):
        parts.append(line(x(v), TOP, x(v), HIGH - BOTTOM, "#e4e6ea"))
        parts.append(text(x(v), HIGH - BOTTOM + 20, f"{v:g}", "middle"))
    for v in ticks(y0):
        parts.append(line(LEFT, y(v), WIDE - RIGHT, y(v), "#e4e6ea"))
        parts.append(text(LEFT - 8, y(v) + 4, f"{v:g}", "end"))
    parts.append(text((LEFT + WIDE - RIGHT) / 2, HIGH - 16, "ESR-1, %", "middle"))
    parts.append(text(LEFT - 52, TOP - 8, "PSR-1, % of the unedited model's", "start"))
    heights = spread([y(m.kept.value) for m in some])
    for m, at in zip(some, heights, strict=True):
        colour = "#b00020" if m.ours else "#30507a"
        cx, cy = x(m.erased.value), y(m.kept.value)
        parts.append(line(x(m.erased.low), cy, x(m.erased.high), cy, colour, 1.5))
        parts.append(line(cx, y(m.kept.low), cx, y(m.kept.high), colour, 1.5))
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4.5" fill="{colour}"/>')
        parts.append(line(cx + 6, cy, WIDE - RIGHT + 6, at, "#c8ccd4", 0.7))
        parts.append(text(WIDE - RIGHT + 10, at + 4, m.label, "start", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float) -> list[float]:
    """Round values from ``low`` to 100."""
    step = 20 if low < 40 else 10 if low < 70 else 5 if low < 85 else 2
    return [float(v) for v in range(100, -1, -step) if v >= low]


def spread(heights: Sequence[float], room: float = 17) -> list[float]:
    """The heights, moved apart so that labels do not overlap."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    found = list(heights)
    for a, b in pairwise(order):
        found[b] = max(found[b], found[a] + room)
    over = max(found) - (HIGH - BOTTOM) if found else 0
    if over > 0:
        found = [h - over for h in found]
    return found


def line(x: float, y: float, x2: float, y2: float, colour: str, wide: float = 1) -> str:
    """An SVG line."""
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{wide}"/>'
    )


def text(x: float, y: float, said: str, anchor: str, colour: str = "#1c1d21") -> str:
    """An SVG text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(said)}'
        "</text>"
    )
