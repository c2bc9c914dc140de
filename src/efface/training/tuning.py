"""What every fine-tuning has: the fields that all trained methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from efface.concepts import Diversify
from efface.settings import Range


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What every fine-tuning has; a method that is trained is a dataclass of these and its own.

    Each field stands alone: one that is given changes no other's default.
    """

    updates: Annotated[int, Range(1, 10**7)] = 400
    """Weight updates."""
    batch: Annotated[int, Range(1, 4096)] = 8
    """Latents of erased concepts in an update."""
    lr: Annotated[float, Range(0)] = 0.0
    """Learning rate of Adam; 0: the model's own default (1e-5 for Stable Diffusion,
    arXiv:2303.07345), ten times that for adapters."""
    decay: Annotated[float, Range(0, 1)] = 0.0
    """Share of the updates, the last ones, over which the learning rate falls to 0, in a straight
    line."""
    average: Annotated[float, Range(0, 1)] = 0.0
    """Share of the updates, the last ones, whose weights are averaged (arXiv:1803.05407); 0: the
    last weights as they are. Costs no evaluation, and memory for a copy of what is trained."""
    diversify: Diversify = 0
    """Prompts that stand for each erased name, filled into templates of its kind, and its anchor in
    the same prompt for it (arXiv:2603.18767); 0: the bare name (CA, MACE: a few templates)."""
    group: str = "xattn"
    """Which weights are trained: xattn, kv, noxattn, selfattn, transformer or full; of some
    models also text or single (efface methods)."""
    rank: Annotated[int, Range(0, 4096)] = 0
    """Rank of low-rank adapters on them (LoRA, arXiv:2106.09685); 0: the weights themselves."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Of every random draw."""
    accumulate: Annotated[int, Range(1, 4096)] = 1
    """Batches of an update, whose gradients are averaged; processes share them out, so that it
    should be a multiple of their number."""
    save_every: Annotated[int, Range(1, 10**7)] = 50
    """Updates between checkpoints, from which a killed run goes on."""
    adam_8bit: bool = False
    """Keep Adam's moments in 8 bits (bitsandbytes): a quarter of their memory."""

    def pace(self, update: int) -> float:
        """Share of the learning rate that the ``update``-th update (from 0) is made with."""
        falling = self.decay * self.updates
        return min(1.0, (self.updates - update) / falling) if falling else 1.0

    @property
    def averaged(self) -> int:
        """How many updates, the last ones, have their weights averaged."""
        return max(round(self.average * self.updates), 1) if self.average else 0

    @property
    def rows(self) -> int:
        """Latents that go through the trained denoiser before a gradient comes back."""
        return self.batch + self.kept_rows

    @property
    def reads_tokens(self) -> bool:
        """Whether text encoders are asked during updates as well: then they stay in memory."""
        return False

    @property
    def kept_rows(self) -> int:
        """Those of :attr:`rows` that hold on to the method's ``keep`` list."""
        kept = getattr(self, "keep", ()) and getattr(self, "keep_weight", 1.0)
        return self.batch if kept else 0
