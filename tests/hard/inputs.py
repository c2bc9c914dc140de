"""Bad inputs on the command line: one line that names the thing, exit code 2, nothing left."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import traceback
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from efface.cli.main import main
from hard import wrong
from hard.places import Result, clothes
from hard.wrong import DAMAGE, MEANINGFUL, OPEN, SPOILT, Case

PATIENCE = 60
"""Seconds after which a refusal counts as a hang."""


class Said(NamedTuple):
    """How a command ended."""

    code: int | None
    """None: a traceback."""
    out: str
    errors: list[str]
    """The lines on stderr that are no warnings, bars or hints."""


class Hung(Exception):
    """A command took too long."""


def said(args: Sequence[str]) -> Said:
    """Run a command line in this process."""

    def stop(*_: object) -> None:
        raise Hung(f"it ran for {PATIENCE} s")

    out, err, code = StringIO(), StringIO(), None
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            code = main(list(args))
    except BaseException as e:  # noqa: BLE001 (the campaign tells)
        err.write("".join(traceback.format_exception(e)))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    lines = re.split(r"[\r\n]+", err.getvalue())
    quiet = r"\d%\||\[\d\d:\d\d|^efface: (warning|no --model)|is finished already"
    return Said(code, out.getvalue(), [x for x in lines if x.strip() and not re.search(quiet, x)])


class Ground:
    """A folder with a run, a model with an edit in it, and files that commands read."""

    def __init__(self, place: Path) -> None:
        self.model, self.start, self.place = clothes(place / "model"), place / "start", place
        self.clean = False
        self.start.mkdir()
        os.chdir(self.start)
        shutil.copytree(self.model, "folder")
        uce = ("erase", "uce", "coat", "--out", "run", "--no-picture", *OPEN)
        for args in (uce, ("score", "run"), ("apply", "run", "folder")):
            self.well(args)
        self.well(("sensitivity", "run"))
        Path("p.csv").write_text("prompt,seed,concept\na coat,1,coat\n")
        with zipfile.ZipFile("p.zip", "w") as z:
            z.write("p.csv")
        told = json.loads((self.model / "protocol.json").read_text())
        told["source"] = {"file": "p.csv", "prompt": "prompt", "seed": "seed", "concept": "concept"}
        Path("q.json").write_text(json.dumps(told))
        self.well(("score", "run", "--protocol", "q.json", "--prompts", "p.csv"))
        Path("run", "scores-x.json").write_bytes(
            next(Path("run").glob("scores-*.json")).read_bytes()
        )
        Path("c.json").write_text('[{"name": "coat", "anchor": "hat"}]')
        Path("c.txt").write_text("coat -> hat\n")
        Path("w.txt").write_text("hat\nbag\nboot\n")
        png = next(Path("run", "samples").glob("*_0.png"))
        (self.start / "run" / "samples" / "PNG").write_text(png.name)

    def well(self, args: Sequence[str]) -> None:
        """A command that must do what it says."""
        found = said(self.filled(args))
        assert found.code == 0, found

    def filled(self, args: Sequence[str]) -> list[str]:
        """A command line with the model in it."""
        return [a.replace("MODEL", str(self.model)) for a in args]

    def fresh(self) -> Path:
        """A copy to spoil, which is the working folder."""
        out = self.place / "try"
        if self.clean:
            return out
        os.chdir(self.place)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.start, out)
        os.chdir(out)
        return out

    def tried(self, case: Case, what: str) -> tuple[list[tuple[str, str]], bool]:
        """What is wrong with how a command line is refused, and whether it was accepted."""
        out = self.fresh()
        if case.spoil:
            case.spoil(out)
        before = state(out)
        found = said(self.filled(case.args))
        after = state(out)
        self.clean = before == after and not case.spoil
        words = f"{what}: {' '.join(a[:60] for a in case.args)!a}"
        if found.code == 0:
            return ([] if case.fine else [("silent", words)]), True
        if found.code is None:
            last = next((x for x in reversed(found.errors) if x[:1].strip()), "")
            kind = "hung" if "Hung" in last else "traceback"
            return [(kind, f"{words}: {last[:200]}")], False
        wrong, line = [], found.errors[0] if found.errors else ""
        if found.code != 2 or len(found.errors) != 1 or not line.startswith("efface: error: "):
            wrong.append(("other", f"{words}: exit code {found.code}, {found.errors[:3]}"))
        if case.named and case.named not in line.replace("-", "_") + line:
            wrong.append(("other", f"{words}: {case.named!r} is not named: {line}"))
        left = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
        if left:
            wrong.append(("left", f"{words}: {', '.join(left)}"))
        return wrong, False


def state(place: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file; every folder."""
    told = {str(p.relative_to(place)): p for p in place.rglob("*")}
    times = {k: (p.stat().st_size, p.stat().st_mtime_ns) for k, p in told.items() if p.is_file()}
    return dict.fromkeys(told, (0, 0)) | times


def damaged() -> Iterator[tuple[str, Case]]:
    """Every file of ours in every way, for the commands that read it."""
    for name, commands in DAMAGE.items():
        for how in SPOILT:
            for args in commands:
                fine = how in MEANINGFUL.get(name, ())
                yield (
                    f"{name}, {how}",
                    Case(args, spoil=lambda p, n=name, h=how: spoil(p, n, h), fine=fine),
                )


def spoil(place: Path, name: str, how: str) -> None:
    """Damage a file."""
    path = place / name
    if path.name == "PNG":
        path = path.with_name(path.read_text())
    data = SPOILT[how](path.read_bytes())
    path.write_bytes(data + b"\n" if path.suffix == ".jsonl" else data)  # else half a line: dropped


def campaign(place: Path, seed: int, short: bool) -> Iterator[tuple[str, Result]]:
    """All bad inputs; a sample of each kind if ``short``."""
    rng, home = random.Random(seed), Path.cwd()
    with patch.dict(os.environ, {"EFFACE_CACHE": str(place / "cache")}):
        try:
            ground = Ground(place)
            for kind, some in {
                "numbers": [("number", c) for c in wrong.numbers()],
                "files and folders": [("path", c) for c in wrong.places()],
                "names and options": [("name", c) for c in wrong.names()],
                "damaged files": list(damaged()),
            }.items():
                chosen = rng.sample(some, min(12, len(some))) if short else some
                bad, fine = [], []
                for what, case in chosen:
                    found, accepted = ground.tried(case, what)
                    bad += found
                    for each in found:
                        print(f"  {each}", flush=True)
                    fine += (
                        [f"{what}: {' '.join(case.args)[:80]!a}"] if accepted and not found else []
                    )
                yield kind, Result(len(chosen), bad, fine)
        finally:
            os.chdir(home)
