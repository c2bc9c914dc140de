"""The candidates among which the adversarial concept is searched."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.concepts import Concept, normal
from efface.errors import UserError, pick

if TYPE_CHECKING:
    from efface.models import DiffusionModel

COMMON = 1000
"""Words of ``auto`` where a model does not say what it draws."""


@dataclass(frozen=True)
class Vocabulary:
    """Words that a prompt could hold, in a fixed order."""

    words: tuple[str, ...]
    source: str
    """Where they came from, for the record of a run."""

    def __len__(self) -> int:
        return len(self.words)

    def without(self, concepts: Sequence[Concept], tokenizer: object) -> Vocabulary:
        """Drop whatever asks for an erased concept.

        Gone are the names and synonyms whatever their case, words that the tokenizer cannot tell
        from them, and words
        made of nothing but their tokens ("mug" when "beer mug" is erased).
        """
        banned = {normal(n) for c in concepts for n in c.names}
        tokens = [tokens_of(tokenizer, n) for c in concepts for n in c.names]

        def clean(word: str) -> bool:
            mine = tokens_of(tokenizer, word)
            return normal(word) not in banned and not any(mine <= t for t in tokens)

        return Vocabulary(tuple(w for w in self.words if clean(w)), self.source)

    def including(self, words: Sequence[str]) -> Vocabulary:
        """With ``words`` in front, each once."""
        return Vocabulary(tuple(dict.fromkeys([*words, *self.words])), self.source)

    def pool(
        self, model: DiffusionModel, concept: Concept, size: int, nearest: int, spread: str
    ) -> Vocabulary:
        """The ``size`` candidates for one erased concept.

        Args:
            size: K, how many are kept; 0: all.
            nearest: k, first narrow down to the k nearest to the concept, where there are more; 0:
                all.
            spread: how K are chosen among k: a key of :data:`SPREADS`.

        Raises:
            UserError: fewer words than K, or an unknown spread.
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
        if not size and not nearest:
            return self
        far = distances(model, concept.name, self.words)
        order = far.argsort(stable=True)[: nearest or len(far)]
        if size and size < len(order):
            order = order[choose(far[order], size)]
        return Vocabulary(tuple(self.words[i] for i in order.tolist()), self.source)


def tokens_of(tokenizer: object, word: str) -> frozenset[int]:
    """The token ids of a word, as a set."""
    ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids  # type: ignore[operator]
    return frozenset(ids)


@torch.no_grad()
def distances(model: DiffusionModel, name: str, words: Sequence[str], chunk: int = 1024) -> Tensor:
    """L2 distance of each word's text states, flattened, to those of ``name``, (K,)."""
    centre = model.embed([name]).states.float()
    parts = [
        (model.embed(words[i : i + chunk]).states.float() - centre).flatten(1).norm(dim=1)
        for i in range(0, len(words), chunk)
    ]
    return torch.cat(parts).cpu()


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
        UserError: unreadable or empty.
    """
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read the word list {str(path)!r}: {e}.") from None
    words = tuple(dict.fromkeys(w.strip() for w in lines if w.strip() and not w.startswith("#")))
    if not words:
        raise UserError(f"the word list {str(path)!r} is empty.")
    return Vocabulary(words, str(path))


def from_tokenizer(tokenizer: object) -> Vocabulary:
    """Every whole-word token of letters, in order of its id (the commoner, the earlier)."""
    vocab: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    whole = (t[:-4] for t in sorted(vocab, key=vocab.__getitem__) if t.endswith("</w>"))
    return Vocabulary(tuple(w for w in whole if re.fullmatch(r"[a-z]{2,}", w)), "tokens")


def brings(model: DiffusionModel) -> bool:
    """Whether a model's folder says which concepts it draws, in ``concepts.json``."""
    return model.folder is not None and (model.folder / "concepts.json").exists()


def brought(folder: Path, name: str, field: str) -> Vocabulary:
    """The concept names or the search tags that a model's folder brings.

    Raises:
        UserError: ``concepts.json`` is broken, or holds no such words.
    """
    path = folder / "concepts.json"
    try:
        rows = json.loads(path.read_text(encoding="utf8"))["concepts"]
        words = [w for r in rows for w in ([r["name"]] if field == "names" else r["tags"])]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{str(path)!r} is no list of concepts: {e!r}.") from None
    if not words:
        raise UserError(f"{str(path)!r} holds no {field}.")
    return Vocabulary(tuple(dict.fromkeys(words)), f"{name} {field}")


def load(source: str, model: DiffusionModel) -> Vocabulary:
    """A vocabulary by name or from a file.

    Args:
        source: ``auto`` (the names that the model's folder brings, else the first of ``tokens``),
            ``names``, ``tags``, ``tokens``, or the path of a word list.

    Raises:
        UserError: an unknown name, or an unreadable file.
    """
    known = ("auto", "names", "tags", "tokens")
    if source == "auto" and not brings(model):
        common = from_tokenizer(model.tokenizer).words[:COMMON]
        return Vocabulary(common, f"{len(common)} commonest tokens")
    source = "names" if source == "auto" else source
    if source in ("names", "tags"):
        if model.folder is None or not brings(model):
            raise UserError(
                f"the model {model.name!r} brings no list of {source}; "
                "use 'tokens' or a word list file."
            )
        return brought(model.folder, model.name, source)
    if source == "tokens":
        return from_tokenizer(model.tokenizer)
    if not Path(source).exists() and "/" not in source and "." not in source:
        pick(dict.fromkeys(known), source, "vocabulary (or file)")
    return from_file(Path(source))
