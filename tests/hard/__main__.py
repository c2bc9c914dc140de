"""``make hard``: the campaign, and its table in ``docs/reliability.md``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
OUT, DOCS = ROOT / "bench" / "hard.json", ROOT / "docs" / "reliability.md"
MARKS = ("<!-- hard -->\n", "<!-- /hard -->")
PARTS = ("kills", "inputs", "readers", "names")
KINDS = ("traceback", "silent", "lost", "unequal", "not finished", "left", "hung", "other")


def run(parts: tuple[str, ...], seed: int, short: bool, rest: bool = False) -> dict[str, Any]:
    """Every line of some parts: what was tried, how often, and every failure.

    Args:
        rest: of the kills only those without a line yet; what was broken off goes on.
    """
    from importlib import import_module

    found: dict[str, Any] = {}
    for part in parts:
        had = json.loads(OUT.read_text()).get(part) if rest and OUT.exists() else None
        lines = dict(had["lines"]) if had else {}
        more = {"done": tuple(lines)} if rest and part == "kills" else {}
        with TemporaryDirectory() as place:
            began = time.perf_counter() - (had["seconds"] if had else 0)
            campaign = import_module(f"hard.{part}").campaign
            for name, result in campaign(Path(place), seed, short, **more):
                lines[name] = {"tried": result.tried, "wrong": result.wrong, "notes": result.notes}
                found[part] = {"seconds": round(time.perf_counter() - began), "lines": lines}
                if not short:
                    keep(found)  # what is broken off has done that much
                print(
                    f"{part}: {name}: {result.tried} tried, {len(result.wrong)} wrong", flush=True
                )
                for kind, words in result.wrong:
                    print(f"  {kind}: {words}", flush=True)
    return found


def keep(found: dict[str, Any]) -> None:
    """Put some parts into the results, and all into the docs."""
    had = json.loads(OUT.read_text()) if OUT.exists() else {}
    had |= found
    OUT.write_text(json.dumps({p: had[p] for p in PARTS if p in had}, indent=1) + "\n")
    DOCS.write_text(written(DOCS.read_text(), json.loads(OUT.read_text())))


def table(found: dict[str, Any]) -> str:
    """What the docs show."""
    head = ["part", "tried", "tracebacks", "silent", "updates lost", "bytes unequal", "others"]
    rows, told, notes = [], [], []
    for part, about in found.items():
        for name, line in about["lines"].items():
            kinds = Counter(kind for kind, _ in line["wrong"])
            main = [kinds.pop(k, 0) for k in KINDS[:4]]
            rows.append([f"{part}: {name}", line["tried"], *main, sum(kinds.values())])
            told += [f"- {kind}: {words}" for kind, words in line["wrong"]]
            notes += [f"- {x}" for x in line["notes"]]
    total = ["**all**", *(f"**{sum(r[i] for r in rows)}**" for i in range(1, len(head)))]
    lines = [[str(c) for c in r] for r in (head, ["---"] * len(head), *rows, total)]
    text = "\n".join(f"| {' | '.join(r)} |" for r in lines)
    text += "\n\nFailures:\n\n" + ("\n".join(told) or "- none")
    return text + "\n\nAccepted, and rightly:\n\n" + ("\n".join(notes) or "- nothing")


def written(text: str, found: dict[str, Any]) -> str:
    """The docs with the table as the results are now."""
    head, _, rest = text.partition(MARKS[0])
    return head + MARKS[0] + table(found) + "\n" + MARKS[1] + rest.partition(MARKS[1])[2]


def main() -> int:
    """Run what is asked for; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(prog="hard", description=__doc__)
    parser.add_argument("part", nargs="*", default=PARTS, help=", ".join(PARTS))
    parser.add_argument("--short", action="store_true", help="a sample, which writes no result")
    parser.add_argument("--rest", action="store_true", help="go on with kills that were broken off")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    torch.set_num_threads(1)  # and no thread before a fork
    found = run(tuple(o.part), o.seed, o.short, o.rest)
    return int(any(x["wrong"] for part in found.values() for x in part["lines"].values()))


if __name__ == "__main__":
    sys.exit(main())
