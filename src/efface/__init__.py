"""efface erases concepts from text-to-image diffusion models, and proves it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from efface.storage import VERSION as __version__

if TYPE_CHECKING:
    from efface.api import erase, load_model, score
    from efface.concepts import Concept
    from efface.edits.edit import Edit
    from efface.errors import UserError
    from efface.evaluation.attacks import ATTACKS, Attack
    from efface.evaluation.judges import JUDGES, Judge
    from efface.evaluation.judges.emoji import EmojiJudge
    from efface.evaluation.metrics import METRICS, Given, Metric
    from efface.evaluation.protocols import Protocol
    from efface.evaluation.samples import Samples
    from efface.evaluation.scoring import Scores
    from efface.methods import METHODS
    from efface.methods.advunlearn import AdvUnlearn
    from efface.methods.age import AGE
    from efface.methods.ap import AP
    from efface.methods.ca import CA
    from efface.methods.dp import DP
    from efface.methods.esd import ESD
    from efface.methods.mace import MACE
    from efface.methods.minimax import Minimax
    from efface.methods.oce import OCE
    from efface.methods.race import RACE
    from efface.methods.rece import RECE
    from efface.methods.speed import SPEED
    from efface.methods.spm import SPM
    from efface.methods.stereo import STEREO
    from efface.methods.twofold import Twofold
    from efface.methods.uce import UCE
    from efface.models import MODELS, DiffusionModel
    from efface.scores import Score
    from efface.training import (
        Bank,
        Job,
        Latents,
        Made,
        Method,
        Paused,
        Pictures,
        Rollout,
        Run,
        Tuning,
    )
    from efface.training.recall import Recall
    from efface.training.search import Exact, Forecast, Gumbel, Online, Random, Search
    from efface.vocabulary import Vocabulary

_HOME = {
    "api": ("erase", "load_model", "score"),
    "concepts": ("Concept",),
    "edits.edit": ("Edit",),
    "errors": ("UserError",),
    "evaluation.attacks": ("ATTACKS", "Attack"),
    "evaluation.judges": ("JUDGES", "Judge"),
    "evaluation.judges.emoji": ("EmojiJudge",),
    "evaluation.metrics": ("METRICS", "Given", "Metric"),
    "evaluation.protocols": ("Protocol",),
    "evaluation.samples": ("Samples",),
    "evaluation.scoring": ("Scores",),
    "methods": ("METHODS",),
    "models": ("MODELS", "DiffusionModel"),
    "scores": ("Score",),
    "training": (
        "Bank",
        "Job",
        "Latents",
        "Made",
        "Method",
        "Paused",
        "Pictures",
        "Rollout",
        "Run",
        "Tuning",
    ),
    "training.recall": ("Recall",),
    "training.search": ("Exact", "Forecast", "Gumbel", "Online", "Random", "Search"),
    "vocabulary": ("Vocabulary",),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``efface --help`` does not wait for torch.

    A method's class has its own name, whichever package it is from.
    """
    if name in _WHERE:
        return getattr(import_module(f"efface.{_WHERE[name]}"), name)
    if name == "__all__":
        return [*_WHERE, *_methods(), "__version__"]
    if not name.startswith("_") and name in (methods := _methods()):
        return methods[name]
    raise AttributeError(f"module 'efface' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, *_methods()])


def _methods() -> dict[str, Any]:
    from efface.methods import METHODS

    return {m.__name__: m for m in METHODS.values()}
