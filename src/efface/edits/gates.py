"""What of an edit depends on the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from efface.models import DiffusionModel


@dataclass(frozen=True)
class Gate:
    """A low-rank part of an edit that a prompt switches on as much as it asks for its concept.

    Source: arXiv:2312.16145, section 3.4 ("facilitated transport").
    """

    names: tuple[str, ...]
    """The erased concept's name and synonyms."""
    factors: Mapping[str, Tensor]
    """``NAME/up`` (out, r) and ``NAME/down`` (r, in) for each weight."""

    def change(self, name: str) -> Tensor:
        """The change of a weight with the gate open, (out, in)."""
        return self.factors[f"{name}/up"] @ self.factors[f"{name}/down"]

    def scaled(self, strength: float) -> Gate:
        """The same gate with ``strength`` times the change."""
        made = {k: strength * f if k.endswith("/up") else f for k, f in self.factors.items()}
        return replace(self, factors=made)

    def opening(self, model: DiffusionModel, prompt: str) -> float:
        """How far a prompt opens it, 0 to 1.

        The larger of the cosine of the flattened text states and the share of the concept's tokens
        that the prompt holds; the largest over the names.
        """
        states = model.embed([prompt, *self.names]).states.float().flatten(1)
        near = torch.cosine_similarity(states[:1], states[1:]).max().item()

        def tokens(text: str) -> set[int]:
            return set(model.tokenizer(text, add_special_tokens=False).input_ids)

        asked = tokens(prompt)
        shared = max(len(tokens(n) & asked) / max(len(tokens(n)), 1) for n in self.names)
        return min(max(near, shared, 0.0), 1.0)
