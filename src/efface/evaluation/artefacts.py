"""What an attack can find, one class a kind, and how fresh pictures are drawn from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.edits.edit import Edit
from efface.models import Conditioning, DiffusionModel, Weights, encoded_with


@dataclass(frozen=True)
class Victim:
    """A model under attack, and how its pictures are drawn."""

    model: DiffusionModel
    """The base model, whose weights the edit lies over."""
    edit: Edit | None = None
    """None: the unedited model."""
    steps: int | None = None
    """Of a picture; None: the model's own."""
    guidance: float | None = None
    """None: the model's own."""
    laid: Weights | None = None
    """Weights in place of the edit's."""

    @property
    def scale(self) -> float:
        """Scale of guidance."""
        return self.model.guidance if self.guidance is None else self.guidance

    @property
    def bare(self) -> Victim:
        """The unedited model."""
        return replace(self, edit=None, laid=None)

    def weights(self, prompt: str) -> Weights | None:
        """What lies over the base model's weights for a prompt."""
        if self.edit is not None and self.edit.gates and self.laid is None:
            return self.edit.on(self.model, prompt)
        return self.whole

    @cached_property
    def whole(self) -> Weights | None:
        """What lies over the base model's weights, whatever the prompt."""
        if self.laid is not None or self.edit is None:
            return self.laid
        return self.edit.on(self.model)

    def pictures(
        self, prompt: str, seeds: Sequence[int], cond: Conditioning | None = None
    ) -> Tensor:
        """Pictures of a prompt, one a seed, (N, 3, H, W) in [0, 1].

        Args:
            cond: what the prompt is encoded as, one row; None: as it is.
        """
        asked = [prompt] * len(seeds) if cond is None else cond.repeat(len(seeds))
        made = self.model.generate(
            asked, list(seeds), self.steps, self.guidance, self.weights(prompt), output_type="pt"
        )
        return torch.stack(list(made))

    def latents(self, z: Tensor, prompt: str, steps: int, span: range) -> Tensor:
        """Latents (N, C, H, W) after some deterministic steps under a prompt."""
        n = max(1, self.model.at_once // 4)
        cond = self.model.embed([prompt])
        schedule, weights = self.model.schedule(steps), self.weights(prompt)
        return torch.cat(
            [
                self.model.rollout(
                    part, cond.repeat(len(part)), schedule, span, self.scale, weights
                )
                for part in z.split(n)
            ]
        )

    def finished(self, z: Tensor, prompt: str, steps: int, start: int) -> Tensor:
        """Pictures from latents that stand before step ``start``."""
        return self.model.decode(self.latents(z, prompt, steps, range(start, steps)))


@dataclass(frozen=True, kw_only=True)
class Artefact(ABC):
    """What an attack found: something to draw pictures from."""

    kind: ClassVar[str]
    """What it is, in a word or two."""
    prompt: str
    """What is asked for with it."""
    source: str | None = None
    """The prompt that it set out from, "" where nothing is asked for; None: the concept's first."""
    why: str = ""
    """How it came about: the family within the attack."""
    at: str = ""
    """The point of the attack's curve that it is of; "": there is none."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """What else is known of it, by name."""

    @abstractmethod
    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor | None:
        """A picture a seed, (N, 3, H, W) in [0, 1]; None: it is no thing to draw from."""

    def ends(self, victim: Victim, seeds: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """The unedited model's pictures, and the victim's without the attack; None: none compare.

        Of the same seeds and steps as :meth:`drawn`, so that where there is no judge it can be said
        how much of the way back to the unedited model's pictures an attack goes.
        """
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, for a file."""
        return {}

    def said(self) -> dict[str, Any]:
        """What a row keeps of it, without its tensors."""
        return {"kind": self.kind, "prompt": self.prompt}


@dataclass(frozen=True, kw_only=True)
class Text(Artefact):
    """A prompt."""

    kind = "text"
    ids: tuple[int, ...] = ()
    """The tokens that were found, of which the prompt is what they decode to; empty: it was no
    search over tokens."""

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """As the prompt asks for."""
        return victim.pictures(self.prompt, seeds)

    def said(self) -> dict[str, Any]:
        """With its tokens."""
        return super().said() | ({"ids": list(self.ids)} if self.ids else {})


@dataclass(frozen=True, kw_only=True)
class Vectors(Artefact):
    """A prompt with a mark that is read as a token vector."""

    kind = "token vector"
    mark: str
    rows: Mapping[str, Tensor]
    """Of each text encoder, (1, D)."""

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """As the prompt asks for."""
        with torch.no_grad():
            cond = encoded_with(victim.model, [self.prompt], self.mark, self.rows)
        return victim.pictures(self.prompt, seeds, cond)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors."""
        return dict(self.rows)


@dataclass(frozen=True, kw_only=True)
class States(Artefact):
    """Text states in place of the prompt's."""

    kind = "text states"
    cond: Conditioning
    """One row."""

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """As if the prompt were encoded so."""
        return victim.pictures(self.prompt, seeds, self.cond)

    def ends(self, victim: Victim, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the prompt."""
        return plain(victim, self.prompt, seeds)

    def tensors(self) -> dict[str, Tensor]:
        """The states."""
        return {"states": self.cond.states}


@dataclass(frozen=True, kw_only=True)
class Begun(Artefact):
    """Latents that another model has begun, from the seed's own noise."""

    kind = "start latents"
    by: Victim
    """Who begins."""
    k: int
    """Steps that it makes."""
    steps: int
    """Of how many."""
    shift: int = 0
    """Added to the seeds."""

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """The victim makes the other steps."""
        noise = victim.model.start([s + self.shift for s in seeds])[1]
        z = self.by.latents(noise, self.prompt, self.steps, range(self.k))
        return victim.finished(z, self.prompt, self.steps, self.k)

    def ends(self, victim: Victim, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """With all of the steps made by one of them."""
        noise = victim.model.start(seeds)[1]
        one, other = (v.finished(noise, self.prompt, self.steps, 0) for v in (victim.bare, victim))
        return one, other

    def said(self) -> dict[str, Any]:
        """With the number of steps."""
        return {**super().said(), "k": self.k, "steps": self.steps}


@dataclass(frozen=True, kw_only=True)
class Latents(Artefact):
    """Latents to set out from; a redraw takes the next one, with some fresh noise in it."""

    kind = "start latents"
    z: Tensor
    """(N, C, H, W), of unit variance where they are noise."""
    steps: int
    share: float = 0.0
    """Part of the variance that the seed's noise replaces."""
    scale: float | None = None
    """Of guidance; None: the victim's."""

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """All of the steps from there."""
        noise = victim.model.start(seeds)[1]
        rows = torch.arange(len(seeds)) % len(self.z)
        z = self.z.to(noise.device)[rows]
        z = (1 - self.share) ** 0.5 * z + self.share**0.5 * noise
        if self.scale is not None:
            victim = replace(victim, guidance=self.scale)
        return victim.finished(z, self.prompt, self.steps, 0)

    def tensors(self) -> dict[str, Tensor]:
        """The latents."""
        return {"latents": self.z}


@dataclass(frozen=True, kw_only=True)
class Picture(Artefact):
    """Pictures that are noised and drawn over; a redraw takes the next one."""

    kind = "picture"
    pictures: Tensor
    """(N, 3, H, W) in [0, 1]."""
    strength: float
    """Share of the steps that the victim makes, 0 to 1."""
    steps: int
    hole: float = 0.0
    """Side of a square in the middle that alone is drawn anew, as a share of the picture's side; 0:
    all of it."""

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """From the noised picture on; outside of a hole it is put back after every step."""
        model = victim.model
        noise = model.start(seeds)[1]
        rows = torch.arange(len(seeds)) % len(self.pictures)
        clean, n = model.encode(self.pictures[rows]).to(noise.device), self.steps
        start = min(n - max(1, round(n * self.strength)), n - 1)
        times = model.schedule(n).timesteps
        z = model.process.noised(clean, noise, times[start].expand(len(seeds)))
        if not self.hole:
            return victim.finished(z, self.prompt, n, start)
        inside = self._inside(clean)
        if start == 0:  # nothing of the picture is left in the hole
            z = torch.where(inside, noise, z)
        for i in range(start, n):
            z = victim.latents(z, self.prompt, n, range(i, i + 1))
            known = clean
            if i + 1 < n:
                known = model.process.noised(clean, noise, times[i + 1].expand(len(seeds)))
            z = torch.where(inside, z, known)
        return model.decode(z)

    def _inside(self, clean: Tensor) -> Tensor:
        """Where the hole is, (1, 1, H, W)."""
        h, w = clean.shape[-2:]
        mask = torch.zeros(1, 1, h, w, dtype=torch.bool, device=clean.device)
        top, left = (max(0, round((1 - self.hole) * side / 2)) for side in (h, w))
        mask[..., top : h - top, left : w - left] = True
        return mask

    def said(self) -> dict[str, Any]:
        """With the strength."""
        return {**super().said(), "strength": self.strength, "hole": self.hole}


@dataclass(frozen=True, kw_only=True)
class Trained(Artefact):
    """Weights in place of the edited ones."""

    kind = "weights"
    weights: Mapping[str, Tensor]

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """As the prompt asks for."""
        return replace(victim, laid=self.weights).pictures(self.prompt, seeds)

    def ends(self, victim: Victim, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the prompt."""
        return plain(victim, self.prompt, seeds)

    def tensors(self) -> dict[str, Tensor]:
        """The weights."""
        return dict(self.weights)


@dataclass(frozen=True, kw_only=True)
class Word(Artefact):
    """A word that the weights give away; there is nothing to draw."""

    kind = "word"
    success: bool

    def drawn(self, victim: Victim, seeds: Sequence[int]) -> None:
        """Nothing."""


def plain(victim: Victim, prompt: str, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The unedited model's pictures of a prompt, and the victim's."""
    return victim.bare.pictures(prompt, seeds), victim.pictures(prompt, seeds)
