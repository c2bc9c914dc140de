"""What closed-form edits of the text projections have in common: text vectors and one solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from efface.concepts import Concept
from efface.errors import UserError, pick
from efface.models import DiffusionModel
from efface.settings import Range
from efface.training.erasure import Job

CHUNK = 512
"""Prompts encoded at a time, of which only the rows that are asked for stay in memory."""
ROWS = ("subject", "all")
"""Which text states stand for a prompt."""
MAPS = {"v": (".to_v.",), "k": (".to_k.",), "kv": (".to_k.", ".to_v."), "all": ("",)}
"""Choices of text projections, by parts of their names."""
WEIGHT = Range(0, 1e9)
"""What a weight in the equations may be; beside a larger one double precision loses the rest."""


def maps_of(model: DiffusionModel, choice: str) -> list[str]:
    """The names of the text projections that are edited.

    Args:
        choice: a key of :data:`MAPS`.

    Raises:
        UserError: the model has none, or none of that kind.
    """
    there = model.text_maps()
    found = [n for n in there if any(part in n for part in pick(MAPS, choice, "choice of maps"))]
    if not there:
        raise UserError(
            f"{model.family.label} has no weights that read the text alone, which a closed form "
            "edits: choose a method that is trained."
        )
    if not found:
        raise UserError(
            f"{model.family.label} has no maps {choice!r} that read the text alone, only "
            f"{', '.join(there)}: choose maps 'all'."
        )
    return found


def text_vectors(model: DiffusionModel, prompts: Sequence[str], rows: str = "subject") -> Tensor:
    """The text states that stand for prompts, double, on the CPU.

    Args:
        rows: ``subject``: the states of a prompt's last word, one a text encoder; ``all``: every
            state, prompt by prompt.

    Returns:
        (n·r, D) for ``subject``, (n·L, D) for ``all``.

    Raises:
        UserError: an unknown choice of rows.
    """
    pick(dict.fromkeys(ROWS), rows, "choice of rows")
    if not prompts:
        return text_vectors(model, [""])[:0]
    found = []
    for i in range(0, len(prompts), CHUNK):
        some = prompts[i : i + CHUNK]
        given = model.words(some) if rows == "subject" else model.embed(some).states
        states = given.cpu()  # (n, r or L, D)
        found.append(model.family.seen(model.parts, states.flatten(0, 1)).double())
    return torch.cat(found)


class Erased(NamedTuple):
    """What is erased, as rows of text states; see :func:`erased_rows`."""

    c: Tensor
    """Of the erased names, (n, D)."""
    a: Tensor
    """Of their anchors, (n, D)."""
    names: tuple[str, ...]
    """The erased name of each row."""


def erased_rows(job: Job, rows: str = "subject", diversify: int = 0) -> Erased:
    """Text vectors of every erased name and of its anchor, each concept with the same weight.

    The subject of a prompt is the name in it, whatever comes behind.

    Args:
        rows: of :func:`text_vectors`.
        diversify: prompts that stand for each name (:meth:`~efface.concepts.Concept.pairs`).

    Source: of the prompts arXiv:2603.18767.
    """
    pairs = [p for c in job.concepts for p in c.pairs(diversify)]
    share = max(diversify, 1) ** -0.5  # the prompts of a name weigh as one together
    texts = [(p.prompt, p.instead) for p in pairs]
    if rows == "subject":
        texts = [(p.subject, p.instead_subject) for p in pairs]
    c, a = (
        share * evened(text_vectors(job.model, some, rows), job.concepts)
        for some in zip(*texts, strict=True)
    )
    each = len(c) // len(pairs)
    return Erased(c, a, tuple(p.name for p in pairs for _ in range(each)))


def preserved_rows(
    job: Job, vocabulary: str, keep: Sequence[str], weight: float, rows: str
) -> Tensor | None:
    """Text vectors of a vocabulary and of the kept words; None: there are none.

    Args:
        vocabulary: of :meth:`Job.words`; "" is none.
        keep: words beside it.
        weight: of a kept word, in units of one of the vocabulary's.
        rows: of :func:`text_vectors`.
    """
    words = job.words(vocabulary).words if vocabulary else ()
    found = [text_vectors(job.model, words, rows)] if words else []
    if keep:
        found.append(weight**0.5 * text_vectors(job.model, keep, rows))
    return torch.cat(found) if found else None


def evened(rows: Tensor, concepts: Sequence[Concept]) -> Tensor:
    """Text vectors of every erased name, scaled so that concepts weigh alike in a sum of squares.

    The names of a concept weigh as one together. Their anchors are scaled in the same way.

    Args:
        rows: (n·r, D), concept by concept, r to a name.
    """
    names = torch.tensor([len(c.names) for c in concepts for _ in c.names], dtype=rows.dtype)
    if (names == 1).all():
        return rows
    return rows * names.rsqrt().repeat_interleave(len(rows) // len(names))[:, None]


def solve(
    erased: Tensor, anchor: Tensor, keep: Tensor | None, s_e: float, s_p: float, ridge: float
) -> Tensor:
    """The matrix Q of the edit ``W' = W Q``, the same for every map (arXiv:2308.14761, equation 7).

    ``W'`` minimises s_e Σ|W'c - Wa|² + s_p Σ|(W' - W)p|² + ridge |W' - W|².

    Args:
        erased: c, (n, D), double.
        anchor: a, (n, D).
        keep: p, (m, D), or None.

    Returns:
        Q, (D, D), double.

    Raises:
        UserError: as :func:`solved`.
    """
    d = erased.shape[1]
    eye = torch.eye(d, dtype=erased.dtype, device=erased.device)
    b = ridge * eye + s_e * erased.T @ erased
    if keep is not None:
        b = b + s_p * keep.T @ keep
    return eye + s_e * (anchor - erased).T @ solved(b, erased.T, ridge).T


def solved(b: Tensor, rows: Tensor, ridge: float) -> Tensor:
    """The (D, n) of which a square matrix makes ``rows``.

    Args:
        b: symmetric, no direction below ``ridge``, double, (D, D).
        rows: (D, n).
        ridge: what is in it.

    Raises:
        UserError: the matrix is singular, but for rounding.
    """
    found: Tensor
    found, wrong = torch.linalg.solve_ex(b, rows)
    if wrong or (lost(ridge, b) and torch.linalg.matrix_rank(b, hermitian=True) < len(b)):
        raise UserError(
            "the equations are singular: beside what weighs most, what is erased and preserved "
            f"and a ridge of {ridge:g} leave some of the {len(b)} directions of the text states "
            "open; raise ridge, or lower the largest weight."
        )
    return found


def lost(ridge: float, b: Tensor) -> bool:
    """Whether a ridge is rounding beside the largest direction of a matrix (D, D)."""
    return ridge < len(b) * torch.finfo(b.dtype).eps * float(b.norm())


def moved(model: DiffusionModel, maps: Sequence[str], far: Tensor) -> dict[str, Tensor]:
    """The maps after one change of what they read, ``W' = W + W far``; fp32, on the CPU.

    Args:
        far: (D, D), double.
    """
    own = model.parameters()
    before = {n: own[n].cpu().double() for n in maps}
    return {n: (w + w @ far).float() for n, w in before.items()}
