"""How far an erasure may move a model's weights: by more than rounding, and not without end."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from efface.errors import UserError

FAR = 1e4
"""Times its own size that a weight may change by; a few times is much."""
NEAR = 1e-6
"""Share of its size that some weight changes by at least; less is rounding."""
NONE = 1e-12
"""Size of a weight that has none: its change counts as it is."""


def check_change(made: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights of a closed form whose equations had no sane solution, or none to speak of.

    Args:
        made: the new weights.
        own: the model's.

    Raises:
        UserError: the model has no such weight, or one moves by more than :data:`FAR` times its
            size, or none by :data:`NEAR`.
    """
    moved = 0.0
    for name, w in made.items():
        if name not in own or own[name].shape != w.shape:
            has = tuple(own[name].shape) if name in own else "no such weight"
            raise UserError(f"the edit has {name!r} of {tuple(w.shape)}, the model {has}.")
        far = share(w, own[name])
        if not far <= FAR:
            raise UserError(
                f"the edit would change {name!r} by {far:,.0f} times its size, which is rounding "
                "blown up: the settings leave next to nothing to erase with. Raise the ridge (or "
                "what else holds the maps in place), or preserve or erase fewer words."
            )
        moved = max(moved, far)
    if moved < NEAR:
        raise UserError(
            "the edit would change nothing: with these settings the erased concepts weigh nothing "
            "beside what is preserved."
        )


def check_trained(made: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights of a training that moved none of them, or one out of all bounds.

    Args:
        made: the new weights.
        own: the model's.

    Raises:
        UserError: none moved by :data:`NEAR` of its size, or one by more than :data:`FAR` times it.
    """
    far = {k: share(w, own[k]) for k, w in made.items()}
    most = max(far, key=far.__getitem__, default="")
    if not far or far[most] < NEAR:
        raise UserError(
            "the edit would change nothing: no weight moved by a millionth of its size while it "
            "was trained. Raise the learning rate (lr)."
        )
    if not far[most] <= FAR:
        raise UserError(
            f"the training moved {most!r} by {far[most]:,.0f} times its size, after which a model "
            "draws nothing. Lower the learning rate (lr)."
        )


def share(new: Tensor, own: Tensor) -> float:
    """How far a weight is from the model's, in units of its size."""
    before = own.detach().float().cpu()
    size = float(before.norm())
    return float((new.float().cpu() - before).norm()) / (size if size > NONE else 1.0)
