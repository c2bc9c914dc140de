"""Z-Image: one stream for text and picture, behind a refiner that reads the text alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.models.families import qwen
from efface.models.families.family import Asked, Family, Parts
from efface.models.files.original import regrouped

SIDE = 128
"""Side of a latent of Z-Image's own picture size."""
OWN = r"^context_refiner\..*\.attention\."
"""The attention of text tokens among themselves."""

ORIGINAL: Mapping[str, str] = MappingProxyType(
    {
        r"\.attention\.to_[qkv]\.": ".attention.qkv.",
        r"\.attention\.to_out\.0\.": ".attention.out.",
        r"\.attention\.norm_([qk])\.": r".attention.\1_norm.",
        r"^all_x_embedder\.2-1\.": "x_embedder.",
        r"^all_final_layer\.2-1\.": "final_layer.",
    }
)
"""diffusers' names -> those of the published file."""


class ZImage(Family):
    """Z-Image and Z-Image-Turbo (which wants a guidance of 1 and 8 steps).

    Text and picture tokens share nearly all weights, in the group ``single``; only the
    ``context_refiner`` and what leads into it see nothing but text.
    """

    name = "z-image"
    label = "Z-Image"
    pipelines = ("ZImagePipeline",)
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType({"text_encoder": "tokenizer"})
    experimental = True
    groups: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "xattn": OWN,
            "kv": r"^context_refiner\..*\.attention\.to_[kv]\.",
            "selfattn": r"^noise_refiner\..*\.attention\.",
            "noxattn": rf"^(?!all_final_layer\.|t_embedder\.)(?!{OWN[1:]})",
            "text": r"^(cap_embedder|context_refiner)\.",
            "transformer": r"^(context_refiner|noise_refiner|layers)\.",
            "single": r"^layers\.",
            "full": "",
        }
    )
    reads = r"^cap_embedder\.1\.weight$"
    from_one = True
    steps, guidance = 50, 5.0

    def width(self, config: Any) -> int:
        """Of what the ``cap_embedder`` reads."""
        return int(config.cap_feat_dim)

    def encode(self, parts: Parts, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """The language model's states before its last layer, and which of them are a prompt's."""
        asked = qwen.tokenized(parts["tokenizer"], prompts, True, device)
        states = parts["text_encoder"](**asked, output_hidden_states=True).hidden_states[-2]
        return Conditioning(states, mask=asked.attention_mask)

    def limits(self, parts: Parts) -> dict[str, int]:
        """What the template leaves."""
        return {"text_encoder": qwen.room(parts["tokenizer"], True)}

    def last_word(self, parts: Parts, prompts: Sequence[str]) -> Tensor:
        """Positions inside the template."""
        return qwen.last_word(parts["tokenizer"], prompts, True)[:, None]

    def seen(self, parts: Parts, states: Tensor) -> Tensor:
        """Behind the norm that stands before the first linear layer."""
        norm = parts["transformer"].cap_embedder[0]
        found: Tensor = norm(states.to(norm.weight)).to(states)
        return found

    def latent_shape(self, parts: Parts) -> tuple[int, int, int]:
        """The transformer takes any size."""
        return (parts["transformer"].config.in_channels, SIDE, SIDE)

    def original(self, parts: Parts) -> dict[str, Tensor]:
        """The transformer alone."""
        return regrouped(parts["transformer"].state_dict(), ORIGINAL)

    def inputs(self, asked: Asked) -> dict[str, Any]:
        """A list of latents, 1 - σ, and a list of states without padding."""
        states, mask = asked.cond.states, asked.cond.mask
        some = states.unbind()
        if mask is not None:
            some = tuple(s[m > 0] for s, m in zip(states, mask, strict=True))
        return {
            "x": list(asked.z.unsqueeze(2).unbind()),
            "t": 1 - asked.t / 1000,
            "cap_feats": list(some),
        }

    def output(self, out: Any, z: Tensor) -> Tensor:
        """The velocity the other way round."""
        return -torch.stack(list(out)).squeeze(2)
