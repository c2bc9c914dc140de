"""Write ``docs/studies.md`` from the committed results of ``efface study`` in ``docs/studies``.

What is written by hand below a study's figure stays.
"""

from __future__ import annotations

import json
from pathlib import Path

from efface.studies import STUDIES

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# Studies

The paper's experiments and open questions, each one command (`efface study NAME`), on the shipped
model. Every paragraph and figure is made from the JSON beside it; intervals are 95 %, for other
concepts like these and, where a study has several, training seeds ([what that
means](intervals.md)). What holds for 312 drawn concepts need not hold for a large model.

AP stands in `anchors`, `vocabulary-size`, `vocabulary-kind`, `order`, `other-data` and `tradeoff`
for its earlier default, now the preset `away` ([methods](methods.md)), in `search` for the null
prompt as anchor with η = 1, in `cost` and `several` for today's default, and in the other studies
for that but for the anchors' trajectories in its bank, which came later.
"""


def notes() -> dict[str, str]:
    """What stands below each study's figure."""
    found = {}
    for part in (DOCS / "studies.md").read_text(encoding="utf8").split("\n## ")[1:]:
        name, _, rest = part.partition("\n")
        found[name] = rest.partition(f"](studies/{name}.svg)\n")[2].strip()
    return found


def page() -> str:
    """The whole page."""
    parts, by_hand = [HEAD], notes()
    for name, study in STUDIES.items():
        path = DOCS / "studies" / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf8"))
            parts.append(f"## {name}\n\n*{study.about}*\n\n{study.words(found)}\n")
            parts.append(f"![{study.about}](studies/{name}.svg)\n")
            if by_hand.get(name):
                parts.append(by_hand[name] + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (DOCS / "studies.md").write_text(page(), encoding="utf8")
