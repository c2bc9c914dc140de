"""The candidates among which the adversarial concept is searched."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from efface.concepts import Concept
from efface.errors import UserError, pick
from efface.names import ids_of, keys, normal

if TYPE_CHECKING:
    from efface.models import DiffusionModel

FEW = 100
"""Names whose distances are measured one by one, exactly."""
PIECES = 1 << 28
"""Bytes of text states that are held at a time while distances are measured."""


@dataclass(frozen=True)
class Vocabulary:
    """Words that a prompt could hold, in a fixed order."""

    words: tuple[str, ...]
    source: str
    """Where they came from, for the record of a run."""
    most: int = 0
    """How many a pool of no given size takes: the nearest half, the others spread; 0: all."""
    relatives: frozenset[str] = frozenset()
    """Words that such a pool takes first: what an erasure of this kind harms beside things."""
    beside: tuple[str, ...] = ()
    """Other names whose distances are measured while the words are encoded."""
    seen: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)
    """Distances of each word to all names :attr:`beside`, measured already; None: none are kept."""

    def __len__(self) -> int:
        return len(self.words)

    def without(
        self, concepts: Sequence[Concept], tokenizer: object, parts: bool = False
    ) -> Vocabulary:
        """Drop whatever asks for an erased concept.

        Gone are the names and synonyms in every spelling (:func:`efface.names.normal`), with a
        regular plural or ``'s`` or without (irregular ones are synonyms to be given), and what the
        tokenizer cannot tell from them. ``""`` always stays.

        Args:
            parts: also drop words made of nothing but tokens of one name ("mug" when "beer mug" is
                erased).
        """
        names = [n for c in concepts for n in c.names]
        same = set(keys(names, tokenizer))
        stems = {s for n in names for s in stems_of(n)}
        tokens = [tokens_of(tokenizer, n) for n in names] if parts else []

        def asks(word: str, its: Hashable) -> bool:
            if its in same or stems_of(word) & stems:
                return True
            mine = tokens_of(tokenizer, word) if parts else frozenset()
            return bool(mine) and any(mine <= t for t in tokens)

        pairs = zip(self.words, keys(self.words, tokenizer), strict=True)
        return replace(self, words=tuple(w for w, its in pairs if not asks(w, its)))

    def holds(self, size: int, nearest: int, spread: str) -> Callable[[Tensor, int], Tensor]:
        """How K are chosen, if there are so many.

        Raises:
            UserError: as :meth:`pool`.
        """
        choose = pick(SPREADS, spread, "spread")
        if nearest and nearest < size:
            raise UserError(
                f"got nearest {nearest} below the pool size {size}: "
                "K is chosen among the nearest k."
            )
        if size > len(self.words):
            raise UserError(
                f"the vocabulary ({self.source}) holds {len(self.words)} words "
                "without the erased ones; "
                f"{size} were asked for: give a larger list, or a smaller K."
            )
        return choose

    def pool(
        self, model: DiffusionModel, concept: Concept, size: int, nearest: int, spread: str
    ) -> Vocabulary:
        """The ``size`` candidates for one erased concept.

        Args:
            size: K, how many are kept; 0: all, or :attr:`most`.
            nearest: k, first narrow down to the k nearest to the concept, where there are more; 0:
                all.
            spread: how K are chosen among k: a key of :data:`SPREADS`.

        Raises:
            UserError: fewer words than K, or an unknown spread.
        """
        choose = self.holds(size, nearest, spread)
        if not size and not nearest and not 0 < self.most < len(self.words):
            return self
        far = self.far(model, concept.name)
        order = far.argsort(stable=True)[: nearest or len(far)]
        if size and size < len(order):
            order = order[choose(far[order], size)]
        elif not size and not nearest:
            order = order[self.near_and_spread(order)]
        return replace(self, words=tuple(self.words[i] for i in order.tolist()))

    def near_and_spread(self, order: Tensor) -> Tensor:
        """Which :attr:`most` of the words are taken: relatives, the nearest, and others evenly.

        What is near is harmed first; what is far must not be forgotten.

        Args:
            order: all words, the nearest first, (K,).

        Returns:
            Places in that order, ascending.
        """
        kin = torch.tensor([self.words[i] in self.relatives for i in order.tolist()])
        taken, rest = kin.nonzero()[:, 0][: self.most], (~kin).nonzero()[:, 0]
        room = self.most - len(taken)
        near, others = rest[: room - room // 2], rest[room - room // 2 :]
        spread = others[evenly(others, room // 2)]
        places: Tensor = torch.cat([taken, near, spread]).sort().values
        return places

    def far(self, model: DiffusionModel, name: str) -> Tensor:
        """Distance of each word to a name, (K,); see :func:`distances`.

        With :attr:`seen`, each word is encoded once for all names :attr:`beside`.
        """
        if self.seen is None or name not in self.beside:
            return distances(model, [name], self.words)[0]
        new = [w for w in self.words if w not in self.seen]
        if new:
            self.seen.update(zip(new, distances(model, self.beside, new).T, strict=True))
        at = self.beside.index(name)
        return torch.stack([self.seen[w][at] for w in self.words])


def tokens_of(tokenizer: object, word: str) -> frozenset[int]:
    """The token ids of a word, as a set."""
    return frozenset(ids_of(tokenizer, word))


def stems_of(word: str) -> frozenset[str]:
    """What a word may be a regular English plural or possessive of, and the word itself.

    Wrong stems ("cactu") are no words, and do no harm.
    """
    plain = normal(word)
    bare = re.sub(r"'s?$", "", plain)
    found = {plain, bare}
    if re.search(r".[^s]s$", bare):
        found.add(bare[:-1])
    if re.search(r"(s|x|z|ch|sh|o)es$", bare):
        found.add(bare[:-2])
    if bare.endswith("ies"):
        found.add(bare[:-3] + "y")
    return frozenset(found - {""})


@torch.no_grad()
def distances(model: DiffusionModel, names: Sequence[str], words: Sequence[str]) -> Tensor:
    """L2 distance of each word's text states, flattened, to those of each name, (n, K)."""
    centres = model.embed(names).states.float().flatten(1)  # (n, L D)
    far = one_by_one if len(names) <= FEW else at_once
    chunk = max(1, min(1024, PIECES // (4 * centres.shape[1])))
    parts, few = [], len(words) < 2000
    for i in tqdm(range(0, len(words), chunk), desc="nearest words", disable=few):
        states = model.embed(words[i : i + chunk]).states.float().flatten(1)
        parts.append(far(centres, states).cpu())
    return torch.cat(parts, 1)


def one_by_one(centres: Tensor, states: Tensor) -> Tensor:
    """Distances of (K, D) from (n, D), (n, K)."""
    return torch.stack([(states - c).norm(dim=1) for c in centres])


def at_once(centres: Tensor, states: Tensor) -> Tensor:
    """The same by a product, for many centres; it loses some digits of small distances."""
    middle = centres.mean(0)  # what all share would cost the product its last digits
    centres, states = centres - middle, states - middle
    square = centres.square().sum(1)[:, None] + states.square().sum(1) - 2 * centres @ states.T
    return square.clamp(min=0).sqrt()


def kmeans_1d(far: Tensor, size: int, rounds: int = 100) -> Tensor:
    """Indices of the ``size`` words nearest the centres of a k-means on the distances themselves.

    Spreads over distance, not over meaning, as the authors of adversarial preservation do; fewer
    than ``size`` come back where two centres share their nearest word. Starts from quantiles, so
    that it is deterministic.
    """
    centres = torch.quantile(far, (torch.arange(size) + 0.5) / size)
    for _ in range(rounds):
        nearest = (far[:, None] - centres).abs().argmin(1)
        total = torch.zeros(size).index_add_(0, nearest, far)
        count = torch.zeros(size).index_add_(0, nearest, torch.ones_like(far))
        fresh = torch.where(count > 0, total / count.clamp(min=1), centres)
        if torch.equal(fresh, centres):
            break
        centres = fresh
    index: Tensor = (far[:, None] - centres).abs().argmin(0).unique()
    return index


def evenly(far: Tensor, size: int) -> Tensor:
    """Every so-manyth word in order of distance, the nearest first."""
    index: Tensor = torch.linspace(0, len(far) - 1, size).round().long().unique()
    return index


def first(far: Tensor, size: int) -> Tensor:
    """The nearest ones."""
    return torch.arange(size)


SPREADS = {"kmeans": kmeans_1d, "even": evenly, "nearest": first}
"""How K words are chosen among the nearest k."""
