"""An edit beside its unedited model: the question, the answer, and the file of the answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.evaluate import (
    brought_protocol,
    edit_folder,
    own_protocol,
    pictures,
    sampler_of,
    samples_folder,
)
from efface.evaluation.judges import Judge
from efface.evaluation.measure import Asked, answers, both, erased_in, judge_of, wanted_of
from efface.evaluation.metrics import METRICS, Given, psr_difference
from efface.evaluation.protocols import MANY, PROTOCOLS, Protocol
from efface.evaluation.protocols import load as load_protocol
from efface.evaluation.samples import Wanted
from efface.models import DiffusionModel
from efface.names import among, apart
from efface.scores import Score
from efface.settings import Range, need
from efface.storage import make_folder, write_text
from efface.training import EDIT

PICTURES = 4
"""Pictures of each prompt, where nobody says how many."""


@dataclass(frozen=True)
class Question:
    """What is asked of an edit; made by :func:`ask`.

    Raises:
        UserError: no pictures, too many, or prompts that are missing or not asked for.
    """

    protocol: Protocol
    own: bool
    """Whether that is the model's own."""
    pictures: int = PICTURES
    """Pictures of each prompt, seeds 0, 1, …; where prompts come from a file, the protocol says."""
    concepts: tuple[str, ...] = ()
    """Only these preserved concepts; empty: the protocol's."""
    steps: int | None = None
    """Sampling steps; None: the protocol's, or the model's own."""
    prompts: Path | None = None
    """The file of a protocol that reads its prompts from one."""
    limit: int = 0
    """Only the first so many prompts of the file; 0: all."""
    clip: str = ""
    """A CLIP by path or hub id; "": the shipped one, for the shipped model."""

    def __post_init__(self) -> None:
        need(self.pictures, "pictures", Range(1, MANY))
        need(self.limit, "limit", Range(0))
        source = self.protocol.source
        if source and self.prompts is None:
            raise UserError(
                f"the protocol {self.protocol.name!r} reads its prompts from a file "
                f"({source['file']}): give --prompts FILE."
            )
        if source and self.concepts:
            raise UserError(
                f"the protocol {self.protocol.name!r} reads its prompts from a file: it can be cut "
                "short by a limit, not by concepts."
            )
        if not source and (self.prompts is not None or self.limit):
            raise UserError(
                f"the protocol {self.protocol.name!r} makes its prompts itself: it takes no file."
            )
        if self.clip and not any("clip" in METRICS[m].needs for m in self.protocol.metrics):
            raise UserError(f"no metric of the protocol {self.protocol.name!r} needs a CLIP.")


def ask(
    model: DiffusionModel,
    protocol: str | Path | Protocol = "",
    edit: Edit | None = None,
    **narrower: Any,
) -> Question:
    """A question about a model.

    Args:
        protocol: a shipped one's name, a file, or a Protocol; "": the model's own.
        edit: what is scored, where the model's own protocol depends on it.
        narrower: other fields of :class:`Question`.

    Raises:
        UserError: no such protocol, or the model has none of its own.
    """
    if not protocol:
        return Question(own_protocol(model, edit), True, **narrower)
    told = protocol if isinstance(protocol, Protocol) else load_protocol(str(protocol))
    own = brought_protocol(model)
    return Question(told, own is not None and own.digest == told.digest, **narrower)


def scores_file(question: Question) -> str:
    """The name of its answer in a run's folder: other questions have other files.

    The whole question of the model's own protocol is ``scores.json``; one of a shipped protocol
    has that one's name; whatever is narrowed, or comes from a file, has a hash of all that is
    asked.
    """
    p = question.protocol
    plain = Question(p, question.own, prompts=question.prompts)
    if question.own and not p.source and question == plain:
        return "scores.json"
    name = re.sub(r"[^\w.-]+", "-", p.name)[:60]
    known = p.name in PROTOCOLS and load_protocol(p.name).digest == p.digest
    if known and not p.source and question == plain:
        return f"scores-{name}.json"
    prompts = question.prompts and hashlib.sha256(question.prompts.read_bytes()).hexdigest()
    told = [p.digest, question.pictures, sorted(question.concepts), question.steps]
    said = json.dumps([*told, prompts, question.limit, question.clip])
    return f"scores-{name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}.json"


@dataclass(frozen=True)
class Scores:
    """What a protocol says of an edit beside the unedited model, or of the latter alone."""

    about: Mapping[str, Any]
    """The question in words: protocol, judge, pictures, sampler, …"""
    unedited: Mapping[str, Score]
    """The unedited model's scores by name."""
    edited: Mapping[str, Score] | None = None
    """The edit's; None: there is no edit."""
    difference: Mapping[str, Score] = field(default_factory=dict)
    """Edited minus unedited, in points, by paired pictures."""
    hits: Mapping[str, Mapping[str, Sequence[Sequence[int]]]] = field(default_factory=dict)
    """What the judge saw of each concept: ``edited`` and ``unedited``, top 1 and top 5, 0 or 1 a
    picture."""

    @property
    def table(self) -> Mapping[str, Score]:
        """Every score by its name: the edit's, where there is one."""
        return self.unedited if self.edited is None else self.edited

    @property
    def esr1(self) -> Score | None:
        """Erasing success rate, top 1; None where it was not measured, as for all below."""
        return self.table.get("ESR-1")

    @property
    def esr5(self) -> Score | None:
        """Erasing success rate, top 5."""
        return self.table.get("ESR-5")

    @property
    def psr1(self) -> Score | None:
        """Preserving success rate, top 1."""
        return self.table.get("PSR-1")

    @property
    def psr5(self) -> Score | None:
        """Preserving success rate, top 5."""
        return self.table.get("PSR-5")

    @property
    def neighbours1(self) -> Score | None:
        """Preserving success rate of the named neighbours, top 1."""
        return self.table.get("PSR-1 neighbours")

    @property
    def neighbours5(self) -> Score | None:
        """Preserving success rate of the named neighbours, top 5."""
        return self.table.get("PSR-5 neighbours")

    @property
    def worst(self) -> list[str]:
        """Preserved concepts that are recognised less than without the edit, most harmed first."""
        gone = set(self.about.get("erased", ()))
        fall = {
            c: sum(h["unedited"][0]) - sum(h["edited"][0])
            for c, h in self.hits.items()
            if c not in gone
        }
        return sorted((c for c in fall if fall[c] > 0), key=lambda c: (-fall[c], c))

    def to_json(self) -> dict[str, Any]:
        """What a run's folder keeps, and ``--json`` prints."""

        def plain(scores: Mapping[str, Score]) -> dict[str, Any]:
            return {k: s.to_json() for k, s in scores.items()}

        if "prompts" in self.about:
            both = {} if self.edited is None else {"unedited": plain(self.unedited)}
            return {**self.about, "scores": plain(self.table), **both}
        found = {**self.about, "unedited": plain(self.unedited)}
        if self.edited is not None:
            found |= {"edited": plain(self.edited), "difference": plain(self.difference)}
            found["concepts"] = dict(self.hits)
        return found


def scored(
    model: DiffusionModel,
    edit: Edit | None,
    question: Question,
    home: Path | None = None,
    progress: bool = True,
) -> Scores:
    """Answer a question: make the pictures that are missing, and measure them.

    Args:
        edit: None: the unedited model alone.
        home: a run's folder, in which the edit's pictures are kept; None: the cache folder.

    Raises:
        UserError: the edit is not of this model, or something that a metric needs is missing; said
            before any picture is made.
    """
    p = question.protocol
    if edit is not None:
        edit.check(model)
        home = home or edit_folder(model, edit)
    judge = judge_of(model, p)
    wanted = asked_of(question, edit, judge)
    erased = erased_in(edit, wanted)
    tools = {"clip": question.clip} if question.clip else {}
    folder = home and samples_folder(home, model, p, question.steps)
    before, after = both(
        model, edit, folder, Asked(p, wanted, judge, erased, tools), question.steps, progress
    )
    about: dict[str, Any] = {"protocol": f"{p.name} {p.digest}"}
    if p.source:
        about["prompts"] = len(wanted)
    else:
        about |= {
            "judge": f"{judge.version} {judge.sha256}" if judge else "",
            "pictures": question.pictures,
            "sampler": sampler_of(model, p, question.steps),
            "erased": erased,
        }
    if question.concepts:
        about["only"] = list(question.concepts)
    if edit is not None:
        about["edit"] = edit.whole
    unedited = answers(before)
    if after is None:
        return Scores(about, unedited)
    edited = answers(after)
    return Scores(about, unedited, edited, *paired(after, before) if judge else ({}, {}))


def asked_of(question: Question, edit: Edit | None, judge: Judge | None) -> list[Wanted]:
    """The pictures that a question asks for.

    Raises:
        UserError: a concept that the judge does not know, an erased one among the preserved, or too
            few pictures.
    """
    p = question.protocol
    if "worst-tenth" in p.metrics and not p.source and question.pictures < 2:
        raise UserError(
            "got 1 for --pictures; the worst tenth is found on half of the pictures and scored on "
            "the others: 2 or more."
        )
    if p.source:
        assert question.prompts is not None  # a question is whole
        return wanted_of(p, question.prompts, question.limit)
    concepts = edit.meta["concepts"] if edit is not None else []
    erased = [c["name"] for c in concepts]
    synonyms = apart([s for c in concepts for s in c["synonyms"]], erased)  # none is preserved
    for c in among(question.concepts, [*erased, *synonyms]):
        raise UserError(f"{c!r} is erased by this edit: it is scored as that in any case.")
    for c in (*erased, *question.concepts):
        if judge is not None:
            judge.label(c, p.head, p.labels)
    others = question.concepts or p.others(erased, judge.concept_names if judge else ())
    names = [*erased, *apart(dict.fromkeys(others), [*erased, *synonyms])]
    return pictures(p, names, range(question.pictures))


def paired(after: Given, before: Given) -> tuple[dict[str, Score], dict[str, Any]]:
    """Differences of PSR-1 and PSR-5, and what the judge saw of each concept on both sides."""
    now, was = after.seen(), before.seen()
    names = list(dict.fromkeys(now.concepts))
    others = [c for c in names if c not in set(after.erased)]
    difference = {f"PSR-{k}": psr_difference(now, was, others, k) for k in (1, 5) if others}
    return difference, {
        c: {"unedited": was.of([c]).packed(), "edited": now.of([c]).packed()} for c in names
    }


def strength_folder(home: Path, strength: float) -> Path:
    """Where a run's folder keeps the pictures and scores of its edit at a strength."""
    return home if strength == 1 else home / f"strength-{float(strength)!r}"


def place_for(home: Path, edit: Edit | None) -> Path:
    """Where a folder keeps what is scored of an edit: in itself, where that is its own.

    Another strength of it, and the model without it, have places of their own.
    """
    if not (home / EDIT).exists():
        return home if edit is None else strength_folder(home, edit.strength)
    if edit is None:
        return home / "unedited"
    return strength_folder(home, edit.strength / Edit.load(home).strength)


def keep(
    found: Scores, question: Question, home: Path, precision: str = "fp32", size: int = 0
) -> Path:
    """Write an answer into a run's folder; those of other questions, or other pictures, stay.

    Args:
        precision: the model's, in short.
        size: of its pictures, where that is not its own; 0: it is.

    Raises:
        UserError: it cannot be written.
    """
    make_folder(home)
    parts = [precision] if precision != "fp32" else []
    parts += [f"{size}px"] if size else []
    path = home / f"{'-'.join([scores_file(question).removesuffix('.json'), *parts])}.json"
    write_text(path, json.dumps(found.to_json(), indent=1) + "\n")
    return path
