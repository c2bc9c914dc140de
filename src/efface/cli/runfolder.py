"""A run's folder: its name, its record, and what other commands left in it."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from efface.cli.terminal import makeable
from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.edits.unfinished import RECORD as RECORD
from efface.errors import UserError
from efface.evaluation.answers import Answer, read
from efface.evaluation.scoring import strength_folder
from efface.names import slug
from efface.settings import checked, read_json
from efface.storage import LOCK, VERSION, sweep, untouched, write_text
from efface.training import EDIT, Run
from efface.training.runs import asked

ANCHORS = "anchors.png"
"""What the concepts are to become, where that was searched for."""


@dataclass(frozen=True)
class Sitting:
    """A process that worked on a run; one that was killed has no end."""

    device: str
    began: str = ""
    ended: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Record:
    """What ``run.json`` holds."""

    run: dict[str, Any]
    """What makes the run this run."""
    versions: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    sittings: tuple[Sitting, ...] = ()
    seconds: float | None = None
    """Of all sittings; None: one was killed."""
    moved_most: dict[str, float] = field(default_factory=dict)


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
    plain = json.loads(json.dumps(about))
    if same_run(out, plain):
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


def same_run(out: Path, about: Mapping[str, Any]) -> bool:
    """Whether a run's folder holds this run already.

    Args:
        about: what makes the run this run, as JSON.

    Raises:
        UserError: another run is there, or what cannot be read.
    """
    if not (out / RECORD).exists():
        return False
    had, about = asked(record(out)["run"]), asked(about)
    differ = [k for k in {**about, **had} if had.get(k) != about.get(k)]
    if differ:
        raise UserError(
            f"{str(out)!r} holds another run, which differs in: {', '.join(differ)}; give another "
            "--out."
        )
    return True


def state_of(out: Path, about: Mapping[str, Any]) -> str:
    """How far a run is, in words: ``new``, ``begun``, or ``finished``.

    Raises:
        UserError: as :func:`same_run`.
    """
    if not same_run(out, json.loads(json.dumps(about))):
        return "new"
    return "finished" if finished(out) is not None else "begun"


def record(out: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        found: dict[str, Any] = read_json(out / RECORD, "record")
        checked(Record, found, "it")
    except UserError as e:
        raise UserError(
            f"{str(out / RECORD)!r} is no run of ours, or damaged ({e}); name another folder."
        ) from None
    return found


def keep(out: Path, found: Mapping[str, Any]) -> None:
    """Write ``run.json``."""
    write_text(out / RECORD, json.dumps(found, indent=1) + "\n")


def sit(out: Path, device: str) -> None:
    """Begin a sitting in the record: one that is killed stays there, without an end.

    Args:
        device: what it runs on.
    """
    found = record(out)
    found.setdefault("sittings", []).append({"device": device, "began": now()})
    keep(out, {**found, "seconds": None})


def spent(out: Path, seconds: float) -> None:
    """End the sitting; the record's seconds are those of all, or null where one was killed.

    Args:
        seconds: of this sitting.
    """
    found = record(out)
    sittings = found["sittings"]
    mine = next(s for s in reversed(sittings) if "seconds" not in s)
    mine |= {"seconds": round(seconds, 4), "ended": now()}
    times = [s.get("seconds") for s in sittings]
    keep(out, {**found, "seconds": None if None in times else round(sum(times), 4)})


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def take_back(out: Path, made: Sequence[Path]) -> None:
    """Delete a run that came to nothing, where it holds nothing but its record."""
    sweep(out)
    if {p.name for p in out.iterdir()} <= {RECORD, LOCK, ANCHORS}:
        for path in out.iterdir():
            path.unlink()
        if made:
            for folder in made:
                folder.rmdir()


def finished(out: Path) -> Edit | None:
    """The edit of a run that has ended; None: it has not."""
    return Edit.load(out) if (out / EDIT).exists() else None


def tidy(out: Path) -> None:
    """Delete what a kill left of the way to the edit.

    Raises:
        UserError: another process works there.
    """
    run = Run(out)
    with run.alone():
        run.forget()


def scores_of(path: Path, edit: Edit, strength: float = 1.0) -> dict[str, Any] | None:
    """The scores of an edit in its run's folder, if it was scored at that strength.

    Those of the whole question of the model's own protocol, ``scores.json``; else, of those of
    narrower questions and of other protocols, which say which they are, those of most pictures.

    Args:
        path: the folder, or the edit's file; that of another edit in a run's folder has none.
        edit: at whatever strength.

    Raises:
        UserError: they are damaged.
    """
    if path.is_file() and path.name != EDIT:
        return None
    home = strength_folder(path if path.is_dir() else path.parent, strength)
    scores = home / "scores.json"
    if scores.exists():
        found: dict[str, Any] = read(Answer, scores, "scores")
        if found.get("edit") in (None, edit.whole):
            return found
    others = [read(Answer, p, "scores") for p in sorted(home.glob("scores-*.json"))]
    mine = [x for x in others if x.get("edit") == edit.whole and x.get("edited")]
    return max(mine, key=pictured, default=None)


def pictured(found: Mapping[str, Any]) -> int:
    """How many pictures scores are of."""
    return sum(len(sides["edited"][0]) for sides in found.get("concepts", {}).values())


def stored(edit: Edit, found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What of an edit's scores is true of weights that hold it: nothing, where it has gates.

    Warns of that.
    """
    if not edit.gates:
        return found
    warnings.warn(
        "this edit has gates that prompts open, which stored weights cannot have: in the file they "
        "are open for every prompt, so that more is changed than was scored (--no-gated makes an "
        "edit without).",
        stacklevel=2,
    )
    return None
