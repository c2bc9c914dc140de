"""What other processes do in tests: of their own file, so that they open nothing else."""

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from efface.errors import UserError
from efface.evaluation import tasks


@dataclass(frozen=True)
class Desk:
    """Does what a task's name says."""

    place: Path

    def open(self):
        with (self.place / "opened").open("a") as f:
            f.write(f"{os.getpid()}\n")
        return self.do

    def do(self, task):
        if task == "refuse":
            raise UserError("no such thing.")
        mark = self.place / task
        if task == "die" or (task == "die once" and not mark.exists()):
            mark.touch()
            os._exit(9)
        return task, os.getpid(), torch.get_num_threads()


@dataclass(frozen=True)
class Shut:
    """Cannot be opened."""

    def open(self):
        raise UserError("the model is not there.")


def elsewhere(desk, some, crew):
    """As other processes do tasks, but in this one: all is sent, and the last task ends first."""
    sent = lambda x: pickle.loads(pickle.dumps(x))  # noqa: E731
    do = sent(desk).open()
    for task in reversed(some):
        yield task, sent(tasks._tried(do, sent(task)))
