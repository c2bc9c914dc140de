"""What the package ships, and files that are written whole or not at all."""

from __future__ import annotations

import codecs
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from efface.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

try:
    VERSION = version("efface")
except PackageNotFoundError:  # a source tree that was not installed
    VERSION = "0.0.0"

ASSETS = Path(__file__).parent / "assets"
"""Models, judges, protocols and templates inside the package."""


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$EFFACE_CACHE`` or ``~/.cache/efface``."""
    return Path(os.environ.get("EFFACE_CACHE", "~/.cache/efface")).expanduser()


PART = re.compile(r"\.(.+)\.(\d{1,9})\.part")
"""What is being written under another name: the name it will have, and the process."""
LOCK = ".lock"
"""In a folder: a process works here."""


def write(path: Path, save: Callable[[Path], object], lasting: bool = True) -> None:
    """Call ``save`` on a temporary name beside ``path``, then rename: whole, or not at all.

    The file is on the disk before it has its name. A new one has the mode that the umask says.

    Args:
        lasting: False, for one of very many files that can be made again: do not wait for the disk,
            nor look for what dead processes left (:func:`sweep`).

    Raises:
        UserError: no permission, no space, or a folder that is missing.
    """
    part = _part(path)
    try:
        part.touch()
        if lasting:
            sweep(path.parent, path.name)
        mode = stat.S_IMODE((path if path.exists() else part).stat().st_mode)
        save(part)
        if lasting:
            _flush(part)
        part.chmod(mode)  # safetensors' own is 0600
        os.replace(part, path)
        if lasting:
            _flush_folder(path.parent)
    except (OSError, SafetensorError) as e:
        raise _unwritten(path, e) from None
    finally:  # also when stopped from the keyboard
        if part.exists():  # not unlink(missing_ok): that raises below a file
            part.unlink()


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Call ``fill`` on a new folder beside ``path``, then rename: whole, or not at all.

    Raises:
        UserError: as :func:`write`.
    """
    part = _part(path)
    try:
        sweep(path.parent, path.name)
        shutil.rmtree(part, ignore_errors=True)  # of a dead process with our number
        part.mkdir()
        fill(part)
        for file in sorted(part.rglob("*")):
            _flush_folder(file) if file.is_dir() else _flush(file)
        _flush_folder(part)
        os.replace(part, path)
        _flush_folder(path.parent)
    except (OSError, SafetensorError) as e:
        raise _unwritten(path, e) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _unwritten(path: Path, e: Exception) -> UserError:
    reason = getattr(e, "strerror", None) or str(e)
    return UserError(f"cannot write {str(path)!r}: {reason}; nothing was left half-written.")


def _flush(file: Path) -> None:
    """Wait until a file is on the disk."""
    with file.open("r+b") as f:
        os.fsync(f.fileno())


def _flush_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where the file system can tell."""
    if os.name == "posix":
        found = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(found)
        finally:
            os.close(found)


def sweep(folder: Path, name: str = "") -> None:
    """Delete what dead processes left half-written in a folder.

    Args:
        name: only what was to have this name; "": all.
    """
    for path in sorted(folder.iterdir()):
        told = PART.fullmatch(path.name)
        if told and told[1] == (name or told[1]) and not alive(int(told[2])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)  # another process may be quicker


def alive(pid: int) -> bool:
    """Whether a process runs; where that cannot be asked, it is taken to."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def untouched(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but what killed processes of ours left."""
    if not folder.exists():
        return True
    sweep(folder)
    return all(p.name == LOCK or PART.fullmatch(p.name) for p in folder.iterdir())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs.

    The lock is the operating system's, so that it ends with the process, however that ends. Where a
    file system has none, nothing is locked.

    Raises:
        UserError: another process works there, or the folder cannot be written.
    """
    path = folder / LOCK
    with _taken(path) as mine:
        mine.truncate(0)
        mine.write(str(os.getpid()))
        mine.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _taken(path: Path) -> IO[str]:
    """A lock file, open and ours: not one that its last owner has just deleted."""
    while True:
        try:
            found = path.open("a+", encoding="utf8")
        except OSError as e:
            raise UserError(f"cannot write {str(path)!r}: {e.strerror}.") from None
        try:
            hold(found, wait=False)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(found.fileno())):
                return found
        except BlockingIOError:
            found.seek(0)
            who = found.read().strip()
            found.close()
            raise UserError(
                f"another process{who and f' (number {who})'} works in {str(path.parent)!r}: "
                "wait until it has ended, and give the command again."
            ) from None
        except FileNotFoundError:
            pass
        found.close()


def hold(file: IO[Any], wait: bool = True) -> None:
    """Lock an open file until it is closed, where the file system has locks.

    Raises:
        BlockingIOError: somebody else has it, and ``wait`` is off.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as e:
        if e.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
            raise


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
