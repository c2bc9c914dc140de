"""How much of what a text map makes of a word is to be seen in a picture: a weight for each map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efface.errors import UserError
from efface.models import DiffusionModel, watched
from efface.training.anchors import half_made, half_way
from efface.training.closed_form import solve, text_vectors

SHOWN = 8
"""Words that it is measured on, at even distances in the vocabulary."""
RIDGE = 0.5
"""Of the unrelated edits, UCE's own."""


@torch.no_grad()
def by_drift(
    model: DiffusionModel, maps: Sequence[str], words: Sequence[str], g: torch.Generator
) -> list[float]:
    """How far predictions drift for what unrelated edits do to each map.

    Of a few words, each second one is sent to the one before it (UCE, nothing preserved), in one
    map at a time. The map's weight is the mean square of what that does to the other words'
    predictions, over the square of what it does to what the map makes of them. Costs ``1 +
    len(maps) * SHOWN / 2`` evaluations a word at most, and the words' half-made pictures.

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
        own = model.parameters()[name].detach()
        drift = made = 0.0
        for i in range(0, len(some) - 1, 2):
            others = [j for j in range(len(some)) if j not in (i, i + 1)] or [i]
            new = own.double().cpu() @ solve(rows[[i + 1]], rows[[i]], None, 1.0, 1.0, RIDGE)
            guess = model.predict(
                z[others], t[others], cond[others], {name: new.to(own.device, own.dtype)}
            )
            drift += float((guess - plain[others]).square().sum())
            made += float(((new - own.double().cpu()) @ rows[others].T).square().sum())
        found.append(drift / max(made, 1e-30))
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
