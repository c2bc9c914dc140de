"""Where in a picture the denoiser looks at which word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from efface.errors import UserError
from efface.models.diffusion import DiffusionModel


def check_crosses(model: DiffusionModel) -> None:
    """Refuse a model without cross-attention blocks.

    Raises:
        UserError: it has none.
    """
    if not model.family.crosses:
        raise UserError(
            f"{model.family.label} has no cross-attention blocks, where one could see what looks "
            "at which word: choose another method."
        )


@contextmanager
def watched(model: DiffusionModel) -> Iterator[list[Tensor]]:
    """Collect the cross-attention of every evaluation inside the block, differentiable.

    Yields:
        A list that grows by one (B, heads, H·W, L) tensor a layer and evaluation; rows sum to 1
        over the L tokens.

    Raises:
        UserError: a denoiser without cross-attention blocks.
    """
    check_crosses(model)
    model.fill()
    layers = [m for n, m in model.denoiser.named_modules() if n.endswith(".attn2")]
    seen: list[Tensor] = []
    hooks = []
    for layer in layers:
        queries: list[Tensor] = []

        def heads(x: Tensor, layer: Any = layer) -> Tensor:
            split: Tensor = x.unflatten(2, (layer.heads, -1)).transpose(1, 2)
            return split

        def keep(_: Any, __: Any, out: Tensor, queries: list[Tensor] = queries) -> None:
            queries.append(out)

        def look(
            _: Any,
            __: Any,
            out: Tensor,
            layer: Any = layer,
            queries: list[Tensor] = queries,
            heads: Any = heads,
        ) -> None:
            logits = heads(queries.pop()) @ heads(out).transpose(2, 3)
            seen.append((logits * layer.scale).softmax(3))

        hooks += [
            layer.to_q.register_forward_hook(keep),
            layer.to_k.register_forward_hook(look),
        ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
