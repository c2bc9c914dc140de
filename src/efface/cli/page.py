"""``efface page``: remove a concept in a browser, on this machine only."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from efface.cli.terminal import Unless, parsed
from efface.errors import UserError
from efface.settings import Range


@dataclass(frozen=True)
class Options:
    """Where the page works, and what it may open."""

    folder: Annotated[
        Path, tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER]", help_behavior_hint="")
    ] = Path(".")
    """The start folder: the page reads and writes nothing outside of it. Default: here."""
    model: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH")] = ()
    """A model elsewhere that the page may open: a diffusers folder, a single file, or a folder of
    such; again for more."""
    port: Annotated[
        int | None, Range(0, 65535), tyro.conf.arg(metavar="INT", help_behavior_hint="")
    ] = None
    """The port, 0 to 65,535; 0: any that is free. Default: the first free one from 7860 on."""
    browser: Unless = True
    """Open no browser."""


def command(args: list[str]) -> int:
    """``efface page``."""
    o = parsed(Options, args, "efface page")
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'efface[page]'.")
    from efface.page.places import Places
    from efface.page.server import serve

    places = Places.of(o.folder, o.model)

    def ready(address: str) -> None:
        print(address, flush=True)
        print("efface: Ctrl-C ends the page; what it trains goes on.", file=sys.stderr)

    return serve(places, o.port, o.browser, ready)
