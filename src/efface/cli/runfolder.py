"""A run's folder: its name, its record, and what other commands left in it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from efface.cli.terminal import makeable
from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.names import slug
from efface.settings import read_json
from efface.storage import LOCK, VERSION, sweep, untouched, write_text
from efface.training import EDIT, Run

RECORD = "run.json"


def folder_for(out: Path | None, method: str, concepts: Sequence[Concept]) -> Path:
    """The run's folder, refused where something else is in it.

    What a kill left of our own writing is nothing.

    Raises:
        UserError: a file, or a folder with something else in it.
    """
    out = out or Path("runs") / f"{method}-{slug([c.name for c in concepts])}"
    if out.exists() and not out.is_dir():
        raise UserError(f"{str(out)!r} is a file; name a folder.")
    makeable(out)
    if out.is_dir() and not (out / RECORD).exists() and not untouched(out):
        raise UserError(f"{str(out)!r} is not empty and holds no run of ours; name another folder.")
    return out


def begin(out: Path, about: Mapping[str, Any], command: Sequence[str]) -> list[Path] | None:
    """Write ``run.json`` and give the folders made for it; None where the same run is there.

    Args:
        about: what makes the run this run.
        command: what was typed, for the record.

    Raises:
        UserError: another run is there, or what cannot be read or written.
    """
    path, plain = out / RECORD, json.loads(json.dumps(about))
    if path.exists():
        had = record(out)["run"]
        if had != plain:
            differ = [k for k in plain if had.get(k) != plain[k]]
            raise UserError(
                f"{str(out)!r} holds a run with another {', '.join(differ)}; give another --out."
            )
        return None
    made = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make {str(out)!r}: {e.strerror}.") from None
    versions = {
        "efface": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    keep(out, {"run": plain, "versions": versions, "command": list(command)})
    return made


def record(out: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        found: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf8"))
        if isinstance(found["run"], dict):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(
        f"{str(out / RECORD)!r} is no run of ours, or damaged; name another folder."
    ) from None


def keep(out: Path, found: Mapping[str, Any]) -> None:
    """Write ``run.json``."""
    write_text(out / RECORD, json.dumps(found, indent=1) + "\n")


def spent(out: Path, seconds: float, device: str) -> float:
    """Add a sitting to the record; gives the seconds of all.

    Args:
        seconds: of this sitting.
        device: what it ran on.
    """
    found = record(out)
    sitting = {
        "seconds": round(seconds, 2),
        "device": device,
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    found.setdefault("sittings", []).append(sitting)
    found["seconds"] = round(sum(s["seconds"] for s in found["sittings"]), 2)
    keep(out, found)
    return float(found["seconds"])


def take_back(out: Path, made: Sequence[Path]) -> None:
    """Delete a run that came to nothing, where it holds nothing but its record."""
    sweep(out)
    if {p.name for p in out.iterdir()} <= {RECORD, LOCK}:
        for path in out.iterdir():
            path.unlink()
        if made:
            for folder in made:
                folder.rmdir()


def finished(out: Path) -> Edit | None:
    """The edit of a run that has ended; what a kill left of the way there is swept."""
    if not (out / EDIT).exists():
        return None
    edit = Edit.load(out)
    Run(out).forget()
    return edit


def scores_of(path: Path) -> dict[str, Any] | None:
    """The ``scores.json`` beside an edit, if it was scored.

    Raises:
        UserError: it is damaged.
    """
    scores = (path if path.is_dir() else path.parent) / "scores.json"
    if not scores.exists():
        return None
    found = read_json(scores, "scores")
    if not isinstance(found, dict):
        raise UserError(f"{str(scores)!r} holds no scores; delete it, and run efface score again.")
    return found
