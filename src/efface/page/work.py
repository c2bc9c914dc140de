"""The process of a job: ``python -m efface.page.work FOLDER``.

It does what the command does, with the command's own code and in the run's own folder; either goes
on where the other stopped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import sleep
from types import FrameType
from typing import Any

from efface.cli.erase import Erase, run_erase
from efface.cli.opening import Opening, opened
from efface.cli.runfolder import RECORD, record
from efface.edits.edit import Edit
from efface.errors import LESS, UserError, out_of_memory
from efface.evaluation.evaluate import brought_protocol
from efface.evaluation.scoring import ask, scored
from efface.models import load
from efface.models.placement import DTYPES
from efface.page.jobs import TASK, Job, State, Task
from efface.page.live import Watch, watched
from efface.page.places import Places
from efface.page.wish import Wish, holds
from efface.settings import read
from efface.storage import locked, write_text
from efface.training import EDIT, Paused

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Of the curve; 0 is the unedited model."""
PICTURES = 4
"""Of each word of the curve."""
TRIES = 5
"""To take the job's lock."""


class Process:
    """A job at work."""

    def __init__(self, job: Job, options: Mapping[str, Any]) -> None:
        self.job, self.options = job, options
        self.now = State("running", "Getting ready")
        self.stopping = self.gentle = False

    def say(self, said: str = "", **more: Any) -> None:
        """Tell how far it is."""
        self.now = replace(self.now, **{**({"said": said} if said else {}), **more})
        self.job.keep(self.now)

    def fail(self, why: str) -> None:
        """Tell why it ended, to the page and to the log."""
        print(f"efface: error: {why}", file=sys.stderr, flush=True)
        self.say(why, phase="failed", left=None)

    def asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Stop at the next update, where there is one; at once else, or the second time."""
        if self.stopping or not self.gentle:
            raise Paused
        self.stopping = True

    def update(self, done: int, left: float | None) -> None:
        """Tell how many updates are done."""
        self.gentle = True
        self.say("Training", update=done, left=left)

    def erase(self) -> None:
        """``efface erase``, watched."""
        wish, every = self.job.wish, int(self.options.get("every", 25))
        self.say(updates=wish.updates)
        watch = Watch(
            self.job.folder,
            every,
            self.update,
            lambda: self.stopping,
            tuple(self.options.get("also", ())),
            wish.updates,
        )
        out = Path(wish.home)
        opening = opening_of(out, wish.model)
        o = Erase(out=out, opening=opening)
        run_erase(wish.method, replace(o, concepts_file=self.concepts()), wish.command(), watch)
        self.gentle = False
        self.say("Looking at the result", update=wish.updates, left=None)
        edit = Edit.load(out)
        if watch.model is None:  # nothing was left to train: the command ended it
            watch.begun(opened(opening, edit), wish.concepts)
        watch.ended(edit)

    def concepts(self) -> Path:
        """The concepts as a file, which can say all of them."""
        path = self.job.folder / "concepts.json"
        write_text(path, json.dumps([c.to_json() for c in self.job.wish.concepts]) + "\n")
        return path

    def measure(self) -> None:
        """ESR and PSR at several strengths, on the words that are looked at."""
        wish = self.job.wish
        edit, model = Edit.load(self.job.run), load(wish.model)
        if brought_protocol(model) is None:
            raise UserError(
                f"{wish.model!r} brings no protocol and no judge: nobody can say what its pictures "
                "show. Look at them, and choose the strength by eye."
            )
        question = ask(model, edit=edit, pictures=PICTURES)
        if question.protocol.head == "concept":
            words = tuple(w.word for w in watched(model, wish.concepts) if w.role != "erased")
            question = replace(question, concepts=words)
        points: list[dict[str, Any]] = []
        self.say("Drawing and judging", updates=len(STRENGTHS))
        for k, s in enumerate(STRENGTHS):
            now = edit.scaled(s, model)
            answer = scored(model, now, question, progress=False)
            if not points:
                points.append({"strength": 0.0, **told(answer.unedited)})
            points.append({"strength": s, **told(answer.table)})
            write_text(self.job.folder / "curve.json", json.dumps(points) + "\n")
            self.say(update=k + 1)

    def attack(self) -> None:
        """``efface attack``."""
        from efface.cli import attack  # what the others need not wait for

        o = self.options
        names = [x for name in o.get("attacks", ()) for x in ("--attack", str(name))]
        shown = ["--keep-artefacts"] if o.get("keep") else []
        budget, out = str(o.get("budget", "small")), f"./{self.job.wish.home}"
        where = ["--out", f"{out}/{ATTACKS}-{budget}.json"]
        said = "Attacking (the table grows with each attack that ends), evaluations"
        self.say(said)
        attack.command(
            [out, *names, "--budget", budget, *shown, *where],
            lambda done, most, left: self.say(update=done, updates=most, left=left),
        )

    def report(self) -> None:
        """``efface report``."""
        from efface.cli import report

        self.say("Drawing what the report shows")
        home = f"./{self.job.wish.home}"
        whole = Path(home, "scores.json").exists()  # then its pictures are there
        report.command([home, *([] if whole else ["--pictures", "1"])])

    def ready(self) -> None:
        """Refuse what needs a finished run where there is none.

        Raises:
            UserError: there is none.
        """
        there = (self.job.run / EDIT).exists() and holds(self.job.wish, self.job.places)
        if self.job.kind != "erase" and not there:
            raise UserError("this run is not finished: train it first.")


ATTACKS = "attacks-page"
"""Begins the names of what attacks from the page came to, a file a budget, in the run's folder."""


def told(table: Mapping[str, Any]) -> dict[str, Any]:
    """ESR-1 and PSR-1 as JSON."""
    return {k: table[k].to_json() for k in ("ESR-1", "PSR-1") if k in table}


def opening_of(out: Path, model: str) -> Opening:
    """How a run's model is opened: as the command had it that began the run, where one did.

    Args:
        out: the run's folder.
    """
    began = record(out)["run"] if (out / RECORD).exists() else {}
    names = {str(d).removeprefix("torch."): n for n, d in DTYPES.items()}
    dtype = names.get(str(began.get("dtype")).removeprefix("torch."), "fp32")
    return Opening(model=model, dtype=dtype, size=int(began.get("size", 0)))


def work(folder: Path) -> int:
    """Do a job, and tell its state whatever comes."""
    task = read(Task, folder / TASK, "job")
    os.chdir(task.start)
    job = Job(Places(Path(task.start)), Wish.from_json(task.wish), task.kind)
    process = Process(job, task.options)
    signal.signal(signal.SIGTERM, process.asked_to_stop)
    for again in range(TRIES):  # somebody may just be looking whether it is held
        try:
            with locked(folder):
                return done(process)
        except UserError as e:
            if again == TRIES - 1:  # another page was quicker: it is that one's job
                print(f"efface: error: {e}", file=sys.stderr)
        sleep(0.1)
    return 2


def done(process: Process) -> int:
    """Do it; the state says how it ended."""
    kinds: dict[str, Callable[[], None]] = {
        "erase": process.erase,
        "measure": process.measure,
        "attack": process.attack,
        "report": process.report,
    }
    try:
        process.say()
        process.ready()
        kinds[process.job.kind]()
        process.say("Done", phase="done", left=None)
    except (Paused, KeyboardInterrupt):
        process.say(process.job.stopped, phase="stopped", left=None)
    except (UserError, OSError) as e:
        process.fail(str(e))
    except Exception as e:
        if not out_of_memory(e):
            process.say("a fault of efface itself: see log.txt", phase="failed", left=None)
            raise
        process.fail(f"out of memory: {LESS}; what is done is kept.")
    return 0


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
