"""What a search for anchors leaves: anchors taken for the concept, and the luck of a seed.

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
from efface.training.anchors import candidates, compare, narrowed, own_pictures, searched

HERE = Path(__file__).parent
OUT = HERE / "anchors.json"
CONCEPTS, PICTURES = 60, 6
SEEDS = 3
RULES = ((0, 2), (2, 2), (4, 2), (2, 4), (4, 4), (2, 8))
"""How many other words must resemble an anchor more than the concept's name does, at least; on how
many half-made pictures."""
JUDGED_ON, SEED = 8, 1000
"""Other half-made pictures, of which no search knows: how near an anchor truly is."""


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
        row = searched_for(model, name)
        found.append({**row, "taken": {a: taken(a, name) for a in row["farther"]}})
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def searched_for(model: DiffusionModel, name: str) -> dict[str, Any]:
    """The anchors by each rule, one for a seed, and how much farther than the nearest word each is.

    The distance is that of the predictions, on pictures of the concept that no search has seen.
    """
    concept = Concept(name)
    words = candidates(model, concept, [concept], "auto")
    by_rule = {
        f"{least} of {n}": [
            searched(model, concept, words, seed, least, n=n).anchor for seed in range(SEEDS)
        ]
        for least, n in RULES
    }
    z = own_pictures(model, name, SEED, n=JUDGED_ON)
    far = compare(model, name, narrowed(model, concept, words).words, z)
    true = dict(zip(far.words, far.far.tolist(), strict=True))
    kept = sorted({a for some in by_rule.values() for a in some})
    nearest = min(true.values())
    return {
        "concept": name,
        "anchors": by_rule,
        "farther": {a: round(true[a] / nearest - 1, 4) for a in kept},
    }


def table() -> str:
    """In Markdown: how often the judge names the concept in its anchor's own pictures."""
    rows: list[dict[str, Any]] = json.loads(OUT.read_text())
    head = ["other words, at least", "half-made pictures", "pictures taken", "anchors often taken"]
    head += ["different anchors", "one anchor with all seeds", "farther than the nearest"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for least, n in RULES:
        found = [(row, row["anchors"][f"{least} of {n}"]) for row in rows]
        rates = [row["taken"][a] for row, some in found for a in some]
        cells = [
            f"{100 * mean(rates):.1f} %",
            f"{100 * mean(rate > 0.3 for rate in rates):.1f} %",
            str(len({a for _, some in found for a in some})),
            f"{100 * mean(len(set(some)) == 1 for _, some in found):.0f} %",
            f"{100 * mean(row['farther'][a] for row, some in found for a in some):.1f} %",
        ]
        said = "0: the nearest" if not least else str(least)
        lines.append(f"| {' | '.join([said, str(n), *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
