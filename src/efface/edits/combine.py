"""Several edits as one, how far they get into each other's way, and how two models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from efface.concepts import Concept, check
from efface.edits.edit import Edit, base_values, precision_of
from efface.errors import UserError
from efface.models import DiffusionModel
from efface.settings import from_json

ALIKE = 0.5
"""Overlap of two edits from which on a warning is due."""


@dataclass(frozen=True)
class Overlap:
    """How much two edits change what the layers make of the same inputs."""

    one: str
    two: str
    share: float
    """0: they read inputs at right angles to each other; 1: the same."""


def changes(model: DiffusionModel, edit: Edit) -> dict[str, Tensor]:
    """What an edit adds to each weight, fp32 on the CPU."""
    return {k: edit.change(k, own) for k, own in edit.based_on(model).items()}


def called(edit: Edit) -> str:
    """An edit's concepts, in words."""
    return ", ".join(c["name"] for c in edit.meta.get("concepts", ())) or edit.digest


def overlap(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """Cosine of two edits' DᵀD over all weights that both change: which inputs they change.

    D is the change of a weight (out, in). Of two single directions it is their squared cosine.
    """
    both, first, second = 0.0, 0.0, 0.0
    for name in one.keys() & two.keys():
        if one[name].ndim < 2:
            continue
        a, b = (x[name].flatten(1).double() for x in (one, two))
        both += float((a @ b.T).square().sum())
        first += float((a @ a.T).square().sum())
        second += float((b @ b.T).square().sum())
    return both / (first * second) ** 0.5 if first and second else 0.0


def overlaps(model: DiffusionModel, edits: Sequence[Edit]) -> list[Overlap]:
    """The overlap of every two edits, the largest first."""
    known = [(called(e), changes(model, e)) for e in edits]
    found = [Overlap(a, b, overlap(one, two)) for (a, one), (b, two) in combinations(known, 2)]
    return sorted(found, key=lambda o: -o.share)


def combine(model: DiffusionModel, edits: Sequence[Edit]) -> Edit:
    """Several edits of one base model as one: their changes add up.

    Closed-form edits can be solved again instead (:func:`efface.training.joint.jointly`).

    Raises:
        UserError: fewer than two edits, edits of different bases, or concepts that contradict each
            other.
    """
    combinable(edits)
    for edit in edits:
        edit.check(model)
    agree(edits, model.tokenizer)
    finest = max((e.made_in for e in edits), key=lambda d: d.itemsize)
    own = base_values(model, {k: None for e in edits for k in e.weights}, finest)
    weights = {k: w.detach().cpu().float() for k, w in own.items()}
    for edit in edits:
        for k in edit.weights:
            weights[k] = weights[k] + edit.change(k, own[k])
    meta = {**about(model, edits, "sum"), "dtype": precision_of(own)}
    return Edit(weights, meta, tuple(g for e in edits for g in e.gates))


def agree(edits: Sequence[Edit], tokenizer: object = None) -> None:
    """Refuse edits of which one erases what another leads to, or leads elsewhere.

    Args:
        tokenizer: the model's; without it names are compared by spelling alone.

    Raises:
        UserError: as :func:`efface.concepts.check`.
    """
    check(
        [from_json(Concept, c) for e in edits for c in e.meta.get("concepts", ())],
        tokenizer=tokenizer,
    )


def combinable(edits: Sequence[Edit]) -> None:
    """Refuse edits that no model can bring together.

    Raises:
        UserError: fewer than two, of different bases, or one of them twice.
    """
    if len(edits) < 2:
        raise UserError(f"got {len(edits)} edits; two or more can be combined.")
    bases = {str(e.meta.get("base")) for e in edits}
    if len(bases) > 1:
        told = ", ".join(f"{called(e)} of {e.meta.get('base')}" for e in edits)
        raise UserError(f"the edits are of different base models ({told}).")
    if len({e.digest for e in edits}) < len(edits):
        raise UserError("the same edit was given twice.")
    for one, two in combinations(edits, 2):
        if twice := ingredients(one) & ingredients(two):
            raise UserError(
                f"{sorted(twice)[0]} is in {called(one)} and in {called(two)}: it would count "
                "twice."
            )


def ingredients(edit: Edit) -> set[str]:
    """Digests of the edits that an edit is made of, its own among them, at whatever strength."""

    def inside(digest: str, meta: Mapping[str, Any]) -> set[str]:
        parts = [inside(str(m.get("digest")), m) for m in meta.get("combined", ())]
        return {str(meta.get("whole", digest)), digest}.union(*parts)

    return {edit.whole} | inside(edit.digest, edit.meta)


def about(model: DiffusionModel, edits: Sequence[Edit], how: str) -> dict[str, Any]:
    """What a combined edit remembers."""
    first = edits[0].meta
    return {
        "efface": first.get("efface"),
        "method": "combine",
        "config": {"how": how},
        "concepts": [c for e in edits for c in e.meta.get("concepts", ())],
        "model": first.get("model"),
        "base": first.get("base"),
        "dtype": model.precision,
        "combined": [{"digest": e.digest, **e.meta} for e in edits],
    }


@dataclass(frozen=True)
class Difference:
    """How one weight group differs between two models."""

    group: str
    tensors: int
    changed: int
    """How many of them differ at all."""
    relative: float
    """|change| / |weights|, over the group."""
    rank: float
    """Mean effective rank of the changed matrices: exp of the entropy of their squared singular
    values; 0 where nothing changed."""


def diff(one: DiffusionModel, two: DiffusionModel) -> tuple[list[Difference], Edit]:
    """How two models of one architecture differ, by weight group, and the edit that leads over.

    Raises:
        UserError: another architecture.
    """
    own, other = one.parameters(), two.parameters()
    shapes = [{k: w.shape for k, w in x.items()} for x in (own, other)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{one.name!r} and {two.name!r} are of different architectures.")
    moved = {k: (other[k].float() - w.float()).cpu() for k, w in own.items()}
    changed = {k: d for k, d in moved.items() if d.any()}
    ranks = {k: effective_rank(d) for k, d in changed.items() if d.ndim >= 2}
    found = []
    for group in one.family.groups:
        names = one.group(group)
        far = sum(float(changed[n].double().square().sum()) for n in names if n in changed)
        size = sum(float(own[n].cpu().double().square().sum()) for n in names)
        mine = [ranks[n] for n in names if n in ranks]
        found.append(
            Difference(
                group,
                len(names),
                sum(n in changed for n in names),
                (far / size) ** 0.5 if size else 0.0,
                sum(mine) / len(mine) if mine else 0.0,
            )
        )
    meta = {
        "method": "diff",
        "concepts": [],
        "model": one.name,
        "base": one.base,
        "dtype": one.precision,
        "config": {"to": two.name, "hash": two.base},
    }
    return found, Edit({k: other[k].detach().cpu().float() for k in changed}, meta)


def effective_rank(change: Tensor) -> float:
    """Exponential of the entropy of the squared singular values' shares."""
    p = torch.linalg.svdvals(change.flatten(1).double()).square()
    p = p[p > 0] / p.sum()
    return float((-(p * p.log()).sum()).exp())
