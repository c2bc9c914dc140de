"""Parts of the instruments that can be done apart: by other processes, on other machines, later."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.samples import Painter, Wanted
from efface.models import DiffusionModel, load
from efface.models.process import Schedule
from efface.seeds import generator
from efface.storage import make_folder, write

STEPS = 20
"""Of the trajectories whose latents all words share."""


class Part(Protocol):
    """Something to be done as a whole; what comes of it does not depend on where."""

    def done(self, at: Opened) -> Tensor:
        """What comes of it."""
        ...


Share = Callable[[Sequence[Part]], Iterable[tuple[Part, Tensor]]]
"""Does parts, here or elsewhere, and gives each once it is done, in any order."""


class Opened:
    """What parts are about."""

    def __init__(self, model: DiffusionModel, edit: Edit) -> None:
        self.model, self.edit = model, edit
        self._shared: dict[tuple[int, int], Shared] = {}

    def shared(self, latents: int, seed: int) -> Shared:
        """Latents that all words share, made once."""
        key = (latents, seed)
        if key not in self._shared:
            self._shared[key] = Shared(self.model, latents, seed)
        return self._shared[key]

    @cached_property
    def painters(self) -> dict[bool, Painter]:
        """Who draws with the edit, and without it."""
        return {e: Painter(self.model, self.edit if e else None) for e in (False, True)}


class Shared:
    """Latents of the unconditional trajectories of the base model, one a noise level."""

    def __init__(self, model: DiffusionModel, latents: int, seed: int) -> None:
        self.schedule: Schedule = model.schedule(STEPS)
        kept: dict[int, Tensor] = {}
        model.rollout(
            model.noise(latents, generator(seed, "sensitivity")),
            model.null(latents),
            self.schedule,
            range(STEPS),
            1.0,
            visit=lambda i, z, e0, e1: kept.update({i: z}),
        )
        self.at = [(k * STEPS + STEPS // 2) // latents for k in range(latents)]
        self.z = [kept[step][k] for k, step in enumerate(self.at)]


@dataclass(frozen=True)
class Predicted:
    """How far the predicted noise of some words moved."""

    words: tuple[str, ...]
    latents: int
    seed: int

    def __str__(self) -> str:
        return f"the prediction of {self.words[0]!r} and {len(self.words) - 1} more"

    @torch.no_grad()
    def done(self, at: Opened) -> Tensor:
        """In percent of the squared noise, (D, n)."""
        shared = at.shared(self.latents, self.seed)
        alone = [(w,) for w in self.words] if at.edit.gates else [self.words]
        return torch.cat([self.moved(at, some, shared) for some in alone], 1)

    def moved(self, at: Opened, words: Sequence[str], shared: Shared) -> Tensor:
        """Of words for which the edit's gates are open alike."""
        model, n = at.model, len(words)
        weights = at.edit.on(model, words[0]) if at.edit.gates else at.painters[True].weights
        cond, draws = model.embed(words), []
        for step, one in zip(shared.at, shared.z, strict=True):
            z, t = one.expand(n, -1, -1, -1), shared.schedule.timesteps[step].expand(n)
            before, after = model.predict(z, t, cond), model.predict(z, t, cond, weights)
            far = (after - before).square().sum((1, 2, 3)) / before.square().sum((1, 2, 3))
            draws.append(100 * far.cpu())
        return torch.stack(draws)


@dataclass(frozen=True)
class Texts:
    """The text states of some words."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"the text states of {self.words[0]!r} and {len(self.words) - 1} more"

    def done(self, at: Opened) -> Tensor:
        """Of every word's last token, (n, r, D): one each of r encoders."""
        return at.model.words(list(self.words))


@dataclass(frozen=True)
class Pictures:
    """Pictures that are drawn together."""

    edited: bool
    batch: tuple[Wanted, ...]
    steps: int | None
    guidance: float | None

    def __str__(self) -> str:
        return f"the picture {self.batch[0].file!r} and {len(self.batch) - 1} more"

    def done(self, at: Opened) -> Tensor:
        """(N, 3, H, W) in bytes."""
        return at.painters[self.edited].drawn(self.batch, self.steps, self.guidance)


@dataclass(frozen=True)
class Desk:
    """What another process, maybe on another machine, needs to do parts."""

    model: str
    """A name, or a path that is the same there."""
    dtype: str
    device: str
    size: int
    edit: Edit

    def open(self) -> Callable[[Part], Tensor]:
        """What does a part.

        Raises:
            UserError: the model is not on that machine.
        """
        model = load(self.model, self.dtype, self.device, self.size)
        at = Opened(model, self.edit)
        return lambda part: part.done(at)


def here(model: DiffusionModel, edit: Edit) -> Share:
    """Parts are done in this process, one after the other."""
    at = Opened(model, edit)

    def share(parts: Sequence[Part]) -> Iterator[tuple[Part, Tensor]]:
        for part in parts:
            yield part, part.done(at)

    return share


def kept(share: Share, folder: Callable[[], Path]) -> Share:
    """What comes of each part is in a folder until all are done: a killed command goes on.

    Pictures are not: they have a folder of their own.

    Args:
        folder: asked for where there are several parts.
    """

    def going_on(parts: Sequence[Part]) -> Iterator[tuple[Part, Tensor]]:
        if len(parts) < 2 or isinstance(parts[0], Pictures):
            yield from share(parts)
            return
        home, rest = folder(), []
        for part in parts:
            try:
                yield part, load_file(home / name_of(part))["found"]
            except (OSError, SafetensorError, KeyError):
                rest.append(part)
        for part, found in share(rest):
            whole = {"found": found.cpu().contiguous()}
            with suppress(OSError, UserError):  # a cache only
                make_folder(home)
                write(home / name_of(part), partial(save_file, whole), lasting=False)
            yield part, found
        for part in parts:
            (home / name_of(part)).unlink(missing_ok=True)

    return going_on


def name_of(part: Part) -> str:
    """A file name of its own."""
    return f"{hashlib.sha256(repr(part).encode()).hexdigest()[:24]}.safetensors"
