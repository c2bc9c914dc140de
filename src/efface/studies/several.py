"""How many concepts can a closed form erase at once?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.bench import peak_memory
from efface.evaluation.metrics import esr, psr, worst_tenth_score
from efface.evaluation.metrics.worst import by_concept
from efface.methods.dp import DP
from efface.methods.minimax import Minimax
from efface.methods.oce import OCE
from efface.methods.speed import SPEED
from efface.methods.uce import UCE
from efface.reporting.figures import OTHER, OURS, QUIET, panels, svg
from efface.scores import Score
from efface.seeds import generator
from efface.settings import read_json
from efface.storage import write_text
from efface.studies.lab import Lab
from efface.training import Method, provenance
from efface.vocabularies import INLINE

TRIED: Mapping[str, Method] = {
    m.name: m.presets()["searched"] for m in (UCE, SPEED, DP, OCE, Minimax)
}
"""With the benchmark's settings."""
SPENT = "spent.json"
"""What an edit took, beside it."""
SCORES = ("ESR-1", "PSR-1", "worst tenth")
COLOURS = (OTHER, QUIET, OURS, "#2b7a4b", "#b8860b")


def run(
    lab: Lab,
    counts: tuple[int, ...] = (1, 5, 20, 80),
    methods: Mapping[str, Method] = TRIED,
    gone: int = 4,
    kept: int = 2,
) -> dict[str, Any]:
    """Erase so many names at once, each set within the next, and judge names that no method saw.

    All edits are made before any picture, the fewest concepts first, so that a peak of memory is of
    erasures.

    Args:
        gone: pictures of each erased name.
        kept: pictures of each name that was held out, two or more.

    Raises:
        UserError: fewer names than are to be erased.
    """
    held = list(lab.protocol.held_out) or list(lab.names[1::2])
    seen = [n for n in lab.names if n not in set(held)]
    if max(counts) >= len(seen):
        raise UserError(
            f"{max(counts)} concepts are to be erased, and {len(seen)} names are not held out: "
            "fewer at once."
        )
    order = torch.randperm(len(seen), generator=generator(0, "several")).tolist()
    erased = {n: [seen[i] for i in order[:n]] for n in counts}
    found = [
        (m, n, made(lab, methods[m], erased[n], seen)) for n in sorted(counts) for m in methods
    ]
    rows = []
    for method, n, edit in found:
        row: dict[str, Any] = {"method": method, "concepts": n}
        if isinstance(edit, str):
            rows.append({**row, "refused": edit})
            continue
        away, still = lab.seen(edit, erased[n], gone), lab.seen(edit, held, kept)
        scores = {"ESR-1": esr(away, erased[n], 1), "PSR-1": psr(still, held, 1)}
        scores["worst tenth"] = worst_tenth_score(100 * by_concept(still.top1, still.concepts))
        kept_scores = {k: s.to_json() for k, s in scores.items()}
        rows.append({**row, "scores": kept_scores, **edit.spent})
    edits = [e for _, _, e in found if isinstance(e, Edit)]
    return {**lab.about(edits), "erased": erased[max(counts)], "held_out": held, "rows": rows}


def made(lab: Lab, method: Method, erased: Sequence[str], seen: Sequence[str]) -> Edit | str:
    """The edit with what it took, made once; or why the method cannot."""
    words = ", ".join(n for n in seen if n not in set(erased))
    if getattr(method, "vocabulary", ""):
        method = replace(method, vocabulary=f"{INLINE} {words}")  # type: ignore[call-arg]
    concepts = [Concept(n) for n in erased]
    folder = lab.place(method.name, provenance(method, lab.model, concepts))
    try:
        edit = lab.edit(method, concepts)
    except UserError as e:
        return str(e)
    return replace(edit, spent=spent(folder, edit, lab))


def spent(folder: Path, edit: Edit, lab: Lab) -> dict[str, Any]:
    """Seconds and peak memory of an edit: as it is made, and as they were kept."""
    path = folder / SPENT
    if not path.exists():
        took = {**edit.spent, "peak_memory_mb": peak_memory(lab.model.device)}
        write_text(path, json.dumps(took) + "\n")
    kept: dict[str, Any] = read_json(path, "record")
    return kept


def figure(found: Mapping[str, Any]) -> str:
    """Each score against the number of concepts, a line a method."""
    drawing, axes = panels(13, 3.6, len(SCORES))
    names = list(dict.fromkeys(r["method"] for r in found["rows"]))
    counts = sorted({r["concepts"] for r in found["rows"]})
    for ax, score in zip(axes, SCORES, strict=True):
        for i, name in enumerate(names):
            some = [r for r in found["rows"] if r["method"] == name and "scores" in r]
            s = [Score(**r["scores"][score]) for r in some]
            x, colour = [r["concepts"] for r in some], COLOURS[i % len(COLOURS)]
            ax.plot(x, [v.value for v in s], "o-", color=colour, label=name)
            ax.vlines(x, [v.ends[0] for v in s], [v.ends[1] for v in s], color=colour, lw=0.7)
        held = "" if score == "ESR-1" else ", held-out names"
        ax.set(xscale="log", xlabel="concepts erased at once", title=f"{score}{held}, %")
        ax.set_xticks(counts, list(map(str, counts)))
        ax.minorticks_off()
    axes[0].legend()
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    counts = sorted({r["concepts"] for r in found["rows"]})
    head = ["method", "concepts", *SCORES, "seconds", "peak memory, MB"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for r in found["rows"]:
        own = [r["method"], str(r["concepts"])]
        if "refused" in r:
            lines.append(f"| {' | '.join([*own, 'refused', *[''] * 4])} |")
            continue
        scores = [str(Score(**r["scores"][k])) for k in SCORES]
        took = [f"{r['seconds']:.1f}", str(r["peak_memory_mb"])]
        lines.append(f"| {' | '.join([*own, *scores, *took])} |")
    refused = [
        f"{r['method']} with {r['concepts']}: {r['refused']}"
        for r in found["rows"]
        if "refused" in r
    ]
    return (
        f"{', '.join(map(str, counts))} names erased at once, each set within the next. PSR-1 and "
        f"the worst tenth are of {len(found['held_out'])} names that no method was shown; seconds "
        "are of the erasure alone, and the peak is of its process up to it."
        + "".join(f" Refused: {x}" for x in refused)
        + "\n\n"
        + "\n".join(lines)
    )
