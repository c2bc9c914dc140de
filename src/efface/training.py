"""The one fine-tuning loop: a method brings a loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from efface.concepts import Concept
from efface.edit import Edit, write
from efface.errors import UserError
from efface.lowrank import LowRank
from efface.models import Conditioning, Counter, DiffusionModel, checkpointed, release
from efface.processes import add_up, join
from efface.runs import Run, foreign, opened

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


class Stateful(Protocol):
    """Something that changes between updates, and whose tensors belong into a checkpoint."""

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Called once before an update's batches, the same in every process."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Its tensors, by name."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take such tensors back."""
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
    adam = torch.optim.Adam(leaves.values(), lr=tuning.lr or own_lr)
    release(model)
    keep = Checkpoint(run.folder, fingerprint, leaves, adam, stateful)
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


class Checkpoint:
    """The state of a fine-tuning, in one safetensors file that is replaced whole."""

    NAME = "unfinished.safetensors"

    def __init__(
        self,
        folder: Path | None,
        fingerprint: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        adam: torch.optim.Adam,
        stateful: Sequence[Stateful],
    ) -> None:
        self.path = None if folder is None else folder / self.NAME
        self.fingerprint = json.dumps(fingerprint, sort_keys=True)
        self.weights, self.adam, self.stateful = weights, adam, stateful
        self.start, self.began = Counter(), perf_counter()

    def save(self, update: int, spent: Counter) -> None:
        """Keep the state after ``update`` updates, and what they cost."""
        if self.path is None:
            return
        tensors = {f"w/{k}": w.detach().clone() for k, w in self.weights.items()}
        for k, w in self.weights.items():
            tensors |= {f"adam/{name}/{k}": v for name, v in self.adam.state[w].items()}
        for i, part in enumerate(self.stateful):
            tensors |= {f"s{i}/{k}": v.detach().clone() for k, v in part.state().items()}
        tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
        cost = {
            "forward": spent.forward - self.start.forward,
            "backward": spent.backward - self.start.backward,
            "seconds": round(spent.seconds - self.start.seconds + perf_counter() - self.began, 2),
        }
        meta = {"update": str(update), "run": self.fingerprint, "cost": json.dumps(cost)}
        write(self.path, lambda p: save_file(tensors, p, meta))

    def restore(self, counter: Counter) -> int:
        """Take a kept state back, and its cost into ``counter``; gives the updates behind it."""
        self.start = counter.copy()
        if self.path is None or not self.path.exists():
            return 0
        tensors, meta = opened(self.path)
        if meta.get("run") != self.fingerprint:
            raise foreign(self.path.parent)
        for k, w in self.weights.items():
            w.data.copy_(tensors[f"w/{k}"])
            end = f"/{k}"
            self.adam.state[w] = {
                n.removeprefix("adam/").removesuffix(end): v.to(w.device) if "/exp" in n else v
                for n, v in tensors.items()
                if n.startswith("adam/") and n.endswith(end)
            }
        for i, part in enumerate(self.stateful):
            part.restore(
                {k.removeprefix(f"s{i}/"): v for k, v in tensors.items() if k.startswith(f"s{i}/")}
            )
        cost = json.loads(meta["cost"])
        counter.forward += cost["forward"]
        counter.backward += cost["backward"]
        counter.seconds += cost["seconds"]
        return int(meta["update"])

    def done(self) -> None:
        """Nothing is left to go on from."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


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
