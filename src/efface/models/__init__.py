"""Diffusion models reduced to four verbs, whatever their family and their files.

``load`` opens one. Everything above may use what is exported here; nothing else touches a denoiser,
a scheduler's step or an autoencoder.
"""

from __future__ import annotations

from efface.models.attention import check_crosses, watched
from efface.models.conditioning import Conditioning, mix, stack
from efface.models.counter import Counter
from efface.models.diffusion import DiffusionModel, Weights, to_image
from efface.models.families import FAMILIES, Family
from efface.models.files.components import PICKLES, refuse_pickle
from efface.models.files.folder import configs
from efface.models.files.stored import hash_stored, stored_dtype, variant, weight_files
from efface.models.memory import WORTH, Plan, checkpointed, memory_of, plan, release
from efface.models.opening import MODELS, Shipped, family_of, load
from efface.models.pipelines import plain
from efface.models.process import Schedule

__all__ = [
    "FAMILIES",
    "MODELS",
    "PICKLES",
    "WORTH",
    "Conditioning",
    "Counter",
    "DiffusionModel",
    "Family",
    "Plan",
    "Schedule",
    "Shipped",
    "Weights",
    "check_crosses",
    "checkpointed",
    "configs",
    "family_of",
    "hash_stored",
    "load",
    "memory_of",
    "mix",
    "plain",
    "plan",
    "refuse_pickle",
    "release",
    "stack",
    "stored_dtype",
    "to_image",
    "variant",
    "watched",
    "weight_files",
]
