"""Losses of a training, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.training import Method, OnUpdate, Tuning

LOGS = {"tensorboard": "tensorboard"}
"""What ``--log`` takes."""


def watcher(name: str, method: Method, folder: Path) -> OnUpdate | None:
    """What keeps the losses of every update in a folder; None: nothing does.

    Args:
        name: of :data:`LOGS`, or "".
        folder: of the event files; made at the first update.

    Raises:
        UserError: an unknown name, what is not installed, or a method without a training.
    """
    if not name:
        return None
    pick(LOGS, name, "log")
    if not isinstance(method, Tuning):
        raise UserError(f"{method.name} is a closed form: it has no losses to log.")
    make = _writer()
    made: list[Any] = []

    def on_update(update: int, losses: Mapping[str, float], _: Edit) -> None:
        if not made:  # a killed run that goes on writes over what comes after its checkpoint
            made.append(make(str(folder), purge_step=update))
        for k, v in losses.items():
            made[0].add_scalar(k, v, update)
        made[0].flush()

    return on_update


def _writer() -> Any:
    for home in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return import_module(home).SummaryWriter
        except ImportError:
            continue
    raise UserError("--log tensorboard needs TensorBoard: pip install tensorboard.")
