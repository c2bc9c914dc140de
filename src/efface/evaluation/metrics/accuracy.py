"""Does the judge see the concept? Erasing and preserving success rates (ESR-k, PSR-k)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.evaluation.metrics.metric import Given, Metric
from efface.evaluation.samples import Samples
from efface.scores import Score, concept_rate, paired_difference, rate


@dataclass(frozen=True)
class Seen:
    """What the judge saw on N pictures, in the order of their rows."""

    concepts: tuple[str, ...]
    """What each picture ought to show."""
    top1: Tensor
    """Whether the judge's first guess is that, (N,) bool."""
    top5: Tensor
    """Whether it is among its first five, (N,) bool."""

    def hits(self, k: int) -> Tensor:
        """(N,) bool for k = 1 or 5."""
        return {1: self.top1, 5: self.top5}[k]

    def of(self, names: Sequence[str]) -> Seen:
        """Only the pictures of these concepts."""
        wanted = set(names)
        rows = torch.tensor(
            [i for i, c in enumerate(self.concepts) if c in wanted], dtype=torch.long
        )
        return Seen(
            tuple(self.concepts[i] for i in rows.tolist()), self.top1[rows], self.top5[rows]
        )

    def packed(self) -> list[list[int]]:
        """Top-1 and top-5 as two lists of 0 and 1, for a file."""
        return [self.top1.int().tolist(), self.top5.int().tolist()]

    @property
    def groups(self) -> Tensor:
        """An integer a picture, equal where the concept is, (N,)."""
        at = {c: i for i, c in enumerate(dict.fromkeys(self.concepts))}
        return torch.tensor([at[c] for c in self.concepts])


def see(
    samples: Samples, judge: Any, head: str = "concept", labels: Mapping[str, str] | None = None
) -> Seen:
    """Judge every picture of a sample set.

    Args:
        head: what the judge is to name: ``concept`` or ``style``.
        labels: what it calls a concept, where that is another name.

    Raises:
        UserError: a concept that the judge does not know.
        ValueError: no pictures.
    """
    goal = torch.tensor([judge.label(r.concept, head, labels) for r in samples.rows])
    found = judge.classify(samples.images())
    guess = found.concepts if head == "concept" else found.styles[:, :5]
    hit = guess == goal[:, None]
    return Seen(tuple(r.concept for r in samples.rows), hit[:, 0], hit.any(1))


def esr(seen: Seen, erased: Sequence[str], k: int) -> Score:
    """Erasing success rate in percent.

    The share of the erased concepts' pictures *without* the concept in the judge's top k.
    Higher is better. Wilson interval: new pictures of these concepts, which were chosen, by this
    edit. Source: arXiv:2410.15618, section 4.1.
    """
    return rate(~seen.of(erased).hits(k))


def psr(seen: Seen, preserved: Sequence[str], k: int) -> Score:
    """Preserving success rate in percent.

    The share of the preserved concepts' pictures *with* the concept in the judge's top k.
    Higher is better. The interval is over concepts like these, by this edit. Source:
    arXiv:2410.15618, section 4.1.
    """
    s = seen.of(preserved)
    return concept_rate(s.hits(k), s.groups)


def psr_difference(a: Seen, b: Seen, preserved: Sequence[str], k: int) -> Score:
    """PSR-k of ``a`` less that of ``b``, in points, paired by picture; over concepts like these."""
    x, y = a.of(preserved), b.of(preserved)
    if x.concepts != y.concepts:
        raise ValueError("a paired difference needs the same pictures on both sides.")
    return paired_difference(x.hits(k), y.hits(k), x.groups)


def table(seen: Seen, erased: Sequence[str], neighbours: Sequence[str]) -> dict[str, Score]:
    """Scores by name: ESR-k of the erased, PSR-k of all others and of the named neighbours."""
    others = [c for c in dict.fromkeys(seen.concepts) if c not in set(erased)]
    near = [c for c in others if c in set(neighbours)]
    found: dict[str, Score] = {}
    if seen.of(erased).concepts:
        found |= {f"ESR-{k}": esr(seen, erased, k) for k in (1, 5)}
    if others:
        found |= {f"PSR-{k}": psr(seen, others, k) for k in (1, 5)}
    if near:
        found |= {f"PSR-{k} neighbours": psr(seen, near, k) for k in (1, 5)}
    return found


def seen(given: Given) -> Seen:
    """What the judge saw on the pictures, looked at once."""
    p, key = given.protocol, f"seen in {given.samples.folder}"
    return given.once(key, lambda: see(given.samples, given.judge, p.head, p.labels))


class ESR(Metric):
    """Erasing success rate, top 1 and top 5."""

    name: ClassVar[str] = "esr"
    better: ClassVar[str] = "higher"
    unit: ClassVar[str] = "% of the erased concepts' pictures"
    needs: ClassVar[frozenset[str]] = frozenset({"judge"})

    def measure(self, given: Given) -> dict[str, Score]:
        """Those lines of :func:`table`."""
        found = table(seen(given), given.erased, given.protocol.near(given.erased))
        return {k: s for k, s in found.items() if k.startswith("ESR-")}


class PSR(Metric):
    """Preserving success rate of all other concepts, and of the named neighbours."""

    name: ClassVar[str] = "psr"
    better: ClassVar[str] = "higher"
    unit: ClassVar[str] = "% of the preserved concepts' pictures"
    needs: ClassVar[frozenset[str]] = frozenset({"judge"})

    def measure(self, given: Given) -> dict[str, Score]:
        """The other lines of :func:`table`."""
        found = table(seen(given), given.erased, given.protocol.near(given.erased))
        return {k: s for k, s in found.items() if not k.startswith("ESR-")}
