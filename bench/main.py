"""The benchmark on the shipped model: the same updates, sampler and seeds for every method.

A cell (method, seed) is one JSON in ``bench/results``; a cell that is there is not run again, so
that a
killed run goes on. ``--table`` writes the table of the README from the JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from efface import __version__
from efface.benchmark import evaluate, judge_for, shipped
from efface.concepts import Concept
from efface.edit import Edit
from efface.methods import AP, ESD, PRESETS, UCE
from efface.metrics import Seen, table
from efface.models import DiffusionModel, load
from efface.scores import Score, paired_difference, rate
from efface.search import Search
from efface.training import Run, Tuning

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
UPDATES = 400
PICTURES = {"erased": 20, "preserved": 2}
"""Pictures of each concept, seeds 0, 1, …"""


def methods(seed: int) -> dict[str, Any]:
    """What is compared, by the name it has in the table."""
    tuning = Tuning(updates=UPDATES, seed=seed)
    alone = replace(tuning, batch=1)
    return {
        "esd": ESD(tuning=tuning),
        "esd + null prompt": ESD(keep=("",), tuning=tuning),
        "ap random": AP(search=Search(kind="random"), tuning=tuning),
        "ap official": replace(PRESETS["ap"]["official"], tuning=alone),
        "ap paper": replace(PRESETS["ap"]["paper"], tuning=alone),
        "ap ours": AP(tuning=tuning),
        "uce": UCE(vocabulary="names"),
    }


LABELS = {
    "unedited": "unedited",
    "esd": "ESD",
    "esd + null prompt": 'ESD, "" preserved',
    "ap random": "ESD, random pool words preserved",
    "ap official": "AP, as the authors' code",
    "ap paper": "AP, the paper's formulas",
    "ap ours": "**AP, ours**",
    "uce": "UCE, keep list of all names",
}


def cell_path(split: str, name: str, seed: int) -> Path:
    return RESULTS / f"split{split}-{name.replace(' ', '-').replace('+', 'and')}-{seed}.json"


def judged(
    model: DiffusionModel, edit: Edit | None, erased: tuple[str, ...], folder: Path | None
) -> Seen:
    """The erased concepts' pictures and all others', judged."""
    bench, judge = shipped(), judge_for(model)
    others = [n for n in bench.names if n not in erased]
    parts = [
        evaluate(model, edit, folder, names, range(PICTURES[kind]), judge)
        for kind, names in (("erased", erased), ("preserved", others))
    ]
    return Seen(
        parts[0].concepts + parts[1].concepts,
        torch.cat([p.top1 for p in parts]),
        torch.cat([p.top5 for p in parts]),
    )


def run_cell(model: DiffusionModel, split: str, name: str, seed: int, work: Path) -> None:
    """Erase, generate, judge, and keep one JSON."""
    path = cell_path(split, name, seed)
    if path.exists():
        return
    erased, began, edit = shipped().splits[split], perf_counter(), None
    folder, row = None, {"split": split, "method": name, "seed": seed, "efface": __version__}
    if name != "unedited":
        method = methods(seed)[name]
        folder = work / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "edit.safetensors").exists():
            edit = Edit.load(folder)
        else:
            edit = method.erase(model, [Concept(c) for c in erased], Run(folder))
            edit.save(folder / "edit.safetensors")
        row |= {
            "config": json.loads(json.dumps(asdict(method))),
            "cost": edit.meta["cost"],
            "edit": edit.digest,
        }
        folder = folder / "samples"
    seen = judged(model, edit, erased, folder)
    judge = judge_for(model)
    row |= {
        "erased": list(erased),
        "base": model.base,
        "judge": f"{judge.config.version} {judge.sha256}",
        "sampler": f"{type(model.scheduler).__name__}, {model.steps} steps, "
        f"guidance {model.guidance:g}",
        "pictures": PICTURES,
        "scores": {k: s.to_json() for k, s in table(seen, erased, shipped().near(erased)).items()},
        "hits": {
            c: [seen.of([c]).top1.int().tolist(), seen.of([c]).top5.int().tolist()]
            for c in dict.fromkeys(seen.concepts)
        },
        "threads": torch.get_num_threads(),
        "evaluation_seconds": round(perf_counter() - began, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    path.write_text(json.dumps(row) + "\n")
    print(name, seed, {k: v["value"] for k, v in row["scores"].items()}, flush=True)


def cells(split: str) -> dict[str, list[dict[str, Any]]]:
    """The finished cells of a split, by method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob(f"split{split}-*.json")):
        row = json.loads(path.read_text())
        found.setdefault(row["method"], []).append(row)
    return found


def pooled(rows: list[dict[str, Any]], names: list[str], k: int) -> torch.Tensor:
    """Hits of all seeds on these concepts, (seeds * pictures,)."""
    hits = [h for r in rows for c in names for h in r["hits"][c][0 if k == 1 else 1]]
    return torch.tensor(hits, dtype=torch.bool)


def difference(a: list[dict[str, Any]], b: list[dict[str, Any]], names: list[str]) -> Score:
    """PSR-1 of ``a`` minus that of ``b``, the same pictures, whole concepts drawn."""
    seeds = sorted({r["seed"] for r in a} & {r["seed"] for r in b})
    pick = [[next(r for r in rows if r["seed"] == s) for s in seeds] for rows in (a, b)]
    groups = torch.tensor(
        [i for _ in seeds for i, c in enumerate(names) for _ in pick[0][0]["hits"][c][0]]
    )
    return paired_difference(pooled(pick[0], names, 1), pooled(pick[1], names, 1), groups)


def make_table(split: str) -> str:
    """The table of the README, in Markdown."""
    found, bench = cells(split), shipped()
    erased = list(bench.splits[split])
    others = [n for n in bench.names if n not in erased]
    near = list(bench.near(erased))
    lines = [
        "| method | seeds | ESR-1 | ESR-5 | PSR-1 | PSR-5 | PSR-1 of neighbours "
        "| evaluations per update | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, label in LABELS.items():
        if name not in found:
            continue
        rows = found[name]
        esr = [str(rate(~pooled(rows, erased, k))) if name != "unedited" else "–" for k in (1, 5)]
        psr = [str(rate(pooled(rows, n, k))) for n, k in ((others, 1), (others, 5), (near, 1))]
        cost = "–", "–"
        if "cost" in rows[0]:
            c = [r["cost"] for r in rows]
            per = [sum(x[k] for x in c) / len(c) / UPDATES for k in ("forward", "backward")]
            mean = sum(x["seconds"] for x in c) / len(c) / 60
            cost = (f"{per[0]:.1f} F + {per[1]:.1f} B" if per[0] else "none", f"{mean:.1f}")
        lines.append(f"| {label} | {len(rows)} | {' | '.join([*esr, *psr, *cost])} |")
    ours = found.get("ap ours")
    if ours:
        lines += ["", "PSR-1 of AP (ours) minus that of", ""]
        for name in LABELS:
            if name in found and name not in ("ap ours", "unedited"):
                lines.append(f"- {LABELS[name]}: {difference(ours, found[name], others)} points")
    return "\n".join(lines)


def write_table(split: str) -> None:
    """Put the table between its marks in the README."""
    text, marks = README.read_text(), ("<!-- bench -->\n", "<!-- /bench -->")
    head, _, rest = text.partition(marks[0])
    _, _, tail = rest.partition(marks[1])
    README.write_text(head + marks[0] + make_table(split) + "\n" + marks[1] + tail)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--split", default="1", choices=list(shipped().splits))
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--methods", nargs="*", default=None, help="some of the table's; default: all")
    p.add_argument("--work", type=Path, default=Path("runs/bench"))
    p.add_argument("--table", action="store_true", help="only write the README's table")
    a = p.parse_args()
    if not a.table:
        RESULTS.mkdir(exist_ok=True)
        model = load("emoji")
        run_cell(model, a.split, "unedited", 0, a.work)
        for seed in range(a.seeds):
            for name in a.methods or methods(seed):
                run_cell(model, a.split, name, seed, a.work)
    write_table(a.split)


if __name__ == "__main__":
    sys.exit(main())
