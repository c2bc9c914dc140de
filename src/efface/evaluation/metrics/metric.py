"""What a metric is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from efface.evaluation.clip import Clip
from efface.evaluation.clip import load as load_clip
from efface.evaluation.judges import Judge
from efface.evaluation.samples import Samples
from efface.evaluation.seen import Seen, see

if TYPE_CHECKING:
    from efface.evaluation.protocols import Protocol
    from efface.scores import Score

T = TypeVar("T")
AT_ONCE = 128
"""Pictures in memory at a time."""


class Metric(ABC):
    """A question asked of pictures: one file.

    It is :class:`Given` pictures, with whatever it says that it ``needs``, and gives scores by the
    names that tables have for them: a name holds all that the number depends on (which network,
    which threshold, which group of prompts).
    """

    name: ClassVar[str]
    """What a protocol calls it."""
    better: ClassVar[str]
    """``higher``, ``lower``, or what that depends on."""
    unit: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """``judge``: the protocol's; ``pairs``: the unedited pictures of the same prompts and seeds;
    ``prompts``: a text for every picture; ``clip``: one that knows such pictures; else the name of
    a package that does not come with this one."""
    install: ClassVar[str] = ""
    """How to get that package."""
    least: ClassVar[int] = 1
    """Pictures that it takes."""

    @abstractmethod
    def measure(self, given: Given) -> dict[str, Score]:
        """Its scores by their full names."""


@dataclass
class Given:
    """Pictures, and what there is besides; features are computed once for all metrics."""

    samples: Samples
    """The pictures to be measured."""
    protocol: Protocol
    base: Samples | None = None
    """The unedited model's of the same rows; None: ``samples`` are the unedited ones."""
    erased: Sequence[str] = ()
    """Names of the erased concepts."""
    judge: Judge | None = None
    tools: Mapping[str, Any] = field(default_factory=dict)
    """What is to be used in place of a metric's own: ``clip`` (a path or a hub id), or something
    by the name of the package that brings it."""
    kept: dict[str, Any] = field(default_factory=dict, repr=False)
    """Of :meth:`once`; shared by both sides of a comparison."""

    def once(self, what: str, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once under this name."""
        if what not in self.kept:
            self.kept[what] = make()
        found: T = self.kept[what]
        return found

    def seen(self) -> Seen:
        """What the judge saw, looked at once."""
        assert self.judge is not None  # a metric that needs a judge is not asked without
        p, judge = self.protocol, self.judge
        return self.once(
            f"seen in {self.samples.folder}", lambda: see(self.samples, judge, p.head, p.labels)
        )

    @property
    def clip(self) -> Clip:
        """The CLIP."""
        return self.once("clip", lambda: load_clip(self.tools.get("clip", "")))

    def vectors(self, samples: Samples) -> Tensor:
        """CLIP's unit vectors of all pictures of a set, (N, D)."""
        rows = range(len(samples.rows))
        return self.once(
            f"vectors of {samples.folder}",
            lambda: torch.cat([self.clip.pictures(x) for x in batches(samples, rows)]),
        )

    def groups(self) -> dict[str, list[int]]:
        """Rows by whether they ask for what is erased, by a suffix for the names."""
        wanted, gone = self.samples.rows, set(self.erased)
        asks = [i for i, w in enumerate(wanted) if w.concept and w.concept in gone]
        rest = [i for i, w in enumerate(wanted) if not (w.concept and w.concept in gone)]
        if not asks:
            return {"": rest}
        return {", erased": asks} | ({", retained": rest} if rest else {})

    def pairs(self, rows: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures and the unedited ones of the same rows, (B, 3, H, W) each, in [0, 1]."""
        assert self.base is not None  # a metric that needs pairs is not asked without
        yield from zip(batches(self.samples, rows), batches(self.base, rows), strict=True)

    def prompts(self, rows: Sequence[int]) -> list[str]:
        """The texts of some rows."""
        return [self.samples.rows[i].prompt for i in rows]


def batches(samples: Samples, rows: Sequence[int]) -> Iterator[Tensor]:
    """Some pictures of a set, not too many at a time."""
    for i in range(0, len(rows), AT_ONCE):
        some = tuple(samples.rows[k] for k in rows[i : i + AT_ONCE])
        yield Samples(samples.folder, some, samples.settings).images()


def grouped(texts: Sequence[str]) -> Tensor:
    """An integer a text, equal where the text is, (N,)."""
    at = {t: i for i, t in enumerate(dict.fromkeys(texts))}
    return torch.tensor([at[t] for t in texts])
