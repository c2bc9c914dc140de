"""Write the benchmark's tables into README and docs, and its picture, from ``bench/results``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from efface.reporting import held_out, tables
from efface.reporting.figures import pareto

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
DOCS = HERE.parent / "docs" / "benchmark.md"
RESULTS = HERE / "results"
MARKS = ("<!-- bench -->\n", "<!-- /bench -->")
PLACES: dict[Path, tuple[str, Callable[[Path, str], str]]] = {
    README: ("emoji-objects-2", held_out.markdown),
    DOCS: ("emoji-objects", tables.markdown),
}
"""Which protocol's table stands where."""


def written(text: str, path: Path = README) -> str:
    """A page with its table as the results are now."""
    protocol, table = PLACES[path]
    head, _, rest = text.partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    return head + MARKS[0] + table(RESULTS, protocol) + "\n" + MARKS[1] + tail


if __name__ == "__main__":
    for page in PLACES:
        page.write_text(written(page.read_text(), page))
    (HERE / "pareto.svg").write_text(pareto(RESULTS, "emoji-objects-2"))
