"""The one fine-tuning loop: a method brings a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from efface.checkpoints import Checkpoint, Kept, adam_of
from efface.concepts import Concept
from efface.edit import Edit
from efface.errors import UserError
from efface.lowrank import LowRank
from efface.models import Conditioning, DiffusionModel, checkpointed, release
from efface.processes import add_up, join
from efface.runs import Run

HALF_SCALE = 1024.0
"""What a loss is multiplied with before its gradient passes through fp16, and divided by after."""

ADAPTER_LR = 10.0
"""Default learning rate of low-rank adapters, in units of the weights'."""


@dataclass(frozen=True)
class Tuning:
    """What every fine-tuning has."""

    updates: int = 400
    """Weight updates."""
    batch: int = 8
    """Latents of erased concepts in an update."""
    lr: float = 0.0
    """Learning rate of Adam; 0: the model's own default (1e-5 for Stable Diffusion,
    arXiv:2303.07345), ten times that for adapters."""
    group: str = "xattn"
    """Which weights are trained: xattn, kv, noxattn, selfattn, transformer or full."""
    rank: int = 0
    """Rank of low-rank adapters on them (LoRA, arXiv:2106.09685); 0: the weights themselves."""
    seed: int = 0
    """Of every random draw."""
    accumulate: int = 1
    """Batches of an update, whose gradients are averaged; processes share them out, so that it
    should be a multiple of their number."""
    save_every: int = 50
    """Updates between checkpoints, from which a killed run goes on."""

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"got {getattr(self, name)} for {name}; at least 1 is needed.")
        if self.rank < 0:
            raise UserError(f"got {self.rank} for rank; 0 or more is allowed.")
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise UserError(
                f"got {self.lr} for lr; a positive number is needed, or 0 for the model's default."
            )


class Stateful(Kept, Protocol):
    """Something that changes between updates, and whose tensors belong into a checkpoint."""

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Called once before an update's batches, the same in every process."""
        ...


@dataclass
class Student:
    """The frozen denoiser with the trained weights laid over it."""

    model: DiffusionModel
    weights: dict[str, Tensor]

    def __call__(self, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """ε' (B, C, H, W), with a gradient to the trained weights."""
        return self.model.predict(z, t, cond, self.weights)

    def still(self) -> Student:
        """The same student without gradients to its weights (they still flow through ``cond``)."""
        return Student(self.model, {k: w.detach() for k, w in self.weights.items()})


Loss = Callable[[Student, torch.Generator], Tensor]
"""One update's loss; every draw comes from the generator."""


def finetune(
    model: DiffusionModel,
    loss: Loss,
    tuning: Tuning,
    run: Run,
    fingerprint: Mapping[str, Any],
    stateful: Sequence[Stateful] = (),
    start: Mapping[str, Tensor] | None = None,
    adapters: LowRank | None = None,
) -> dict[str, Tensor]:
    """Train clones of the chosen weights, or adapters on them, with Adam; the model stays.

    Every batch draws from a generator of its own, seeded by (seed, update, batch), so that a run
    that is killed and started again ends with the same weights bit for bit, and that several
    processes do what one does with the same batches.

    Args:
        fingerprint: what makes the run this run; a checkpoint of another is refused.
        stateful: what else belongs into the checkpoint.
        start: weights to set out from, instead of the model's own.
        adapters: trained in place, for a caller that wants their factors; None: new ones, where
            ``tuning.rank`` asks for them.

    Returns:
        The trained weights by name, fp32, on the CPU.

    Raises:
        UserError: unknown weight group, a loss that is not finite (names the update), or a foreign
        checkpoint.
    """
    own = model.parameters() if start is None else start
    names = model.group(tuning.group)
    if not names:
        raise UserError(f"the weight group {tuning.group!r} is empty in {model.name!r}.")
    base = {k: own[k].detach().to(model.device) for k in names}
    if adapters is None and tuning.rank:
        adapters = LowRank({k: w.float() for k, w in base.items()}, tuning.rank, tuning.seed)
    leaves = (
        adapters.factors
        if adapters
        else {k: w.to(torch.float32, copy=True) for k, w in base.items()}
    )
    for w in leaves.values():
        w.requires_grad_()
    own_lr = model.lr * ADAPTER_LR if adapters else model.lr
    adam = adam_of(leaves.values(), tuning.lr or own_lr, run.adam8bit)
    release(model)
    mine = {**fingerprint, **({"adam": "8-bit"} if run.adam8bit else {})}
    keep = Checkpoint(run.folder, mine, leaves, adam, stateful)
    done = keep.restore(model.counter)
    bar = tqdm(
        range(done, tuning.updates),
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
            value = one_update(update, Student(model, leaves), adapters, loss, tuning, stateful)
        lost = next((k for k, w in leaves.items() if not whole(w.grad)), "")
        if lost or not math.isfinite(value):
            raise overflow(update, value, lost, model)
        adam.step()
        adam.zero_grad()
        if run.on_step is not None:
            run.on_step(update, {"loss": value})
        if update % 10 == 0:
            bar.set_postfix(loss=f"{value:.4f}")
        if (update + 1) % tuning.save_every == 0 and update + 1 < tuning.updates and rank == 0:
            keep.save(update + 1, model.counter)
    if rank == 0:
        keep.done()
    weights = adapters.weights(leaves) if adapters else leaves
    return {k: w.detach().cpu() for k, w in weights.items()}


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
    update: int,
    leaves: Student,
    adapters: LowRank | None,
    loss: Loss,
    tuning: Tuning,
    stateful: Sequence[Stateful],
) -> float:
    """Gradients of one update in the leaves, averaged over its batches and processes; the loss.

    Args:
        leaves: the model with what is trained.
    """
    rank, world = join()

    def student() -> Student:
        w = adapters.weights(leaves.weights) if adapters else leaves.weights
        return Student(leaves.model, w)

    first = torch.Generator().manual_seed(tuning.seed * 1_000_003 + update)
    for part in stateful:
        part.begin(student(), tuning.batch, first)
    total = torch.zeros((), device=leaves.model.device)
    scale = HALF_SCALE if leaves.model.dtype == torch.float16 else 1.0
    for i in range(rank, tuning.accumulate, world):
        again = torch.Generator().manual_seed((tuning.seed * 1_000_003 + update) * 977 + i)
        value = loss(student(), again if i else first) / tuning.accumulate
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
    return float(total)


def provenance(
    method: str, config: Any, model: DiffusionModel, concepts: Sequence[Concept]
) -> dict[str, Any]:
    """What an edit remembers of how it was made; also the fingerprint of a run."""
    from efface import __version__

    return {
        "efface": __version__,
        "method": method,
        "config": asdict(config),
        "concepts": [c.to_json() for c in concepts],
        "model": model.name,
        "base": model.base,
        "dtype": model.precision,
        **({"quantised": model.quantised} if model.quantised else {}),
    }


class Making:
    """An edit in the making: opened before the work, so that its costs are known at the end."""

    def __init__(
        self, method: str, config: Any, model: DiffusionModel, concepts: Sequence[Concept]
    ) -> None:
        self.about = provenance(method, config, model, concepts)
        """What the edit will remember; also the fingerprint of its run."""
        self.counter, self.before, self.began = model.counter, model.counter.copy(), perf_counter()

    def edit(self, weights: Mapping[str, Tensor]) -> Edit:
        """The edit with what it cost: counted evaluations, and seconds."""
        spent = self.counter.since(self.before)
        cost = {
            "forward": spent.forward,
            "backward": spent.backward,
            "seconds": round(spent.seconds + perf_counter() - self.began, 2),
        }
        return Edit(weights, {**self.about, "cost": cost})
