"""Long work in a process of its own: it goes on while no page is open, and any page shows it.

A job is a folder: what is asked (``job.json``), how far it is (``state.json``), what there is to
see (``watch.json`` and pictures), and what it said (``log.txt``). Whether it runs is known by a
lock that ends with its process; so two pages, or two tabs, see the same, and start it once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from efface.errors import UserError, pick
from efface.page.places import Places
from efface.page.wish import Wish, wish_in
from efface.settings import read, read_json
from efface.storage import LOCK, alive, hold, make_folder, write_text

KINDS = {
    "erase": "Train",
    "measure": "Measure along the strength",
    "attack": "Attack",
    "report": "Report",
}
"""What a job can be."""
TASK, STATE, WATCH, LOG = "job.json", "state.json", "watch.json", "log.txt"
KEY = re.compile(r"[0-9a-f]{12}(-[0-9a-f]{6})?")
"""A permalink."""
STOPPED = dict.fromkeys(("erase", "attack"), "Stopped; it goes on from here")
"""What a job says that was asked to stop; those that are not here begin anew."""
BUSY = ("starting", "running")
"""Phases of a job at work."""


@dataclass(frozen=True)
class State:
    """How far a job is."""

    phase: str = "new"
    """``new``, ``starting``, ``running``, ``stopped``, ``done`` or ``failed``."""
    said: str = ""
    """In one line: what it does, or why it ended."""
    update: int = 0
    """Of :attr:`updates`, or of other steps."""
    updates: int = 0
    left: float | None = None
    """Seconds, about; None: not known."""
    pid: int = 0
    """Of a process that is starting, and holds no lock yet."""

    @property
    def busy(self) -> bool:
        """Whether a process works on it."""
        return self.phase in BUSY


@dataclass(frozen=True)
class Task:
    """What a job is asked."""

    kind: str
    wish: Mapping[str, Any]
    start: str
    """The start folder."""
    options: Mapping[str, Any] = field(default_factory=dict)


class Job:
    """A job of a wish, by its kind; every page makes its own of the same folder."""

    _children: dict[Path, subprocess.Popen[bytes]] = {}  # noqa: RUF012 (of this process)

    def __init__(self, places: Places, wish: Wish, kind: str) -> None:
        pick(KINDS, kind, "kind of job")
        self.places, self.wish, self.kind = places, wish, kind
        self.folder = places.own / "jobs" / f"{wish.key}-{kind}"

    @property
    def run(self) -> Path:
        """The run's folder.

        Raises:
            UserError: it is outside of the start folder.
        """
        return self.places.run(self.wish.home)

    def start(self, **options: Any) -> None:
        """Start it, or go on with it; nothing where it runs already.

        Raises:
            UserError: the folder cannot be written, or no process can be made.
        """
        if self.state().busy:
            return
        run = self.run  # refused before anything is written
        make_folder(self.folder)
        task = Task(self.kind, self.wish.to_json(), str(self.places.start), options)
        write_text(self.folder / TASK, json.dumps(asdict(task), indent=1) + "\n")
        now = State("starting", f"Opening {self.places.told(run)}")
        self.keep(now)
        command = [sys.executable, "-m", "efface.page.work", str(self.folder)]
        try:
            with (self.folder / LOG).open("wb") as log:
                child = subprocess.Popen(
                    command,
                    cwd=self.places.start,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the page's terminal does not reach it
                )
        except OSError as e:
            self.keep(State("failed", f"no process could be started: {e.strerror}."))
            raise UserError(f"cannot start a process: {e.strerror}.") from None
        self._children[self.folder] = child
        if self.state() == now:  # it has not told anything yet
            self.keep(replace(now, pid=child.pid))

    def stop(self, wait: float = 0.0) -> None:
        """Ask its process to keep what it has, and to end; :meth:`start` goes on.

        Args:
            wait: seconds to wait for that.
        """
        now = self.state()
        pid = holder(self.folder) or now.pid
        if pid:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        if pid and pid == now.pid:  # it is starting, and cannot tell yet
            self.keep(replace(now, phase="stopped", said=self.stopped, pid=0))
        end = monotonic() + wait
        while monotonic() < end and self.state().busy:
            sleep(0.05)

    @property
    def stopped(self) -> str:
        """What it says when it was asked to stop."""
        return STOPPED.get(self.kind, "Stopped")

    @property
    def told(self) -> Path:
        """Where it is written how far it is."""
        return self.folder / STATE

    def keep(self, state: State) -> None:
        """Write how far it is."""
        write_text(self.told, json.dumps(asdict(state)) + "\n")

    def state(self) -> State:
        """How far it is; one whose process was killed is ``stopped``.

        Raises:
            UserError: the file is damaged.
        """
        if not self.told.exists():
            return State()
        found = read(State, self.told, "state of a job")
        if not found.busy or holder(self.folder):
            return found
        child = self._children.get(self.folder)
        lives = child.poll() is None if child else bool(found.pid) and alive(found.pid)
        if found.phase == "starting" and lives:
            return found
        again = read(State, self.told, "state of a job")  # it may have ended meanwhile
        if not again.busy:
            return again
        return State("stopped", self.last_words(), again.update, again.updates)

    def last_words(self) -> str:
        """What a process that was killed has to say, in one line."""
        lines = self.log().splitlines()
        known = [x for x in lines if x.startswith(("efface: error:", "OSError", "MemoryError"))]
        if known:
            return known[-1].removeprefix("efface: error: ")
        return "Its process was ended from outside; it goes on from its last checkpoint."

    def log(self, most: int = 4000) -> str:
        """The end of what it said."""
        try:
            with (self.folder / LOG).open("rb") as f:
                f.seek(0, os.SEEK_END)
                f.seek(max(0, f.tell() - most))
                return f.read().decode("utf8", "replace")
        except OSError:
            return ""

    def watched(self) -> dict[str, Any]:
        """What there is to see of it: words and points; empty where there is nothing yet."""
        path = self.folder / WATCH
        try:
            found: dict[str, Any] = read_json(path, "pictures of a job") if path.exists() else {}
        except UserError:  # it can be drawn again, and is no result
            found = {}
        return found


def holder(folder: Path) -> int:
    """The number of the process that holds a folder; 0: none does."""
    path = folder / LOCK
    try:
        with path.open("r+", encoding="utf8") as f:
            try:
                hold(f, wait=False)
            except BlockingIOError:
                return int(f.read().strip() or 0)
            if os.name == "posix":
                return 0
            pid = int(f.read().strip() or 0)
            return pid if pid and alive(pid) else 0
    except (OSError, ValueError):
        return 0


def found(places: Places, key: str) -> Wish | None:
    """The wish of a permalink, if a job of it was ever started here, or a command made its run."""
    if not KEY.fullmatch(key):
        return None
    for kind in KINDS:
        path = places.own / "jobs" / f"{key}-{kind}" / TASK
        if path.is_file():
            return Wish.from_json(read(Task, path, "job").wish)
    for folder in places.runs():
        with suppress(UserError):  # a run that cannot be opened is not the one
            wish = wish_in(places.run(folder), places)
            if wish.key == key:
                return wish
    return None
