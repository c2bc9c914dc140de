"""Erasure methods: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from efface.concepts import Concept
from efface.edit import Edit
from efface.methods.age import AGE
from efface.methods.ap import AP
from efface.methods.ap import PRESETS as AP_PRESETS
from efface.methods.ca import CA
from efface.methods.ca import PRESETS as CA_PRESETS
from efface.methods.esd import ESD
from efface.methods.esd import PRESETS as ESD_PRESETS
from efface.methods.mace import MACE
from efface.methods.mace import PRESETS as MACE_PRESETS
from efface.methods.speed import PRESETS as SPEED_PRESETS
from efface.methods.speed import SPEED
from efface.methods.spm import PRESETS as SPM_PRESETS
from efface.methods.spm import SPM
from efface.methods.uce import PRESETS as UCE_PRESETS
from efface.methods.uce import UCE
from efface.models import DiffusionModel
from efface.runs import Run

__all__ = [
    "AGE",
    "AP",
    "CA",
    "ESD",
    "MACE",
    "METHODS",
    "PRESETS",
    "SPEED",
    "SPM",
    "UCE",
    "Method",
]


class Method(Protocol):
    """A frozen dataclass of hyper-parameters that can erase."""

    @property
    def keep(self) -> tuple[str, ...]:
        """Words to be preserved."""
        ...

    def erase(self, model: DiffusionModel, concepts: Sequence[Concept], run: Run = ...) -> Edit:
        """Make an edit of ``model`` in which ``concepts`` cannot be asked for."""
        ...


METHODS: Mapping[str, type[Any]] = {
    "ap": AP,
    "esd": ESD,
    "uce": UCE,
    "ca": CA,
    "age": AGE,
    "speed": SPEED,
    "spm": SPM,
    "mace": MACE,
}
"""Every method by the name that the command line gives it."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ap": AP_PRESETS,
    "esd": ESD_PRESETS,
    "uce": UCE_PRESETS,
    "ca": CA_PRESETS,
    "speed": SPEED_PRESETS,
    "spm": SPM_PRESETS,
    "mace": MACE_PRESETS,
}
"""Named settings of the methods that have some."""
