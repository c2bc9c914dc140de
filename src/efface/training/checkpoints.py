"""Adam, and the state of a fine-tuning on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.models import Counter
from efface.models.files.tensors import save
from efface.settings import checked
from efface.training.runs import CHECKPOINT, damaged, foreign, opened
from efface.training.student import Kept


def adam_of(weights: Iterable[Tensor], lr: float, few_bits: bool) -> torch.optim.Optimizer:
    """Adam, or bitsandbytes' with its moments in 8 bits (arXiv:2110.02861).

    Raises:
        UserError: no bitsandbytes.
    """
    if not few_bits:
        return torch.optim.Adam(weights, lr=lr)
    try:
        from bitsandbytes.optim.adam import Adam8bit
    except ImportError:
        raise UserError(
            "8-bit Adam needs bitsandbytes: pip install 'efface[bitsandbytes]'."
        ) from None
    made: torch.optim.Optimizer = Adam8bit(weights, lr=lr)  # type: ignore[no-untyped-call]
    return made


class Checkpoint:
    """The state of a fine-tuning, in one safetensors file that is replaced whole."""

    def __init__(
        self,
        folder: Path | None,
        fingerprint: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        adam: torch.optim.Optimizer,
        stateful: Sequence[Kept],
    ) -> None:
        self.path = None if folder is None else folder / CHECKPOINT
        self.fingerprint = json.dumps(fingerprint, sort_keys=True)
        self.weights, self.adam, self.stateful = weights, adam, stateful
        self.start, self.began = Counter(), perf_counter()
        self.stopped = False
        """Whether the state that was taken back is to be the last one."""

    def save(self, update: int, spent: Counter, stopped: bool = False) -> None:
        """Keep the state after ``update`` updates, and what they cost.

        Args:
            stopped: it is the last one, as was asked for.
        """
        if self.path is None:
            return
        tensors = {f"w/{k}": w.detach().clone() for k, w in self.weights.items()}
        for k, w in self.weights.items():
            own = {n: torch.as_tensor(v) for n, v in self.adam.state[w].items()}
            tensors |= {f"adam/{name}/{k}": v for name, v in own.items()}
        for i, part in enumerate(self.stateful):
            tensors |= {f"s{i}/{k}": v.detach().clone() for k, v in part.state().items()}
        cost = {
            "forward": spent.forward - self.start.forward,
            "backward": spent.backward - self.start.backward,
            "seconds": round(spent.seconds - self.start.seconds + perf_counter() - self.began, 4),
        }
        meta = {"update": str(update), "run": self.fingerprint, "cost": json.dumps(cost)}
        save(self.path, tensors, {**meta, **({"stopped": "yes"} if stopped else {})})

    def restore(self, counter: Counter) -> int:
        """Take a kept state back, and its cost into ``counter``; gives the updates behind it."""
        self.start = counter.copy()
        if self.path is None or not self.path.exists():
            return 0
        tensors, meta = opened(self.path)
        if meta.get("run") != self.fingerprint:
            raise foreign(self.path.parent)
        try:
            update = self._take(tensors, meta, counter)
        except (KeyError, ValueError, RuntimeError, UserError) as e:
            raise damaged(self.path, " ".join(str(e).split())[:200]) from None
        self.stopped = "stopped" in meta
        return update

    def _take(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, str], counter: Counter
    ) -> int:
        update, cost = int(meta["update"]), checked(Counter, json.loads(meta["cost"]), "its cost")
        for k, w in self.weights.items():
            w.data.copy_(tensors[f"w/{k}"])
            end = f"/{k}"
            state = {
                n.removeprefix("adam/").removesuffix(end): v
                for n, v in tensors.items()
                if n.startswith("adam/") and n.endswith(end)
            }
            self.adam.state[w] = {n: stepped(n, v, self.adam, w) for n, v in state.items()}
        for i, part in enumerate(self.stateful):
            part.restore(
                {k.removeprefix(f"s{i}/"): v for k, v in tensors.items() if k.startswith(f"s{i}/")}
            )
        counter.add(cost)
        return update


def stepped(name: str, value: Tensor, adam: torch.optim.Optimizer, w: Tensor) -> Any:
    """A kept part of Adam's state as Adam has it: moments beside the weight, the count not."""
    if name != "step":
        return value.to(w.device)
    return value if isinstance(adam, torch.optim.Adam) else int(value)


class Mean:
    """The mean of trained weights over their last updates (arXiv:1803.05407), in place of Adam's.

    Args:
        weights: what is trained, in place.
        first: the update (from 0) from which on weights count.
    """

    def __init__(self, weights: Mapping[str, Tensor], first: int) -> None:
        self.weights, self.first = weights, first
        self.mean: dict[str, Tensor] = {}
        self.n = 0

    def add(self, update: int) -> None:
        """Take the weights after an update in, if they count."""
        if update < self.first:
            return
        self.n += 1
        for k, w in self.weights.items():
            if k in self.mean:
                self.mean[k] += (w.detach() - self.mean[k]) / self.n
            else:
                self.mean[k] = w.detach().clone()

    def now(self) -> Mapping[str, Tensor]:
        """What would be kept if this were the last update: the mean, if there is one yet."""
        return self.mean or self.weights

    def end(self) -> None:
        """Put the mean into the trained weights."""
        for k, w in self.mean.items():
            self.weights[k].data.copy_(w)

    def state(self) -> dict[str, Tensor]:
        """The mean so far, and of how many."""
        return {"n": torch.tensor(self.n), **{f"w/{k}": w for k, w in self.mean.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.n = int(state["n"])
        self.mean = {
            k: state[f"w/{k}"].to(w.device, copy=True) for k, w in self.weights.items() if self.n
        }
