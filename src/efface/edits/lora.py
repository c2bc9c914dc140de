"""An edit as a LoRA file, by peft's names or by kohya's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.models import DiffusionModel
from efface.models.files.tensors import save as save_tensors
from efface.settings import Range, need
from efface.storage import make_folder


class Lora(NamedTuple):
    """Factors by peft's names, and what they leave out."""

    tensors: dict[str, Tensor]
    """``unet.MODULE.lora_A.weight`` (r, in) and ``lora_B.weight`` (out, r); or ``transformer.``"""
    error: float
    """|change - LoRA| / |change| over all changed weights; 0 to 1."""
    never: float
    """The part of it that is no layer's matrix, which no rank holds: biases, norms, tokens."""
    about: Mapping[str, object]
    """What the edit remembers of how it was made."""


def factorise(model: DiffusionModel, edit: Edit, rank: int) -> Lora:
    """The best rank-``rank`` LoRA of an edit: exact where its changes have that rank.

    Args:
        rank: 1 to 10,000; less where no change has so high a one. All factors have the same, filled
            up with zeros: older diffusers take the first one's for all.

    Raises:
        UserError: no such rank, or an edit of another model.
    """
    need(rank, "rank", Range(1, 10_000))
    edit.check(model)
    halves, lost, never, whole = {}, 0.0, 0.0, 0.0
    for name, own in edit.based_on(model).items():
        change = edit.change(name, own).double()
        whole += float(change.square().sum())
        if not holds(model, name):
            never += float(change.square().sum())
            continue
        u, s, vh = torch.linalg.svd(change.flatten(1), full_matrices=False)
        r = max(min(rank, int((s > 1e-6 * s[0]).sum())), 1)
        lost += float(s[r:].square().sum())
        up, down = u[:, :r] * s[:r].sqrt(), s[:r].sqrt()[:, None] * vh[:r]
        halves[name] = down.float(), up.float()
    most, tensors = max((len(down) for down, _ in halves.values()), default=0), {}
    for name, (down, up) in halves.items():
        module = f"{model.family.denoiser}.{name.removesuffix('.weight')}"
        shape, more = edit.weights[name].shape, most - len(down)
        down, up = (x.contiguous() for x in (pad(down, (0, 0, 0, more)), pad(up, (0, more))))
        tensors[f"{module}.lora_A.weight"] = down.view(most, *shape[1:])
        tensors[f"{module}.lora_B.weight"] = up.view(*up.shape, *(1,) * (len(shape) - 2))
    error, outside = ((x / whole) ** 0.5 if whole else 0.0 for x in (lost + never, never))
    return Lora(tensors, error, outside, edit.meta)


def holds(model: DiffusionModel, name: str) -> bool:
    """Whether a LoRA can change a weight: a linear layer's or a convolution's matrix.

    Biases, norms, and what stands by itself (a learned token) have no place in one.
    """
    module, _, leaf = name.rpartition(".")
    layer = model.denoiser.get_submodule(module)
    plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    return plain and leaf == "weight"


def peft(model: DiffusionModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors as they are."""
    return dict(tensors)


def kohya(model: DiffusionModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same factors by kohya's names, with alpha = rank, which all programs read alike."""
    found = {}
    for name, w in tensors.items():
        module, _, side = name.removesuffix(".weight").rpartition(".")
        own = model.family.kohya(model.parts, module.partition(".")[2])
        found[f"{own}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = w
        if side == "lora_A":
            found[f"{own}.alpha"] = torch.tensor(float(len(w)))
    return found


FORMS: Mapping[str, Callable[[DiffusionModel, Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "peft": peft,
    "kohya": kohya,
}
"""How a file names the factors."""


def save(model: DiffusionModel, lora: Lora, path: Path, form: str = "peft") -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        form: a key of :data:`FORMS`.

    Raises:
        UserError: it exists, cannot be written, a form that the family does not have, or nothing
            of the edit that a LoRA can hold.
    """
    if not lora.tensors:
        raise UserError(
            "a LoRA can hold nothing of this edit, which changes biases, norms or tokens alone: "
            "use efface merge or efface apply."
        )
    tensors = pick(FORMS, form, "form")(model, lora.tensors)
    if path.exists():
        raise UserError(f"{str(path)!r} exists already; name a file that does not.")
    about = {"format": "pt", "efface": json.dumps(dict(lora.about))}
    make_folder(path.absolute().parent)
    save_tensors(path, tensors, about)
