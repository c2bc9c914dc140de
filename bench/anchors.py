"""Whether an anchor's own pictures are taken for the concept: what a search for anchors leaves.

No name of the benchmark's splits is among the concepts, and nothing is erased. Writes
``bench/anchors.json``; ``bench/trials.py --table`` puts the table into ``docs/benchmark.md``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from efface.concepts import Concept
from efface.evaluation.judges import named
from efface.evaluation.protocols import load as load_protocol
from efface.models import DiffusionModel, load
from efface.training.anchors import candidates, searched

HERE = Path(__file__).parent
OUT = HERE / "anchors.json"
CONCEPTS, PICTURES = 60, 6
LEAST = (0, 2, 4)
"""How many other words must resemble an anchor more than the concept's name does."""


def names() -> list[str]:
    """The concepts: names that no split erases, in an order that a seed gives."""
    protocol = load_protocol("emoji-objects-2")
    erased = {n for split in protocol.splits.values() for n in split}
    left = [n for n in named(protocol.judge).concept_names if n not in erased]
    return sorted(random.Random(0).sample(left, CONCEPTS))


def main() -> None:
    """Search for every concept's anchor by each rule, draw it, and ask the judge."""
    model, judge, found = load("emoji"), named("emoji-2"), []
    seen: dict[str, torch.Tensor] = {}

    def taken(anchor: str, name: str) -> float:
        if anchor not in seen:
            seeds = list(range(100, 100 + PICTURES))
            shown = torch.stack(list(model.generate([anchor] * PICTURES, seeds, output_type="pt")))
            seen[anchor] = judge.classify(shown).concepts
        return float((seen[anchor] == judge.label(name)).any(1).float().mean())

    for name in tqdm(names(), unit="concept"):
        found.append({"concept": name, "anchors": anchors(model, name)})
        found[-1]["taken"] = {k: taken(a, name) for k, a in found[-1]["anchors"].items()}
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def anchors(model: DiffusionModel, name: str) -> dict[str, str]:
    """The anchor by each rule."""
    concept = Concept(name)
    words = candidates(model, concept, [concept], "auto")
    return {str(n): searched(model, concept, words, 0, n).anchor for n in LEAST}


def table() -> str:
    """In Markdown: how often the judge names the concept in its anchor's own pictures."""
    rows: list[dict[str, Any]] = json.loads(OUT.read_text())
    head = ["other words, at least", "pictures taken", "anchors often taken", "different anchors"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for rule in rows[0]["taken"]:
        rates = [row["taken"][rule] for row in rows]
        often = mean(rate > 0.3 for rate in rates)
        kinds = len({row["anchors"][rule] for row in rows})
        said = "0: the nearest" if rule == "0" else rule
        lines.append(f"| {said} | {100 * mean(rates):.1f} % | {100 * often:.1f} % | {kinds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
