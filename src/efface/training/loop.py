"""The one fine-tuning loop: a method brings a loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from efface.edits.edit import Edit
from efface.edits.lowrank import LowRank
from efface.errors import UserError
from efface.models import DiffusionModel, checkpointed, release
from efface.training.checkpoints import Checkpoint, Mean, adam_of
from efface.training.processes import add_up, join
from efface.training.runs import Paused
from efface.training.student import HALF_SCALE, Kept, Loss, Stateful, Student
from efface.training.trial import Trial
from efface.training.tuning import Tuning

if TYPE_CHECKING:
    from efface.training.erasure import Job


ADAPTER_LR = 10.0
"""Default learning rate of low-rank adapters, in units of the weights'."""


class Trained(NamedTuple):
    """What a fine-tuning gives."""

    weights: dict[str, Tensor]
    """By name, fp32, on the CPU."""
    updates: int
    """How many it took: fewer than asked for where ``on_update`` ended it."""


def finetune(
    job: Job,
    loss: Loss,
    stateful: Sequence[Stateful] = (),
    start: Mapping[str, Tensor] | None = None,
    adapters: LowRank | None = None,
) -> Trained:
    """Train clones of the chosen weights, or adapters on them, with Adam; the model stays.

    Every batch draws from a generator of its own, seeded by (seed, update, batch), so that a run
    that is killed and started again ends with the same weights bit for bit, and that several
    processes do what one does with the same batches.

    Args:
        job: its method says what is trained and how; by its ``fingerprint`` a checkpoint of
            another run is refused.
        stateful: what else belongs into the checkpoint.
        start: weights to set out from, instead of the model's own.
        adapters: trained in place, for a caller that wants their factors; None: new ones, where
            ``rank`` asks for them.

    The last state stays in the run's folder until the edit is saved
    (:meth:`~efface.training.Run.forget`).

    Raises:
        UserError: unknown weight group, a loss that is not finite (names the update), or a foreign
        checkpoint.
    """
    model, tuning, run = job.model, job.method, job.run
    assert isinstance(tuning, Tuning)
    own = model.parameters() if start is None else start
    names = model.group(tuning.group)
    if not names:
        raise UserError(f"the weight group {tuning.group!r} is empty in {model.name!r}.")
    base = {k: own[k].detach().to(model.device) for k in names}
    if adapters is None and tuning.rank:
        adapters = LowRank(
            {k: w.float() for k, w in base.items()}, tuning.rank, job.generator("adapters")
        )
    leaves = (
        adapters.factors
        if adapters
        else {k: w.to(torch.float32, copy=True) for k, w in base.items()}
    )
    for w in leaves.values():
        w.requires_grad_()
    own_lr = model.lr * ADAPTER_LR if adapters else model.lr
    lr = tuning.lr or own_lr
    adam = adam_of(leaves.values(), lr, tuning.adam_8bit)
    release(model, tuning.reads_tokens)
    if run.trial is not None:
        return tried(job, run.trial, leaves, adapters, loss, stateful, adam)
    mean = Mean(leaves, tuning.updates - tuning.averaged)
    kept: list[Kept] = [*stateful, *([mean] if tuning.averaged else [])]
    keep = Checkpoint(run.folder, job.fingerprint, leaves, adam, kept)
    done = keep.restore(model.counter)
    bar = tqdm(
        range(done, done if keep.stopped else tuning.updates),
        initial=done,
        total=tuning.updates,
        desc="erase",
        unit="update",
        disable=not run.progress,
    )
    rank, _ = join()
    for update in bar:
        again = checkpointed(model.denoiser) if run.checkpointing else nullcontext()
        with again:
            value = one_update(job, update, Student(model, leaves), adapters, loss, stateful)
        lost = next((k for k, w in leaves.items() if not whole(w.grad)), "")
        if lost or not math.isfinite(value):
            raise overflow(update, value, lost, model)
        for some in adam.param_groups:
            some["lr"] = lr * tuning.pace(update)
        adam.step()
        adam.zero_grad()
        mean.add(update)
        done, stop = update + 1, False
        if run.on_update is not None:
            now = Edit(laid(mean.now(), adapters), job.about)
            try:
                stop = bool(run.on_update(done, {"loss": value}, now))
            except Paused:
                keep.save(done, model.counter)
                raise
        if update % 10 == 0:
            bar.set_postfix(loss=f"{value:.4f}")
        if rank == 0 and (stop or done % tuning.save_every == 0 or done == tuning.updates):
            keep.save(done, model.counter, stop)
        if stop:
            break
    bar.close()
    mean.end()
    return Trained({k: w.cpu() for k, w in laid(leaves, adapters).items()}, done)


def tried(
    job: Job,
    trial: Trial,
    leaves: dict[str, Tensor],
    adapters: LowRank | None,
    loss: Loss,
    stateful: Sequence[Stateful],
    adam: torch.optim.Optimizer,
) -> Trained:
    """Find out what a fine-tuning takes; what it gives has the right shapes and means nothing."""
    model, tuning = job.model, job.method
    assert isinstance(tuning, Tuning)
    student = Student(model, leaves)

    def make(update: int, counted: bool) -> None:
        again = checkpointed(model.denoiser) if job.run.checkpointing else nullcontext()
        with again:
            one_update(job, update, student, None if counted else adapters, loss, stateful)
        if not counted:
            adam.step()
        adam.zero_grad()

    trial.loop(model, tuning.updates, make)
    own = size_of(leaves.values())
    moments = sum(size_of(filter(torch.is_tensor, x.values())) for x in adam.state.values())
    searched = sum(size_of(x.state().values()) for x in stateful)
    trial.state = (2 if tuning.averaged else 1) * own + (moments or 2 * own) + searched
    weights = {k: w.cpu() for k, w in laid(leaves, adapters).items()}
    return Trained(weights, tuning.updates)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)


def laid(leaves: Mapping[str, Tensor], adapters: LowRank | None) -> dict[str, Tensor]:
    """The trained weights as they are, without a gradient, on their device."""
    weights = adapters.weights(leaves) if adapters else leaves
    return {k: w.detach() for k, w in weights.items()}


def whole(gradient: Tensor | None) -> bool:
    """Whether a gradient, if there is one, holds neither NaN nor infinity."""
    return gradient is None or bool(gradient.isfinite().all())


def overflow(update: int, value: float, lost: str, model: DiffusionModel) -> UserError:
    """What stopped a training: its update, the weight whose gradient is lost, and what to do."""
    where = f", the gradient of {lost.rsplit('/', 1)[0]!r} not finite" if lost else ""
    remedy = "lower the learning rate"
    if model.dtype == torch.float16:
        remedy = "fp16 overflows: use bf16, or fp32"
    return UserError(f"the loss of update {update} is {value:.4g}{where}: stopped; {remedy}.")


def one_update(
    job: Job,
    update: int,
    leaves: Student,
    adapters: LowRank | None,
    loss: Loss,
    stateful: Sequence[Stateful],
) -> float:
    """Gradients of one update in the leaves, averaged over its batches and processes; the loss.

    Args:
        leaves: the model with what is trained.
    """
    rank, world = join()
    tuning = job.method
    assert isinstance(tuning, Tuning)

    def draws(batch: int) -> torch.Generator:
        return job.generator("update", update, "batch", batch)

    def student() -> Student:
        w = adapters.weights(leaves.weights) if adapters else leaves.weights
        return Student(leaves.model, w)

    job.now = update
    first = draws(0)
    for part in stateful:
        part.begin(student(), tuning.batch, first)
    total = torch.zeros((), device=leaves.model.device)
    scale = HALF_SCALE if leaves.model.dtype == torch.float16 else 1.0
    for i in range(rank, tuning.accumulate, world):
        again = draws(i) if i else first
        value = loss(student(), again) / tuning.accumulate
        (value * scale).backward()
        total += value.detach()
    if scale != 1.0:
        for w in leaves.weights.values():
            if w.grad is not None:
                w.grad /= scale
    if world > 1:
        for w in leaves.weights.values():
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad
        add_up([total, *(w.grad for w in leaves.weights.values() if w.grad is not None)])
    for part in stateful:
        part.end(leaves)  # no weights are laid for it
    return float(total)
