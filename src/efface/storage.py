"""What the package ships, and files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safetensors import SafetensorError

from efface.errors import UserError

try:
    VERSION = version("efface")
except PackageNotFoundError:  # a source tree that was not installed
    VERSION = "0.0.0"

ASSETS = Path(__file__).parent / "assets"
"""Models, judges, protocols and templates inside the package."""


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$EFFACE_CACHE`` or ``~/.cache/efface``."""
    return Path(os.environ.get("EFFACE_CACHE", "~/.cache/efface")).expanduser()


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Call ``save`` on a temporary name beside ``path``, then rename: whole, or not at all.

    Raises:
        UserError: no permission, no space, or a folder that is missing.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save(part)
        os.replace(part, path)
    except (OSError, SafetensorError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise UserError(
            f"cannot write {str(path)!r}: {reason}; nothing was left half-written."
        ) from None
    finally:  # also when stopped from the keyboard
        if part.exists():  # not unlink(missing_ok): that raises below a file
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        UserError: as :func:`write`.
    """
    write(path, lambda p: p.write_text(text, encoding="utf8"))


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make {str(path)!r}: {e.strerror}.") from None
