"""What the package ships, and files that are written whole or not at all."""

from __future__ import annotations

import codecs
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


def read_text(path: Path, what: str) -> str:
    """The text of a file: UTF-8, or UTF-16 that begins with its mark; marks are left out.

    Args:
        what: what the file is, for messages ("word list").

    Raises:
        UserError: it cannot be read, or is no text; names the file and the line.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read the {what} {str(path)!r}: {e.strerror}.") from None
    return decoded(raw, f"the {what} {str(path)!r}")


def decoded(raw: bytes, where: str) -> str:
    """The text of some bytes; see :func:`read_text`.

    Args:
        where: what they are, for messages ("the word list 'mine.txt'").

    Raises:
        UserError: they are no text; names the line.
    """
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as e:
        line = 1 if wide else raw[: e.start].count(b"\n") + 1
        kind = "UTF-16" if wide else "UTF-8"
        raise UserError(f"{where} is no {kind} text: {e.reason}, in line {line}.") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{where} is no text: it holds a NUL character, in line {line}.")
    return text


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make {str(path)!r}: {e.strerror}.") from None
