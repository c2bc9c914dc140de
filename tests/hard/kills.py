"""The command line, killed at every file operation and at random times, and given again."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch.optim.optimizer import register_optimizer_step_post_hook

from efface.cli.main import ABOUT, main
from efface.evaluation import tasks
from efface.models import load
from hard.killing import contents, forked, mortal
from hard.places import SETTINGS, Result, clothes

OUT, UPDATES = "said.txt", "updates.txt"
"""What a command said, and a byte for each update of its weights; beside its working folder."""
OPERATIONS = ("replace", "rename", "unlink", "rmdir", "mkdir")
"""At which it is killed: what changes a folder (a kill before an fsync loses nothing)."""
MOST = 400
"""File operations that no command here has."""
EVERY, UPDATED = 2, 6
"""Updates between two checkpoints, and in all."""
ERASE = ("erase", "{method}", "coat", "--out", "run", "--model", "{model}", "--no-picture")


class Case(NamedTuple):
    """A command, and what is in its folder before."""

    name: str
    args: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that have made what it works on."""
    again: str = ""
    """What it says where its output is there already, whole, and it has nothing to do."""
    every: int = EVERY
    """Updates between two checkpoints."""


def cases() -> dict[str, Case]:
    """Every command that writes."""
    runs = {
        m: (*(a.format(method=m, model="{model}") for a in ERASE), *flags)
        for m, flags in SETTINGS.items()
    }
    found = []
    picture = tuple(a for a in runs["uce"] if a != "--no-picture")
    uce, base = runs["uce"], ("--model", "{model}")
    dog = tuple({"coat": "boot", "run": "other"}.get(a, a) for a in uce)
    put, more = ("apply", "run", "folder"), ("apply", "other", "folder")
    exists = "exists already"
    lora = ("lora", "run", "x.safetensors", "--allow-error", "1")
    bench = ("bench", "{model}/protocol.json", "--method", "uce", "--method", "esd", *base)
    bench += ("--updates", "4", "--seeds", "1", "--out", "results", "--work", "work")
    found += [
        Case("erase uce, with its picture", picture),
        Case("apply", put, (uce,)),
        Case("apply a second edit", more, (uce, dog, put)),
        Case("remove", ("remove", "folder"), (uce, dog, put, more)),
        Case("merge", ("merge", "run", "out"), (uce,)),
        Case("lora", lora, (uce,), exists),
        Case("combine", ("combine", "run", "other", "--out", "x.safetensors"), (uce, dog), exists),
        Case("diff", ("diff", "{model}", "folder", "--out", "x.safetensors"), (uce, put), exists),
        Case(
            "generate", ("generate", "--prompt", "a coat", "--seeds", "3", "--edit", "run"), (uce,)
        ),
        Case("score", ("score", "run", "--pictures", "2"), (uce,)),
        Case("report", ("report", "run", "--pictures", "2"), (uce,)),
        Case("sensitivity", ("sensitivity", "run", "--latents", "2"), (uce,)),
        Case("bench", bench, every=50),
        *(Case(f"erase {m}", args) for m, args in runs.items()),
    ]
    return {c.name: c for c in found}


def command(args: tuple[str, ...], folder: Path, model: Path) -> int:
    """Run a command line in a folder, its words and updates kept beside it; for a fork."""
    os.environ["EFFACE_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    said = os.open(folder.parent / OUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False)
    steps = os.open(folder.parent / UPDATES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    register_optimizer_step_post_hook(lambda *_: note(steps))
    tasks._in_processes = here  # type: ignore[assignment]
    try:
        return main([a.format(model=model) for a in args])
    except BaseException:  # noqa: BLE001 (the parent tells)
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def note(file: int) -> None:
    """An update was done."""
    os.write(file, b".")


def here(desk: tasks.Desk, some: Sequence[Any], crew: tasks.Crew) -> Iterator[tuple[Any, Any]]:
    """Cells of the benchmark in the process that is killed."""
    do = desk.open()
    for task in some:
        yield task, do(task)


class Campaign:
    """One case, undisturbed and disturbed."""

    def __init__(self, case: Case, model: Path, place: Path) -> None:
        self.case, self.model, self.place = case, model, place
        self.start, self.wrong = place / "start" / "in", list[tuple[str, str]]()
        self.start.mkdir(parents=True)
        if any("folder" in a for a in (*case.args, *(x for b in case.before for x in b))):
            shutil.copytree(model, self.start / "folder")
        for args in case.before:
            self.must(forked(partial(command, args, self.start, model)), self.start, "before")
        (self.start.parent / UPDATES).unlink(missing_ok=True)
        end = self.copy("try")  # always the same place: some files hold its path
        began = time.perf_counter()
        self.must(self.run(end), end, "undisturbed")
        self.seconds = time.perf_counter() - began
        self.updates, self.end = updates(end), contents(end)
        self.given_again(end, "after its end")

    def copy(self, name: str) -> Path:
        """A folder to work in."""
        out = self.place / name / "in"
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(self.start, out)
        return out

    def run(self, folder: Path, n: int | None = None, after: float | None = None) -> int | None:
        """The command in a folder, killed at an operation, after some seconds, or not at all."""
        act = partial(command, self.case.args, folder, self.model)
        if n is not None:
            return forked(partial(mortal, act, n, OPERATIONS))
        return forked(act, after)

    def must(self, code: int | None, folder: Path, when: str) -> None:
        """It ended well, or with a reason that is written down."""
        said = (folder.parent / OUT).read_text(errors="replace")
        if code and not (self.case.again and self.case.again in said and when != "before"):
            kind = "traceback" if "Traceback" in said else "not finished"
            last = said.strip().splitlines()[-1:] or [""]
            self.wrong.append((kind, f"{self.case.name}, {when}: {last[0]}"))

    def given_again(self, folder: Path, when: str, kills: int = 0) -> None:
        """The same command once more; everything must be as if nothing had happened."""
        self.must(self.run(folder), folder, when)
        found = contents(folder)
        differ = sorted(k for k in {*found, *self.end} if found.get(k) != self.end.get(k))
        if differ:
            self.wrong.append(("unequal", f"{self.case.name}, {when}: {', '.join(differ)}"))
        again = updates(folder) - self.updates
        steps = max(1, -(-self.updates // UPDATED))  # of optimisers, with AGE's climbs
        if again > kills * self.case.every * steps:
            self.wrong.append(("lost", f"{self.case.name}, {when}: {again} updates done again"))

    def at_operations(self, wanted: Callable[[int], bool]) -> int:
        """Kill it at those file operations that are wanted, one a try; gives how many."""
        tried = 0
        for n in filter(wanted, range(MOST)):
            folder = self.copy("try")
            if self.run(folder, n) is not None:
                return tried
            tried += 1
            self.given_again(folder, f"operation {n}", 1)
        return tried

    def at_times(self, rng: random.Random, n: int) -> int:
        """Kill it at ``n`` random times; gives how many were before its end.

        A command that was done already was faster than those before it: the next kill is earlier.
        """
        tried, within = 0, self.seconds
        for _ in range(8 * n):
            folder, after = self.copy("try"), rng.uniform(0.1, 1) * within
            if self.run(folder, after=after) is None:
                tried += 1
                self.given_again(folder, f"after {after:.2f} of {within:.2f} s", 1)
            else:
                within = after
            if tried == n:
                break
        return tried


def updates(folder: Path) -> int:
    """How often weights were updated."""
    path = folder.parent / UPDATES
    return path.stat().st_size if path.exists() else 0


SHORT = {"erase esd": 2, "apply": 6, "remove": 9, "merge": 3}
"""Cases of the short form, and every which of their operations."""


def campaign(
    place: Path, seed: int, short: bool, done: Sequence[str] = ()
) -> Iterator[tuple[str, Result]]:
    """Kill every command at every file operation, and 50 times at random; a sample if ``short``.

    Args:
        done: lines that are there already.
    """
    model, known = clothes(place / "model"), cases()
    for name in ABOUT:
        import_module(f"efface.cli.{name}")  # once, not in every process
    load(model, device="cpu")
    for name in SHORT if short else known:
        if f"{name}: random times" in done:
            continue
        rng = random.Random(f"{seed} {name}")
        one, shift = Campaign(known[name], model, place / name.replace(" ", "-")), rng.random()
        step = SHORT[name] if short else 1
        first = int(shift * step)
        tried = one.at_operations(lambda n, f=first, s=step: n % s == f)
        yield f"{name}: every operation", Result(tried, one.wrong)
        one.wrong = []
        times = 1 if short else -(-50 // len(known))
        yield f"{name}: random times", Result(one.at_times(rng, times), one.wrong)
        shutil.rmtree(one.place)
