"""One attack on one concept: its artefacts, fresh pictures of them, and what the judge sees."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efface.errors import UserError
from efface.evaluation.artefacts import Artefact, Victim
from efface.evaluation.attacks import Attack, Attacked
from efface.evaluation.judges import Judge
from efface.evaluation.protocols import Protocol
from efface.models import counting_texts

SEEDS = range(1_000_000, 1_000_008)
"""Of the pictures that are judged: none of a training, a protocol or an attack."""


@dataclass(frozen=True)
class Court:
    """Who judges which pictures."""

    judge: Judge | None
    """None: nobody; then it is measured how far an attack leads back to the unedited pictures."""
    protocol: Protocol
    """What the judge is asked."""
    seeds: Sequence[int] = SEEDS
    """A picture each."""

    def label(self, concept: str) -> int:
        """The judge's index of a concept.

        Raises:
            UserError: it does not know it.
        """
        assert self.judge is not None
        return self.judge.label(concept, self.protocol.head, self.protocol.labels)

    def guesses(self, pictures: Tensor) -> list[int]:
        """What the judge sees first on each picture."""
        assert self.judge is not None
        found = self.judge.classify(pictures)
        rows = found.concepts if self.protocol.head == "concept" else found.styles
        first: list[int] = rows[:, 0].tolist()
        return first

    def looking(self, given: Attacked) -> Callable[[Tensor], list[bool]]:
        """Says whether pictures show what is attacked, which the judge has to know."""
        goal = self.label(given.concept.name)
        return lambda x: [g == goal for g in self.guesses(1 - x if given.negative else x)]

    def names(self, guesses: Sequence[int]) -> str:
        """The commonest of some guesses by its name; "" where that is not known."""
        if self.judge is None or not guesses:
            return ""
        known = {self.label(n): n for n in self.protocol.preserved or self.judge.concept_names}
        return known.get(Tally(guesses).most_common(1)[0][0], "")


@dataclass(frozen=True)
class Spent:
    """Evaluations, of one sample each."""

    forward: int = 0
    """Of the denoiser."""
    backward: int = 0
    text_forward: int = 0
    """Of the text encoder."""
    text_backward: int = 0


@dataclass(frozen=True)
class Row:
    """What came of one artefact."""

    concept: str
    """What was attacked."""
    judged: str
    """What the judge was asked for: the same, or the erased concept where another was attacked."""
    prompt: str
    """What the attack set out from: a prompt of the concept, or "" where nothing was asked for."""
    at: str
    """The point of the attack's curve; "": there is none."""
    why: str
    """The family within the attack."""
    seed: int
    """Of the attack's draws."""
    seeds: Sequence[int]
    """Of the pictures."""
    hits: Sequence[int]
    """Whether each shows it, 0 or 1; of what draws no picture, one success or failure."""
    base: Sequence[int] = ()
    """The unedited model's, where an attack is relative to it."""
    called: str = ""
    """What the judge calls most of the pictures."""
    spent: Spent = Spent()
    """Since the artefact before, by the search alone."""
    artefact: Mapping[str, Any] = field(default_factory=dict)
    """What was found; without ``--keep-artefacts`` only its kind."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """What else is known of it."""
    back: float | None = None
    """Without a judge: percent of the way back to the unedited pictures, by squared distance."""

    @property
    def first(self) -> int | None:
        """The number of the first picture that shows it; None: none does."""
        return next((i for i, h in enumerate(self.hits, 1) if h), None)

    @property
    def proves(self) -> bool:
        """Whether the base model draws it for this artefact, where that is asked."""
        return not self.base or 2 * sum(self.base) >= len(self.base)


class Found(NamedTuple):
    """An artefact with its row and its pictures."""

    row: Row
    artefact: Artefact
    pictures: Tensor | None


Keep = Callable[[Found], None]
"""Is told every artefact."""


def tried(
    attack: Attack,
    given: Attacked,
    court: Court,
    judged: str = "",
    keep: Keep | None = None,
) -> list[Row]:
    """Run an attack, draw fresh pictures of what it found, and ask the judge.

    Args:
        judged: what the judge is asked for; "": what is attacked.
        keep: is told every artefact; None: what was found is not kept, but its kind.

    Raises:
        UserError: something that the attack needs is missing, it makes no sense here, or the judge
            does not know the concept; said before anything is searched.
    """
    judged = judged or given.concept.name
    if court.judge is not None:
        court.label(judged)
    elif attack.judged:
        raise UserError(
            f"only a judge can say what comes of the attack {attack.name!r}, and there is none."
        )
    if "pictures" in attack.needs:
        given.shown()
    attack.check(given)
    given = replace(given, look=court.looking(given) if court.judge else None)
    rows = []
    for artefact, spent in searched(attack, given):
        pictures = artefact.drawn(given.victim, court.seeds)
        row = judgement(attack, given, court, judged, artefact, pictures)
        row = replace(row, spent=spent)
        if keep is not None:
            row = replace(row, artefact=artefact.said())
            keep(Found(row, artefact, pictures))
        rows.append(row)
    return rows


def searched(attack: Attack, given: Attacked) -> Iterator[tuple[Artefact, Spent]]:
    """The artefacts, with what the search for each took."""
    model = given.model
    given = replace(given, start=model.counter.copy())
    found = attack.artefacts(given)
    while True:
        before = model.counter.copy()
        with counting_texts(model) as texts:
            artefact = next(found, None)
        if artefact is None:
            return
        used, here = model.counter.since(before), model.counter.copy()
        yield artefact, Spent(used.forward, used.backward, texts.forward, texts.backward)
        given.start.add(model.counter.since(here))  # what is judged is none of the search's budget


def judgement(
    attack: Attack,
    given: Attacked,
    court: Court,
    judged: str,
    artefact: Artefact,
    pictures: Tensor | None,
) -> Row:
    """What the judge says of an artefact's pictures."""
    row = Row(
        concept=given.concept.name,
        judged=judged,
        prompt=given.asked[0] if artefact.source is None else artefact.source,
        at=artefact.at,
        why=artefact.why,
        seed=given.seed,
        seeds=list(court.seeds),
        hits=(),
        artefact={"kind": artefact.kind},
        measured=dict(artefact.measured),
    )
    if pictures is None:
        return replace(row, hits=[int(bool(getattr(artefact, "success", False)))])
    if court.judge is None:
        return replace(row, back=way_back(artefact, given.victim, court.seeds, pictures))
    goal, turned = court.label(judged), 1 - pictures if given.negative else pictures
    guesses = court.guesses(turned)
    row = replace(row, hits=[int(g == goal) for g in guesses], called=court.names(guesses))
    control = given.blind or given.negative or judged != given.concept.name
    if attack.relative and not control:
        other = artefact.drawn(given.base, court.seeds)
        assert other is not None
        row = replace(row, base=[int(g == goal) for g in court.guesses(other)])
    return row


def way_back(
    artefact: Artefact, victim: Victim, seeds: Sequence[int], pictures: Tensor
) -> float | None:
    """Percent of the squared distance to the unedited pictures that an attack takes away."""
    ends = artefact.ends(victim, seeds)
    if ends is None:
        return None
    unedited, plain = ends
    far = float((plain - unedited).square().sum())
    if far == 0:
        return None
    return 100 * (1 - float((pictures - unedited).square().sum()) / far)


def flat(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Hits of rows, picture by picture, with the concept and the row of each, (N,) each."""
    names = {c: i for i, c in enumerate(dict.fromkeys(r.concept for r in rows))}
    hits = [h for r in rows for h in r.hits]
    return (
        torch.tensor(hits, dtype=torch.bool),
        torch.tensor([names[r.concept] for r in rows for _ in r.hits]),
        torch.tensor([i for i, r in enumerate(rows) for _ in r.hits]),
    )
