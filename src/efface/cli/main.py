"""The command line: parse, call, print."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from efface.errors import UserError, pick


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; mistakes of the user end in one line on stderr and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _warn
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that may be missing
    try:
        if not args or args[0] in ("-h", "--help"):
            print(usage())
            return 0
        if args[0] == "--version":
            from efface.storage import VERSION

            print(f"efface {VERSION}")
            return 0
        command = pick(COMMANDS, args[0], "command")
        return command(args[1:])
    except UserError as e:
        print(f"efface: error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("efface: stopped; the same command goes on from here.", file=sys.stderr)
        return 130


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    from tqdm import tqdm

    tqdm.write(f"efface: warning: {message}", file=sys.stderr)  # on a line of its own, above a bar


def _lazy(home: str, name: str) -> Callable[[list[str]], int]:
    def call(args: list[str]) -> int:
        return int(getattr(import_module(f"efface.cli.{home}"), name)(args))

    return call


ABOUT = {
    "demo": "erase one concept from the shipped model, and show what happened (a few minutes)",
    "erase": "erase concepts: efface erase METHOD --concept … [--keep …] [--model M] [--out DIR]",
    "score": "ESR and PSR of a run's edit, or of the unedited model, with 95 % intervals",
    "report": "one self-contained HTML page about runs: scores, pictures, cost, limits",
    "sensitivity": "which concepts an erasure harms, or will harm",
    "study": "the paper's experiments and open questions, each one command",
    "bench": "methods under one protocol, with intervals: efface bench emoji-objects",
    "generate": "make pictures, with or without an edit",
    "inspect": "what an edit holds, and where it came from",
    "merge": "write a whole diffusers folder with an edit in it",
    "lora": "an edit as a LoRA file that stock diffusers loads",
    "apply": "put an edit into a diffusers folder, in place, with a ledger of what was erased",
    "remove": "take an edit out of such a folder again, bit for bit",
    "combine": "several edits as one, and how far they get into each other's way",
    "diff": "how two models differ, by weight group",
    "models": "the models that ship, and how to name others",
    "methods": "the erasure methods, their presets and settings",
    "vocabulary": "the candidates for preservation, and the nearest to a concept",
}
HOMES = {
    "demo": ("demo", "run"),
    **{n: ("others", n) for n in ("generate", "inspect", "models", "methods", "vocabulary")},
    **{n: ("filing", f"{n}_command") for n in ("merge", "apply", "remove", "combine", "diff")},
    "lora": ("filing", "lora"),
}
COMMANDS = {n: _lazy(*HOMES.get(n, (n, n))) for n in ABOUT}


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
            "efface COMMAND --help says more; efface --version.",
        ]
    )
