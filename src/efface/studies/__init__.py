"""The paper's experiments and open questions: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from efface.studies import (
    abstract,
    anchors,
    cost,
    coverage,
    order,
    other_data,
    relatives,
    search,
    several,
    shortlist,
    similarity,
    tradeoff,
    transfer,
    vocabulary_kind,
    vocabulary_size,
)
from efface.studies.lab import Lab

__all__ = ["STUDIES", "Lab", "Study"]


class Study(NamedTuple):
    """A question, how it is answered, and how the answer is shown."""

    run: Callable[..., dict[str, Any]]
    """Gives JSON; what is in the lab's folder already is not done again."""
    figure: Callable[[Mapping[str, Any]], str]
    """SVG."""
    words: Callable[[Mapping[str, Any]], str]
    """A paragraph."""
    about: str
    quick: Mapping[str, Any] = MappingProxyType({})
    """Settings of a smaller run, where there is one."""


def _study(module: Any) -> Study:
    quick = getattr(module, "QUICK", {})
    return Study(module.run, module.figure, module.words, module.__doc__.strip(), quick)


STUDIES: Mapping[str, Study] = {
    "relatives": _study(relatives),
    "anchors": _study(anchors),
    "search": _study(search),
    "shortlist": _study(shortlist),
    "vocabulary-size": _study(vocabulary_size),
    "vocabulary-kind": _study(vocabulary_kind),
    "similarity": _study(similarity),
    "abstract": _study(abstract),
    "order": _study(order),
    "other-data": _study(other_data),
    "tradeoff": _study(tradeoff),
    "cost": _study(cost),
    "several": _study(several),
    "coverage": _study(coverage),
    "transfer": _study(transfer),
}
"""Every study by name."""
