"""Does a short list by text states hold the word that is harmed most?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from efface.concepts import Concept
from efface.methods.ap import AP
from efface.reporting.figures import OURS, QUIET, panels, svg
from efface.scores import rate
from efface.storage import write_text
from efface.studies import grid
from efface.studies.lab import Lab
from efface.training import Job, Run, Student, provenance
from efface.training.anchors import AUTO, steered
from efface.training.search import Exact, Random, Setting
from efface.training.search.exact import ExactSearch, changed, states_of

QUICK = {"erased": ("church",), "size": 300, "probes": 1}


@dataclass
class Watcher:
    """Scores every candidate now and then, and notes where the worst is on the list."""

    exact: ExactSearch
    states: Tensor
    every: int
    sizes: tuple[int, ...]
    calls: int = 0

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Look, at every ``every``-th update but the first."""
        self.calls += 1
        if self.calls % self.every:
            return
        scores = [self.exact.score(student, i) for i in range(self.exact.config.probes)]
        harm = torch.stack(scores).mean(0)
        order = changed(self.exact.model, student, self.states).argsort(descending=True)
        most = int(harm.argmax())
        best = [float(harm[order[:k]].max() / harm[most]) for k in self.sizes]
        self.rows.append(
            {
                "update": self.calls,
                "worst": self.exact.pools.words[most],
                "place": 1 + int((order == most).nonzero()),
                "regret": [round(100 * (1 - x), 3) for x in best],
            }
        )

    def end(self, student: Student) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing: a study's training is not resumed halfway."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


def run(
    lab: Lab,
    size: int = 1000,
    sizes: tuple[int, ...] = (16, 64, 256),
    updates: int = 400,
    every: int = 30,
    probes: int = 3,
    erased: tuple[str, ...] = grid.ERASED,
) -> dict[str, Any]:
    """AP that preserves any word, watched by a scoring of all; each concept alone."""
    method = AP(vocabulary="nouns", pool_size=size, search=Random(), updates=updates)
    found = {}
    for name in erased:
        concept = Concept(name)
        about = {**provenance(method, lab.model, [concept]), "every": every, "probes": probes}
        path = lab.place("shortlist", {**about, "sizes": sizes}) / "looks.json"
        if not path.exists():
            rows = watched(lab, method, concept, every, probes, sizes)
            write_text(path, json.dumps(rows))
        found[name] = json.loads(path.read_text(encoding="utf8"))
    return {
        **lab.about(),
        "updates": updates,
        "words": size,
        "probes": probes,
        "every": every,
        "sizes": list(sizes),
        "looks": found,
    }


def watched(
    lab: Lab,
    method: AP,
    concept: Concept,
    every: int,
    probes: int,
    sizes: tuple[int, ...],
) -> list[dict[str, Any]]:
    """One training, and what was seen at every look."""
    concepts = steered(lab.model, [concept], AUTO, "auto", 0)
    job = Job(method, lab.model, concepts, Run(progress=lab.progress))
    built = method.build(job)
    other = replace(job, method=replace(method, seed=method.seed + 1))
    setting = Setting(other, built.candidates, built.source, lambda *_: torch.zeros(()))
    exact = ExactSearch(Exact(probes=probes), setting)
    states = states_of(job, built.candidates.words)
    watcher = Watcher(exact, states, every, sizes)
    job.train(built.loss, [built.search, watcher])
    return watcher.rows


def looks(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of all concepts."""
    return [row for rows in found["looks"].values() for row in rows]


def figure(found: Mapping[str, Any]) -> str:
    """How often the worst word is on a list, by its length; and where it stands over training."""
    drawing, (left, right) = panels(10, 3.6, 2)
    places = torch.tensor([r["place"] for r in looks(found)])
    lengths = sorted({1, 2, 4, 8, *found["sizes"], found["words"]})
    share = [float((places <= k).double().mean()) * 100 for k in lengths]
    left.plot(lengths, share, "o-", color=OURS)
    left.plot(lengths, [100 * k / found["words"] for k in lengths], "--", color=QUIET)
    left.set(xscale="log", xlabel="length of the list", ylabel="worst word on it, %")
    for name, rows in found["looks"].items():
        right.plot([r["update"] for r in rows], [r["place"] for r in rows], label=name)
    right.set(yscale="log", xlabel="update", ylabel="place of the worst word")
    right.legend(frameon=False, fontsize=7)
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    rows = looks(found)
    head = ["length", "worst word on it, %", "regret, %", "largest", "evaluations of a training"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    scorings = -(-found["updates"] // found["every"])
    for i, k in enumerate(found["sizes"]):
        on = rate([r["place"] <= k for r in rows], "looks")
        regret = [r["regret"][i] for r in rows]
        cost = f"{scorings * 2 * k:,}"
        lines.append(
            f"| {k} | {on} | {sum(regret) / len(regret):.1f} | {max(regret):.1f} | {cost} |"
        )
    every = scorings * found["words"] + found["probes"] * found["words"]
    return (
        f"{', '.join(found['looks'])} erased one at a time by AP that preserves any of "
        f"{found['words']:,} nouns, {found['updates']} updates. Every {found['every']} updates all "
        f"words were scored by predictions on {found['probes']} latents, and ranked by how much "
        "else the trained text maps make of them, which takes no evaluation. Regret is how much "
        "less the worst word of the list is harmed than the worst of all, in percent of that. A "
        f"scoring of all words as often takes {every:,} evaluations in a training.\n\n"
        + "\n".join(lines)
    )
