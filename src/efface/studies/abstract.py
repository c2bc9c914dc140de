"""Does erasing an abstract or affective word harm more, or more broadly, than a concrete one?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from efface.concepts import Concept
from efface.evaluation.sensitivity import prediction
from efface.methods.esd import ESD
from efface.reporting.figures import OTHER, OURS, panels, svg
from efface.scores import Score, grouped_mean
from efface.studies.lab import Lab

ABSTRACT = ("love", "anger", "celebration", "danger", "luck", "sadness")
CONCRETE = ("church", "wolf", "beer mug", "bomb", "syringe", "bikini")
MEASURES = {
    "own": "change of the erased word itself, % of the squared noise",
    "mean": "mean change of all other words, % of the squared noise",
    "worst": "share of all harm on the worst tenth of the words, %",
}


def run(
    lab: Lab,
    abstract: tuple[str, ...] = ABSTRACT,
    concrete: tuple[str, ...] = CONCRETE,
    updates: int = 60,
    latents: int = 4,
) -> dict[str, Any]:
    """ESD without preservation, one word at a time; what it changes, by the predicted noise."""
    edits, rows = [], []
    for kind, some in (("abstract", abstract), ("concrete", concrete)):
        for word in some:
            edit = lab.edit(ESD(updates=updates), [Concept(word)])
            edits.append(edit)
            others = [n for n in lab.names if n != word]
            moved = prediction(lab.model, edit, [word, *others], latents, progress=lab.progress)
            harm = moved.harm
            rest = harm[1:].sort(descending=True)
            tenth = max(len(others) // 10, 1)
            rows.append(
                {
                    "word": word,
                    "kind": kind,
                    "own": round(float(harm[0]), 4),
                    "mean": round(float(harm[1:].mean()), 4),
                    "worst": round(100 * float(rest.values[:tenth].sum() / harm[1:].sum()), 3),
                    "hurt most": [others[i] for i in rest.indices[:5].tolist()],
                }
            )
    return {**lab.about(edits), "updates": updates, "latents": latents, "rows": rows}


def means(found: Mapping[str, Any], kind: str, measure: str) -> Score:
    """Mean of a measure over the words of a kind, with an interval over words like these."""
    values = torch.tensor([r[measure] for r in found["rows"] if r["kind"] == kind])
    return grouped_mean(values, torch.arange(len(values)), "words")


def figure(found: Mapping[str, Any]) -> str:
    """The three measures, word by word."""
    drawing, axes = panels(12, 0.25 * len(found["rows"]) + 1.2, 3, sharey=True)
    rows = found["rows"]
    colours = [OURS if r["kind"] == "abstract" else OTHER for r in rows]
    for ax, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        ax.barh(range(len(rows)), [r[measure] for r in rows], color=colours)
        ax.set_xlabel(label.replace(", %", ",\n%"))
        ax.set_yticks(range(len(rows)), [r["word"] for r in rows])
    axes[0].invert_yaxis()
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words."""
    parts = [
        f"{label}: {means(found, 'abstract', m).said(2)} for abstract words, "
        f"{means(found, 'concrete', m).said(2)} for concrete ones"
        for m, label in MEASURES.items()
    ]
    hurt = "; ".join(
        f"{r['word']} hurts {', '.join(r['hurt most'][:3])}"
        for r in found["rows"]
        if r["kind"] == "abstract"
    )
    named = [r["word"] for r in found["rows"]]
    return (
        f"{', '.join(named)}, each erased alone by ESD, {found['updates']} updates, nothing "
        f"preserved. {'; '.join(parts)}. Of the abstract ones, {hurt}."
    )
