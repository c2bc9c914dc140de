"""Stable Diffusion XL: a UNet with two CLIP text encoders, a pooled vector, and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.models.conditioning import Conditioning
from efface.models.families.family import Asked, Parts, causal, penultimate, tokenized
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

    def encode(self, parts: Parts, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """Hidden states of both encoders side by side, and the second one's pooled vector.

        The null prompt is zeros where the pipeline says so (``force_zeros_for_empty_prompt``), as
        the model was trained.
        """
        states, pooled = [], None
        for encoder, tokenizer in self.encoders.items():
            ids = tokenized(parts[tokenizer], prompts, parts[tokenizer].model_max_length, device)
            found, pooled = penultimate(parts[encoder], ids)
            states.append(found)
        assert pooled is not None
        whole = Conditioning(torch.cat(states, 2), pooled)
        if not self.index.get("force_zeros_for_empty_prompt", True):
            return whole
        said = torch.tensor([float(bool(p)) for p in prompts], device=device)
        return whole.each(lambda x: x * said.view(-1, *[1] * (x.ndim - 1)).to(x.dtype))

    def word_states(self, parts: Parts, words: Sequence[str], device: torch.device) -> Tensor:
        """States of every word's last token, (n, 1, D), without the padding."""
        found = [
            causal(parts[encoder], parts[tokenizer], words, -2, device)
            for encoder, tokenizer in self.encoders.items()
        ]
        return torch.cat(found, 1)[:, None]

    def original(self, parts: Parts) -> dict[str, Tensor]:
        """The names of Stability's checkpoint."""
        return original.sdxl(parts)

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
