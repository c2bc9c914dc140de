"""efface erases concepts from text-to-image diffusion models, and proves it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("efface")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"

if TYPE_CHECKING:
    from efface.concepts import Concept
    from efface.edit import Edit
    from efface.errors import UserError
    from efface.methods import AGE, AP, CA, ESD, MACE, METHODS, SPEED, SPM, UCE
    from efface.metrics import METRICS, Judge
    from efface.models import MODELS, DiffusionModel
    from efface.models import load as load_model
    from efface.samples import Samples
    from efface.scores import Score
    from efface.vocabulary import Vocabulary

_HOME = {
    "AGE": "methods",
    "AP": "methods",
    "CA": "methods",
    "Concept": "concepts",
    "DiffusionModel": "models",
    "ESD": "methods",
    "Edit": "edit",
    "Judge": "metrics",
    "MACE": "methods",
    "METHODS": "methods",
    "METRICS": "metrics",
    "MODELS": "models",
    "SPEED": "methods",
    "SPM": "methods",
    "Samples": "samples",
    "Score": "scores",
    "UCE": "methods",
    "UserError": "errors",
    "Vocabulary": "vocabulary",
    "load_model": "models",
}
__all__ = [
    "AGE",
    "AP",
    "CA",
    "ESD",
    "MACE",
    "METHODS",
    "METRICS",
    "MODELS",
    "SPEED",
    "SPM",
    "UCE",
    "Concept",
    "DiffusionModel",
    "Edit",
    "Judge",
    "Samples",
    "Score",
    "UserError",
    "Vocabulary",
    "__version__",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``efface --help`` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"efface.{_HOME[name]}"), "load" if name == "load_model" else name)
