"""``efface erase --dry-run``: what an erasure will take and write, before it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efface.cli import runfolder
from efface.cli.terminal import show
from efface.concepts import Concept, few
from efface.models import DiffusionModel, Plan
from efface.reporting.grid import PICTURE, Preview
from efface.training import EDIT, Method, Tuning, provenance
from efface.training.anchors import MANY
from efface.training.forecast import Forecast, forecast
from efface.training.runs import CHECKPOINT

NOTHING = Forecast(Plan(0, 0, 0), 0, 0, 0, 0.0, 0.0, 0.0, None, 0, 0)
"""What a finished run takes."""


class File(NamedTuple):
    """A file that an erasure writes."""

    path: str
    bytes: int | None
    """None: it depends."""
    stays: bool
    """Whether it is still there in the end."""


def dry_run(
    method: Method,
    model: DiffusionModel,
    concepts: Sequence[Concept],
    out: Path,
    checkpointing: bool,
    picture: bool,
    as_json: bool,
) -> int:
    """Print what an erasure will take; nothing is trained for good, and nothing is written.

    Args:
        picture: whether a before/after picture is to be drawn.

    Raises:
        UserError: whatever the erasure itself would refuse.
    """
    told = planned(method, model, concepts, out, checkpointing, picture)
    if as_json:
        print(json.dumps(told, indent=1))
    else:
        show(rows_of(told), ["to be erased", few([c.name for c in concepts])])
    return 0


def planned(
    method: Method,
    model: DiffusionModel,
    concepts: Sequence[Concept],
    out: Path,
    checkpointing: bool = False,
    picture: bool = True,
) -> dict[str, Any]:
    """The plan as JSON; of a run that is finished nothing is tried.

    Raises:
        UserError: as :func:`dry_run`.
    """
    state = runfolder.state_of(out, provenance(method, model, concepts))
    preview = Preview.of(model, len(concepts)) if picture else None
    if state != "finished":
        found = forecast(method, model, concepts, checkpointing, len(concepts) >= MANY)
        return plan_of(method, model, concepts, out, state, found, preview)
    drawn = None if (out / PICTURE).exists() else preview
    return plan_of(method, model, concepts, out, state, NOTHING, drawn)


def plan_of(
    method: Method,
    model: DiffusionModel,
    concepts: Sequence[Concept],
    out: Path,
    state: str,
    found: Forecast,
    preview: Preview | None,
) -> dict[str, Any]:
    """The plan as JSON: bytes, evaluations, seconds, files."""
    m = found.memory
    memory = {"model": m.frozen, "trained": m.trained, "activations": m.activations}
    drawn = None if preview is None else preview.evaluations(model)
    seconds: dict[str, float | int | None] = {
        "preparation": round(found.preparation, 2),
        "update": round(found.update, 3),
        "total": round(found.seconds, 2),
    }
    if found.row is not None and preview is not None and drawn is not None:
        seconds["picture"] = round(drawn * found.row * preview.share(model), 2)
    return {
        "run": str(out),
        "state": state,
        "method": method.name,
        "model": model.name,
        "device": str(model.device),
        "dtype": model.precision,
        "concepts": [c.to_json() for c in concepts],
        "memory": {**memory, "total": m.total},
        "evaluations": {"forward": found.forward, "backward": found.backward, "picture": drawn},
        "updates": found.updates,
        "seconds": seconds,
        "files": [
            {"path": f.path, "bytes": f.bytes, "stays": f.stays}
            for f in files_of(method, concepts, out, state, found, preview)
        ],
    }


def files_of(
    method: Method,
    concepts: Sequence[Concept],
    out: Path,
    state: str,
    found: Forecast,
    preview: Preview | None,
) -> list[File]:
    """What will be written, in order."""
    shown = [] if preview is None else [File(str(out / PICTURE), None, True)]
    files = [File(str(out / runfolder.RECORD), None, True)]
    if state == "finished":  # its record is to say what is in the picture
        known = not shown or "moved_most" in runfolder.record(out)
        return shown if known else [*files, *shown]
    if isinstance(method, Tuning):
        files.append(File(str(out / CHECKPOINT), found.state, False))
    if method.apart:
        parts = (out / f"part-{i}.safetensors" for i in range(len(concepts)))
        files += [File(str(p), None, False) for p in parts]
    return [*files, File(str(out / EDIT), found.edit, True), *shown]


def rows_of(told: Mapping[str, Any]) -> list[list[str]]:
    """The plan in words."""
    memory, s = told["memory"], told["seconds"]
    parts = ", ".join(f"{k} {size(memory[k])}" for k in ("model", "trained", "activations"))
    counts = told["evaluations"]
    done = told["state"] == "finished"
    rows = [
        ["run", f"{told['run']} ({told['state']}{': nothing is trained' if done else ''})"],
        ["on", f"{told['model']}, {told['device']}, {told['dtype']}"],
        ["memory", f"about {size(memory['total'])}: {parts}"],
        ["evaluations", f"{counts['forward']:,} forward, {counts['backward']:,} backward"],
    ]
    if done:
        del rows[2]
    elif told["updates"]:
        each = f"{told['updates']:,} updates of {s['update']:.2g} s, measured on two"
        rows.append(["time", f"about {span(s['total'])} ({each})"])
    else:
        rows.append(["time", f"about {span(s['total'])} (solved once, and thrown away)"])
    if counts["picture"] is not None:
        also = f", about {span(s['picture'])}" if "picture" in s else ""
        rows.append(["picture", f"{counts['picture']:,} evaluations more{also}"])
    for f in told["files"]:
        big = "" if f["bytes"] is None else f"  {size(f['bytes'])}"
        rows.append(["writes", f"{f['path']}{big}{'' if f['stays'] else ', until it is done'}"])
    if not told["files"]:
        rows.append(["writes", "nothing"])
    return rows


def size(n: int) -> str:
    """Bytes in words."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n >= unit:
            return f"{n / unit:.1f} {name}"
    return f"{n} bytes"


def span(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 else "a second"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
