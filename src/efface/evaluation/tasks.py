"""Tasks handed out: to several processes of this machine, or to a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

from efface.errors import UserError

T = TypeVar("T")


class Desk(Protocol):
    """What tasks need. It is sent to each process, which opens it once."""

    def open(self) -> Callable[[Any], Any]:
        """What does a task.

        Raises:
            UserError: something is not there.
        """
        ...


@dataclass(frozen=True)
class Failed:
    """Why a task was not done."""

    why: str


@dataclass(frozen=True)
class Crew:
    """Who does tasks.

    Every process computes with as many threads as this one, since last bits depend on it: what
    several processes find is what one finds.
    """

    jobs: int = 1
    """Processes at a time, on this machine."""
    ray: str | None = None
    """Address of a Ray cluster, or ``local`` for one on this machine; None: here."""
    fresh: bool = False
    """A process of its own for every task, so that its peak of memory is its own."""
    gpu: bool = False
    """Each process needs a GPU, which Ray gives to those alone that ask for one."""

    @property
    def alone(self) -> bool:
        """Whether there is nobody but this process, which has no need of a :class:`Desk`."""
        return self.jobs == 1 and self.ray is None and not self.fresh

    def for_a(self, device: torch.device) -> Crew:
        """Who works on such a device."""
        return replace(self, gpu=device.type == "cuda")

    def done(self, desk: Desk, tasks: Sequence[T]) -> Iterator[tuple[T, Any]]:
        """Do tasks, in any order.

        One that dies, or its process, is tried once more; a mistake of the user is none that goes
        away.

        Args:
            tasks: to be pickled, like what they give.

        Yields:
            Each task with what it gave, or :class:`Failed`.

        Raises:
            UserError: Ray is not installed, or there is no such cluster.
        """
        if not tasks:
            return
        if self.ray is not None:
            yield from _on_ray(desk, tasks, self)
        else:
            self.look_ahead(len(tasks))
            yield from _in_processes(desk, tasks, self)

    def look_ahead(self, tasks: int) -> None:
        """Say what is not as it might be meant."""
        jobs, threads, cores = min(self.jobs, tasks), torch.get_num_threads(), os.cpu_count() or 1
        if jobs < self.jobs:
            warnings.warn(f"{self.jobs} jobs for {tasks} tasks: {jobs} are used.", stacklevel=2)
        if jobs > 1 and jobs * threads > cores and not self.gpu:
            warnings.warn(
                f"{jobs} processes of {threads} threads each on {cores} cores get into each "
                f"other's way: OMP_NUM_THREADS={max(1, cores // jobs)} is quicker, and gives what "
                "one process gives with it.",
                stacklevel=2,
            )


def every(crew: Crew, desk: Desk, tasks: Sequence[T], what: str) -> Iterator[tuple[T, Any]]:
    """As :meth:`Crew.done`, where all tasks are needed.

    Args:
        what: what they are, in the plural, for the message.

    Raises:
        UserError: one was not done; said once all others are.
    """
    failed = []
    for task, found in crew.done(desk, tasks):
        if isinstance(found, Failed):
            failed.append(found.why)
        else:
            yield task, found
    if failed:
        raise UserError(
            f"{len(failed)} of {len(tasks)} {what} came to nothing ({failed[0].rstrip('.')}); what "
            "is done is kept, and the same command goes on."
        )


def _tried(do: Callable[[Any], Any], task: Any) -> Any:
    try:
        return do(task)
    except UserError as e:
        return Failed(str(e))


# -- processes ---------------------------------------------------------------------------------


@dataclass
class Hand:
    """A process that does one task after the other."""

    desk: bytes
    pipe: Connection = field(init=False)

    def __post_init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(
            target=_serve, args=(theirs, self.desk, torch.get_num_threads())
        )
        self.process.start()
        theirs.close()

    def give(self, task: Any) -> None:
        """Send a task; a process that is dead is found out by :meth:`take`."""
        with suppress(OSError):
            self.pipe.send_bytes(pickle.dumps(task))

    def take(self) -> tuple[Any, str]:
        """What came of it, and why the process died, or ""."""
        try:
            return pickle.loads(self.pipe.recv_bytes()), ""
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            killed = f"killed by signal {-code}, perhaps for want of memory"
            return None, killed if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """Stop the process."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _serve(pipe: Connection, desk: bytes, threads: int) -> None:
    """Do what comes, until whoever sends it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that hands out says when to stop
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process that is ended leaks
    do = None
    with suppress(EOFError, BrokenPipeError):
        while True:
            task = pickle.loads(pipe.recv_bytes())
            try:
                do = do or pickle.loads(desk).open()
            except UserError as e:
                found: Any = Failed(str(e))
            else:
                found = _tried(do, task)
            pipe.send_bytes(pickle.dumps(found))


def _in_processes(desk: Desk, tasks: Sequence[T], crew: Crew) -> Iterator[tuple[T, Any]]:
    sent = pickle.dumps(desk)
    rest = deque((task, 1) for task in tasks)
    idle: list[Hand] = []
    busy: dict[Any, tuple[Hand, T, int]] = {}
    try:
        while rest or busy:
            while rest and len(busy) < crew.jobs:
                hand = idle.pop() if idle else Hand(sent)
                task, attempt = rest.popleft()
                busy[hand.pipe] = (hand, task, attempt)
                hand.give(task)
            for pipe in wait(list(busy)):
                hand, task, attempt = busy[pipe]
                found, died = hand.take()
                del busy[pipe]
                if died or crew.fresh:
                    hand.end()
                else:
                    idle.append(hand)
                if died:
                    warnings.warn(f"{task}: {died} (attempt {attempt})", stacklevel=2)
                if died and attempt == 1:
                    rest.appendleft((task, 2))
                else:
                    yield task, Failed(f"its process died: {died}") if died else found
    finally:
        for hand in (*idle, *(h for h, _, _ in busy.values())):
            hand.end()


# -- Ray ---------------------------------------------------------------------------------------


OPEN: dict[str, Callable[[Any], Any]] = {}
"""In a process of a cluster: what it opened, by the number of the crew."""


def _on_ray(desk: Desk, tasks: Sequence[T], crew: Crew) -> Iterator[tuple[T, Any]]:
    ray, cpus = _cluster(crew)
    threads = torch.get_num_threads()
    do = ray.remote(
        max_retries=1,
        retry_exceptions=True,
        num_cpus=min(threads, cpus),
        num_gpus=int(crew.gpu),
        max_calls=int(crew.fresh),
    )(_serve_once)
    held, number = ray.put(pickle.dumps(desk)), uuid.uuid4().hex
    waiting = {do.remote(number, [held], task, threads): task for task in tasks}
    try:
        while waiting:
            for one in ray.wait(list(waiting))[0]:
                task = waiting.pop(one)
                try:
                    found = ray.get(one)
                except ray.exceptions.RayError as e:
                    found = Failed(str(e).strip().splitlines()[-1])
                yield task, found
    finally:
        for one in waiting:
            ray.cancel(one, force=True)


def _cluster(crew: Crew) -> tuple[Any, float]:
    """Ray, joined to its cluster, and the cores of its largest machine.

    Raises:
        UserError: it is not installed, there is no such cluster, or none with a GPU.
    """
    ray = imported()
    address = None if crew.ray == "local" else crew.ray
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as e:
        why = str(e).strip().splitlines()[0].rstrip(".")
        raise UserError(f"no Ray cluster at {crew.ray!r}: {why}.") from None
    machines = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if crew.gpu and not any(m.get("GPU") for m in machines):
        raise UserError("no machine of the Ray cluster has a GPU: give --device cpu.")
    return ray, max(m.get("CPU", 1) for m in machines)


def imported() -> Any:
    """Ray.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: pip install 'efface[ray]'.") from None
    return ray


def _serve_once(number: str, held: list[Any], task: Any, threads: int) -> Any:
    """A task, in a process of a cluster that may have done others."""
    import ray

    torch.set_num_threads(threads)
    try:
        if number not in OPEN:
            OPEN.clear()
            OPEN[number] = pickle.loads(ray.get(held[0])).open()
    except UserError as e:
        return Failed(str(e))
    return _tried(OPEN[number], task)
