"""Prompts in which some tokens are vectors of one's own, and what the text encoders are asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.models.conditioning import Conditioning
from efface.models.counter import Counter
from efface.models.diffusion import DiffusionModel

MARKS = ("*", "#", "@", "%", "&", "=", "+", "~")
"""What can stand in a prompt for a token of one's own."""
Rows = Mapping[str, Tensor]
"""Text encoder -> token vectors (n, D)."""


def check_clip(model: DiffusionModel, what: str) -> None:
    """Refuse a model whose text encoders are not CLIPs that cross-attention reads.

    Args:
        what: what is refused, for the message.

    Raises:
        UserError: says what is missing.
    """
    if not model.family.crosses:
        raise UserError(
            f"{what} works on token vectors of CLIP that cross-attention reads; "
            f"{model.family.label} has no cross-attention blocks."
        )


def token_table(model: DiffusionModel, encoder: str) -> Tensor:
    """Token vectors of a text encoder, (V, D)."""
    weight: Tensor = model.parts[encoder].get_input_embeddings().weight
    return weight


def mark_for(model: DiffusionModel, texts: Sequence[str]) -> str:
    """A mark that is one token of every tokenizer and stands in none of the texts.

    Raises:
        UserError: there is none.
    """
    for mark in MARKS:
        alone = all(len(ids_in(model, t, mark)) == 1 for t in model.family.encoders.values())
        if alone and not any(mark in t for t in texts):
            return mark
    raise UserError(f"no sign of {' '.join(MARKS)} is free to stand for a token in {texts[0]!r}.")


def ids_in(model: DiffusionModel, tokenizer: str, text: str) -> list[int]:
    """Token ids of a text, without start and end."""
    found: list[int] = model.parts[tokenizer](text, add_special_tokens=False).input_ids
    return found


def words_of(model: DiffusionModel, words: Sequence[str]) -> list[int]:
    """The tokens that some words are made of, each once, in order."""
    found = model.tokenizer(list(words), add_special_tokens=False).input_ids if words else []
    return sorted({i for ids in found for i in ids})


def whole(model: DiffusionModel, ids: Sequence[int]) -> list[int]:
    """Those of some tokens that are read as themselves when they stand alone: no parts of words."""
    return [i for i in ids if said_by(model, [i])[1]]


def said_by(model: DiffusionModel, ids: Sequence[int]) -> tuple[str, bool]:
    """The text of some tokens, and whether it is the same tokens when it is read again."""
    text: str = model.tokenizer.decode(list(ids)).strip()
    return text, model.tokenizer(text, add_special_tokens=False).input_ids == list(ids)


def encoded_with(
    model: DiffusionModel, prompts: Sequence[str], mark: str, rows: Rows
) -> Conditioning:
    """Encode prompts in which the i-th ``mark`` is read as the i-th row (the last one again).

    Gradients reach the rows.

    Args:
        mark: of :func:`mark_for`.
        rows: of every text encoder; (B, n, D): each prompt has its own.
    """
    with ExitStack() as hooks:
        for encoder, tokenizer in model.family.encoders.items():
            (own,) = ids_in(model, tokenizer, mark)
            layer = model.parts[encoder].get_input_embeddings()
            put = _putting(own, rows[encoder])
            hooks.callback(layer.register_forward_hook(put).remove)
        found = model.family.encode(model.parts, prompts, model.device)
    return found.each(lambda x: x.to(model.dtype))


def _putting(own: int, rows: Tensor) -> Any:
    """A hook on a table of token vectors that puts rows where the token ``own`` is."""

    def put(_: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        here = given[0] == own
        each = rows if rows.ndim == 3 else rows[None].expand(len(out), -1, -1)
        which = (here.long().cumsum(-1) - 1).clamp(0, each.shape[1] - 1)
        index = which[..., None].expand(-1, -1, each.shape[2])
        return torch.where(here[..., None], each.to(out).gather(1, index), out)

    return put


@contextmanager
def counting_texts(model: DiffusionModel) -> Iterator[Counter]:
    """Count what the first text encoder is asked inside the block: a prompt is one evaluation."""
    counter, encoder = Counter(), model.parts[next(iter(model.family.encoders))]

    def see(_: Any, given: tuple[Any, ...], out: Any) -> None:
        states = out[0]
        counter.see(len(states), states)

    hook = encoder.register_forward_hook(see)
    try:
        yield counter
    finally:
        hook.remove()
