"""Write what commands print into the docs, as it really is: ``python docs/outputs.py``.

A line ``<!-- $ efface … -->`` in a page names a command; the block below it is what it prints. The
commands of a page run in its order, in one folder with nothing but a copy of the shipped model
(``folder``), so that each can use what one before wrote. What differs between two runs or machines
(times, memory, digests) is written as one and the same thing.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

DOCS = Path(__file__).parent
MARK = re.compile(r"<!-- \$ (.+?) -->\n(?:```text\n.*?\n```\n)?", re.DOTALL)
PLAIN = [
    (r"\b\d[\d.,]* (s|min|h|[kMG]?B)\b", "…"),
    (r"\b[0-9a-f]{16}\b", "0123456789abcdef"),
    (r"\b\d{4}-\d\d-\d\dT[\d:]+\+00:00", "2026-01-01T00:00:00+00:00"),
]
"""What differs, and what is written instead."""


def commands(text: str) -> list[str]:
    """The commands that a page names."""
    return [found[1] for found in MARK.finditer(text)]


def printed(command: str) -> str:
    """What a command prints on both streams, less its progress, in the folder that we are in.

    Raises:
        SystemExit: the command failed.
    """
    from efface.cli.main import main

    told = io.TextIOWrapper(io.BytesIO(), encoding="utf8")
    with redirect_stdout(told), redirect_stderr(told):
        code = main(shlex.split(command)[1:])
    told.seek(0)
    text = told.read()
    if code:
        sys.exit(f"{command}: exit code {code}\n{text}")
    lines = re.split(r"[\r\n]", text)
    return "\n".join(x.rstrip() for x in lines if not re.search(r"\d%\|", x)).strip("\n")


def steady(text: str) -> str:
    """A text without what differs between two runs."""
    for what, instead in PLAIN:
        text = re.sub(what, instead, text)
    return re.sub(r"\n{3,}", "\n\n", text)


def written(text: str, run: Callable[[str], str] = printed) -> str:
    """A page with what its commands print now."""
    told = {c: steady(run(c)) for c in commands(text)}

    def block(found: re.Match[str]) -> str:
        return f"<!-- $ {found[1]} -->\n```text\n$ {found[1]}\n{told[found[1]]}\n```\n"

    return MARK.sub(block, text)


def anew(page: Path) -> str:
    """A page written anew, its commands run in an empty folder."""
    import torch

    from efface.storage import ASSETS

    torch.set_num_threads(1)  # sums do not depend on how many cores there are
    text, here = page.read_text(encoding="utf8"), Path.cwd()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"COLUMNS": "80", "EFFACE_CACHE": str(Path(home) / "cache")}
        shutil.copytree(ASSETS / "emoji", Path(home) / "folder")
        os.chdir(home)
        try:
            return written(text)
        finally:
            os.chdir(here)


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        if commands(path.read_text(encoding="utf8")):
            path.write_text(anew(path), encoding="utf8")
