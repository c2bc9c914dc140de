"""``efface attack --require``: bounds that are looked at before anything is attacked, and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from efface.errors import UserError
from efface.evaluation.answers import Siege as Kept
from efface.evaluation.answers import read
from efface.evaluation.attacks import Attack
from efface.evaluation.siege import FLOOR, Results, Siege
from efface.evaluation.verdicts import Bar, broken, gate, possible


class Gate(NamedTuple):
    """All bounds that are asked for."""

    bars: Sequence[Bar]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Gate:
        """As they are typed.

        Raises:
            UserError: one is no bound.
        """
        return cls([bar for text in texts for bar in gate(text)])

    def foresee(
        self, attacks: Sequence[Attack], files: Iterable[Path], budget: int | None = None
    ) -> None:
        """Refuse what cannot be met, before a model is opened.

        Args:
            attacks: what is asked for.
            budget: evaluations of each search; None: what it takes.
            files: which of them is gone on with is known once the model is open.

        Raises:
            UserError: as :func:`~efface.evaluation.verdicts.possible`.
        """
        if not self.bars:
            return
        had: set[str] = set()
        for path in files:
            with suppress(UserError):  # what is damaged is said where it is gone on with
                told = read(Kept, path, "results of attacks")
                had |= {*told.get("verdicts", ()), *(x.get("key") for x in told.get("lines", ()))}
        possible(self.bars, [*(kind() for kind in FLOOR), *attacks], had, {}, budget)

    def check(self, siege: Siege, path: Path, refusals: Mapping[str, str]) -> None:
        """Refuse what cannot be met, before anything is attacked.

        Args:
            path: the results.
            refusals: attacks that make no sense, with the reason.

        Raises:
            UserError: as :func:`~efface.evaluation.verdicts.possible`; or the results are others.
        """
        if not self.bars:
            return
        had = siege.results(siege.begun(path))
        keys = {*had.headlines, *(x.key for x in had.lines)}
        floor, without = [kind() for kind in FLOOR], dict(refusals)
        if siege.court.judge is None:
            without |= {a.name: "there is no judge." for a in floor}
            floor = []
        possible(self.bars, [*floor, *siege.attacks], keys, without, siege.budget)

    def verdict(self, results: Results) -> tuple[list[str], UserError | None]:
        """What is not let through, and a bound on what came to no line after all."""
        try:
            return broken(self.bars, list(results.lines), results.headlines), None
        except UserError as e:
            return [], e
