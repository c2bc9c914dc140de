"""The candidates among which the adversarial concept is searched."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from efface.concepts import Concept
from efface.errors import UserError, pick
from efface.names import at, clean, ids_of, json_of, keys, lines, normal, quoted, text_of, words
from efface.wordlists import SHIPPED, known, relatives, shipped, whole_words

if TYPE_CHECKING:
    from efface.models import DiffusionModel

INLINE = "words:"
"""What a vocabulary that is written out begins with."""
MOST = 1000
"""Candidates of a concept where ``auto`` is the shipped lists: so many are searched in reasonable
time."""
KINDS = ("auto", "names", "tags", "nouns", "styles", "people", "tokens")
"""Vocabularies by name."""
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
    seen: dict[tuple[str, str], float] | None = field(default=None, repr=False, compare=False)
    """Distances measured already, by name and word; None: none are kept."""

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
        if self.seen is None:
            return distances(model, [name], self.words)[0]
        new = [w for w in self.words if (name, w) not in self.seen]
        if new:
            names = tuple(dict.fromkeys((name, *self.beside)))
            for n, row in zip(names, distances(model, names, new), strict=True):
                self.seen.update(zip(((n, w) for w in new), row.tolist(), strict=True))
        return torch.tensor([self.seen[name, w] for w in self.words])


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
    chunk = max(1, min(1024, PIECES // (4 * centres.shape[1])))
    parts, few = [], len(words) < 2000
    for i in tqdm(range(0, len(words), chunk), desc="nearest words", disable=few):
        states = model.embed(words[i : i + chunk]).states.float().flatten(1)
        parts.append(torch.stack([(states - c).norm(dim=1) for c in centres]).cpu())
    return torch.cat(parts, 1)


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


def from_file(path: Path) -> Vocabulary:
    """One word or phrase a line; empty lines and ``#`` comments are skipped, doubles dropped.

    Raises:
        UserError: unreadable, no text, empty, or a line that is no word.
    """
    found = []
    for i, line in enumerate(map(str.strip, lines(text_of(path, "word list"))), 1):
        with at(f"{str(path)!r}, line {i}"):
            if line and not line.startswith("#"):
                found.append(clean(line, "word"))
    if not found:
        raise UserError(f"the word list {str(path)!r} is empty.")
    return Vocabulary(tuple(dict.fromkeys(found)), str(path))


def from_tokenizer(tokenizer: object) -> Vocabulary:
    """Every whole-word token of letters, in order of its id (the commoner, the earlier).

    Raises:
        UserError: the tokenizer does not mark where words begin or end.
    """
    return Vocabulary(whole_words(tokenizer), "tokens")


def brings(model: DiffusionModel) -> bool:
    """Whether a model's folder says which concepts it draws, in ``concepts.json``."""
    return model.folder is not None and (model.folder / "concepts.json").exists()


def brought(folder: Path, name: str, field: str) -> Vocabulary:
    """The concept names or the search tags that a model's folder brings.

    Raises:
        UserError: ``concepts.json`` is broken, or holds no such words.
    """
    path = folder / "concepts.json"
    about = json_of(path, "list of concepts")
    rows = about.get("concepts") if isinstance(about, dict) else about
    found: list[str] = []
    with at(repr(str(path))):
        if not isinstance(about, dict) or not isinstance(rows, list):
            raise UserError(f"concepts: a list of names with tags is needed, got {quoted(rows)}.")
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise UserError(f"concepts[{i}]: a name with tags is needed, got {quoted(row)}.")
            if field == "names":
                found.append(clean(row.get("name"), f"concepts[{i}].name"))
                if not found[-1]:
                    raise UserError(f"concepts[{i}].name is empty.")
            else:
                found += words(row.get("tags"), f"concepts[{i}].tags")
    if not found:
        raise UserError(f"{str(path)!r} holds no {field}.")
    return Vocabulary(tuple(dict.fromkeys(found)), f"{name} {field}")


def tags_of(model: DiffusionModel, name: str) -> tuple[str, ...]:
    """What else a model's folder calls one of its concepts: its search tags; mostly nothing.

    Raises:
        UserError: ``concepts.json`` is broken.
    """
    if model.folder is None or not brings(model):
        return ()
    about = json_of(model.folder / "concepts.json", "list of concepts")
    rows = about.get("concepts", ()) if isinstance(about, dict) else ()
    found = [r.get("tags", ()) for r in rows if isinstance(r, dict) and r.get("name") == name]
    return words(found[0], "tags") if found else ()


def load(
    source: str,
    model: DiffusionModel,
    concepts: Sequence[Concept] = (),
    beside: Sequence[Concept] = (),
) -> Vocabulary:
    """A vocabulary by name or from a file.

    Args:
        source: ``auto`` (the names that the model's folder brings, else the shipped ``nouns`` with
            what the concepts' kind harms beside them), ``names``, ``tags``, ``nouns``, ``styles``,
            ``people``, ``tokens``, ``words: castle, fox, …``, or the path of a word list.
        concepts: what is erased, for the shipped lists.
        beside: what is erased with them.

    Raises:
        UserError: an unknown name, or an unreadable file.
    """
    if source.startswith(INLINE):
        given = [w.strip() for w in source.removeprefix(INLINE).split(",")]
        return Vocabulary(tuple(dict.fromkeys(w for w in given if w)), "words given")
    if source == "auto" and not brings(model):
        return automatic(model, concepts, beside)
    source = "names" if source == "auto" else source
    if source in ("names", "tags"):
        if model.folder is None or not brings(model):
            raise UserError(
                f"the model {model.name!r} brings no list of {source}; "
                "use 'nouns', 'tokens' or a word list file."
            )
        return brought(model.folder, model.name, source)
    if source in SHIPPED:
        return of_shipped(source, model, (*concepts, *beside))
    if source == "tokens":
        return from_tokenizer(model.tokenizer)
    if not Path(source).exists() and "/" not in source and "." not in source:
        pick(dict.fromkeys(KINDS), source, "vocabulary (or file)")
    return from_file(Path(source))


def of_shipped(name: str, model: DiffusionModel, concepts: Sequence[Concept]) -> Vocabulary:
    """What a model knows of a shipped list.

    Raises:
        UserError: nothing.
    """
    erased = {s for c in concepts for n in c.names for s in stems_of(n)}
    found = known(shipped(name, erased), model.tokenizer)
    if not found:
        raise UserError(
            f"the tokenizer of {model.name!r} knows none of the shipped {name}: give a word list "
            "file in its language."
        )
    return Vocabulary(found, f"{len(found):,} shipped {name}")


def automatic(
    model: DiffusionModel, concepts: Sequence[Concept], beside: Sequence[Concept]
) -> Vocabulary:
    """The candidates where a model does not say what it draws.

    Raises:
        UserError: the tokenizer knows none of them.
    """
    erased = (*concepts, *beside)
    kin = [of_shipped(name, model, erased) for name in relatives(concepts)]
    parts = [*kin, of_shipped("nouns", model, erased)]
    return Vocabulary(
        tuple(dict.fromkeys(w for v in parts for w in v.words)),
        ", ".join(v.source for v in reversed(parts)),
        MOST,
        frozenset(w for v in kin for w in v.words),
    )
