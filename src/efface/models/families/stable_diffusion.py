"""Stable Diffusion 1.x and 2.x: a UNet with cross-attention to one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.models.families.family import Asked, Family, Parts, causal, tokenized
from efface.models.files import original


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x."""

    name = "sd"
    label = "Stable Diffusion 1.x / 2.x"
    pipelines = ("StableDiffusionPipeline",)
    denoiser = "unet"
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType({"text_encoder": "tokenizer"})
    groups: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "xattn": r"\.attn2\.",
            "kv": r"\.attn2\.to_[kv]\.",
            "selfattn": r"\.attn1\.",
            "noxattn": r"^(?!(conv_norm_out|conv_out|(time|add)_embedding)\.)(?!.*\.attn2\.)",
            "transformer": r"\.attentions\.",
            "full": "",
        }
    )
    """Source: arXiv:2303.07345, section 4.1; arXiv:2410.15618. ``transformer`` is SPM's: all of
    the transformer blocks (arXiv:2312.16145)."""
    reads = r"\.attn2\.to_[kv]\."
    crosses = True
    steps, guidance = 50, 7.5

    def width(self, config: Any) -> int:
        """Of the cross-attention."""
        widths = config.cross_attention_dim
        return int(widths if isinstance(widths, int) else max(widths))

    def encode(self, parts: Parts, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """The text encoder's last hidden states."""
        tokenizer = parts["tokenizer"]
        ids = tokenized(tokenizer, prompts, tokenizer.model_max_length, device)
        return Conditioning(parts["text_encoder"](ids)[0])

    def word_states(self, parts: Parts, words: Sequence[str], device: torch.device) -> Tensor:
        """States of every word's last token, (n, 1, D), without the padding."""
        found = causal(parts["text_encoder"], parts["tokenizer"], words, 0, device)
        return found[:, None]

    def original(self, parts: Parts) -> dict[str, Tensor]:
        """CompVis' names."""
        return original.stable_diffusion(parts)

    def kohya(self, parts: Parts, module: str) -> str:
        """Diffusers' names."""
        return f"lora_unet_{module.replace('.', '_')}"

    def inputs(self, asked: Asked) -> dict[str, Any]:
        """Latents, timesteps and states."""
        return {
            "sample": asked.z,
            "timestep": asked.t,
            "encoder_hidden_states": asked.cond.states,
        }
