"""The model in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from efface.models import Conditioning, DiffusionModel

HALF_SCALE = 1024.0
"""What a loss is multiplied with before its gradient passes through fp16, and divided by after."""


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


class Kept(Protocol):
    """Something whose tensors belong into a checkpoint."""

    def state(self) -> dict[str, Tensor]:
        """Its tensors, by name."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take such tensors back."""
        ...


class Stateful(Kept, Protocol):
    """Something that changes between updates, and whose tensors belong into a checkpoint."""

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Called once before an update's batches, the same in every process."""
        ...

    def end(self, student: Student) -> None:
        """Called once after them, in every process."""
        ...


class Clock:
    """Knows which update it is, from 0."""

    def __init__(self) -> None:
        self.update = -1

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """One later."""
        self.update += 1

    def end(self, student: Student) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """The update."""
        return {"update": torch.tensor(self.update)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.update = int(state["update"])
