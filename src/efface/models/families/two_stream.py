"""Transformers in which text and picture tokens have weights of their own, and attend together."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from efface.models.families.family import Family, Parts
from efface.models.files.original import regrouped, swapped

OWN = r"attn\.(add_[qkv]_proj|to_add_out|norm_added)"
"""The text tokens' part of an attention."""


class TwoStream(Family):
    """What SD3 and FLUX share: weight groups, what reads the text, and single files."""

    groups: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "xattn": rf"^transformer_blocks\..*\.{OWN}",
            "kv": r"^transformer_blocks\..*\.attn\.add_[kv]_proj\.",
            "selfattn": r"^transformer_blocks\..*\.attn2?\.(to_[qkv]|to_out|norm_[qk])\.",
            "noxattn": rf"^(?!norm_out\.|proj_out\.|time_text_embed\.)(?!.*\.{OWN})",
            "text": rf"^transformer_blocks\..*\.(ff_context\.|norm1_context\.|{OWN})",
            "transformer": r"transformer_blocks\.",
            "full": "",
        }
    )
    """``xattn`` is the text tokens' attention, ``selfattn`` the picture tokens', ``text`` all that
    only text tokens pass."""
    reads = r"^context_embedder\.weight$"
    names: ClassVar[Mapping[str, str]]
    """Regular expressions of diffusers' names -> the single file's, one after the other."""

    def halves(self, parts: Parts) -> tuple[str, ...]:
        """Beginnings of the names whose halves, scale and shift, a single file has swapped."""
        return ("norm_out.linear.",)

    def original(self, parts: Parts) -> dict[str, Tensor]:
        """The transformer alone."""
        turned = self.halves(parts)
        state = parts["transformer"].state_dict()
        found = {k: swapped(w) if k.startswith(turned) else w for k, w in state.items()}
        return regrouped(found, self.names)
