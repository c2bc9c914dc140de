"""What a run that is not finished says where its edit is asked for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.settings import read_json

EDIT = "edit.safetensors"
"""What a run ends with, in its folder."""
CHECKPOINT = "unfinished.safetensors"
"""The state of a fine-tuning until then."""
RECORD = "run.json"
"""What a command's run says of itself."""


def unfinished(path: Path) -> str:
    """That a run is not finished, and what goes on with it; "": there is no such run.

    Args:
        path: its folder, or one of its own files, there or not.
    """
    home = path if path.is_dir() else path.parent
    if home != path and path.name not in (EDIT, CHECKPOINT, RECORD):
        return ""
    if (home / EDIT).is_file():
        return ""
    typed = command_of(home / RECORD)
    if not typed and not (home / CHECKPOINT).is_file():
        return ""
    said = f"the run in {str(home)!r} is not finished and has no edit yet; it goes on with"
    return f"{said}: {typed}" if typed else f"{said} the same erasure into the same folder."


def command_of(record: Path) -> str:
    """The command that began a run, by its record; "": it is not known."""
    found: Any = None
    with suppress(UserError):
        found = read_json(record, "record") if record.is_file() else None
    typed = found.get("command") if isinstance(found, Mapping) and "run" in found else None
    if not isinstance(typed, list) or not all(isinstance(x, str) for x in typed):
        return ""
    return shlex.join(typed)
