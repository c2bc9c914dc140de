"""How many concepts can be erased at once?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.bench import peak_memory
from efface.evaluation.metrics import esr, psr, worst_tenth_score
from efface.evaluation.metrics.worst import by_concept
from efface.evaluation.tasks import Crew, Failed
from efface.methods.ap import AP
from efface.methods.dp import DP
from efface.methods.minimax import Minimax
from efface.methods.oce import OCE
from efface.methods.speed import SPEED
from efface.methods.uce import UCE
from efface.names import normal
from efface.reporting.figures import OTHER, OURS, QUIET, panels, svg
from efface.scores import Score
from efface.seeds import generator
from efface.settings import read_json
from efface.storage import write_text
from efface.studies.lab import Lab
from efface.training import EDIT, Method, Tuning, provenance
from efface.vocabularies import INLINE
from efface.vocabularies import load as load_vocabulary

TRIED: Mapping[str, Method] = {
    m.name: m.presets()["searched"] for m in (UCE, SPEED, DP, OCE, Minimax)
} | {AP.name: AP(), "ap, longer": AP()}
"""With the benchmark's settings."""
MANY = ("uce", "speed", "ap")
"""What is asked how long so many take that no model here can draw them."""
QUICK = {"timed": ("uce", "speed")}
"""About an hour; AP with 1,000 nouns takes hours of its own."""
EACH, LONGER = 10, {"ap, longer": 40}
"""Updates of a training for each concept, where that is more than for a few."""
SPENT = "spent.json"
"""What an edit took, beside it."""
SCORES = ("ESR-1", "PSR-1", "worst tenth")
COLOURS = (OTHER, QUIET, OURS, "#2b7a4b", "#b8860b", "#8e44ad", "#17a2b8")


def run(
    lab: Lab,
    counts: tuple[int, ...] = (1, 5, 20, 80),
    methods: Mapping[str, Method] = TRIED,
    gone: int = 4,
    kept: int = 2,
    many: int = 1000,
    timed: Sequence[str] = MANY,
    updates: int = 400,
) -> dict[str, Any]:
    """Erase so many names at once, each set within the next, and judge names that no method saw.

    Each edit is made in a process of its own, whose peak of memory is its own.

    Args:
        gone: pictures of each erased name.
        kept: pictures of each name that was held out, two or more.
        many: nouns that are erased without a picture; 0: none.
        timed: by which methods.
        updates: of a training, for a few concepts.

    Raises:
        UserError: fewer names than are to be erased, or a process that died.
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
    asked = [
        Task(m, sized(m, methods[m], n, updates), tuple(erased[n]))
        for n in sorted(counts)
        for m in methods
        if m not in LONGER or LONGER[m] * n > updates
    ]
    nouns = some_nouns(lab, many)
    timed = [m for m in timed if nouns and m in methods]
    few = [Task(m, sized(m, methods[m], many, updates), nouns) for m in timed]
    edits = made(lab, [*asked, *few], seen)
    found = [(t.name, len(t.erased), edits[t]) for t in asked]
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
    done = [e for _, _, e in found if isinstance(e, Edit)]
    told = [{"method": t.name, "concepts": len(t.erased), **took(edits[t])} for t in few]
    about = {**lab.about(done), "erased": erased[max(counts)], "held_out": held, "rows": rows}
    return {**about, "nouns": told}


@dataclass(frozen=True)
class Task:
    """An edit to be made."""

    name: str
    method: Method
    erased: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} with {len(self.erased)}"


@dataclass(frozen=True)
class Desk:
    """Where edits are made."""

    folder: Path
    model: str
    seen: tuple[str, ...]
    progress: bool

    def open(self) -> Callable[[Task], Path]:
        """What makes an edit, and gives its folder."""
        lab = Lab(self.folder, self.model, self.progress)
        return lambda task: make(lab, task, self.seen)


def make(lab: Lab, task: Task, seen: Sequence[str]) -> Path:
    """The folder of an edit with what it took, made once.

    Raises:
        UserError: the method cannot.
    """
    method, concepts = shown(task, seen), [Concept(n) for n in task.erased]
    folder = lab.place(method.name, provenance(method, lab.model, concepts))
    (folder / EDIT).unlink(missing_ok=True)  # what it took is not known
    edit = lab.edit(method, concepts)
    spent = {**edit.spent, "peak_memory_mb": peak_memory(lab.model.device)}
    write_text(folder / SPENT, json.dumps(spent) + "\n")
    return folder


def shown(task: Task, seen: Sequence[str]) -> Method:
    """The method, with the vocabulary that it may see."""
    if not getattr(task.method, "vocabulary", ""):
        return task.method
    words = ", ".join(n for n in seen if n not in set(task.erased))
    return replace(task.method, vocabulary=f"{INLINE} {words}")  # type: ignore[call-arg]


def made(lab: Lab, tasks: Sequence[Task], seen: Sequence[str]) -> dict[Task, Edit | str]:
    """Every edit with what it took; or why a method cannot."""
    desk = Desk(lab.folder.absolute(), lab.model.name, tuple(seen), lab.progress)
    found: dict[Task, Edit | str] = {}
    rest = []
    for task in tasks:
        concepts = [Concept(n) for n in task.erased]
        folder = lab.place(task.method.name, provenance(shown(task, seen), lab.model, concepts))
        if (folder / SPENT).exists():
            found[task] = loaded(folder)
        else:
            rest.append(task)
    for task, result in Crew(fresh=True).done(desk, rest):
        found[task] = result.why if isinstance(result, Failed) else loaded(result)
    return found


def loaded(folder: Path) -> Edit:
    """An edit with what it took."""
    return replace(Edit.load(folder), spent=read_json(folder / SPENT, "record"))


def sized(name: str, method: Method, n: int, updates: int) -> Method:
    """A method with its updates for so many concepts."""
    if not isinstance(method, Tuning):
        return method
    changes: dict[str, Any] = {"updates": max(updates, LONGER.get(name, EACH) * n)}
    return replace(method, **changes)


def some_nouns(lab: Lab, n: int) -> tuple[str, ...]:
    """So many picturable nouns, evenly, of which the model was shown none by their name."""
    names = {normal(name) for name in lab.names}
    free = [w for w in load_vocabulary("nouns", lab.model).words if normal(w) not in names]
    n = min(n, len(free))
    return tuple(free[i * len(free) // n] for i in range(n))


def took(edit: Edit | str) -> dict[str, Any]:
    """What an edit took, or why there is none."""
    if isinstance(edit, str):
        return {"refused": edit}
    return {**edit.meta["cost"], **edit.spent}


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
        f"are of the erasure alone, and the peak is of a process of its own."
        + "".join(f" Refused: {x}" for x in refused)
        + "\n\n"
        + "\n".join(lines)
        + many_words(found["nouns"])
    )


def many_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """What so many take that no picture was drawn."""
    if not rows:
        return ""
    head = ["method", "nouns", "seconds", "peak memory, MB", "evaluations"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for r in rows:
        if "refused" in r:
            told = [f"refused: {r['refused']}", "", ""]
        else:
            spent = r["forward"] + r["backward"]
            told = [f"{r['seconds']:.1f}", str(r["peak_memory_mb"]), f"{spent:,}"]
        lines.append(f"| {' | '.join([r['method'], str(r['concepts']), *told])} |")
    return "\n\nNouns without a picture:\n\n" + "\n".join(lines)
