"""How much of what a text map makes of a word is to be seen in a picture: a weight for each map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efface.errors import UserError
from efface.models import DiffusionModel, watched
from efface.training.anchors import half_made, half_way
from efface.training.closed_form import text_vectors

SHOWN = 8
"""Words that it is measured on, at even distances in the vocabulary."""
SHAKE = 0.1
"""Size of an unrelated change of a map, in units of the map's own."""


@torch.no_grad()
def by_drift(
    model: DiffusionModel, maps: Sequence[str], words: Sequence[str], g: torch.Generator
) -> list[float]:
    """How far predictions drift for a change of each map that has to do with no word.

    A map is shaken by noise of its own size's :data:`SHAKE`; its weight is the mean square of what
    that does to predictions, over the mean square of what it does to the words' text states. Costs
    ``1 + len(maps)`` evaluations a word, and the words' half-made pictures.

    Args:
        words: a few of them are taken.

    Returns:
        A weight a map, mean 1.
    """
    some = spread(words)
    cond = model.embed(some)
    z, t = half_made(model, cond, g), half_way(model).expand(len(some))
    plain, rows = model.predict(z, t, cond), text_vectors(model, some)
    found = []
    for name in maps:
        own = model.parameters()[name].detach().float()
        noise = torch.randn(own.shape, generator=g).to(own.device)
        far = SHAKE * own.norm() / noise.norm() * noise
        drift = (model.predict(z, t, cond, {name: own + far}) - plain).square().mean()
        made = (rows @ far.cpu().double().T).square().mean()
        found.append(float(drift) / max(float(made), 1e-30))
    return evened(found)


@torch.no_grad()
def by_attention(
    model: DiffusionModel, maps: Sequence[str], words: Sequence[str], g: torch.Generator
) -> list[float]:
    """How much attention each layer pays to the last word of a prompt, squared.

    Args:
        words: a few of them are taken.

    Returns:
        A weight a map, mean 1.

    Raises:
        UserError: a denoiser without cross-attention blocks, or maps outside of them.
    """
    some = spread(words)
    cond = model.embed(some)
    z, t = half_made(model, cond, g), half_way(model).expand(len(some))
    order: list[str] = []
    with watched(model) as seen:
        hooks = [
            m.register_forward_hook(lambda *_, name=n: order.append(name))
            for n, m in model.denoiser.named_modules()
            if n.endswith(".attn2")
        ]
        try:
            model.predict(z, t, cond)
        finally:
            for hook in hooks:
                hook.remove()
    at = model.last_word(some)[:, -1].to(z.device)
    layers = {n: mass(a, at) for n, a in zip(order, seen, strict=True)}
    outside = [m for m in maps if m.rpartition(".to_")[0] not in layers]
    if outside:
        raise UserError(
            f"{outside[0]!r} is in no cross-attention block, so that attention says nothing of it: "
            "choose maps 'kv', or weigh by drift."
        )
    return evened([layers[m.rpartition(".to_")[0]] for m in maps])


def mass(attention: Tensor, at: Tensor) -> float:
    """Mean square of the attention that goes to a token.

    Args:
        attention: (B, heads, H·W, L).
        at: the token of each row, (B,).
    """
    mine = attention.gather(3, at[:, None, None, None].expand(*attention.shape[:3], 1))
    return float(mine.float().square().mean())


def spread(words: Sequence[str]) -> list[str]:
    """A few words at even distances."""
    return list(words[:: max(len(words) // SHOWN, 1)])[:SHOWN]


def evened(found: list[float]) -> list[float]:
    """Weights of mean 1; all 1 where nothing is seen of any."""
    total = sum(found)
    return [len(found) * x / total for x in found] if total > 0 else [1.0] * len(found)
