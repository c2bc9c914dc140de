"""Write the benchmarks' tables into README and docs, and its picture, from ``bench/results``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from size_tables import put

from efface.reporting import besieged, held_out, tables
from efface.reporting.figures import pareto

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
DOCS = HERE.parent / "docs" / "benchmark.md"
ATTACKS = HERE.parent / "docs" / "attacks.md"
RESULTS = HERE / "results"
PLACES: dict[Path, dict[str, tuple[str, Callable[[Path, str], str]]]] = {
    README: {
        "bench": ("emoji-objects-2", lambda out, name: held_out.short(out, name, under(out))),
    },
    DOCS: {
        "bench 2": ("emoji-objects-2", held_out.markdown),
        "styles": ("emoji-styles", tables.pooled),
        "bench 1": ("emoji-objects", tables.markdown),
    },
    ATTACKS: {
        "short": ("emoji-attacks", besieged.brief),
        "bench": ("emoji-attacks", besieged.markdown),
    },
}
"""Which benchmark's table stands where: in which page, between which marks."""


def under(out: Path) -> held_out.Beside:
    """What attacks bring back, beside what was erased and kept."""
    return besieged.aside(out, "emoji-attacks")


def written(text: str, path: Path = README) -> str:
    """A page with its tables as the results are now."""
    for mark, (name, table) in PLACES[path].items():
        text = put(text, mark, table(RESULTS, name))
    return text


if __name__ == "__main__":
    for page in PLACES:
        page.write_text(written(page.read_text(), page))
    (HERE / "pareto.svg").write_text(pareto(RESULTS, "emoji-objects-2"))
