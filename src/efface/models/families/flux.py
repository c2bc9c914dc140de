"""FLUX.1 dev and schnell: double and single stream blocks, packed latents, a straight flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efface.models.conditioning import Conditioning
from efface.models.families.family import Asked, Fit, Parts, sentencepiece_last, tokenized, width_of
from efface.models.families.two_stream import TwoStream

SIDE = 128
"""Side of a latent of FLUX's own picture size."""


ORIGINAL: Mapping[str, str] = MappingProxyType(
    {
        r"^transformer_blocks\.": "double_blocks.",
        r"^single_transformer_blocks\.": "single_blocks.",
        r"^(single_blocks\.\d+)\.attn\.norm_q\.weight": r"\1.norm.query_norm.scale",
        r"^(single_blocks\.\d+)\.attn\.norm_k\.weight": r"\1.norm.key_norm.scale",
        r"^(single_blocks\.\d+)\.(attn\.to_[qkv]|proj_mlp)\.": r"\1.linear1.",
        r"^(single_blocks\.\d+)\.proj_out\.": r"\1.linear2.",
        r"^(single_blocks\.\d+)\.norm\.linear\.": r"\1.modulation.lin.",
        r"\.attn\.to_[qkv]\.": ".img_attn.qkv.",
        r"\.attn\.add_[qkv]_proj\.": ".txt_attn.qkv.",
        r"\.attn\.to_out\.0\.": ".img_attn.proj.",
        r"\.attn\.to_add_out\.": ".txt_attn.proj.",
        r"\.attn\.norm_q\.weight": ".img_attn.norm.query_norm.scale",
        r"\.attn\.norm_k\.weight": ".img_attn.norm.key_norm.scale",
        r"\.attn\.norm_added_q\.weight": ".txt_attn.norm.query_norm.scale",
        r"\.attn\.norm_added_k\.weight": ".txt_attn.norm.key_norm.scale",
        r"\.norm1\.linear\.": ".img_mod.lin.",
        r"\.norm1_context\.linear\.": ".txt_mod.lin.",
        r"\.ff\.net\.0\.proj\.": ".img_mlp.0.",
        r"\.ff\.net\.2\.": ".img_mlp.2.",
        r"\.ff_context\.net\.0\.proj\.": ".txt_mlp.0.",
        r"\.ff_context\.net\.2\.": ".txt_mlp.2.",
        r"^x_embedder\.": "img_in.",
        r"^context_embedder\.": "txt_in.",
        r"^time_text_embed\.timestep_embedder\.": "time_in.",
        r"^time_text_embed\.text_embedder\.": "vector_in.",
        r"^time_text_embed\.guidance_embedder\.": "guidance_in.",
        r"^((?:time|vector|guidance)_in)\.linear_1\.": r"\1.in_layer.",
        r"^((?:time|vector|guidance)_in)\.linear_2\.": r"\1.out_layer.",
        r"^proj_out\.": "final_layer.linear.",
        r"^norm_out\.linear\.": "final_layer.adaLN_modulation.1.",
    }
)
"""diffusers' names -> those of Black Forest Labs' file."""


class Flux(TwoStream):
    """FLUX.1 dev and schnell.

    In the single-stream blocks the same matrices see text and picture tokens: the group ``single``
    holds them, and no group can tell there what reads the text.
    """

    name = "flux"
    label = "FLUX.1"
    pipelines = ("FluxPipeline",)
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    )
    groups: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**TwoStream.groups, "single": r"^single_transformer_blocks\."}
    )
    names = ORIGINAL
    from_one = True
    packed = 4
    steps, guidance = 28, 3.5

    def guides(self, denoiser: nn.Module) -> str:
        """FLUX.1-dev is told a number; schnell has no guidance."""
        config: Any = denoiser.config
        return "embedded" if config.guidance_embeds else "none"

    def width(self, config: Any) -> int:
        """Of what is read of T5's."""
        return int(config.joint_attention_dim)

    def state_width(self, parts: Parts) -> int:
        """T5's."""
        return width_of(parts["text_encoder_2"])

    def fits(self, parts: Parts) -> list[Fit]:
        """Also CLIP's pooled vector."""
        read = parts["transformer"].config.pooled_projection_dim
        return [
            *super().fits(parts),
            Fit(
                "transformer pooled_projection_dim",
                read,
                "text_encoder hidden_size",
                width_of(parts["text_encoder"]),
            ),
        ]

    def encode(self, parts: Parts, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """T5's states, and CLIP's pooled vector."""
        clip, length = parts["tokenizer"], self.longest(parts)
        ids = tokenized(clip, prompts, clip.model_max_length, device)
        pooled = parts["text_encoder"](ids).pooler_output
        states = parts["text_encoder_2"](tokenized(parts["tokenizer_2"], prompts, length, device))
        return Conditioning(states[0], pooled)

    def longest(self, parts: Parts) -> int:
        """Tokens that T5 reads: schnell was made for fewer."""
        most = 512 if self.guides(parts["transformer"]) == "embedded" else 256
        return min(most, int(parts["tokenizer_2"].model_max_length))

    def limits(self, parts: Parts) -> dict[str, int]:
        """What is cut is what T5 does not see; CLIP gives a summary only."""
        return {**super().limits(parts), "text_encoder_2": self.longest(parts)}

    def last_word(self, parts: Parts, prompts: Sequence[str]) -> Tensor:
        """Positions among T5's states."""
        return sentencepiece_last(parts["tokenizer_2"], prompts, self.longest(parts))[:, None]

    def latent_shape(self, parts: Parts) -> tuple[int, int, int]:
        """Before packing: each token is 2x2 latents."""
        return (parts["transformer"].config.in_channels // 4, SIDE, SIDE)

    def inputs(self, asked: Asked) -> dict[str, Any]:
        """Packed latents, σ, states, the pooled vector, positions, and the guidance it is told."""
        z, cond = asked.z, asked.cond
        b, c, h, w = z.shape
        packed = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        told = z.new_full((b,), asked.guidance, dtype=torch.float32)
        rows = torch.arange(h // 2, device=z.device).repeat_interleave(w // 2)
        columns = torch.arange(w // 2, device=z.device).repeat(h // 2)
        at = torch.stack([torch.zeros_like(rows), rows, columns], 1)
        return {
            "hidden_states": packed.reshape(b, h * w // 4, 4 * c),
            "timestep": asked.t / 1000,
            "guidance": told if self.guides(asked.denoiser) == "embedded" else None,
            "pooled_projections": cond.pooled,
            "encoder_hidden_states": cond.states,
            "txt_ids": z.new_zeros(cond.states.shape[1], 3),
            "img_ids": at.to(z.dtype),
        }

    def output(self, out: Tensor, z: Tensor) -> Tensor:
        """Unpacked."""
        b, c, h, w = z.shape
        return out.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
