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
        "bench": ("emoji-objects-2", held_out.short),
        "attacks": ("emoji-attacks", besieged.brief),
    },
    DOCS: {
        "bench 2": ("emoji-objects-2", held_out.markdown),
        "bench 1": ("emoji-objects", tables.markdown),
    },
    ATTACKS: {"bench": ("emoji-attacks", besieged.markdown)},
}
"""Which benchmark's table stands where: in which page, between which marks."""
AFTER = {"attacks": "<!-- /bench -->\n"}
"""Marks that come into their page, behind these, once there is a table to stand between them."""


def written(text: str, path: Path = README) -> str:
    """A page with its tables as the results are now."""
    for mark, (name, table) in PLACES[path].items():
        made, start = table(RESULTS, name), f"<!-- {mark} -->\n"
        if start not in text and mark in AFTER:
            if not made:
                continue
            text = text.replace(AFTER[mark], f"{AFTER[mark]}\n{start}<!-- /{mark} -->\n", 1)
        text = put(text, mark, made)
    return text


if __name__ == "__main__":
    for page in PLACES:
        page.write_text(written(page.read_text(), page))
    (HERE / "pareto.svg").write_text(pareto(RESULTS, "emoji-objects-2"))
