"""The command line: which commands there are, and how their mistakes are told."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from efface.errors import LESS, UserError, escaped, out_of_memory, pick

ABOUT = {
    "demo": "erase one concept from the shipped model, and show it (about a minute)",
    "page": "the page: remove a concept in a browser, on this machine only",
    "erase": "erase concepts: efface erase METHOD CONCEPT … [--keep …] [--model M]",
    "score": "ESR and PSR of a run's edit, or of the unedited model, with intervals",
    "attack": "what brings an erased concept back, beside its controls",
    "report": "one self-contained HTML page about runs: scores, pictures, cost",
    "sensitivity": "which concepts an erasure harms, or will harm",
    "study": "the paper's experiments and open questions, each one command",
    "bench": "methods under one protocol: efface bench emoji-objects-2",
    "generate": "make pictures, with or without an edit",
    "inspect": "what an edit holds and where it came from, or what a folder lost",
    "merge": "write a whole diffusers folder with an edit in it",
    "lora": "an edit as a LoRA file that stock diffusers loads",
    "apply": "put an edit into a diffusers folder, in place, with a ledger",
    "remove": "take an edit out of such a folder again, bit for bit",
    "combine": "several edits as one, and how they get into each other's way",
    "diff": "how two models differ, by weight group",
    "models": "the models that ship, and how to name others",
    "methods": "the erasure methods, their presets and settings",
    "vocabulary": "the candidates for preservation, and the nearest to a concept",
}
"""Every command in a line; ``efface.cli.NAME.command`` is what it does."""

SHELLS = {"bash": "bash", "zsh": "zsh"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; mistakes of the user end in one line on stderr and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    warnings.showwarning = _warn
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # a command's output is its own
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that may be missing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without our signs
    try:
        try:
            code = run(args)
        except SystemExit as e:  # --help
            code = int(e.code or 0)
        sys.stdout.flush()
        return code
    except UserError as e:
        return _failed(str(e), 2)
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        return _failed(f"out of memory: {LESS}; what is done is kept.", 2)
    except KeyboardInterrupt:
        print("efface: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        _unplug()
        return 0
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            return _failed(f"the name {str(e.filename)[:60]!r}… is too long for a file.", 2)
        if e.errno not in (errno.ENOSPC, errno.EIO) or e.filename is not None:
            raise
        _unplug()
        return _failed(f"cannot write the output: {e.strerror}.", 2)


def run(args: Sequence[str]) -> int:
    """What a command line asks for.

    Raises:
        UserError: no such command, and whatever the command refuses.
    """
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        from efface.storage import VERSION

        print(f"efface {VERSION}")
        return 0
    if args[0] == "--print-completion":
        from efface.cli.completion import script

        print(script(pick(SHELLS, "".join(args[1:2]), "shell")))
        return 0
    pick(ABOUT, args[0], "command")
    return int(import_module(f"efface.cli.{args[0]}").command(list(args[1:])))


def _failed(why: str, code: int) -> int:
    print(f"efface: error: {escaped(why)}", file=sys.stderr)
    return code


def _nowhere() -> TextIO:
    """What takes the place of a stream that whoever started us has closed."""
    return open(os.devnull, "w", encoding="utf8")


def _unplug() -> None:
    """Leave nothing that Python would try to write to a broken stdout when it ends."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    from tqdm import tqdm

    line = f"efface: warning: {escaped(str(message))}"
    tqdm.write(line, file=sys.stderr)  # on a line of its own, above a bar


def usage() -> str:
    """The help text."""
    width = max(map(len, ABOUT))
    lines = [f"  {name:<{width}}  {about}" for name, about in ABOUT.items()]
    return "\n".join(
        [
            "usage: efface COMMAND …",
            "",
            "Erase concepts from text-to-image diffusion models, and measure what it cost.",
            "",
            *lines,
            "",
            "efface COMMAND --help says more; efface --version; "
            "efface --print-completion bash|zsh.",
        ]
    )
