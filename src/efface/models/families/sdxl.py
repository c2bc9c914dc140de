"""Stable Diffusion XL: a UNet with two CLIP text encoders, a pooled vector, and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.models.families.family import (
    Asked,
    Fit,
    Parts,
    causal,
    penultimate,
    tokenized,
    width_of,
)
from efface.models.families.stable_diffusion import StableDiffusion
from efface.models.files import original


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (arXiv:2307.01952)."""

    name = "sdxl"
    label = "SDXL"
    pipelines = ("StableDiffusionXLPipeline",)
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    )
    steps, guidance = 50, 5.0

    def state_width(self, parts: Parts) -> int:
        """Both side by side."""
        return sum(width_of(parts[e]) for e in self.encoders)

    def fits(self, parts: Parts) -> list[Fit]:
        """Also the pooled vector, beside six sizes."""
        config = parts["unet"].config
        sizes = 6 * (config.addition_time_embed_dim or 0)
        read = (config.projection_class_embeddings_input_dim or 0) - sizes
        given = parts["text_encoder_2"].config.projection_dim
        return [
            *super().fits(parts),
            Fit("unet pooled width", read, "text_encoder_2 projection_dim", given),
        ]

    def null(self, encoded: Conditioning) -> Conditioning:
        """Zeros where the pipeline says so (``force_zeros_for_empty_prompt``), as in training."""
        if not self.index.get("force_zeros_for_empty_prompt", True):
            return encoded
        return encoded.each(torch.zeros_like)

    def encode(self, parts: Parts, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """Hidden states of both encoders side by side, and the second one's pooled vector."""
        states, pooled = [], None
        for encoder, tokenizer in self.encoders.items():
            ids = tokenized(parts[tokenizer], prompts, parts[tokenizer].model_max_length, device)
            found, pooled = penultimate(parts[encoder], ids)
            states.append(found)
        assert pooled is not None
        return Conditioning(torch.cat(states, 2), pooled)

    def word_states(self, parts: Parts, words: Sequence[str], device: torch.device) -> Tensor:
        """States of every word's last token, (n, 1, D), without the padding."""
        found = [
            causal(parts[encoder], parts[tokenizer], words, -2, device)
            for encoder, tokenizer in self.encoders.items()
        ]
        return torch.cat(found, 1)[:, None]

    def original(self, parts: Parts) -> dict[str, Tensor]:
        """The names of Stability's checkpoint, and the key by which ComfyUI knows v."""
        found = original.sdxl(parts)
        scheduler = parts.get("scheduler")
        if scheduler is not None and scheduler.config.prediction_type == "v_prediction":
            found["v_pred"] = torch.empty(0)
        return found

    def kohya(self, parts: Parts, module: str) -> str:
        """The original names, which all programs read."""
        key = original.denoiser_key(parts["unet"].config)
        return f"lora_unet_{key(f'{module}.weight').removesuffix('.weight').replace('.', '_')}"

    def inputs(self, asked: Asked) -> dict[str, Any]:
        """Also the pooled vector, and the picture's size: original, no crop, target."""
        width, height = asked.pixels
        sizes = asked.z.new_tensor([height, width, 0, 0, height, width])
        added = {"text_embeds": asked.cond.pooled, "time_ids": sizes.expand(len(asked.z), -1)}
        return {**super().inputs(asked), "added_cond_kwargs": added}
