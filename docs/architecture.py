"""Draw architecture.svg: the floors and imports as they are, and four journeys through them.

Floors come from the import contract in pyproject.toml, arrows and their numbers from the imports;
every stop of a journey is a thing that must exist. A test draws it again and compares:
``python docs/architecture.py`` writes it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from math import log2
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
SVG = HERE / "architecture.svg"


class Journey(NamedTuple):
    """Where a thing goes, stop by stop."""

    thing: str
    colour: str
    stops: tuple[tuple[str, str], ...]
    """What exists in ``efface``, and what happens there."""


JOURNEYS = (
    Journey(
        "a prompt",
        "#2a6fb0",
        (
            ("cli.erase", "typed"),
            ("concepts.Concept", "name, anchor, synonyms"),
            ("training.Job", "and what is preserved"),
            ("models.DiffusionModel.embed", "becomes numbers"),
            ("methods.METHODS", "put into a loss"),
        ),
    ),
    Journey(
        "a latent",
        "#b3541e",
        (
            ("models.DiffusionModel.rollout", "noise, partly denoised"),
            ("training.Bank", "kept with its timestep"),
            ("methods.METHODS", "put into the same loss"),
            ("models.DiffusionModel.predict", "by frozen and student"),
        ),
    ),
    Journey(
        "a weight",
        "#3b7d3a",
        (
            ("models.load", "read, frozen"),
            ("training.finetune", "cloned and trained"),
            ("edits.edit.Edit", "only what changed"),
            ("models.DiffusionModel.generate", "laid over the frozen"),
        ),
    ),
    Journey(
        "a number",
        "#7a4fa0",
        (
            ("evaluation.samples.Samples", "from pictures"),
            ("evaluation.metrics", "counted"),
            ("scores.Score", "with its interval"),
            ("reporting.tables", "set beside others"),
            ("cli.score", "printed"),
        ),
    ),
)

LEFT, WIDE, HIGH, TOP = 152, 152, 76, 44
"""Width of the names and of a journey, height of a floor, and what is above the first."""
ROOM = 225
"""Width of the arrows."""
BETWEEN = 8
"""Gap of two floors."""
RIGHT = LEFT + WIDE * len(JOURNEYS)
STEP = 13
"""How far a journey moves to the right at each stop."""


def floors() -> list[tuple[str, ...]]:
    """The folders and files of each floor, from above, as the import contract has them."""
    text = (HERE.parent / "pyproject.toml").read_text(encoding="utf8")
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    return [tuple(re.sub(r"[() ]", "", layer).split(":")) for layer in layers]


def imports(found: list[tuple[str, ...]]) -> Counter[tuple[int, int]]:
    """How many imports lead from one floor to another, module by module."""
    import grimp

    level = {name: i for i, floor in enumerate(found) for name in floor}
    graph = grimp.build_graph("efface", exclude_type_checking_imports=True, cache_dir=None)
    known = {m: level[m.split(".")[1]] for m in graph.modules if "." in m}
    pairs = (
        (known[one], known[other])
        for one in known
        for other in graph.find_modules_directly_imported_by(one)
        if other in known and known[one] != known[other]
    )
    return Counter(pairs)


def exists(stop: str) -> str:
    """The last name of a stop, once it is found in ``efface``."""
    resolve_name(f"efface.{stop}")
    return stop.rpartition(".")[2]


def middle(floor: int) -> float:
    """Height of a floor's middle."""
    return TOP + floor * (HIGH + BETWEEN) + HIGH / 2


def text(x: float, y: float, words: str, kind: str, colour: str = "") -> str:
    """A line of words."""
    own = f' style="fill:{colour}"' if colour else ""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}"{own}>{escape(words)}</text>'


def bands(found: list[tuple[str, ...]]) -> Iterator[str]:
    """The floors with their names."""
    for i, names in enumerate(found):
        y = middle(i)
        yield (
            f'<rect x="4" y="{y - HIGH / 2:g}" width="{RIGHT - 4}" height="{HIGH}" rx="7" '
            f'class="{"leaf" if i == len(found) - 1 else "floor"}"/>'
        )
        folders = [n for n in names if (HERE.parent / "src" / "efface" / n).is_dir()]
        files = [n for n in names if n not in folders and n != "__main__"]
        lines = [(", ".join(files[j : j + 2]), "small") for j in range(0, len(files), 2)]
        lines = [(f"{n}/", "name") for n in folders] + lines
        for k, (line, kind) in enumerate(lines):
            yield text(18, y + 5 + 16 * (k - (len(lines) - 1) / 2), line, kind)


def arrows(counted: Counter[tuple[int, int]]) -> Iterator[str]:
    """Arcs from floor to floor, nested: the shorter an arrow, the further inside."""
    out = {i: sorted(b for a, b in counted if a == i) for i, _ in counted}
    into = {i: sorted((a for a, b in counted if b == i), reverse=True) for _, i in counted}
    longest = max(b - a for a, b in counted)
    lines, numbers = [], []
    for (a, b), n in sorted(counted.items()):
        y0 = middle(a) + HIGH * (0.42 - 0.085 * out[a].index(b))
        y1 = middle(b) - HIGH * (0.42 - 0.085 * into[b].index(a))
        reach = 40 + (ROOM - 85) * (b - a - 1) / max(longest - 1, 1)
        far = RIGHT + reach / 0.75
        lines.append(
            f'<path d="M{RIGHT} {y0:.1f}C{far:.1f} {y0:.1f} {far:.1f} {y1:.1f} {RIGHT + 5} '
            f'{y1:.1f}" class="arrow" stroke-width="{0.8 + log2(n) / 2:.2f}"/>'
            f'<path d="M{RIGHT} {y1:.1f}l7 -3.5v7z" class="head"/>'
        )
        numbers.append(text(RIGHT + reach, (y0 + y1) / 2 + 4, str(n), "count"))
    yield from lines
    yield from numbers


def journeys(found: list[tuple[str, ...]]) -> Iterator[str]:
    """A line a thing, from stop to stop."""
    level = {name: i for i, floor in enumerate(found) for name in floor}
    for k, (thing, colour, stops) in enumerate(JOURNEYS):
        left = LEFT + WIDE * k + 10
        yield text(left - 4, 28, thing, "thing", colour)
        at = [level[stop.split(".")[0]] for stop, _ in stops]
        spots = []
        for i, floor in enumerate(at):
            beside = [j for j, other in enumerate(at) if other == floor]
            shift = 17 * (2 * beside.index(i) - len(beside) + 1)
            spots.append((left + STEP * i, middle(floor) + shift - 5))
        path = f"M{spots[0][0]:g} {spots[0][1]:g}"
        for (x0, y0), (x1, y1) in pairwise(spots):
            bend = 12 if y1 > y0 else -12
            path += f"V{y1 - bend:g}Q{x0:g} {y1:g} {x1:g} {y1:g}"
        yield f'<path d="{path}" class="way" stroke="{colour}"/>'
        for i, ((x, y), (stop, words)) in enumerate(zip(spots, stops, strict=True), 1):
            yield f'<circle cx="{x:g}" cy="{y:g}" r="7.5" fill="{colour}"/>'
            yield text(x, y + 3.6, str(i), "order")
            yield text(x + 12, y + 4.5, exists(stop), "stop")
            yield text(x + 12, y + 17, words, "words")


STYLE = """
text { font-family: 'DejaVu Sans', Verdana, sans-serif; fill: #222 }
.floor { fill: #f1f3f6 } .leaf { fill: #f7f1e3 }
.name { font-size: 15px; font-weight: bold } .small { font-size: 11.5px; font-weight: bold }
.thing { font-size: 15px; font-weight: bold } .stop, .count, .words { paint-order: stroke;
  stroke: #f1f3f6; stroke-width: 3px; stroke-linejoin: round }
.stop { font-size: 12.5px } .words { font-size: 10px; fill: #555 }
.order { font-size: 10px; fill: #fff; text-anchor: middle; font-weight: bold }
.count { font-size: 10.5px; text-anchor: middle; stroke: #fff } .head { fill: #5b6573 }
.arrow { fill: none; stroke: #9aa5b4 } .way { fill: none; stroke-width: 2.5px; opacity: 0.55 }
"""


def drawing() -> str:
    """The picture as SVG."""
    found = floors()
    counted = imports(found)
    up = [pair for pair in counted if pair[0] > pair[1]]
    if up:
        raise ValueError(f"imports run up: {up}")
    wide, high = RIGHT + ROOM, TOP + len(found) * (HIGH + BETWEEN) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{wide}" height="{high}" rx="8" fill="#fff"/>',
        *bands(found),
        text(RIGHT + 16, 28, "imports", "thing", "#5b6573"),
        *arrows(counted),
        *journeys(found),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    SVG.write_text(drawing(), encoding="utf8")
