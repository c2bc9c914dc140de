"""How far each concept of a vocabulary moved under an edit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from efface.edit import Edit
from efface.models import DiffusionModel


@torch.no_grad()
def moved(
    model: DiffusionModel,
    edit: Edit,
    words: Sequence[str],
    latents: int = 2,
    seed: int = 0,
    batch: int = 128,
    progress: bool = True,
) -> Tensor:
    """Relative change of the predicted noise for each word, (K,); 0 is untouched.

    The mean over shared latents of ‖ε' - ε‖² / ‖ε‖². The latents are steps of unconditional
    trajectories of the base model, evenly spread over the noise levels.

    Args:
        latents: shared latents, each at a noise level of its own.
        batch: words at a time.

    Source: the prediction instrument of arXiv:2410.15618, section 3.2, with several latents instead
    of one.
    """
    weights = edit.on(model)
    scheduler = model.ddim(20)
    path: list[Tensor] = []
    start = model.noise(1, torch.Generator().manual_seed(seed))
    model.rollout(
        start,
        model.embed([""]),
        scheduler,
        range(20),
        1.0,
        visit=lambda _, z, e0, e1: path.append(z),
    )
    at = [round((i + 1) * 20 / (latents + 1)) for i in range(latents)]
    rows = model.embed(words)
    total = torch.zeros(len(words))
    bar = tqdm(total=latents * len(words), desc="harm", unit="word", disable=not progress)
    for k in at:
        for i in range(0, len(words), batch):
            cond = rows[slice(i, i + batch)]
            bar.update(len(cond))
            z, t = path[k].expand(len(cond), -1, -1, -1), scheduler.timesteps[k].expand(len(cond))
            before, after = model.predict(z, t, cond), model.predict(z, t, cond, weights)
            total[i : i + batch] += (
                (after - before).square().sum((1, 2, 3)) / before.square().sum((1, 2, 3))
            ).cpu()
    bar.close()
    return total / latents
