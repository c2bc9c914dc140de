"""Who watches a training: losses for TensorBoard, and whoever shows it while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.models import DiffusionModel
from efface.training import Method, OnUpdate, Tuning

LOGS = {"tensorboard": "tensorboard"}
"""What ``--log`` takes."""


class Live(Protocol):
    """Whoever shows a run while it goes on; may raise :class:`~efface.training.Paused`."""

    def begun(self, model: DiffusionModel, concepts: Sequence[Concept]) -> None:
        """It begins: every anchor is known, nothing is trained."""

    def updated(self, update: int, losses: Mapping[str, float], edit: Edit) -> bool | None:
        """As :data:`~efface.training.OnUpdate`."""


def both(one: OnUpdate | None, live: Live | None) -> OnUpdate | None:
    """What keeps the losses, then what shows the run."""
    if one is None or live is None:
        return one or (live.updated if live else None)
    first = one

    def on_update(update: int, losses: Mapping[str, float], edit: Edit) -> bool | None:
        ends = first(update, losses, edit)
        return live.updated(update, losses, edit) or ends

    return on_update


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
