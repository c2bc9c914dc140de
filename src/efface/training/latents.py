"""Where the noisy latents of an update come from: a bank of trajectories, or rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from efface.concepts import Concept
from efface.errors import pick
from efface.models import Conditioning, DiffusionModel, Weights, stack
from efface.settings import Range, check_ranges
from efface.training.batches import Batch, Choose, Words, beside, drawn, encode, odds
from efface.training.erasure import Job
from efface.training.turns import Turns, turns_of

OWNERS = ("student", "frozen")


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Draw (z, t) from trajectories of the frozen model, made once."""

    kind: ClassVar[str] = "bank"
    ddim_steps: Annotated[int, Range(1, 1000)] = 25
    """Steps of a trajectory."""
    cfg: Annotated[float, Range(-100, 100)] = 3.0
    """Scale of classifier-free guidance of the trajectories."""
    trajectories: Annotated[int, Range(1, 10_000)] = 8
    """Trajectories of each erased name, shared by its prompts, of which each gets one at least."""
    anchored: Annotated[int, Range(0, 10_000)] = 0
    """As many of its anchor beside them, where the edited model will pass: there the name is
    steered to the anchor as it is, without guidance away."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def open(self, job: Job) -> Banked:
        """The bank of a job's concepts."""
        g, prompts = job.generator("bank"), prompts_of(job)
        turns = turns_of(job, prompts)
        return Banked(job.model, job.concepts, self, g, job.run.progress, prompts, turns)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Draw (z, t) by a rollout at every update (arXiv:2303.07345, section 4)."""

    kind: ClassVar[str] = "rollout"
    of: str = "student"
    """Whose: the ``student``'s as it is, or the ``frozen`` model's."""
    ddim_steps: Annotated[int, Range(1, 1000)] = 25
    """Steps of a whole trajectory."""
    cfg: Annotated[float, Range(-100, 100)] = 3.0
    """Scale of classifier-free guidance."""
    aligned: bool = True
    """Tell the denoiser the timestep that the latent has. False: as the authors of ESD and of
    adversarial preservation do, whose latents are 39 to 58 timesteps cleaner than what the denoiser
    is told."""
    own: bool = False
    """Preserve a word on latents rolled out under it, from the erased concept's noise; else on the
    concept's own."""

    def __post_init__(self) -> None:
        check_ranges(self)
        pick(dict.fromkeys(OWNERS), self.of, "owner of the rollouts")

    def open(self, job: Job) -> RolledOut:
        """The rollouts for a job's concepts."""
        return RolledOut(job.model, job.concepts, self, prompts_of(job))


def prompts_of(job: Job) -> int:
    """How many prompts stand for each erased name of a job; 0: the bare name."""
    several, styled = (int(getattr(job.method, x, 0)) for x in ("diversify", "styled"))
    return several or (styled if any(c.kind == "style" for c in job.concepts) else 0)


Latents = Bank | Rollout
"""How (z, t) are drawn: each kind has its own settings."""


class Draw(NamedTuple):
    """A random stopping point of a rollout, shared by the rows of a batch."""

    noise: Tensor
    span: range
    t: float
    weight: float


class Banked:
    """Latents of the frozen model's own trajectories, with its predictions there.

    Predictions for what a trajectory follows and for the null prompt fall out of classifier-free
    guidance for nothing; the concept or another anchor costs one evaluation more per latent.
    """

    def __init__(
        self,
        model: DiffusionModel,
        concepts: Sequence[Concept],
        config: Bank,
        g: torch.Generator,
        progress: bool = True,
        prompts: int = 0,
        turns: Turns | None = None,
    ) -> None:
        self.model, self.concepts, self.config, self.progress = model, concepts, config, progress
        self.encoded = encode(model, concepts, prompts)
        each = max(prompts, 1)
        self.n = max(config.trajectories // each, 1)
        self.anchored = max(config.anchored // each, 1) if config.anchored else 0
        self.schedule = model.schedule(config.ddim_steps)
        self.t: Tensor = self.schedule.timesteps.cpu()
        self.weight = model.process.weight(self.schedule.timesteps).cpu()
        self.turns, self.has = turns, -1
        if turns is None:
            self._fill(torch.arange(len(self.encoded.of)), g)
        else:
            self.turn()

    def turn(self) -> int:
        """Hold the group whose turn it is, and no other; its number, -1 where there are none."""
        if self.turns is not None and self.turns.now != self.has:
            self.has = self.turns.now
            mine = torch.tensor(self.turns.groups[self.has])
            self._fill(torch.isin(self.encoded.of, mine).nonzero()[:, 0], self.turns.generator())
        return self.has

    def _fill(self, rows: Tensor, g: torch.Generator) -> None:
        """Make the trajectories of some prompts."""
        self.z = self.e_anchor = self.e_concept = torch.empty(0)  # room for the new ones
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for row in tqdm(
            rows.tolist(), desc="bank of latents", unit="prompt", disable=not self.progress
        ):
            concept, anchor = self.encoded.concept[[row]], self.encoded.anchor[[row]]
            known = self.encoded.bare[row]
            z, e0, e1 = self._followed(concept, self.n, g)
            kept.append((z, e0 if known else self._asked(anchor, z), e1))
            if self.anchored:
                z, _, e1 = self._followed(anchor, self.anchored, g)
                kept.append((z, e1, self._asked(concept, z)))
        self.z, self.e_anchor, self.e_concept = (torch.cat(x) for x in zip(*kept, strict=True))
        own = torch.arange(self.n + self.anchored) < self.n
        self.row, self.push = rows.repeat_interleave(len(own)), own.float().repeat(len(rows))
        self.odds = odds(self.encoded.of[self.row].unique(return_inverse=True)[1])

    def _followed(
        self, cond: Conditioning, n: int, g: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Trajectories of a prompt, and what is predicted on them, (n, S, C, H, W) each.

        Returns:
            Latents, predictions for the null prompt, and for the prompt.
        """
        model, config = self.model, self.config
        path: list[tuple[Tensor, Tensor, Tensor]] = []

        def visit(_: int, z: Tensor, e0: Tensor, e1: Tensor) -> None:
            path.append((z.cpu(), e0.cpu(), e1.cpu()))

        span = range(config.ddim_steps)
        start = model.noise(n, g)
        model.rollout(start, cond.repeat(n), self.schedule, span, config.cfg, visit=visit)
        z, e0, e1 = (torch.stack(x, 1) for x in zip(*path, strict=True))
        return z, e0, e1

    @torch.no_grad()
    def _asked(self, cond: Conditioning, z: Tensor) -> Tensor:
        """What is predicted for a prompt on trajectories, (n, S, C, H, W)."""
        model, flat, t = self.model, z.flatten(0, 1), self.t.repeat(len(z))
        parts = [
            model.predict(a.to(model.device), b.to(model.device), cond.repeat(len(a))).cpu()
            for a, b in zip(flat.split(64), t.split(64), strict=True)
        ]
        return torch.cat(parts).view_as(z)

    def pick(self, g: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Random trajectories and steps of theirs, (B,) each.

        Concepts are drawn equally, and the names of one equally.
        """
        self.turn()
        path = drawn(self.odds, len(self.z), batch, g)
        return path, torch.randint(0, len(self.t), (batch,), generator=g)

    def at(self, path: Tensor, step: Tensor) -> Batch:
        """The latents of some trajectories at some steps."""
        row, to = self.row[path], self.model.device
        return Batch(
            self.z[path, step].to(to),
            self.t[step].to(to),
            self.encoded.of[row],
            self.encoded.concept[row.to(to)],
            self.e_concept[path, step].to(to),
            self.e_anchor[path, step].to(to),
            self.weight[step].to(to),
            self.push[path].to(to),
        )

    def draw(self, g: torch.Generator, batch: int, weights: Weights | None = None) -> Batch:
        """``batch`` latents, each of a random trajectory at a random step."""
        return self.at(*self.pick(g, batch))

    def again(self, g: torch.Generator, path: Tensor) -> Batch:
        """Other latents of the prompts of some trajectories, (B,), row by row."""
        each = self.n + self.anchored
        path = path - path % each + torch.randint(0, each, path.shape, generator=g)
        return self.at(path, torch.randint(0, len(self.t), path.shape, generator=g))

    def draw_beside(
        self, g: torch.Generator, batch: int, weights: Weights | None, choose: Choose
    ) -> tuple[Batch, Words]:
        """A batch, and words on its latents."""
        b = self.draw(g, batch, weights)
        return b, beside(b, choose(b.which))


class RolledOut:
    """Latents made anew for every update, by the frozen model or by the student as it is."""

    def __init__(
        self,
        model: DiffusionModel,
        concepts: Sequence[Concept],
        config: Rollout,
        prompts: int = 0,
    ) -> None:
        self.model, self.config = model, config
        self.encoded = encode(model, concepts, prompts)
        self.odds = odds(self.encoded.of)
        self.schedule = model.schedule(config.ddim_steps)

    def stop(self, g: torch.Generator, batch: int) -> Draw:
        """Start noise, and where the rollout stops.

        Aligned: i of S steps, i uniform on 0..S-1, told the timestep that is reached. Otherwise the
        released code's
        way (2303.07345 and 2410.15618): k uniform on 0..S-1; from pure noise the first timestep is
        skipped; S - k steps, at most S - 1; told a timestep uniform on [20k, 20k + 19]; weighted as
        20k + 1 (for S = 50).
        """
        s, noise = self.config.ddim_steps, self.model.noise(batch, g)
        k = int(torch.randint(0, s, (1,), generator=g))
        if self.config.aligned:
            told = self.schedule.timesteps[k]
            return Draw(noise, range(k), told.item(), self._weight(told))
        width = self.model.process.times // s
        t = width * k + int(torch.randint(0, width, (1,), generator=g))
        weight = self._weight(torch.tensor(width * k + 1))
        return Draw(noise, range(1, 1 + min(s - k, s - 1)), t, weight)

    def _weight(self, t: Tensor) -> float:
        return float(self.model.process.weight(t.view(1)))

    def begin(self, g: torch.Generator, batch: int) -> tuple[Tensor, Draw]:
        """A random erased name for each row, (B,), and where all their rollouts stop.

        Concepts are drawn equally, and the names of one equally.
        """
        return drawn(self.odds, len(self.encoded.of), batch, g), self.stop(g, batch)

    def draw(self, g: torch.Generator, batch: int, weights: Weights | None = None) -> Batch:
        """One random erased name for each row, all rolled out to the same timestep."""
        row, draw = self.begin(g, batch)
        concept = self.encoded.concept[row.to(self.model.device)]
        return self._batch(row, draw, self._rolled(draw.noise, concept, draw, weights))

    def draw_beside(
        self, g: torch.Generator, batch: int, weights: Weights | None, choose: Choose
    ) -> tuple[Batch, Words]:
        """A batch, and words beside it: on its latents, or on their own.

        Their own (``config.own``) are of its noise, its timestep and its passes.
        """
        if not self.config.own:
            b = self.draw(g, batch, weights)
            return b, beside(b, choose(b.which))
        row, draw = self.begin(g, batch)
        cond = choose(self.encoded.of[row])
        concept = self.encoded.concept[row.to(self.model.device)]
        rows = torch.arange(len(cond), device=self.model.device) % batch
        both = stack([concept, cond.detach()])
        z = self._rolled(torch.cat([draw.noise, draw.noise[rows]]), both, draw, weights)
        found = self._batch(row, draw, z[:batch])
        return found, Words(cond, z[batch:], found.t[rows], rows)

    def _rolled(
        self, noise: Tensor, cond: Conditioning, draw: Draw, weights: Weights | None
    ) -> Tensor:
        used = weights if self.config.of == "student" else None
        plain = None if used is None else {k: w.detach() for k, w in used.items()}
        return self.model.rollout(noise, cond, self.schedule, draw.span, self.config.cfg, plain)

    def _batch(self, row: Tensor, draw: Draw, z: Tensor) -> Batch:
        to = self.model.device
        concept, anchor = self.encoded.concept[row.to(to)], self.encoded.anchor[row.to(to)]
        t = torch.full((len(z),), draw.t, device=to)
        with torch.no_grad():
            pair = self.model.predict(
                torch.cat([z, z]), torch.cat([t, t]), stack([concept, anchor])
            )
        e_concept, e_anchor = pair.chunk(2)
        weight = torch.full((len(z),), draw.weight, device=to)
        of = self.encoded.of[row]
        return Batch(z, t, of, concept, e_concept, e_anchor, weight, torch.ones_like(weight))


Source = Banked | RolledOut
"""What latents are drawn from."""
