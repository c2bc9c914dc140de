"""Erasure methods: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from efface.concepts import Concept
from efface.edit import Edit
from efface.methods.ap import AP
from efface.methods.ap import PRESETS as AP_PRESETS
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import DiffusionModel
from efface.training import Run

__all__ = ["AP", "ESD", "METHODS", "PRESETS", "UCE", "Method"]


class Method(Protocol):
    """A frozen dataclass of hyper-parameters that can erase."""

    @property
    def keep(self) -> tuple[str, ...]:
        """Words to be preserved."""
        ...

    def erase(self, model: DiffusionModel, concepts: Sequence[Concept], run: Run = ...) -> Edit:
        """Make an edit of ``model`` in which ``concepts`` cannot be asked for."""
        ...


METHODS: Mapping[str, type[Any]] = {"ap": AP, "esd": ESD, "uce": UCE}
"""Every method by the name that the command line gives it."""

PRESETS: Mapping[str, Mapping[str, Any]] = {"ap": AP_PRESETS}
"""Named settings of the methods that have some."""
