"""Does the judge see the concept? Erasing and preserving success rates (ESR-k, PSR-k)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from efface.evaluation.metrics.metric import Given, Metric
from efface.evaluation.seen import Seen
from efface.names import among, apart
from efface.scores import Score, concept_rate, paired_difference, rate


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
    others = apart(dict.fromkeys(seen.concepts), erased)
    near = among(others, neighbours)
    found: dict[str, Score] = {}
    if seen.of(erased).concepts:
        found |= {f"ESR-{k}": esr(seen, erased, k) for k in (1, 5)}
    if others:
        found |= {f"PSR-{k}": psr(seen, others, k) for k in (1, 5)}
    if near:
        found |= {f"PSR-{k} neighbours": psr(seen, near, k) for k in (1, 5)}
    return found


class ESR(Metric):
    """Erasing success rate, top 1 and top 5."""

    name: ClassVar[str] = "esr"
    better: ClassVar[str] = "higher"
    unit: ClassVar[str] = "% of the erased concepts' pictures"
    needs: ClassVar[frozenset[str]] = frozenset({"judge"})

    def measure(self, given: Given) -> dict[str, Score]:
        """Those lines of :func:`table`."""
        found = table(given.seen(), given.erased, given.protocol.near(given.erased))
        return {k: s for k, s in found.items() if k.startswith("ESR-")}


class PSR(Metric):
    """Preserving success rate of all other concepts, and of the named neighbours."""

    name: ClassVar[str] = "psr"
    better: ClassVar[str] = "higher"
    unit: ClassVar[str] = "% of the preserved concepts' pictures"
    needs: ClassVar[frozenset[str]] = frozenset({"judge"})

    def measure(self, given: Given) -> dict[str, Score]:
        """The other lines of :func:`table`."""
        found = table(given.seen(), given.erased, given.protocol.near(given.erased))
        return {k: s for k, s in found.items() if not k.startswith("ESR-")}
