"""How long ``efface attack`` takes: every attack at its default budget on AP's edit of split 1.

Writes ``bench/attack.json`` and its line in ``docs/attacks.md``; to be run with nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from size_tables import put

from efface.evaluation.bench import machine_of
from efface.evaluation.protocols import load
from efface.storage import VERSION

HERE = Path(__file__).parent
OUT, DOCS = HERE / "attack.json", HERE.parent / "docs" / "attacks.md"
ERASED = load("emoji-objects-2").erased("1")


def timed(run: Path) -> dict[str, Any]:
    """The command on a run's folder, which holds no attacks yet."""
    began = perf_counter()
    subprocess.run([sys.executable, "-m", "efface", "attack", str(run)], check=True)
    seconds = perf_counter() - began
    told = json.loads((run / "attacks.json").read_text())
    return {
        "efface": VERSION,
        "torch": torch.__version__,
        "machine": machine_of(torch.device("cpu")),
        "erased": told["about"]["erased"],
        "seconds": round(seconds, 1),
        "attacks": told["seconds"],
        "evaluations": sum(u["evaluations"] for u in told["units"].values()),
    }


def said(found: dict[str, Any]) -> str:
    """The line of the docs."""
    most = sorted(found["attacks"], key=lambda k: -found["attacks"][k])[:3]
    parts = ", ".join(f"`{k}` {found['attacks'][k] / 60:.1f}" for k in most)
    return (
        f"On AP's edit of {len(found['erased'])} concepts of the shipped model all of it takes "
        f"{found['seconds'] / 60:.1f} minutes ({found['machine']}): "
        f"{found['evaluations'] / 1000:.0f} thousand evaluations, pictures included; most of it "
        f"{parts}."
    )


def written(page: str, found: dict[str, Any]) -> str:
    """The page with the line as the result is now."""
    return put(page, "time", said(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only write the line of the docs")
    if not parser.parse_args().table:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            erase = ["erase", "ap", *ERASED, "--out", str(run), "--no-picture"]
            subprocess.run([sys.executable, "-m", "efface", *erase], check=True)
            OUT.write_text(json.dumps(timed(run), indent=1) + "\n")
    DOCS.write_text(written(DOCS.read_text(), json.loads(OUT.read_text())))
