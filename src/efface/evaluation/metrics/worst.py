"""The worst tenth: how the concepts fare that an edit harms most, without luck in the finding."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from efface.evaluation.metrics.metric import Given, Metric
from efface.intervals import resamples, tail_limits
from efface.scores import Score, within

SHARE = 0.1
DRAWS = 500
"""Of the bootstrap."""


def worst_tenths(values: Tensor, share: float = SHARE) -> Tensor:
    """The mean over the ``share`` of the concepts that fare worst, found apart from what is scored.

    They are found on every second picture and scored on the others, both ways averaged, so that a
    model that harms nothing gets its true mean and nobody is punished for bad luck. Concepts that
    are found equally bad share a place.

    Args:
        values: a row a concept, a column a picture, (…, C, n), higher is better.

    Returns:
        (…), double.

    Raises:
        ValueError: fewer than two pictures a concept, or no concept.
    """
    if values.ndim < 2 or not values.shape[-2] or values.shape[-1] < 2:
        raise ValueError(f"got values {tuple(values.shape)}: two pictures of a concept or more.")
    halves = [values[..., i::2].double().mean(-1) for i in (0, 1)]
    one, two = (_tail(found, scored, share) for found, scored in (halves, halves[::-1]))
    return (one + two) / 2


def worst_tenth(values: Tensor, share: float = SHARE) -> float:
    """:func:`worst_tenths` of one set of concepts, (C, n)."""
    return float(worst_tenths(values, share))


def _tail(found: Tensor, scored: Tensor, share: float) -> Tensor:
    """The mean of ``scored`` over the lowest of ``found``, (…); both are (…, C)."""
    room = max(1, round(share * found.shape[-1]))
    last = found.kthvalue(room, -1, keepdim=True).values
    below, level = found < last, found == last
    left = room - below.sum(-1)
    shared = (scored * level).sum(-1) / level.sum(-1)
    return ((scored * below).sum(-1) + left * shared) / room


def worst_tenth_score(values: Tensor, share: float = SHARE, draws: int = DRAWS) -> Score:
    """:func:`worst_tenth` with an interval for other concepts: :func:`tail_score` of one cell.

    Args:
        values: (C, n), higher is better.

    Raises:
        ValueError: as :func:`worst_tenth`.
    """
    return tail_score(values[None], share, draws)


def tail_score(values: Tensor, share: float = SHARE, draws: int = DRAWS) -> Score:
    """The worst tenth, averaged over cells; the interval is for other concepts, and other cells.

    A bootstrap, which draws concepts and cells, and of rates a model of the concepts besides
    (:func:`~efface.intervals.tail_limits`): what either leaves possible.

    Args:
        values: (cells, C, n), higher is better; rates are 0 or 100 each.

    Raises:
        ValueError: as :func:`worst_tenth`.
    """
    cells, concepts, n = values.shape
    whole = worst_tenths(values, share)
    pick, some = resamples(draws, torch.Generator().manual_seed(0), concepts, cells)
    means = worst_tenths(values[some[:, :, None], pick[:, None]], share).mean(1).float()
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975])).tolist()
    value = float(whole.mean())
    if ((values == 0) | (values == 100)).all():
        least, most = tail_limits((values > 0).sum(-1), n, share)
        low, high = min(low, value, 100 * least), max(high, value, 100 * most)
    over = "new concepts and training seeds" if cells > 1 else "new concepts"
    return within(value, low, high, concepts, "concepts", over)


def by_concept(hits: Tensor, concepts: tuple[str, ...]) -> Tensor:
    """A row a concept of equally many pictures, (C, n)."""
    names = list(dict.fromkeys(concepts))
    rows = [hits[torch.tensor([c == n for c in concepts])] for n in names]
    most = min(len(r) for r in rows)
    return torch.stack([r[:most] for r in rows])


class WorstTenth(Metric):
    """PSR-1 of the tenth of the preserved concepts that suffers most."""

    name: ClassVar[str] = "worst-tenth"
    better: ClassVar[str] = "higher"
    unit: ClassVar[str] = "% of the worst tenth's pictures"
    needs: ClassVar[frozenset[str]] = frozenset({"judge"})

    def measure(self, given: Given) -> dict[str, Score]:
        """One score."""
        found = given.seen()
        kept = found.of([c for c in found.concepts if c not in set(given.erased)])
        return {"worst tenth": worst_tenth_score(100 * by_concept(kept.top1, kept.concepts))}
