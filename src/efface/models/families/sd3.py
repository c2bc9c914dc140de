"""Stable Diffusion 3 and 3.5: a two-stream transformer, three text encoders, a straight flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from efface.models.conditioning import Conditioning
from efface.models.families.family import (
    Asked,
    Fit,
    Parts,
    last_subject,
    penultimate,
    sentencepiece_last,
    tokenized,
    width_of,
)
from efface.models.families.two_stream import TwoStream

CLIPS: Mapping[str, str] = MappingProxyType(
    {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
)
T5_TOKENS = 256


ORIGINAL: Mapping[str, str] = MappingProxyType(
    {
        r"^transformer_blocks\.": "joint_blocks.",
        r"\.attn(2?)\.to_[qkv]\.": r".x_block.attn\1.qkv.",
        r"\.attn\.add_[qkv]_proj\.": ".context_block.attn.qkv.",
        r"\.attn(2?)\.to_out\.0\.": r".x_block.attn\1.proj.",
        r"\.attn\.to_add_out\.": ".context_block.attn.proj.",
        r"\.attn(2?)\.norm_([qk])\.": r".x_block.attn\1.ln_\2.",
        r"\.attn\.norm_added_([qk])\.": r".context_block.attn.ln_\1.",
        r"\.norm1\.linear\.": ".x_block.adaLN_modulation.1.",
        r"\.norm1_context\.linear\.": ".context_block.adaLN_modulation.1.",
        r"\.ff\.net\.0\.proj\.": ".x_block.mlp.fc1.",
        r"\.ff\.net\.2\.": ".x_block.mlp.fc2.",
        r"\.ff_context\.net\.0\.proj\.": ".context_block.mlp.fc1.",
        r"\.ff_context\.net\.2\.": ".context_block.mlp.fc2.",
        r"^pos_embed\.pos_embed": "pos_embed",
        r"^pos_embed\.proj\.": "x_embedder.proj.",
        r"^time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
        r"^time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
        r"^time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
        r"^time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
        r"^proj_out\.": "final_layer.linear.",
        r"^norm_out\.linear\.": "final_layer.adaLN_modulation.1.",
    }
)
"""diffusers' names -> those of Stability's file."""


class StableDiffusion3(TwoStream):
    """Stable Diffusion 3 and 3.5 (arXiv:2403.03206); T5 may be left out."""

    name = "sd3"
    label = "Stable Diffusion 3 / 3.5"
    pipelines = ("StableDiffusion3Pipeline",)
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**CLIPS, "text_encoder_3": "tokenizer_3"}
    )
    optional = frozenset({"text_encoder_3"})
    names = ORIGINAL
    steps, guidance = 28, 7.0

    def width(self, config: Any) -> int:
        """Of what is read beside T5's states, which CLIP's are padded to."""
        return int(config.joint_attention_dim)

    def state_width(self, parts: Parts) -> int:
        """T5's; where it is left out, whatever is asked for."""
        long = parts.get("text_encoder_3")
        return self.width(parts["transformer"].config) if long is None else width_of(long)

    def fits(self, parts: Parts) -> list[Fit]:
        """Also both pooled vectors."""
        given = sum(parts[e].config.projection_dim for e in CLIPS)
        read = parts["transformer"].config.pooled_projection_dim
        return [
            *super().fits(parts),
            Fit("transformer pooled_projection_dim", read, "both CLIPs' projection_dim", given),
        ]

    def encode(self, parts: Parts, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """CLIP's states, padded to T5's width, then T5's or zeros; both pooled vectors."""
        found = []
        for encoder, tokenizer in CLIPS.items():
            own = parts[tokenizer]
            ids = tokenized(own, prompts, own.model_max_length, device)
            found.append(penultimate(parts[encoder], ids))
        states = torch.cat([s for s, _ in found], 2)
        pooled = torch.cat([p for _, p in found], 1)
        width = parts["transformer"].config.joint_attention_dim
        long = parts.get("text_encoder_3")
        if long is None:
            also = states.new_zeros(len(prompts), T5_TOKENS, width)
        else:
            also = long(tokenized(parts["tokenizer_3"], prompts, T5_TOKENS, device))[0]
        states = pad(states, (0, width - states.shape[2]))
        return Conditioning(torch.cat([states, also.to(states.dtype)], 1), pooled)

    def limits(self, parts: Parts) -> dict[str, int]:
        """T5 reads more than CLIP."""
        own = super().limits(parts)
        return {**own, **({"text_encoder_3": T5_TOKENS} if "text_encoder_3" in own else {})}

    def last_word(self, parts: Parts, prompts: Sequence[str]) -> Tensor:
        """Positions among CLIP's states, and behind them among T5's."""
        clip = parts["tokenizer"]
        at = [last_subject(clip, prompts)]
        if parts.get("text_encoder_3") is not None:
            long = sentencepiece_last(parts["tokenizer_3"], prompts, T5_TOKENS)
            at.append(clip.model_max_length + long)
        return torch.stack(at, 1)

    def halves(self, parts: Parts) -> tuple[str, ...]:
        """Also the last block's, which gives no text out."""
        last = parts["transformer"].config.num_layers - 1
        return (*super().halves(parts), f"transformer_blocks.{last}.norm1_context.")

    def inputs(self, asked: Asked) -> dict[str, Any]:
        """Latents, timesteps, states and the pooled vector."""
        return {
            "hidden_states": asked.z,
            "timestep": asked.t,
            "encoder_hidden_states": asked.cond.states,
            "pooled_projections": asked.cond.pooled,
        }
