"""Does Gumbel-Softmax find the concept that is harmed most? Against scoring every candidate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from efface.concepts import Concept
from efface.methods.ap import AP
from efface.reporting.figures import OTHER, OURS, QUIET, panels, svg
from efface.scores import Score, grouped_mean, rate
from efface.storage import write_text
from efface.studies.lab import Lab
from efface.training import Job, Run, Student, provenance
from efface.training.search import Exact, Gumbel, Search, Setting
from efface.training.search.exact import ExactSearch
from efface.training.search.gumbel import GumbelSearch

SETTINGS: Mapping[str, Search] = {
    "official": Gumbel(hard=True, tau=2.0, lr=1e-2, uniform_start=True, teacher_gradient=False),
    "tuned": Gumbel(hard=False, tau=0.5, lr=0.3),
}


class Watcher:
    """Scores every candidate now and then, and notes how good the search's favourite is."""

    def __init__(self, search: GumbelSearch, exact: ExactSearch, every: int) -> None:
        self.search, self.exact, self.every = search, exact, every
        self.calls, self.rows = 0, list[dict[str, Any]]()

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Look, at every ``every``-th update but the first."""
        self.calls += 1
        if self.calls % self.every:
            return
        scores = [self.exact.score(student, i) for i in range(self.exact.config.probes)]
        harm = torch.stack(scores).mean(0)
        logits = self.search.logits[0].detach()
        one, most = int(logits.argmax()), int(harm.argmax())
        self.rows.append(
            {
                "update": self.calls,
                "favourite": self.exact.pools.words[one],
                "true": self.exact.pools.words[most],
                "right": one == most,
                "regret": round(100 * (1 - float(harm[one] / harm[most])), 3),
                "regret_of_random": round(100 * (1 - float(harm.mean() / harm[most])), 3),
                "share": round(float(logits.softmax(0).max()), 5),
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
    sizes: tuple[int, ...] = (10, 30, 100, 300),
    updates: int = 200,
    every: int = 10,
    probes: int = 8,
    erased: str = "church",
) -> dict[str, Any]:
    """AP with Gumbel search over vocabularies of several sizes, watched by exhaustive search."""
    rows = []
    for name, config in SETTINGS.items():
        for size in sizes:
            method = AP(anchor="", eta=1.0, search=config, pool_size=size, updates=updates)
            about = provenance(method, lab.model, [Concept(erased)])
            path = lab.place("search", {**about, "every": every, "probes": probes}) / "looks.json"
            if not path.exists():
                row = watched(lab, method, erased, every, probes)
                text = json.dumps({"settings": name, "size": size, **row})
                write_text(path, text)
            rows.append(json.loads(path.read_text(encoding="utf8")))
    return {**lab.about(), "erased": erased, "updates": updates, "probes": probes, "rows": rows}


def watched(lab: Lab, method: AP, erased: str, every: int, probes: int) -> dict[str, Any]:
    """One training; what the search found, and what both searches cost per update."""
    size, run = method.pool_size, Run(progress=lab.progress)
    job = Job(method, lab.model, (Concept(erased),), run)
    built = method.build(job)
    search = built.search
    assert isinstance(search, GumbelSearch)
    other = replace(job, method=replace(method, seed=method.seed + 1))
    exact = ExactSearch(
        Exact(probes=probes),
        Setting(other, built.candidates, built.source, lambda *_: torch.zeros(())),
    )
    watcher = Watcher(search, exact, every)
    before = lab.model.counter.copy()
    job.train(built.loss, [search, watcher])
    spent = lab.model.counter.since(before)
    looked = (method.updates // every) * probes * size
    return {
        "looks": watcher.rows,
        "forward_per_update": round((spent.forward - looked) / method.updates, 2),
        "exact_per_look": probes * size,
    }


def told(row: Mapping[str, Any]) -> dict[str, Score]:
    """How often the favourite was the true one, and the regret of both, in percent."""
    looks, of = row["looks"], torch.arange(len(row["looks"]))
    return {
        "right": rate([x["right"] for x in looks], "looks"),
        "regret": grouped_mean(torch.tensor([x["regret"] for x in looks]), of, "looks"),
        "random": grouped_mean(torch.tensor([x["regret_of_random"] for x in looks]), of, "looks"),
    }


def figure(found: Mapping[str, Any]) -> str:
    """Regret over the size of the vocabulary, and over training for the largest."""
    drawing, (left, right) = panels(10, 3.6, 2)
    sizes = sorted({r["size"] for r in found["rows"]})
    for name, colour in zip(SETTINGS, (OTHER, OURS), strict=True):
        rows = {r["size"]: r for r in found["rows"] if r["settings"] == name}
        s = [told(rows[k])["regret"] for k in sizes]
        left.plot(sizes, [x.value for x in s], "o-", color=colour, label=f"Gumbel, {name}")
        left.vlines(sizes, *zip(*(x.ends for x in s), strict=True), color=colour)
        looks = rows[sizes[-1]]["looks"]
        right.plot([x["update"] for x in looks], [x["regret"] for x in looks], color=colour)
    rows = {r["size"]: r for r in found["rows"] if r["settings"] == "official"}
    chance = [told(rows[k])["random"].value for k in sizes]
    left.plot(sizes, chance, "--", color=QUIET, label="a random word")
    left.set(xscale="log", xlabel="candidates K", ylabel="regret, % of the largest harm")
    left.set_xticks(sizes, [str(k) for k in sizes])
    left.legend(frameon=False)
    right.set(xlabel="update", title=f"K = {sizes[-1]}", ylabel="regret, %")
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    head = ["K", "settings", "right, %", "regret, %", "least", "of a random word", "forward"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for r in found["rows"]:
        t, least = told(r), min(r["looks"], key=lambda x: x["regret"])
        cells = [
            str(r["size"]),
            r["settings"],
            str(t["right"]),
            str(t["regret"]),
            f"{least['regret']:.1f} (update {least['update']})",
            f"{t['random'].value:.1f}",
            str(r["forward_per_update"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    n, largest = len(found["rows"][0]["looks"]), found["rows"][-1]
    worse = sum(told(r)["regret"].ends[0] > told(r)["random"].value for r in found["rows"])
    return (
        f"{found['erased']} erased by AP with Gumbel search, {found['updates']} updates; at {n} of "
        f"them every candidate was scored on {found['probes']} latents, and the search's favourite "
        "compared: regret is how much less it is harmed than the worst, in percent of that. In "
        f"{worse} of {len(found['rows'])} trainings the favourite is clearly less harmed than a "
        "random word is. A likely reason: what is preserved is harmed less for it, and logits that "
        f"are never reset hold on to it. A scoring of all {largest['size']} words on "
        f"{found['probes']} latents costs {largest['exact_per_look']} evaluations; forward is what "
        "an update costs, search included.\n\n" + "\n".join(lines)
    )
