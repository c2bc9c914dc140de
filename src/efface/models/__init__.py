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
from efface.models.tokens import (
    check_clip,
    counting_texts,
    encoded_with,
    ids_in,
    mark_for,
    said_by,
    token_table,
    whole,
    words_of,
)

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
    "check_clip",
    "check_crosses",
    "checkpointed",
    "configs",
    "counting_texts",
    "encoded_with",
    "family_of",
    "hash_stored",
    "ids_in",
    "load",
    "mark_for",
    "memory_of",
    "mix",
    "plain",
    "plan",
    "refuse_pickle",
    "release",
    "said_by",
    "stack",
    "stored_dtype",
    "to_image",
    "token_table",
    "variant",
    "watched",
    "weight_files",
    "whole",
    "words_of",
]
