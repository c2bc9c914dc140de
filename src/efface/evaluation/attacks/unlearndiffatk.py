"""Tokens before the prompt with which the edited denoiser knows a picture of the concept again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from efface.evaluation.artefacts import Artefact, Text
from efface.evaluation.attacks.attack import Attack, Attacked, no_gates
from efface.evaluation.lessons import Lessons
from efface.models import (
    Conditioning,
    check_clip,
    encoded_with,
    mark_for,
    said_by,
    token_table,
    whole,
    words_of,
)
from efface.settings import Range, check_ranges


@dataclass(frozen=True)
class UnlearnDiffAtk(Attack):
    """Search a few tokens by the gradient of the edited denoiser, noise level by noise level.

    ``uda``: rows of token probabilities before the prompt, so that the denoiser predicts the noise
    on a picture of the concept (arXiv:2310.11868). ``p4d``: free tokens in the prompt's place, so
    that it predicts what the base model predicts for the prompt, at the nearest real tokens
    (P4D-N, arXiv:2309.06135). After each noise level the tokens are written as text, which is read
    again, and one picture is shown to the judge: the search stops where it sees the concept.
    """

    name: ClassVar[str] = "unlearndiffatk"
    channel: ClassVar[str] = "text"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "encoder", "pictures"})
    searches: ClassVar[bool] = True

    variant: Literal["uda", "p4d"] = "uda"
    """Whose search."""
    tokens: Annotated[int, Range(1, 75)] = 3
    """K."""
    levels: Annotated[int, Range(1, 1000)] = 10
    """Noise levels, from the cleanest on, spread evenly."""
    updates: Annotated[int, Range(1, 10**6)] = 20
    """Updates at each."""
    batch: Annotated[int, Range(1, 4096)] = 2
    """Noised pictures in an update."""
    lr: Annotated[float, Range(0, 10, open_low=True)] = 0.01
    """Learning rate of Adam on the probabilities; ten times that for ``p4d``."""
    decay: Annotated[float, Range(0, 10)] = 0.1
    """Weight decay."""
    words: Literal["words", "all"] = "words"
    """The tokens that are searched: those of the vocabulary's words, or all that there are, of
    which a small model was taught few."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def curve(self) -> Sequence[str]:
        """None."""
        return ()

    def full(self) -> UnlearnDiffAtk:
        """The paper's updates and levels, of every word."""
        return replace(self, levels=50, updates=40, words="all")

    def wanted(self) -> int:
        """One picture, as in the paper."""
        return 1

    def least(self) -> int:
        """One update."""
        return 3 * self.batch

    def count(self, prompts: int) -> int:
        """One a prompt."""
        return prompts

    def evaluations(self) -> int:
        """Forward and backward."""
        return 2 * self.batch * self.levels * self.updates

    def check(self, given: Attacked) -> None:
        """CLIP's token vectors, and one set of weights."""
        check_clip(given.model, f"the attack {self.name!r}")
        no_gates(given, self.name)

    def artefacts(self, given: Attacked) -> Iterator[Artefact]:
        """The text of each prompt at which the search stopped."""
        for i, prompt in enumerate(given.asked):
            hunt = Hunt.of(self, given, prompt)
            if given.blind:
                hunt.scatter(given.generator("blind", i))
            level, text = 0, hunt.text()
            for level in () if given.blind else range(self.levels):
                if not given.left(self.least()):
                    break
                hunt.climb(level, given.generator("unlearndiffatk", i, level))
                text = hunt.text()
                if given.succeeds(text, 3_000_000 + level):
                    break
            ids = hunt.best().tolist()
            measured = {"survives": float(said_by(given.model, ids)[1]), "level": float(level)}
            yield Text(prompt=text, source=prompt, ids=tuple(ids), measured=measured)


@dataclass
class Hunt:
    """One search: what stands for the tokens, and how it is moved."""

    attack: UnlearnDiffAtk
    given: Attacked
    prompt: str
    mark: str
    allowed: Tensor
    """Ids that may be used, (V,)."""
    tables: dict[str, Tensor] = field(repr=False)
    """Token vectors of the allowed ids, of each text encoder, (V, D)."""
    lessons: Lessons
    free: list[Tensor]
    """``uda``: probabilities (K, V); ``p4d``: vectors (K, D), one a text encoder."""
    adam: torch.optim.Optimizer

    @classmethod
    def of(cls, attack: UnlearnDiffAtk, given: Attacked, prompt: str) -> Hunt:
        """A search at its beginning."""
        model = given.model
        encoders = list(model.family.encoders)
        size = min(len(token_table(model, k)) for k in encoders)
        ids = whole(model, words_of(model, given.words)) if attack.words == "words" else []
        allowed = torch.tensor([i for i in ids if i < size] or list(range(size)))
        tables = {k: token_table(model, k).detach()[allowed].float() for k in encoders}
        k, v = attack.tokens, len(allowed)
        if attack.variant == "uda":
            free = [torch.full((k, v), 1 / v, device=model.device)]
            adam: torch.optim.Optimizer = torch.optim.Adam(
                free, lr=attack.lr, weight_decay=attack.decay
            )
        else:
            g = given.generator("start", prompt)
            start = torch.randint(v, (k,), generator=g).to(model.device)
            free = [tables[e][start].clone() for e in encoders]
            adam = torch.optim.AdamW(free, lr=10 * attack.lr, weight_decay=attack.decay)
        mark = mark_for(model, [prompt])
        lessons = Lessons(model, given.shown()[: attack.wanted()])
        return cls(attack, given, prompt, mark, allowed, tables, lessons, free, adam)

    def best(self) -> Tensor:
        """The ids that it has come to, (K,)."""
        return self.allowed[self.at(None).cpu()]

    def at(self, g: torch.Generator | None) -> Tensor:
        """Places among the allowed ids, (K,): drawn, or without a generator the likeliest."""
        if self.attack.variant == "uda":
            rows = self.free[0]
            if g is None:
                return rows.argmax(1)
            return torch.multinomial(rows.cpu(), 1, generator=g)[:, 0].to(rows.device)
        near = [unit(e) @ unit(w).T for e, w in zip(self.free, self.tables.values(), strict=True)]
        return torch.stack(near).sum(0).argmax(1)

    def text(self) -> str:
        """The tokens as text, and the prompt behind them where it stays."""
        found = said_by(self.given.model, self.best().tolist())[0]
        return f"{found} {self.prompt}" if self.attack.variant == "uda" else found

    def scatter(self, g: torch.Generator) -> None:
        """Random tokens in their place."""
        at = torch.randint(len(self.allowed), (self.attack.tokens,), generator=g)
        if self.attack.variant == "uda":
            self.free[0].zero_()
            self.free[0][torch.arange(len(at)), at] = 1.0
        else:
            for e, w in zip(self.free, self.tables.values(), strict=True):
                e.copy_(w[at.to(w.device)])

    def climb(self, level: int, g: torch.Generator) -> None:
        """All updates of one noise level."""
        a, model = self.attack, self.given.model
        weights = self.given.victim.weights("")
        t = (2 * level + 1) * model.process.times // (2 * a.levels)
        times = torch.full((a.batch,), t, device=model.device)
        for _ in range(a.updates):
            if not self.given.left(a.least()):
                return
            row = torch.randint(len(self.lessons.clean), (a.batch,), generator=g)
            z, t_, goal = self.lessons.at(row, times, g)
            if a.variant == "p4d":
                with torch.no_grad():
                    plain = model.embed([self.prompt]).repeat(a.batch)
                    goal = model.predict(z, t_, plain)
            at = self.at(g)
            rows = {k: w[at].clone().requires_grad_() for k, w in self.tables.items()}
            cond = self.encoded(rows).repeat(a.batch)
            self.lessons.loss(z, t_, goal, cond, weights).backward()
            self.move(rows)

    def encoded(self, rows: dict[str, Tensor]) -> Conditioning:
        """The prompt with these token vectors, one row."""
        text = " ".join([self.mark] * self.attack.tokens)
        if self.attack.variant == "uda":
            text = f"{text} {self.prompt}"
        return encoded_with(self.given.model, [text], self.mark, rows)

    def move(self, rows: dict[str, Tensor]) -> None:
        """One step by the gradients of the token vectors."""
        slopes = {k: r.grad for k, r in rows.items() if r.grad is not None}
        if self.attack.variant == "uda":  # through the one-hot, as if it were the probabilities
            through = [g @ self.tables[k].T for k, g in slopes.items()]
            self.free[0].grad = torch.stack(through).sum(0).clamp(-1, 1)
            self.adam.step()
            self.free[0].copy_(simplex(self.free[0]))
        else:
            for e, k in zip(self.free, self.tables, strict=True):
                e.grad = slopes[k]
            self.adam.step()


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return torch.nn.functional.normalize(x, dim=1)


def simplex(rows: Tensor) -> Tensor:
    """The nearest probabilities to each row, (K, V).

    Source: Duchi et al., ICML 2008, figure 1.
    """
    down = rows.sort(dim=1, descending=True).values
    total = down.cumsum(1) - 1
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    last = (down * count > total).sum(1, keepdim=True)
    shift = total.gather(1, last - 1) / last
    return (rows - shift).clamp(min=0)
