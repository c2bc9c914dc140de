"""Concepts erased one after another, in different orders, and all at once: is the end the same?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.evaluation.sensitivity import prediction
from efface.methods.ap import AP
from efface.models import DiffusionModel
from efface.reporting.figures import OTHER, OURS, panels, svg
from efface.scores import Score, rank_correlation
from efface.studies import grid
from efface.studies.lab import Lab

BASE = AP.presets()["away"]
TOGETHER = "all at once"


def run(
    lab: Lab, erased: tuple[str, ...] = grid.ERASED, updates: int = 120, gone: int = 20
) -> dict[str, Any]:
    """AP, as many updates for each concept in every order; all at once, with their sum."""
    turns = [erased[i:] + erased[:i] for i in range(len(erased))]
    rows, harms, others = [], {}, [n for n in lab.names if n not in erased]
    for order in (*turns, TOGETHER):
        if isinstance(order, str):
            method = tuned(updates * len(erased))
            edit, label = lab.edit(method, [Concept(e) for e in erased]), order
        else:
            edit, label = one_after_another(lab, order, updates), " → ".join(order)
        sees = {
            "gone": lab.seen(edit, erased, gone).packed(),
            "kept": lab.seen(edit, others, 1).packed(),
        }
        rows.append({"label": label, "seed": 0, **sees, "cost": edit.meta["cost"]})
        harm = prediction(lab.model, edit, others, 4, progress=lab.progress).harm
        harms[label] = [round(float(x), 4) for x in harm]
    return {
        **lab.about(),
        "updates": updates,
        "erased": list(erased),
        "others": others,
        "near": list(lab.protocol.near(erased)),
        "rows": rows,
        "harm": harms,
    }


def tuned(updates: int) -> AP:
    """AP with so many updates."""
    return replace(BASE, updates=updates)


def one_after_another(lab: Lab, order: Sequence[str], updates: int) -> Edit:
    """Each concept erased from what the erasures before it left; one edit of the base model."""
    weights: dict[str, torch.Tensor] = {}
    cost = {"forward": 0, "backward": 0}
    for name in order:
        edit = lab.edit(tuned(updates), [Concept(name)], edited(lab.model, weights))
        weights |= edit.weights
        cost = {k: cost[k] + edit.meta["cost"][k] for k in cost}
    return Edit(weights, {**edit.meta, "base": lab.model.base, "cost": cost})


def edited(model: DiffusionModel, weights: Mapping[str, torch.Tensor]) -> DiffusionModel:
    """The model with a denoiser of its own that holds these weights; its hash says so."""
    if not weights:
        return model
    kind: Any = type(model.denoiser)
    denoiser = kind.from_config(model.denoiser.config).to(model.device)
    denoiser.load_state_dict({**model.denoiser.state_dict(), **weights})
    parts = {**model.parts, model.family.denoiser: denoiser}
    base = f"{model.base}+{Edit(weights).digest}"
    return replace(model, parts=parts, hashed=lambda: base)


def agreements(found: Mapping[str, Any]) -> dict[str, Score]:
    """Rank correlation of the harm of neighbouring rows, and of the first with all at once."""
    harm = {k: torch.tensor(v) for k, v in found["harm"].items()}
    labels = [k for k in harm if k != TOGETHER]
    pairs = [*pairwise(labels), (labels[0], TOGETHER)]
    return {f"{a} / {b}": rank_correlation(harm[a], harm[b]) for a, b in pairs}


def figure(found: Mapping[str, Any]) -> str:
    """Harm of every word in the first order against the last one, and all at once."""
    labels = list(found["harm"])
    first = found["harm"][labels[0]]
    drawing, axes = panels(9, 4, 2)
    for ax, label, colour in zip(axes, (labels[-2], TOGETHER), (OTHER, OURS), strict=True):
        ax.plot(first, found["harm"][label], ".", color=colour)
        ax.set(xscale="log", yscale="log", xlabel=labels[0], ylabel=label)
    drawing.suptitle("change of every other word's predicted noise, %")
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    said = "; ".join(f"{k}: {s.said(2)}" for k, s in agreements(found).items())
    return (
        f"{', '.join(found['erased'])} erased by AP, {found['updates']} updates each, in every "
        "order of a rotation, and all at once with as many updates in all. Rank correlation of "
        f"the harm to the {len(found['others'])} other concepts: {said}.\n\n"
        f"{grid.table(found, 'order')}"
    )
