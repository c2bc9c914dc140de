"""The one set of options for opening a model, and the one rule for which."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.tasks import Crew, imported
from efface.models import MODELS, DiffusionModel, load
from efface.settings import Range

DEFAULT = "emoji"
"""What is opened where nobody says what."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """Which model."""

    model: Annotated[str, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = ""
    """A shipped model, a diffusers folder, a single file, or a hub id. Default: the one that the
    edit was made for; without an edit emoji, the shipped toy model."""


@dataclass(frozen=True, kw_only=True)
class Opening(Base):
    """How a model is opened."""

    dtype: Annotated[str, tyro.conf.arg(metavar="{fp32,bf16,fp16}")] = "fp32"
    """Precision of the frozen model; what is trained stays fp32."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE", help_behavior_hint="")] = None
    """A torch device. Default: the best there is."""
    size: Annotated[int, Range(0, 8192), tyro.conf.arg(help_behavior_hint="")] = 0
    """Side of a picture in pixels, 0 to 8,192. 0, the default: what the model was made for."""


OfModel = Annotated[Opening, tyro.conf.arg(name="")]
"""The options of a command that opens a model."""
OfBase = Annotated[Base, tyro.conf.arg(name="")]
"""The option of a command that reads a model's weights as they are stored."""
Jobs = Annotated[
    int,
    Range(1, 256),
    tyro.conf.arg(
        help="Processes that share the work out, 1 to 256, each with the model in its memory; the "
        "results are the same."
    ),
]
"""``--jobs``."""
Ray = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="ADDRESS",
        help_behavior_hint="",
        help="Share the work out on Ray: the address of a cluster, or ``local``; the results are "
        "the same.",
    ),
]
"""``--ray``."""


def crew(jobs: int, ray: str | None) -> Crew:
    """Who does the work: ``--jobs`` processes, or ``--ray``.

    Raises:
        UserError: both are given, or Ray is not installed.
    """
    if ray is not None and jobs > 1:
        raise UserError("give either --jobs or --ray: a cluster has as many processes as it can.")
    if ray is not None:
        imported()
    return Crew(jobs, ray)


def chosen(o: Base, edit: Edit | None = None, tell: bool = True) -> str:
    """``--model`` if given, else the edit's own base, else the shipped toy model.

    Args:
        tell: say on stderr where the shipped model is meant by default.
    """
    own = str(edit.meta.get("model", "")) if edit else ""
    if tell and not o.model and not own:
        print(
            f"efface: no --model is given: this is about {DEFAULT!r}, the shipped toy model.",
            file=sys.stderr,
        )
    return located(o.model or own or DEFAULT)


def opened(o: Base, edit: Edit | None = None, tell: bool = True, **how: Any) -> DiffusionModel:
    """Open the model that :func:`chosen` names.

    A path is made absolute: what an edit remembers of its base is found from any folder.

    Args:
        how: of :func:`efface.models.load`, instead of the options.

    Raises:
        UserError: it cannot be opened; names ``--model`` where the edit's own base is not found.
    """
    if isinstance(o, Opening):
        how = {"dtype": o.dtype, "device": o.device, "size": o.size, **how}
    name = chosen(o, edit, tell)
    missing = name not in MODELS and not Path(name).exists()
    try:
        return load(name, **how)
    except UserError as e:
        if o.model or edit is None or not missing:
            raise
        why = "is not there" if Path(name).is_absolute() else f"is not found ({e})"
        raise UserError(
            f"the model that the edit was made for, {name!r}, {why}: say where it is by --model."
        ) from None


def located(name: str) -> str:
    """A model's name; of a path that is there, the absolute one."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name not in MODELS and path.exists() else name
