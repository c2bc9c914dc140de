"""How an edit is made: one ``erase``, one fine-tuning loop, latents and search.

Stands on ``edits``; methods are written with it, and nothing below knows it.
"""

from __future__ import annotations

from efface.training.anchors import AUTO
from efface.training.batches import Batch, Words
from efface.training.erasure import Entry, Job, Made, Method, erase, provenance
from efface.training.latents import Bank, Latents, Rollout
from efface.training.loop import finetune
from efface.training.pictures import Pictures
from efface.training.processes import join
from efface.training.runs import EDIT, OnUpdate, Paused, Run
from efface.training.student import Loss, Student
from efface.training.tuning import Tuning

__all__ = [
    "AUTO",
    "EDIT",
    "Bank",
    "Batch",
    "Entry",
    "Job",
    "Latents",
    "Loss",
    "Made",
    "Method",
    "OnUpdate",
    "Paused",
    "Pictures",
    "Rollout",
    "Run",
    "Student",
    "Tuning",
    "Words",
    "erase",
    "finetune",
    "join",
    "provenance",
]
