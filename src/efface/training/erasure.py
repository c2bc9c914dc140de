"""How every erasure goes: what was asked, the work of the method, and the edit that remembers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from efface.concepts import Concept, check, listed
from efface.edits.edit import Edit
from efface.edits.gates import Gate
from efface.edits.lowrank import LowRank
from efface.errors import UserError
from efface.models import Conditioning, Counter, DiffusionModel, load
from efface.models.identity import beside
from efface.names import one, quoted, words
from efface.seeds import generator
from efface.settings import check_ranges, to_json
from efface.training.anchors import steered
from efface.training.change import check_change, check_trained
from efface.training.loop import finetune
from efface.training.processes import add_up, join
from efface.training.runs import EDIT, Run, asked
from efface.training.student import Loss, Stateful, Student
from efface.training.tuning import Tuning
from efface.vocabularies import hash_list, told
from efface.vocabularies import load as load_vocabulary
from efface.vocabulary import Vocabulary
from efface.wordlists import relatives


class Made(NamedTuple):
    """What a method gives back."""

    weights: Mapping[str, Tensor]
    """The changed weights by name, fp32, on the CPU."""
    gates: tuple[Gate, ...] = ()
    """What depends on the prompt; mostly nothing."""


@dataclass(frozen=True)
class Keeping:
    """The one meaning of ``keep`` in a training: a term of its own, over whatever else there is."""

    model: DiffusionModel
    rows: Conditioning | None
    """The words, encoded; None: nothing is kept."""
    weight: float

    def term(self, student: Student, z: Tensor, t: Tensor, g: torch.Generator) -> Tensor:
        """``weight`` times the mean squared change of what is predicted for the kept words.

        Every latent goes with a kept word; all words come equally often.

        Args:
            z: latents, (B, C, H, W).
            t: their timesteps, (B,).
        """
        if self.rows is None:
            return torch.zeros((), device=z.device)
        order = torch.randperm(len(self.rows), generator=g)
        cond = self.rows[order.repeat(-(-len(z) // len(order)))[: len(z)].to(z.device)]
        with torch.no_grad():
            goal = self.model.predict(z, t, cond)
        return self.weight * (student(z, t, cond) - goal).square().mean()


@dataclass
class Job:
    """One erasure at work: all that a method is given."""

    method: Method
    model: DiffusionModel
    concepts: tuple[Concept, ...]
    """What is erased, each with its anchor, synonyms and pool."""
    run: Run
    about: dict[str, Any] = field(default_factory=dict)
    """What the edit will remember."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the edit will remember besides, known at the end only; ``said`` is shown to the user."""

    branch: tuple[str | int, ...] = ()
    """Which part of the whole job this is; part of the name of its draws."""
    far: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """How far words are from the names of all concepts, measured once."""
    listed: dict[tuple[Any, ...], Vocabulary] = field(default_factory=dict, repr=False)
    """What may be preserved, made once for all concepts of a kind."""
    now: int = 0
    """The update that is being made, from 0."""
    parts: str = ""
    """Hash of the text encoders, the autoencoder and the tokenizers, where the run is kept."""

    def generator(self, *path: str | int) -> torch.Generator:
        """The generator of the draw that ``path`` names; see :mod:`efface.seeds`."""
        return generator(getattr(self.method, "seed", 0), *self.branch, *path)

    @property
    def names(self) -> list[str]:
        """Every erased name and synonym, concept by concept."""
        return [n for c in self.concepts for n in c.names]

    @property
    def anchors(self) -> list[str]:
        """The anchor of each of :attr:`names`."""
        return [c.anchor for c in self.concepts for _ in c.names]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes a run this run: what it was asked, and what else its weights depend on."""
        scheduler = self.model.scheduler
        noise = [type(scheduler).__name__, dict(scheduler.config)]
        return {
            **asked(self.about),
            "lr": self.model.lr,
            "parts": self.parts,
            "noise": json.loads(json.dumps(noise, default=str)),
        }

    def words(
        self, source: str, concept: Concept | None = None, exclude: bool = True
    ) -> Vocabulary:
        """What may be preserved, without whatever asks for an erased concept.

        Args:
            source: of :func:`efface.vocabularies.load`.
            concept: one of :attr:`concepts`, whose own pool comes first.
            exclude: False: leave the erased ones in.

        Raises:
            UserError: none is left.
        """
        if concept and concept.pool:
            found = Vocabulary(concept.pool, f"pool of {concept.name}")
            return self._allowed(found) if exclude else found
        mine = [concept] if concept else self.concepts
        asked = (self.concepts, source, relatives(mine), exclude)
        if asked not in self.listed:
            found = load_vocabulary(source, self.model, mine, self.concepts)
            found = replace(found, beside=tuple(c.name for c in self.concepts), seen=self.far)
            self.listed[asked] = self._allowed(found) if exclude else found
            if not self.listed[asked].words:
                raise UserError(
                    f"the vocabulary ({found.source}) holds no word but what is erased: nothing "
                    "would be preserved."
                )
        return self.listed[asked]

    def _allowed(self, found: Vocabulary) -> Vocabulary:
        parts = getattr(self.method, "exclude_parts", False)
        return found.without(self.concepts, self.model.tokenizer, parts)

    def keeping(self) -> Keeping:
        """What holds on to the method's ``keep`` list while it is trained.

        ``""`` on it is the null prompt of the guidance.
        """
        words, weight = self.method.keep, getattr(self.method, "keep_weight", 1.0)
        rows = self.model.embed(words, null=True) if words and weight else None
        return Keeping(self.model, rows, weight)

    def alone(self, i: int) -> Job:
        """The part of this job that concerns its ``i``-th concept."""
        return replace(
            self,
            concepts=self.concepts[i : i + 1],
            about={**self.about, "part": i},
            branch=("concept", i),
            far={},
        )

    def part(self, i: int, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What ``make`` gives for the ``i``-th concept, kept by the run once it is made."""
        return self.run.part(i, self.alone(i).fingerprint, make, self.model.counter)

    def train(
        self,
        loss: Loss,
        stateful: Sequence[Stateful] = (),
        start: Mapping[str, Tensor] | None = None,
        adapters: LowRank | None = None,
    ) -> dict[str, Tensor]:
        """Train the method's weight group by a loss; see :func:`~efface.training.loop.finetune`."""
        weights, updates = finetune(self, loss, stateful, start, adapters)
        if updates < getattr(self.method, "updates", 0):
            self.notes["stopped_after"] = updates
        return weights


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An erasure method: a frozen dataclass of hyper-parameters, one file.

    It is given a :class:`Job` and gives the new weights: by its batches and its loss
    (:meth:`Job.train`; then it is a :class:`~efface.training.Tuning` as well), or in closed form.
    """

    name: ClassVar[str]
    """What the command line calls it."""
    label: ClassVar[str]
    """What tables call it."""
    closed_form: ClassVar[bool] = False
    """One solve: edits of several concepts can be solved again together."""
    apart: ClassVar[bool] = False
    """Trains one concept after the other, each with ``updates``."""
    takes_pools: ClassVar[bool] = False
    """Preserves for each concept words of its own, where it brings some."""
    seeks: ClassVar[bool] = False
    """Searches for anchors in a way of its own."""
    anchor: str = ""
    """What concepts without an anchor of their own are steered to: a word, auto (searched for in
    the vocabulary, for each concept), or nothing, the null prompt."""
    keep: tuple[str, ...] = ()
    """Words that are preserved with certainty; a string is one word."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", words(self.keep, "keep"))
        object.__setattr__(self, "anchor", one(self.anchor, "anchor"))
        check_ranges(self)

    def check(self, job: Job) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse, before any work, what :meth:`make` could not do; the job's anchors are not known.

        Raises:
            UserError: what cannot be.
        """

    @abstractmethod
    def make(self, job: Job) -> Made:
        """The new weights.

        Raises:
            UserError: what the method cannot do with this model or these concepts.
        """

    @classmethod
    def presets(cls) -> Mapping[str, Method]:
        """Named settings; ``searched`` is what the benchmark uses."""
        return {}

    @classmethod
    def lineup(cls) -> Mapping[str, Entry]:
        """What the benchmark compares, by its name there: the method as it was searched for."""
        return {cls.name: Entry(cls.label, cls.presets().get("searched", cls()))}

    def erase(
        self,
        model: object,
        concepts: str | Concept | Sequence[str | Concept],
        run: Run = Run(),
    ) -> Edit:
        """Make an edit in which ``concepts`` cannot be asked for.

        Args:
            model: a :class:`DiffusionModel`, a diffusers pipeline (taken as it is), a shipped name,
                a path or a hub id.
            concepts: names, ``name -> anchor``, ``name | synonym, synonym``, or Concepts.

        Raises:
            UserError: no concept, one that is to be kept as well, and whatever the method cannot.
        """
        if not isinstance(run, Run):
            raise UserError(f"got {quoted(run)} for run; an efface.Run is needed.")
        opened = load(model, maps_only=self.closed_form)
        return erase(self, opened, listed(concepts), run)


class Entry(NamedTuple):
    """One line of the benchmark."""

    label: str
    method: Method
    times: float = 1.0
    """Its updates, as a multiple of what all have."""


def erase(
    method: Method, model: DiffusionModel, concepts: Sequence[Concept], run: Run = Run()
) -> Edit:
    """Ask a method for its weights, and give them as an edit that knows how it was made.

    Raises:
        UserError: names that contradict each other, no anchor to be found, whatever the method
            cannot, and weights that did not move.
    """
    concepts, keep = check(told(model, concepts), method.keep, model.tokenizer)
    if keep != method.keep:  # a word twice, or a string for a list
        method = replace(method, keep=keep)
    if not method.takes_pools and (own := next((c for c in concepts if c.pool), None)):
        raise UserError(
            f"the concept {own.name!r} brings words of its own to be preserved (pool), which "
            f"{method.name} has no use for: give them as keep, or in a vocabulary."
        )
    counter, before, began = model.counter, model.counter.copy(), perf_counter()
    method.check(Job(method, model, tuple(concepts), run))
    source = run.words or getattr(method, "vocabulary", "") or "auto"
    seed = getattr(method, "seed", 0)
    first = join()[0] == 0
    about = provenance(method, model, concepts) | {"searched": [run.words, hash_list(run.words)]}
    notes = run.notes(about, counter, first)
    concepts = steered(model, concepts, method.anchor, source, seed, run.progress, notes)
    if run.on_anchors is not None:
        run.on_anchors(model, concepts)
    job = Job(method, model, tuple(concepts), run, provenance(method, model, concepts))
    run.free(job.about)
    if run.folder is not None and not method.closed_form:  # before the training drops them
        job = replace(job, parts=beside(model))
    with run.alone() if first else nullcontext():
        made = method.make(job)
        check_made(job, made)
        spent = counter.since(before)
        seconds = round(spent.seconds + perf_counter() - began, 4)
        meta = {**job.about, **job.notes, "cost": shared_out(spent)}
        edit = Edit(made.weights, meta, made.gates, model, {"seconds": seconds})
        if run.folder is not None and first:
            edit.save(run.folder / EDIT)
            run.forget()
    return edit


def check_made(job: Job, made: Made) -> None:
    """Refuse weights that are no edit; a training says by itself where they are not finite.

    Raises:
        UserError: as :func:`check_change` and :func:`check_trained`.
    """
    own = job.model.parameters()
    if job.method.closed_form:
        check_change(made.weights, own)
    elif isinstance(job.method, Tuning) and job.run.trial is None:
        try:
            check_trained(made.weights, own)
        except UserError:
            job.run.forget()  # it would go on from there
            raise


def shared_out(spent: Counter) -> dict[str, int]:
    """Evaluations of all processes together."""
    counts = torch.tensor([spent.forward, spent.backward])
    if join()[1] > 1:
        counts = counts.to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        add_up([counts])
    forward, backward = counts.tolist()
    return {"forward": forward, "backward": backward}


def provenance(
    method: Method, model: DiffusionModel, concepts: Sequence[Concept]
) -> dict[str, Any]:
    """What an edit remembers of how it was made.

    Raises:
        UserError: the word list, where one is named, cannot be read.
    """
    from efface.storage import VERSION

    listed = hash_list(getattr(method, "vocabulary", ""))
    return {
        "efface": VERSION,
        "method": method.name,
        "config": to_json(method),
        "concepts": [c.to_json() for c in told(model, concepts)],
        "model": model.name,
        "base": model.base,
        "dtype": model.precision,
        **({"quantised": model.quantised} if model.quantised else {}),
        **({"size": model.size} if model.size else {}),
        **({"words": listed} if listed else {}),
    }
