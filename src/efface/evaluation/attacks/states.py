"""Text states that read under the edit as the concept's own did before it, in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.errors import UserError
from efface.evaluation.artefacts import Artefact, States
from efface.evaluation.attacks.attack import Attack, Attacked, no_gates
from efface.models import Conditioning, check_crosses
from efface.settings import Range, check_ranges
from efface.training.inverse import inverse


@dataclass(frozen=True)
class TextStates(Attack):
    """Solve for states c' of which the edited maps W' read what the base maps W read of c.

    c' = (λ I + Σ W'ᵀW')⁻¹ Σ W'ᵀW c, row by row, over every map that reads the text. No evaluation
    of the denoiser. A residual that stays above zero however small λ is says that no states exist
    that would do: the concept cannot be reached through these maps.

    Source: the embedding of RECE (arXiv:2407.12383, section 3.2), used as an attack.
    """

    name: ClassVar[str] = "states"
    channel: ClassVar[str] = "text states"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "weights"})
    judged: ClassVar[bool] = False

    ridges: Annotated[tuple[float, ...], Range(0, 1e6, open_low=True)] = (1e-5, 1e-2)
    """λ, in units of the mean eigenvalue of Σ W'ᵀW': the smaller, the nearer and the longer c'."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.ridges:
            raise UserError("got no ridge for states; one or more above 0 are needed.")

    @property
    def headline(self) -> str:
        """The smallest λ."""
        return f"{min(self.ridges):g}"

    def curve(self) -> Sequence[str]:
        """Every λ."""
        return [f"{x:g}" for x in self.ridges]

    def full(self) -> TextStates:
        """Five orders of λ."""
        return replace(self, ridges=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1))

    def check(self, given: Attacked) -> None:
        """Maps that read the text, and that the edit changes."""
        check_crosses(given.model)
        no_gates(given, self.name)
        maps = set(given.model.text_maps())
        if given.edit is not None and not maps & set(given.edit.weights):
            raise UserError(
                "the attack 'states' solves for what the edited maps read of the text, and this "
                "edit changes none of them (keys and values of cross-attention)."
            )

    def count(self, prompts: int) -> int:
        """One a λ and a prompt."""
        return len(self.ridges) * prompts

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """One a λ and a prompt."""
        own = given.model.parameters()
        edited = given.victim.weights("") or {}
        maps = given.model.text_maps()  # what the edit left as it was counts as well
        base = [own[n].detach().double() for n in maps]
        after = [(edited.get(n, own[n])).detach().double() for n in maps]
        for ridge in self.ridges:
            for prompt in given.asked:
                cond = given.model.embed([prompt])
                found = inverse(base, after, cond.states[0].double(), ridge)
                states = found.states
                if given.blind:
                    states = elsewhere(cond.states[0].double(), states, given.generator("blind"))
                yield States(
                    prompt=prompt,
                    source=prompt,
                    at=f"{ridge:g}",
                    cond=Conditioning(states.to(cond.states)[None], cond.pooled, cond.mask),
                    measured={"residual": found.residual, "growth": found.growth},
                )


def elsewhere(c: Tensor, found: Tensor, g: torch.Generator) -> Tensor:
    """States as far from ``c`` as ``found``, row by row, in random directions."""
    away = torch.randn(c.shape, generator=g, dtype=torch.float64).to(c)
    far = (found - c).norm(dim=1, keepdim=True)
    moved: Tensor = c + away / away.norm(dim=1, keepdim=True) * far
    return moved
