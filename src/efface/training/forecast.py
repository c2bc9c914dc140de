"""What an erasure will take, before it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.models import DiffusionModel, Plan, memory_of, plan
from efface.training.erasure import Method
from efface.training.runs import Run
from efface.training.trial import Trial, hollow, row_seconds
from efface.training.tuning import Tuning


@dataclass(frozen=True)
class Forecast:
    """Memory, evaluations and time of an erasure."""

    memory: Plan
    forward: int
    """Evaluations of the denoiser."""
    backward: int
    """Of these, such that a gradient comes back from."""
    updates: int
    """Weight updates of all concepts; 0: a closed form."""
    preparation: float
    """Seconds besides the updates."""
    update: float
    """Seconds of an update; of one that searches nothing, where that is done now and then."""
    seconds: float
    """All of it."""
    row: float | None
    """Seconds of one evaluation without a gradient; None: not measured."""
    edit: int
    """Bytes of the edit's weights."""
    state: int
    """Bytes of what a killed training goes on from; 0: there is none."""


def forecast(
    method: Method,
    model: DiffusionModel,
    concepts: Sequence[Concept],
    checkpointing: bool = False,
    progress: bool = False,
) -> Forecast:
    """What an erasure will take on this machine; nothing is kept, and the model stays.

    Of a training two updates are made and timed. Whatever else it evaluates is counted but not
    done, and takes as long as the frozen denoiser takes a latent. A closed form is solved.

    Args:
        progress: show bars.

    Raises:
        UserError: what the erasure itself would refuse.
    """
    trained = isinstance(method, Tuning)
    row = row_seconds(model) if trained else None
    trial = Trial()
    began = perf_counter()
    with hollow(model, trial):
        run = Run(progress=progress, checkpointing=checkpointing, trial=trial)
        edit = method.erase(model, concepts, run)
    preparation = perf_counter() - began - trial.away
    left_out = trial.rows * (row or 0.0)
    size = bytes_of_edit(edit)
    cost = edit.meta["cost"]
    return Forecast(
        memory_plan(method, model, size, checkpointing),
        cost["forward"],
        cost["backward"],
        trial.updates,
        preparation,
        trial.update,
        preparation + trial.training + left_out,
        row,
        size,
        trial.state,
    )


def memory_plan(
    method: Method | Tuning, model: DiffusionModel, size: int, checkpointing: bool
) -> Plan:
    """Bytes at the peak of an erasure.

    Args:
        size: bytes of the edit.
    """
    if not isinstance(method, Tuning):
        return Plan(memory_of(model), size, 0)
    few, mean, reading = method.adam_8bit, method.averaged > 0, method.reads_tokens
    return plan(model, method.group, method.rows, method.rank, checkpointing, few, mean, reading)


def bytes_of_edit(edit: Edit) -> int:
    """What the tensors of an edit take."""
    return sum(w.numel() * w.element_size() for w in edit.tensors().values())
