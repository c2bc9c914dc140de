"""What brings an erased concept back, searched for on the latents of a bank while it is erased."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, Protocol

import torch
from torch import Tensor

from efface.concepts import TEMPLATES
from efface.models import (
    Conditioning,
    DiffusionModel,
    check_clip,
    encoded_with,
    ids_in,
    mark_for,
    stack,
    token_table,
)
from efface.settings import Range, check_ranges
from efface.training.batches import Batch
from efface.training.erasure import Job
from efface.training.latents import Banked
from efface.training.student import Kept, Student

PACE = 0.25
"""A step on text states, in units of their ball's radius (arXiv:2405.16341)."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Where, how far and how often is searched for what brings a concept back."""

    states: bool = True
    """Search among text states near the concept's own."""
    tokens: bool = True
    """Search for a token vector in the place of the concept's name; needs CLIP."""
    latents: bool = True
    """Search among noisy latents near those of the concept's own pictures."""
    refresh: Annotated[int, Range(1, 10**7)] = 30
    """Updates between two searches; each goes on from what the one before found."""
    steps: Annotated[int, Range(1, 10_000)] = 2
    """Steps of a search."""
    batch: Annotated[int, Range(2, 4096)] = 8
    """Latents that a search looks at; among latents half of them, which take twice as much."""
    rows: Annotated[int, Range(1, 4096)] = 2
    """Latents of an update that are erased under a find, each of a random channel."""
    eta: Annotated[float, Range(0)] = 0.0
    """Strength of the negative guidance under a find; 0 maps it onto the anchor: to push beyond it
    harms other words, since finds are near to them as well."""
    states_radius: Annotated[float, Range(0, 100, open_low=True)] = 0.3
    """How far a number of the text states may move, in units of their root mean square."""
    tokens_step: Annotated[float, Range(0, 100, open_low=True)] = 0.1
    """How far a number of the token vector moves in a step, in units of the table's root mean
    square; there is no bound on the whole way, as there is none for who attacks."""
    latents_radius: Annotated[float, Range(0, 10, open_low=True)] = 0.1
    """How far a number of a latent may move, in units of the latent's root mean square."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.states + self.tokens + self.latents

    def open(self, job: Job, bank: Banked) -> Recalls:
        """The searches for a job's concepts."""
        found: dict[str, Channel] = {}
        if self.states:
            found["states"] = States(bank, self)
        if self.tokens:
            found["tokens"] = Tokens(job, bank, self)
        if self.latents:
            found["latents"] = Latents(bank, self)
        return Recalls(job, self, found)


class Recalled(NamedTuple):
    """What is asked in a way that brings the concept back, and what is to be predicted."""

    z: Tensor
    """(B, C, H, W)."""
    t: Tensor
    """(B,)."""
    cond: Conditioning
    """B rows."""
    goal: Tensor
    """(B, C, H, W)."""


class Channel(Kept, Protocol):
    """A search of one kind."""

    def search(self, student: Student, g: torch.Generator) -> None:
        """Make what was found stronger against the student as it is, which is still."""
        ...

    def draw(self, n: int, g: torch.Generator) -> Recalled:
        """The find on ``n`` latents."""
        ...


class Recalls:
    """The searches of all channels, every ``refresh`` updates."""

    def __init__(self, job: Job, config: Recall, channels: Mapping[str, Channel]) -> None:
        self.job, self.config, self.channels = job, config, channels
        self.calls = 0

    def begin(self, student: Student, batch: int, g: torch.Generator) -> None:
        """Search, but not before the first update: nothing is to be brought back there."""
        if self.calls and self.calls % self.config.refresh == 0:
            for name, channel in self.channels.items():
                channel.search(student.still(), self.job.generator("recall", name, self.calls))
        self.calls += 1

    def end(self, student: Student) -> None:
        """Nothing."""

    def draw(self, g: torch.Generator) -> Recalled | None:
        """What random channels found, on latents of its own; None: there is no channel."""
        if not self.channels:
            return None
        of = torch.randint(0, len(self.channels), (self.config.rows,), generator=g)
        share = of.bincount(minlength=len(self.channels)).tolist()
        parts = [c.draw(n, g) for c, n in zip(self.channels.values(), share, strict=True) if n]
        z, t, cond, goal = zip(*parts, strict=True)
        return Recalled(torch.cat(z), torch.cat(t), stack(cond), torch.cat(goal))

    def state(self) -> dict[str, Tensor]:
        """What was found, and how often it was asked."""
        found = {f"{n}/{k}": w for n, c in self.channels.items() for k, w in c.state().items()}
        return {"calls": torch.tensor(self.calls), **found}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.calls = int(state["calls"])
        for name, channel in self.channels.items():
            mine = {k.partition("/")[2]: w for k, w in state.items() if k.startswith(f"{name}/")}
            channel.restore(mine)


class States:
    """A change of each concept's text states, none of its numbers larger than the radius.

    Source: of the steps arXiv:2405.16341, section 3; there the noise of the picture is looked for,
    here what the frozen model predicts for the concept.
    """

    def __init__(self, bank: Banked, config: Recall) -> None:
        self.bank, self.config = bank, config
        own = bank.encoded.concept.states.float()
        self.ball = config.states_radius * float(own.square().mean().sqrt())
        self.found = own.new_zeros(int(bank.encoded.of.max()) + 1, *own.shape[1:])
        """(n, L, D)."""

    def search(self, student: Student, g: torch.Generator) -> None:
        """Descend by the gradient's signs, on one batch."""
        b = self.bank.draw(g, self.config.batch)
        for _ in range(self.config.steps):
            x = self.found.clone().requires_grad_()
            (grad,) = torch.autograd.grad(missed(student, b.z, b, moved(b, x)), x)
            self.found = (self.found - PACE * self.ball * grad.sign()).clamp(-self.ball, self.ball)

    def draw(self, n: int, g: torch.Generator) -> Recalled:
        """The find on latents of the bank."""
        b = self.bank.draw(g, n)
        return Recalled(b.z, b.t, moved(b, self.found), b.goal(self.config.eta))

    def state(self) -> dict[str, Tensor]:
        """The change."""
        return {"found": self.found}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.found = state["found"].to(self.found.device)


class Tokens:
    """A token vector for each concept, read in the place of its name by the text encoders.

    It sets out from the mean of the name's own token vectors.

    Source: of the vector arXiv:2408.16807, section 3.2 (STEREO), which inverts pictures instead.
    """

    def __init__(self, job: Job, bank: Banked, config: Recall) -> None:
        self.bank, self.config = bank, config
        self.model: DiffusionModel = job.model
        kinds = [TEMPLATES[c.kind] for c in job.concepts]
        self.mark = mark_for(self.model, [t for some in kinds for t in some])
        self.prompts = [[t.format(self.mark) for t in some] for some in kinds]
        self.found: dict[str, Tensor] = {}
        """Text encoder -> (n, D)."""
        self.step: dict[str, float] = {}
        for encoder, tokenizer in self.model.family.encoders.items():
            table = token_table(self.model, encoder).detach()
            ids = [ids_in(self.model, tokenizer, c.name) or [0] for c in job.concepts]
            self.found[encoder] = torch.stack([table[i].float().mean(0) for i in ids])
            self.step[encoder] = config.tokens_step * float(table.float().square().mean().sqrt())
        self.encode()

    def encode(self) -> None:
        """Encode every prompt of every concept, T each, with the vectors as they are."""
        texts = [p for some in self.prompts for p in some]
        each = len(self.prompts[0])
        rows = {k: w.repeat_interleave(each, 0)[:, None] for k, w in self.found.items()}
        with torch.no_grad():
            self.cond = encoded_with(self.model, texts, self.mark, rows)  # (n·T, L, D)

    def chosen(self, b: Batch, g: torch.Generator) -> Tensor:
        """A prompt of each row's concept, by its number in all of them, (B,)."""
        each = len(self.prompts[0])
        return b.which * each + torch.randint(0, each, (len(b.which),), generator=g)

    def search(self, student: Student, g: torch.Generator) -> None:
        """Descend by the gradient's signs, on one batch."""
        b = self.bank.draw(g, self.config.batch)
        texts = [p for some in self.prompts for p in some]
        mine = [texts[i] for i in self.chosen(b, g).tolist()]
        for _ in range(self.config.steps):
            x = {k: w.clone().requires_grad_() for k, w in self.found.items()}
            rows = {k: w[b.which.to(w.device)][:, None] for k, w in x.items()}
            cond = encoded_with(self.model, mine, self.mark, rows)
            grads = torch.autograd.grad(missed(student, b.z, b, cond), list(x.values()))
            for (k, w), grad in zip(list(self.found.items()), grads, strict=True):
                self.found[k] = w - self.step[k] * grad.sign()
        self.encode()

    def draw(self, n: int, g: torch.Generator) -> Recalled:
        """The vectors in random templates, on latents of the bank."""
        b = self.bank.draw(g, n)
        cond = self.cond[self.chosen(b, g).to(b.z.device)]
        return Recalled(b.z, b.t, cond, b.goal(self.config.eta))

    def state(self) -> dict[str, Tensor]:
        """The vectors."""
        return dict(self.found)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.found = {k: state[k].to(w.device) for k, w in self.found.items()}
        self.encode()


class Latents:
    """Latents of the concept's own trajectories, each moved by no more than the radius a number.

    They are moved to where the edited model predicts for the concept what the frozen one does; what
    is to be predicted there is the frozen model's as well, there.
    """

    def __init__(self, bank: Banked, config: Recall) -> None:
        self.bank, self.config = bank, config
        self.found: dict[str, Tensor] = {}
        """Paths and steps in the bank (m,), moved latents and goals (m, C, H, W), and of which turn
        of the bank; empty, or of another turn: the bank's own."""

    def search(self, student: Student, g: torch.Generator) -> None:
        """Descend by the gradient's signs from a random start in the ball, on new latents."""
        path, step = self.bank.pick(g, self.config.batch // 2)
        b, model = self.bank.at(path, step), self.bank.model
        ball = self.config.latents_radius * b.z.square().mean((1, 2, 3), keepdim=True).sqrt()
        far = ball * (2 * torch.rand(b.z.shape, generator=g).to(b.z) - 1)
        for _ in range(self.config.steps):
            x = (b.z + far).requires_grad_()
            lost = student(x, b.t, b.concept) - model.predict(x, b.t, b.concept)
            (grad,) = torch.autograd.grad(lost.square().sum(), x)
            far = (far - ball / self.config.steps * grad.sign()).clamp(-ball, ball)
        z, anchor = b.z + far, self.bank.encoded.anchor[self.bank.row[path].to(b.z.device)]
        with torch.no_grad():
            pair = torch.cat([z, z]), torch.cat([b.t, b.t]), stack([b.concept, anchor])
            e_concept, e_anchor = model.predict(*pair).chunk(2)
        goal = b._replace(e_concept=e_concept, e_anchor=e_anchor).goal(self.config.eta)
        turn = torch.tensor(self.bank.turn())
        self.found = {"turn": turn, "path": path, "step": step, "z": z, "goal": goal}

    def draw(self, n: int, g: torch.Generator) -> Recalled:
        """Some of them, under the concept's name."""
        if not self.found or int(self.found["turn"]) != self.bank.turn():
            b = self.bank.draw(g, n)
            return Recalled(b.z, b.t, b.concept, b.goal(self.config.eta))
        i = torch.randint(0, len(self.found["path"]), (n,), generator=g)
        b = self.bank.at(self.found["path"][i], self.found["step"][i])
        there = i.to(b.z.device)
        return Recalled(self.found["z"][there], b.t, b.concept, self.found["goal"][there])

    def state(self) -> dict[str, Tensor]:
        """What was found last."""
        return dict(self.found)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        to = self.bank.model.device
        self.found = {k: w.to(to) if k in ("z", "goal") else w for k, w in state.items()}


def moved(b: Batch, far: Tensor) -> Conditioning:
    """The concepts' rows with their text states changed.

    Args:
        far: a change of each concept, (n, L, D).
    """
    own = b.concept.states
    return replace(b.concept, states=own + far[b.which.to(far.device)].to(own.dtype))


def missed(student: Student, z: Tensor, b: Batch, cond: Conditioning) -> Tensor:
    """How far the student is from what the frozen model predicts for the concept, squared.

    A sum: a mean's gradient is lost in half precision.
    """
    return (student(z, b.t, cond) - b.e_concept).square().sum()


def check_tokens(model: DiffusionModel) -> None:
    """Refuse a model without token vectors of CLIP.

    Raises:
        UserError: says how to do without.
    """
    check_clip(model, "the search for a token vector (--recall.no-tokens leaves it out)")
