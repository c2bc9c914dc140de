"""Prompts as Qwen3 reads them: inside a chat template, padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOKENS = 512
"""Longest prompt with its template, in tokens."""


def framed(tokenizer: Any, prompt: str, thinking: bool) -> str:
    """A prompt as a user's message, up to where the answer would begin.

    Args:
        thinking: as the pipeline asks the template.
    """
    said = [{"role": "user", "content": prompt}]
    found: str = tokenizer.apply_chat_template(
        said, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return found


def tokenized(tokenizer: Any, prompts: Sequence[str], thinking: bool, device: Any) -> Any:
    """``input_ids`` and ``attention_mask`` (B, L) of framed prompts."""
    texts = [framed(tokenizer, p, thinking) for p in prompts]
    longest = min(TOKENS, int(tokenizer.model_max_length))
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
    ).to(device)


def last_word(tokenizer: Any, prompts: Sequence[str], thinking: bool) -> Tensor:
    """Position of each prompt's last token, (n,), without padding in front."""
    head = framed(tokenizer, "\0", thinking).partition("\0")[0]
    lengths = [len(tokenizer(head + p).input_ids) for p in prompts]
    return torch.tensor(lengths).clamp(max=TOKENS) - 1


def room(tokenizer: Any, thinking: bool) -> int:
    """Tokens that the template leaves to a prompt, and two."""
    return TOKENS - len(tokenizer(framed(tokenizer, "", thinking)).input_ids) + 2
