"""Real processes that die by SIGKILL, and what they leave."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

OPERATIONS = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync")
TIMES = re.compile(
    rb',?\s*"(when|ended)": "[^"]*"'
    rb'|,?\s*"(seconds|evaluation_seconds|peak_memory_mb)": ([\d.e-]+|null)'
    rb'|,?\s*"sittings": \[[^]]*\]'
)
"""What differs between two runs of the same."""


def forked(act: Callable[[], object], after: float | None = None) -> int | None:
    """What another process that acts ends with; None: it was killed.

    Args:
        after: seconds after which it is killed, if it is still at it.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(act() or 0)  # type: ignore[call-overload]
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def killed(act: Callable[[], object], n: int, operations: tuple[str, ...] = OPERATIONS) -> bool:
    """Let another process act, and die by SIGKILL before its ``n``-th file operation, if there is.

    Gives whether it was killed.
    """
    code = forked(partial(mortal, act, n, operations))
    assert code in (None, 0)
    return code is None


def mortal(act: Callable[[], object], n: int, operations: tuple[str, ...] = OPERATIONS) -> object:
    """Act; die before the ``n``-th file operation."""
    seen = count()
    for name in operations:
        setattr(os, name, partial(dying, getattr(os, name), seen, n))
    act()
    return 0


def dying(real, seen, n, *args, **options):  # type: ignore[no-untyped-def]
    """An operation that may be the last one."""
    if next(seen) == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for what a clock says."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): TIMES.sub(b"", p.read_bytes()) for p in files}
