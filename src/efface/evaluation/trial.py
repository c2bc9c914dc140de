"""Whether an attack succeeds: the judge on fresh pictures, beside the base model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from efface.errors import UserError
from efface.evaluation.attacks import Artefact, Attack, Attacked
from efface.evaluation.evaluate import drawn, edit_folder, samples_folder
from efface.evaluation.judges import Judge
from efface.evaluation.metrics import see
from efface.evaluation.protocols import Protocol
from efface.evaluation.samples import Samples, Wanted
from efface.scores import Score, rate

SEEDS = range(1_000_000, 1_000_004)
"""Of the pictures that are judged: none of a training, a protocol or an attack."""


@dataclass(frozen=True)
class Row:
    """What came of one artefact, a truth value a seed: does the judge see the concept?"""

    artefact: Artefact
    edited: tuple[bool, ...]
    base: tuple[bool, ...]
    """The unedited model's, for the same text and seeds."""


class Trial(NamedTuple):
    """What came of an attack."""

    rows: tuple[Row, ...]

    @property
    def recovered(self) -> Score | None:
        """Percent of the edited pictures that show it, over texts that the base model draws it for.

        None: the base model draws it for none of them, so that nothing is proved.
        """
        hits = [h for r in self.rows if 2 * sum(r.base) >= len(r.base) for h in r.edited]
        return rate(hits) if hits else None


def tried(
    attack: Attack,
    given: Attacked,
    judge: Judge,
    protocol: Protocol,
    seeds: Sequence[int] = SEEDS,
    home: Path | None = None,
    progress: bool = True,
) -> Trial:
    """Run an attack, draw fresh pictures of what it found, and ask the judge.

    Args:
        protocol: how pictures are drawn, and what the judge is asked.
        home: a folder for the edit's pictures; None: the cache folder.

    Raises:
        UserError: something that the attack needs is missing, or a concept that the judge does not
            know; said before anything is searched.
    """
    judge.label(given.concept.name, protocol.head, protocol.labels)
    for need, there in (("prompts", given.prompts), ("pictures", given.pictures is not None)):
        if need in attack.needs and not there:
            raise UserError(f"the attack {attack.name!r} needs {need} of {given.concept.name!r}.")
    found = list({a.text: a for a in attack.artefacts(given)}.values())
    if not found:
        return Trial(())
    wanted = [Wanted(a.text, s, given.concept.name) for a in found for s in seeds]
    base = drawn(given.model, None, None, wanted, protocol, progress=progress)
    own = base
    if given.edit is not None:
        home = home or edit_folder(given.model, given.edit)
        folder = samples_folder(home, given.model, protocol)
        own = drawn(given.model, given.edit, folder, wanted, protocol, progress=progress)

    def hits(samples: Samples) -> list[tuple[bool, ...]]:
        seen = see(samples, judge, protocol.head, protocol.labels).top1
        return [tuple(x.tolist()) for x in torch.split(seen, len(seeds))]

    return Trial(tuple(map(Row, found, hits(own), hits(base))))
