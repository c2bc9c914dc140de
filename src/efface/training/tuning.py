"""What every fine-tuning has: the fields that all trained methods share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from efface.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What every fine-tuning has; a method that is trained is a dataclass of these and its own.

    Each field stands alone: one that is given changes no other's default.
    """

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
    adam_8bit: bool = False
    """Keep Adam's moments in 8 bits (bitsandbytes): a quarter of their memory."""

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
