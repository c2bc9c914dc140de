"""The candidates that a closed form says will be harmed: ranked once, before anything is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from efface.errors import UserError
from efface.settings import Range, check_ranges
from efface.training.closed_form import WEIGHT, erased_rows, solve, text_vectors
from efface.training.erasure import Job
from efface.training.minimax import lengths, seen_by
from efface.training.search.pools import Pools, Setting
from efface.training.search.random import WeightedSearch, by_share


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Draw a candidate as often as a closed form of the same erasure would harm it.

    The closed form knows the candidates and holds on to them: what it harms nevertheless is what
    stands in the way. It costs no evaluation of the denoiser, and is never looked at again.
    """

    kind: ClassVar[str] = "forecast"
    any: Annotated[float, Range(0, 1)] = 0.2
    """Share of the draws that go to any candidate, however little it would be harmed."""
    erase_scale: Annotated[float, WEIGHT._replace(open_low=True)] = 100.0
    """Weight of the erased vectors in the closed form, in units of a candidate's."""
    ridge: Annotated[float, WEIGHT._replace(open_low=True)] = 0.1
    """How much its maps hold on to themselves."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def start(self, setting: Setting) -> ForecastSearch:
        """The search at work.

        Raises:
            UserError: the model has no weights that read the text alone.
        """
        return ForecastSearch(self, setting.job, setting.candidates)


class ForecastSearch(WeightedSearch):
    """Draws by a harm that is known beforehand."""

    def __init__(self, config: Forecast, job: Job, candidates: Pools) -> None:
        super().__init__(candidates)
        harm = foreseen(job, candidates.words, config.erase_scale, config.ridge)
        self.odds = by_share(harm, config.any)


@torch.no_grad()
def foreseen(job: Job, words: tuple[str, ...], erase_scale: float, ridge: float) -> Tensor:
    """Σ ‖ΔW p‖² / Σ ‖W p‖² of each word over the maps that read the text, after UCE, (K,).

    Raises:
        UserError: no weight reads the text alone.

    Source: the edit is arXiv:2308.14761's, equation 7, with the words as what it preserves.
    """
    model = job.model
    maps = model.text_maps()
    if not maps:
        raise UserError(
            f"{model.family.label} has no weights that read the text alone, by which "
            "search:forecast ranks words: choose search:online or search:random."
        )
    c, a, _ = erased_rows(job)
    rows = text_vectors(model, words)
    q = solve(c, a, rows, erase_scale, 1.0, ridge)
    own = model.parameters()
    form = seen_by([own[n] for n in maps])
    each = rows.view(len(words), -1, rows.shape[1])
    far = each @ (q - torch.eye(len(q), dtype=q.dtype)).T
    return (lengths(far, form) / lengths(each, form).clamp(min=1e-12)).square().float()
