"""How often the intervals of the tables hold the truth, by simulation, and how wide they are.

Concepts are drawn with the spread that the cells in ``bench/results`` show, for the designs that
the tables use; what is known there, the mean over all concepts and training seeds, is what an
interval must hold in 95 of 100 tries. ``coverage.json`` keeps it, ``docs/intervals.md`` shows it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from coverage_attacks import LAYOUTS, QUESTIONS, of_attacks
from size_tables import put
from torch import Tensor

from efface.evaluation.bench import UNEDITED
from efface.evaluation.metrics import tail_score, worst_tenths
from efface.intervals import resamples
from efface.reporting import held_out, tables
from efface.reporting.tables import read
from efface.scores import Score, concept_rate, paired_difference, rate

HERE = Path(__file__).parent
OUT, DOCS = HERE / "coverage.json", HERE.parent / "docs" / "intervals.md"
Ask = Callable[..., tuple[float, float]]


class Population(NamedTuple):
    """Concepts as one line of the benchmark shows them."""

    name: str
    mean: float
    spread: float
    """Correlation of two pictures of a concept."""
    seeds: float
    """Standard deviation between training seeds, on the logit scale."""


class Design(NamedTuple):
    """What is drawn."""

    name: str
    kind: str
    """erased or preserved."""
    concepts: int
    """In each split."""
    pictures: int
    """Of each concept by each edit."""
    splits: int
    seeds: int


DESIGNS = (
    Design("ESR, one seed", "erased", 5, 20, 1, 1),
    Design("ESR, three seeds", "erased", 5, 20, 1, 3),
    Design("ESR, one seed, both splits", "erased", 5, 20, 2, 1),
    Design("ESR, three seeds, both splits", "erased", 5, 20, 2, 3),
    Design("PSR, one seed", "preserved", 307, 2, 1, 1),
    Design("PSR, three seeds", "preserved", 307, 2, 1, 3),
    Design("PSR, one seed, both splits", "preserved", 307, 2, 2, 1),
    Design("PSR, three seeds, both splits", "preserved", 307, 2, 2, 3),
    Design("PSR of half the names, one seed", "preserved", 150, 4, 1, 1),
    Design("PSR of half the names, three seeds", "preserved", 150, 4, 1, 3),
)


TAILS = (
    Design("worst tenth of half the names, one seed", "preserved", 150, 4, 1, 1),
    Design("worst tenth of half the names, three seeds", "preserved", 150, 4, 1, 3),
)
MEANS = 4000
"""Draws that the mean worst tenth of a population is known from."""


def shares(rows: Sequence[Any], kind: str) -> Tensor:
    """Share of the wanted outcome of each concept with each seed of a split, (k, seeds)."""
    names = [c for c in rows[0]["hits"] if (c in rows[0]["erased"]) == (kind == "erased")]
    table = [[sum(r["hits"][c][0]) / len(r["hits"][c][0]) for r in rows] for c in names]
    found = torch.tensor(table, dtype=torch.float64)
    return 1 - found if kind == "erased" else found


def fitted(name: str, tables: Sequence[Tensor], pictures: int) -> Population | None:
    """The population whose moments the cells have; None where nothing varies."""
    means = torch.cat([t.mean(1) for t in tables])
    mean = float(means.mean())
    whole = mean * (1 - mean)
    if whole < 1e-9:
        return None
    n = pictures * sum(t.shape[1] for t in tables) / len(tables)
    spread = (float(means.var()) / whole - 1 / n) / (1 - 1 / n)
    between = []
    for t in tables:
        if t.shape[1] > 1:
            rest = t - t.mean(1, keepdim=True) - t.mean(0) + t.mean()
            noise = rest.square().sum() / (t.shape[0] - 1) / (t.shape[1] - 1) / t.shape[0]
            between.append(float(t.mean(0).var() - noise))
    seeds = max(sum(between) / max(len(between), 1), 0) ** 0.5 / whole
    return Population(name, mean, min(max(spread, 0.001), 0.95), min(seeds, 1.0))


@lru_cache
def cells() -> dict[str, list[Any]]:
    """The committed cells by method."""
    return read(HERE / "results", "emoji-objects")


def populations(design: Design) -> list[Population]:
    """What the cells show that a design could draw from: one split's, or both together."""
    found = []
    for method, rows in cells().items():
        by = {s: [r for r in rows if r["split"] == s] for s in ("1", "2")}
        tables = {s: shares(t, design.kind) for s, t in by.items() if len(t) >= design.seeds}
        groups = {f"{method} {s}": [t] for s, t in tables.items()}
        if design.splits == 2:
            groups = {method: list(tables.values())} if len(tables) == 2 else {}
        if method != UNEDITED:
            pictures = 20 if design.kind == "erased" else 2
            found += [fitted(name, g, pictures) for name, g in groups.items()]
    return [p for p in found if p]


def beta(mean: float, spread: float, shape: Sequence[int], g: torch.Generator) -> Tensor:
    """Logits of draws of a beta distribution; in logarithms, as its gammas may be tiny."""
    size = 1 / spread - 1

    def log_gamma(a: float) -> Tensor:
        x = torch._standard_gamma(torch.full(shape, a + 1, dtype=torch.float64), generator=g)
        u = torch.rand(shape, dtype=torch.float64, generator=g).clamp(min=1e-300)
        return x.log() + u.log() / a

    return log_gamma(mean * size) - log_gamma((1 - mean) * size)


def truth(p: Population, seeds: int, g: torch.Generator, draws: int = 20_000) -> float:
    """The mean over all concepts; and over training seeds, where a design has several."""
    if seeds == 1 or p.seeds == 0:
        return 100 * p.mean
    level = beta(p.mean, p.spread, (draws,), g)
    shift = p.seeds * torch.randn(draws, dtype=torch.float64, generator=g)
    moved = (level + shift).sigmoid() + (level - shift).sigmoid() - 2 * level.sigmoid()
    return 100 * (p.mean + float(moved.mean()) / 2)


class Drawn(NamedTuple):
    """One try."""

    hits: Tensor
    """(N,) bool."""
    concepts: Tensor
    """(N,)."""
    runs: Tensor
    """(N, 2)."""
    own: float
    """The mean rate of just these concepts by just these edits."""


def draw(p: Population, d: Design, g: torch.Generator) -> Drawn:
    """Pictures of one try; preserved concepts are the same in all splits, erased ones are not."""
    k = d.concepts
    level = beta(p.mean, p.spread, (d.splits if d.kind == "erased" else 1, k, 1), g)
    shift = p.seeds * torch.randn(d.splits, 1, d.seeds, dtype=torch.float64, generator=g)
    rates = (level + (shift if d.seeds > 1 else 0)).sigmoid().expand(d.splits, k, d.seeds)
    hits = torch.rand(*rates.shape, d.pictures, generator=g) < rates[..., None]
    split, concept, seed = (
        i.reshape(-1)
        for i in torch.meshgrid(*(torch.arange(n) for n in rates.shape), indexing="ij")
    )
    which = concept + (split * k if d.kind == "erased" else 0)
    runs = torch.stack([split, seed], 1).repeat_interleave(d.pictures, 0)
    return Drawn(
        hits.reshape(-1), which.repeat_interleave(d.pictures), runs, 100 * float(rates.mean())
    )


def ends(s: Score) -> tuple[float, float]:
    """The interval of a score; of all values where there is none."""
    return s.ends if s.low is not None else (-100.0, 100.0)


def wilson(hits: Tensor, concepts: Tensor, runs: Tensor) -> tuple[float, float]:
    """Over pictures."""
    return ends(rate(hits))


def ours(hits: Tensor, concepts: Tensor, runs: Tensor) -> tuple[float, float]:
    """Over concepts and training seeds."""
    return ends(concept_rate(hits, concepts, runs))


def ours_apart(a: Tensor, b: Tensor, concepts: Tensor, runs: Tensor) -> tuple[float, float]:
    """The difference of two methods."""
    return ends(paired_difference(a, b, concepts, runs))


def bootstrap(values: Tensor, concepts: Tensor, runs: Tensor) -> tuple[float, float]:
    """Percentiles of means over whole concepts, drawn again and again."""
    k = int(concepts.max()) + 1
    means = torch.zeros(k, dtype=torch.float64).index_add(0, concepts, values.double())
    means *= 100 * k / len(values)
    pick = torch.randint(0, k, (400, k), generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(means[pick].mean(1), level).tolist()
    return low, high


def bootstrap_apart(a: Tensor, b: Tensor, concepts: Tensor, runs: Tensor) -> tuple[float, float]:
    """The same of a difference."""
    return bootstrap(a.double() - b.double(), concepts, runs)


RATES: dict[str, Ask] = {"Wilson": wilson, "bootstrap": bootstrap, "ours": ours}
DIFFERENCES: dict[str, Ask] = {"bootstrap": bootstrap_apart, "ours": ours_apart}


class Tally:
    """How often intervals held the truth, and how wide they were."""

    def __init__(self) -> None:
        self.held, self.wide, self.n = 0, 0.0, 0

    def add(self, at: tuple[float, float], value: float) -> None:
        """One interval."""
        self.held += at[0] - 1e-9 <= value <= at[1] + 1e-9
        self.wide += at[1] - at[0]
        self.n += 1

    @property
    def coverage(self) -> float:
        """In percent."""
        return 100 * self.held / self.n


def of_rates(
    d: Design, tries: int, asks: dict[str, Ask] = RATES
) -> Iterator[tuple[Population, dict[str, Tally]]]:
    """Every population of a design with the tally of each interval.

    ``same`` is Wilson's, asked for just the concepts and edits that were drawn.
    """
    g = torch.Generator().manual_seed(0)
    for p in populations(d):
        value = truth(p, d.seeds, g)
        tallies = {name: Tally() for name in (*asks, "same")}
        for _ in range(tries):
            one = draw(p, d, g)
            for name, ask in asks.items():
                tallies[name].add(ask(one.hits, one.concepts, one.runs), value)
            tallies["same"].add(wilson(*one[:3]), one.own)
        yield p, tallies


def of_differences(
    d: Design, tries: int, asks: dict[str, Ask] = DIFFERENCES
) -> Iterator[tuple[Population, dict[str, Tally]]]:
    """The difference of AP to every other population of a design."""
    g = torch.Generator().manual_seed(0)
    first, *rest = sorted(populations(d), key=lambda p: p.name.split()[0] != "ap")
    for p in rest:
        value = truth(first, d.seeds, g) - truth(p, d.seeds, g)
        tallies = {name: Tally() for name in asks}
        for _ in range(tries):
            a, b = draw(first, d, g), draw(p, d, g)
            for name, ask in asks.items():
                tallies[name].add(ask(a.hits, b.hits, a.concepts, a.runs), value)
        yield p, tallies


def table_of(one: Drawn, d: Design) -> Tensor:
    """The pictures of a design of one split, (seeds, concepts, pictures)."""
    return one.hits.view(d.concepts, d.seeds, d.pictures).transpose(0, 1).double()


def tails_drawn(values: Tensor) -> tuple[float, float]:
    """Percentiles of worst tenths over whole concepts and seeds, drawn again and again."""
    pick, some = resamples(400, torch.Generator().manual_seed(0), values.shape[1], values.shape[0])
    means = worst_tenths(values[some[:, :, None], pick[:, None]]).mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def of_tails(d: Design, tries: int) -> Iterator[tuple[Population, dict[str, Tally]]]:
    """The worst tenth: what others would find on average, who draw concepts and seeds anew."""
    g = torch.Generator().manual_seed(0)
    for p in populations(d):
        drawn = (table_of(draw(p, d, g), d) for _ in range(MEANS))
        value = sum(float(worst_tenths(x).mean()) for x in drawn) / MEANS
        tallies = {name: Tally() for name in ("ours", "bootstrap")}
        for _ in range(tries):
            drawn = 100 * table_of(draw(p, d, g), d)
            tallies["ours"].add(ends(tail_score(drawn)), 100 * value)
            tallies["bootstrap"].add(tails_drawn(drawn), 100 * value)
        yield p, tallies


PLACES = {
    "place by ESR-1 and PSR-1, three seeds": ("ESR, three seeds", "PSR, three seeds"),
    "place by ESR-1 and the worst tenth, three seeds": (
        "ESR, three seeds",
        "worst tenth of half the names, three seeds",
    ),
}
"""The designs behind a place, by name."""


class HeldOut(NamedTuple):
    """All that a ranking asks of a protocol."""

    held_out: tuple[str, ...]


def of_places(name: str, tries: int) -> Iterator[tuple[Population, dict[str, Tally]]]:
    """AP's place beside every other method of its split, and the other's."""
    g = torch.Generator().manual_seed(0)
    gone, kept = (next(d for d in (*DESIGNS, *TAILS) if d.name == n) for n in PLACES[name])
    tail = kept in TAILS
    of_gone, of_kept = ({p.name: p for p in populations(d)} for d in (gone, kept))
    value = {}
    for n in sorted(of_gone.keys() & of_kept.keys()):
        a, b = truth(of_gone[n], gone.seeds, g) / 100, truth(of_kept[n], kept.seeds, g) / 100
        if tail:
            drawn = (table_of(draw(of_kept[n], kept, g), kept) for _ in range(MEANS))
            b = sum(float(worst_tenths(x).mean()) for x in drawn) / MEANS
        value[n] = 2 * a * b / (a + b)
    for n in value:
        method, split = n.split()
        ours = f"ap {split}"
        if method == "ap" or ours not in value:
            continue
        first = 1 + int(value[n] > value[ours])
        tallies = {"ours": Tally()}
        for _ in range(tries):
            found = {m: rows_of(of_gone[m], gone, of_kept[m], kept, g) for m in (ours, n)}
            asked = HeldOut(tuple(f"k{i}" for i in range(kept.concepts)))
            said = (
                held_out.ranking(found, asked)  # type: ignore[arg-type]
                if tail
                else tables.ranking(found, draws=500)
            )
            for m, place in ((ours, first), (n, 3 - first)):
                tallies["ours"].add(ends(said[m]), place)
        yield of_gone[n], tallies


def rows_of(
    a: Population, gone: Design, b: Population, kept: Design, g: torch.Generator
) -> list[dict[str, Any]]:
    """Cells of a method as the benchmark keeps them."""
    erased, others = 1 - table_of(draw(a, gone, g), gone), table_of(draw(b, kept, g), kept)
    names = [f"e{i}" for i in range(gone.concepts)]
    rows = []
    for seed in range(gone.seeds):
        hits = dict(zip(names, erased[seed].long().tolist(), strict=True))
        hits |= {f"k{i}": x for i, x in enumerate(others[seed].long().tolist())}
        both = {c: [x, x] for c, x in hits.items()}
        rows.append({"split": "1", "seed": seed, "erased": names, "hits": both})
    return rows


def tallied(
    some: Iterator[tuple[Any, list[tuple[tuple[float, float], float]]]],
) -> list[tuple[Any, dict[str, Tally]]]:
    """Populations of attacks, each with the tally of its tries."""
    found = []
    for source, tries in some:
        tally = Tally()
        for at, value in tries:
            tally.add(at, value)
        found.append((source, {"ours": tally}))
    return found


def summary(found: Sequence[tuple[Any, dict[str, Tally]]]) -> dict[str, Any]:
    """Least and mean coverage and mean width of each interval."""
    result: dict[str, Any] = {}
    for name in found[0][1]:
        some = [t[name] for _, t in found]
        least = min(found, key=lambda f: f[1][name].coverage)
        result[name] = {
            "least": round(least[1][name].coverage, 1),
            "where": least[0].name,
            "mean": round(sum(t.coverage for t in some) / len(some), 1),
            "width": finite(sum(t.wide / t.n for t in some) / len(some)),
        }
    return result


def finite(width: float) -> float | None:
    """A width; None: some interval has no end."""
    return round(width, 1) if math.isfinite(width) else None


def table(found: dict[str, Any]) -> str:
    """What the docs show."""
    head = ["design", "question", "interval", "coverage, least", "on average", "mean width"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    said = {
        "same": ("these concepts, new pictures", "Wilson"),
        "Wilson": ("concepts like these", "Wilson"),
        "bootstrap": ("concepts like these", "bootstrap of concepts"),
        "ours": ("concepts like these", "**the tables'**"),
    }
    for design, rows in found["designs"].items():
        for name in sorted(rows, key=list(said).index):
            r, (question, interval) = rows[name], said[name]
            cells = [design, question, interval, f"{r['least']:.1f} ({r['where']})"]
            cells += ["–" if r[k] is None else f"{r[k]:.1f}" for k in ("mean", "width")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def written(text: str, found: dict[str, Any]) -> str:
    """The docs with the table as the results are now."""
    return put(text, "coverage", table(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=1000, help="of each population of a design")
    parser.add_argument("--tails", action="store_true", help="only the worst tenths; keep the rest")
    parser.add_argument("--places", action="store_true", help="only places; keep the rest")
    parser.add_argument("--attacks", action="store_true", help="only attacks; keep the rest")
    parser.add_argument("--table", action="store_true", help="only write the table of the docs")
    o = parser.parse_args()
    if not o.table:
        torch.set_num_threads(1)
        part = o.tails or o.attacks or o.places
        done: dict[str, Any] = json.loads(OUT.read_text())["designs"] if part else {}
        for d in () if part else DESIGNS:
            done[d.name] = summary(list(of_rates(d, o.tries)))
            print(d.name, json.dumps(done[d.name]), flush=True)
            if d.splits == 2:
                name = f"difference of {d.name}"
                done[name] = summary(list(of_differences(d, o.tries // 2)))
                print(name, json.dumps(done[name]), flush=True)
        for d in () if o.attacks or o.places else TAILS:
            done[d.name] = summary(list(of_tails(d, o.tries // 2)))
            print(d.name, json.dumps(done[d.name]), flush=True)
        for name in () if o.attacks or o.tails else PLACES:
            done[name] = summary(list(of_places(name, o.tries // 10)))
            print(name, json.dumps(done[name]), flush=True)
        for q, layout in () if o.tails or o.places else product(QUESTIONS, LAYOUTS):
            name = f"{q.name}; {layout}"
            done[name] = summary(tallied(of_attacks(q, layout, o.tries // 5)))
            print(name, json.dumps(done[name]), flush=True)
        OUT.write_text(json.dumps({"tries": o.tries, "designs": done}, indent=1) + "\n")
    DOCS.write_text(written(DOCS.read_text(), json.loads(OUT.read_text())))
