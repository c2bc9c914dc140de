"""Many erased concepts take turns: the latents of a group are held while it is trained on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from efface.training.erasure import Job
from efface.training.tuning import Tuning

HELD = 100
"""Prompts of erased names whose trajectories a bank holds at a time; of more, groups take turns."""


@dataclass(frozen=True)
class Turns:
    """Groups of concepts, each of which has the same share of the updates, one after the other."""

    job: Job
    groups: tuple[tuple[int, ...], ...]
    """Indices of concepts."""

    @property
    def now(self) -> int:
        """The group whose turn it is, by the update alone."""
        assert isinstance(self.job.method, Tuning)
        return min(self.job.now * len(self.groups) // self.job.method.updates, len(self.groups) - 1)

    def generator(self) -> torch.Generator:
        """For the trajectories of this group."""
        return self.job.generator("bank", self.now)


def turns_of(job: Job, prompts: int) -> Turns | None:
    """How concepts take turns; None: there are few.

    Groups are drawn at random, so that each holds concepts of every sort. Warns where the updates
    are too few for a latent of each name.
    """
    sizes = [len(c.pairs(prompts)) for c in job.concepts]
    if sum(sizes) <= HELD or not isinstance(job.method, Tuning):
        return None
    latents = job.method.updates * job.method.accumulate * job.method.batch
    if latents < sum(sizes):
        warnings.warn(
            f"{latents:,} latents are trained on, for {sum(sizes):,} prompts of erased names: give "
            f"--updates {-(-job.method.updates * sum(sizes) // latents):,} or more.",
            stacklevel=2,
        )
    order = torch.randperm(len(sizes), generator=job.generator("groups")).tolist()
    groups: list[list[int]] = [[]]
    for i in order:
        if groups[-1] and sum(sizes[k] for k in groups[-1]) + sizes[i] > HELD:
            groups.append([])
        groups[-1].append(i)
    return Turns(job, tuple(map(tuple, groups)))
