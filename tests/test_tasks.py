"""Tasks that others do: processes of this machine, or Ray."""

import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from desks import Desk, Shut
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from efface.cli.main import main
from efface.errors import UserError
from efface.evaluation import tasks
from efface.evaluation.tasks import Crew, Failed, every

TASKS = ("a", "die once", "refuse", "die", "b", "c")


def found(crew, desk, some=TASKS):
    """What came of each task."""
    return dict(crew.done(desk, some))


def test_all_tasks_are_needed_and_the_rest_is_done_before_that_is_said(monkeypatch):
    def done(self, desk, some):
        yield from (("a", 1), ("b", Failed("no such thing.")), ("c", 3))

    monkeypatch.setattr(Crew, "done", done)
    had = []
    with pytest.raises(UserError, match=r"^1 of 3 things came to nothing \(no such thing\); what"):
        had.extend(every(Crew(), Desk(None), "abc", "things"))
    assert had == [("a", 1), ("c", 3)]


def test_a_process_that_is_ended_leaks_no_semaphore_of_its_bars(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks.signal, "signal", lambda *_: None)
    monkeypatch.setattr(tqdm, "_lock", TqdmDefaultWriteLock(), raising=False)
    mine, theirs = multiprocessing.Pipe()
    mine.close()
    tasks._serve(theirs, pickle.dumps(Desk(tmp_path)), torch.get_num_threads())
    assert not isinstance(tqdm.get_lock(), TqdmDefaultWriteLock)
    with tqdm.get_lock(), tqdm.get_lock():  # bars lock twice
        pass


def test_what_may_not_be_meant_is_said(monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "_in_processes", lambda *a: asked.append(a) or iter(()))
    monkeypatch.setattr(tasks.os, "cpu_count", lambda: 4)
    with pytest.warns(UserWarning, match="9 jobs for 2 tasks: 2 are used"):
        found(Crew(9), Desk(None), "ab")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.warns(UserWarning, match=r"2 processes of 3 threads.*OMP_NUM_THREADS=2 is quicker"):
        found(Crew(2), Desk(None), "ab")
    found(Crew(2, gpu=True), Desk(None), "ab")
    found(Crew(2), Desk(None), "")
    assert len(asked) == 3


@pytest.mark.parametrize("command", ["sensitivity --concept church", "attack run", "bench {}"])
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--jobs 0", "got 0 for jobs; 1 to "),
        ("--jobs 2 --ray local", "give either --jobs or --ray"),
        ("--ray local", "Ray is not installed: pip install 'efface[ray]'"),
    ],
)
def test_bad_input_is_one_line(command, args, said, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    if "2" not in args:
        monkeypatch.setitem(sys.modules, "ray", None)
    command = command.format("emoji-objects-2")
    assert main([*command.split(), *args.split()]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert not told.out
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_is_not_there_is_a_line(monkeypatch):
    class Ray:
        """As ray is, where nothing answers."""

        @staticmethod
        def init(*_, **__):
            raise ConnectionError("nothing answers.\nMore about it.")

    monkeypatch.setitem(sys.modules, "ray", Ray)
    with pytest.raises(UserError, match=r"^no Ray cluster at 'nowhere:1': nothing answers\.$"):
        found(Crew(ray="nowhere:1"), Desk(None), "a")


class Told:
    """What hands over a task, and dies at one."""

    made = 0

    def __init__(self, desk):
        Told.made += 1
        self.pipe, self.theirs = multiprocessing.Pipe()

    def give(self, task):
        self.theirs.send(task)

    def take(self):
        task = self.pipe.recv()
        return (None, "exit code 9") if task == "die" else (task.upper(), "")

    def end(self):
        self.pipe.close()


@pytest.mark.parametrize(("fresh", "some", "made"), [(False, "abc", 1), (True, "abc", 3)])
def test_a_process_is_taken_again_unless_it_is_to_be_fresh(monkeypatch, fresh, some, made):
    monkeypatch.setattr(tasks, "Hand", Told)
    monkeypatch.setattr(Told, "made", 0)
    crew = Crew(1, fresh=fresh)
    assert dict(tasks._in_processes(Desk(""), list(some), crew)) == {x: x.upper() for x in some}
    assert Told.made == made


def test_a_task_whose_process_died_twice_is_told_and_the_rest_done(monkeypatch):
    monkeypatch.setattr(tasks, "Hand", Told)
    monkeypatch.setattr(Told, "made", 0)
    with pytest.warns(UserWarning, match=r"die: exit code 9 \(attempt \d\)"):
        found = dict(tasks._in_processes(Desk(""), ["a", "die", "b"], Crew(1)))
    assert found == {"a": "A", "die": Failed("its process died: exit code 9"), "b": "B"}
    assert Told.made == 3


@pytest.mark.slow
def test_a_task_whose_process_dies_is_tried_once_more(tmp_path):
    torch.set_num_threads(1)
    with pytest.warns(UserWarning, match=r"die.*exit code 9 \(attempt"):
        told = found(Crew(2), Desk(tmp_path))
    assert told["refuse"] == Failed("no such thing.")
    assert told["die"] == Failed("its process died: exit code 9")
    done = [told[t] for t in ("a", "die once", "b", "c")]
    assert [d[0] for d in done] == ["a", "die once", "b", "c"]
    assert {d[2] for d in done} == {1}
    opened = (tmp_path / "opened").read_text().split()
    assert len(opened) == len(set(opened)) <= 5  # two, and one after each of three deaths


@pytest.mark.slow
def test_a_fresh_process_has_one_task_and_a_desk_that_is_shut_is_a_line(tmp_path):
    told = found(Crew(2, fresh=True), Desk(tmp_path), "abc")
    assert len({pid for _, pid, _ in told.values()}) == 3
    told = found(Crew(2), Shut(), "ab")
    assert set(told.values()) == {Failed("the model is not there.")}


@pytest.mark.slow
def test_ray_does_what_processes_do(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    here = str(Path(__file__).parent)  # where its workers find the desk
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    try:
        told = found(Crew(ray="local"), Desk(tmp_path))
        with pytest.raises(UserError, match="has a GPU: give --device cpu"):
            found(Crew(ray="local", gpu=True), Desk(tmp_path), "a")
    finally:
        ray.shutdown()
    assert told["refuse"] == Failed("no such thing.")
    assert isinstance(told["die"], Failed)
    assert [told[t][0] for t in ("a", "die once", "b", "c")] == ["a", "die once", "b", "c"]
    assert {told[t][2] for t in "abc"} == {torch.get_num_threads()}
