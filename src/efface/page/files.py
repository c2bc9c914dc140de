"""Which file an address of the page stands for, and which it stands for never."""

from __future__ import annotations

import re
from pathlib import Path

from efface.errors import UserError
from efface.page.desk import Desk
from efface.page.jobs import KEY, KINDS
from efface.page.takeaway import drawn, there

PNG = re.compile(r"[0-9a-f-]+\.png")
"""What the page's own pictures are called."""


def picture(desk: Desk, name: str) -> Path:
    """A picture that the page drew.

    Raises:
        UserError: there is none of that name.
    """
    return known(desk, desk.shelf.folder / name, PNG.fullmatch(name) is not None)


def live(desk: Desk, job: str, name: str) -> Path:
    """A picture that a job drew.

    Raises:
        UserError: there is none of that name.
    """
    key, _, kind = job.rpartition("-")
    good = KEY.fullmatch(key) is not None and kind in KINDS and PNG.fullmatch(name) is not None
    return known(desk, desk.places.own / "jobs" / job / name, good)


def taken(desk: Desk, key: str, name: str) -> Path:
    """A file to take away.

    Raises:
        UserError: there is none of that name.
    """
    wish = desk.wish(key)
    some = {p.name: p for p in (*drawn(desk.places.run(wish.home)), *there(desk.places, wish))}
    return known(desk, some.get(name, desk.places.start), name in some)


def found(desk: Desk, key: str, folder: str, name: str) -> Path:
    """A picture of what an attack found.

    Raises:
        UserError: there is none of that name.
    """
    home = desk.places.run(desk.wish(key).home) / folder
    good = (
        folder.startswith("attacks")
        and "/" not in folder
        and name.endswith(".png")
        and Path(name).name == name
    )
    return known(desk, home / name, good)


def known(desk: Desk, path: Path, good: bool) -> Path:
    """A file inside of the start folder.

    Raises:
        UserError: there is none.
    """
    if not good:
        raise UserError("there is no such file.")
    inside = desk.places.inside(str(path))
    if not inside.is_file():
        raise UserError("there is no such file.")
    return inside
