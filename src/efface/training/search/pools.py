"""The candidates for preservation, and what a search among them is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from efface.errors import UserError
from efface.models import WORTH, Conditioning
from efface.training.batches import Batch, Words
from efface.training.erasure import Job
from efface.training.latents import Source
from efface.training.student import Stateful, Student
from efface.vocabulary import Vocabulary


class Pools(NamedTuple):
    """The candidates of all erased concepts."""

    words: tuple[str, ...]
    """Every candidate once, U of them."""
    rows: Conditioning
    """Encoded, U rows; on the CPU where they take more than a gigabyte."""
    of: tuple[Tensor, ...]
    """Indices into ``words``, one tensor an erased concept."""
    device: torch.device | None = None
    """Where they are used; None: where they are."""
    sources: tuple[str, ...] = ()
    """Which lists they are from."""

    def take(self, index: Tensor | slice) -> Conditioning:
        """Some rows, on the device."""
        if isinstance(index, Tensor):
            index = index.to(self.rows.states.device)
        return self.rows[index].each(lambda x: x.to(self.device or x.device))

    @property
    def about(self) -> dict[str, object]:
        """What an edit remembers of them."""
        return {"words": len(self.words), "hash": self.digest, "from": list(self.sources)}

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over the words of every concept."""
        said = "\n".join(self.words) + str([m.tolist() for m in self.of])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def pools(job: Job, found: Sequence[Vocabulary]) -> Pools:
    """Encode the candidates of each of a job's concepts, each word once."""
    model, concepts = job.model, job.concepts
    words = tuple(dict.fromkeys(w for v in found for w in v.words))
    at = {w: i for i, w in enumerate(words)}
    of = tuple(torch.tensor([at[w] for w in v.words]) for v in found)
    for concept, mine in zip(concepts, of, strict=True):
        if not len(mine):
            raise UserError(
                f"no word is left to preserve while erasing {concept.name!r}: "
                "give a larger vocabulary."
            )
    many = model.null(1).states.nbytes * len(words) > WORTH
    rows = model.embed(words, where="cpu" if many else "", null=True)
    sources = tuple(dict.fromkeys(v.source for v in found))
    return Pools(words, rows, of, model.device, sources)


class Drawn(NamedTuple):
    """Preserved concepts for the rows of an update."""

    cond: Conditioning
    chosen: Tensor
    """Which candidate each row is (its largest share, where it is a mixture)."""


class Searching(Stateful, Protocol):
    """A search at work."""

    def draw(self, which: Tensor, n: int, g: torch.Generator) -> Drawn:
        """``n`` candidates, row i for the erased concept ``which[i]`` (over again)."""
        ...

    def learn(self, chosen: Tensor, harm: Tensor) -> None:
        """Told how much the candidates that were drawn are harmed, (N,) each."""
        ...


Objective = Callable[[Student, Batch, Words], Tensor]
"""What the logits climb: of a still student, a batch and a candidate for each of its rows."""


class Setting(NamedTuple):
    """What a search is started with."""

    job: Job
    candidates: Pools
    source: Source
    objective: Objective | None = None
    """The harm that is looked for, by a search that climbs."""
