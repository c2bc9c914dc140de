"""Write the benchmark's table into the README and its picture, from ``bench/results``."""

from __future__ import annotations

from pathlib import Path

from efface.reporting.figures import pareto
from efface.reporting.tables import markdown

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARKS = ("<!-- bench -->\n", "<!-- /bench -->")


def written(text: str) -> str:
    """The README with its table as the results are now."""
    head, _, rest = text.partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    return head + MARKS[0] + markdown(HERE / "results", "emoji-objects") + "\n" + MARKS[1] + tail


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
    (HERE / "pareto.svg").write_text(pareto(HERE / "results", "emoji-objects"))
