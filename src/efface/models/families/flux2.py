"""FLUX.2 Klein: FLUX's blocks with shared modulation, read by a language model's inner layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efface.models.conditioning import Conditioning
from efface.models.families import qwen
from efface.models.families.family import Asked, Parts
from efface.models.families.two_stream import OWN, TwoStream

SIDE = 64
"""Side of a latent of Klein's own picture size."""
LAYERS = (0.25, 0.5, 0.75)
"""How deep in the language model the three hidden states lie that are stacked."""

ORIGINAL: Mapping[str, str] = MappingProxyType(
    {
        r"^transformer_blocks\.": "double_blocks.",
        r"^single_transformer_blocks\.": "single_blocks.",
        r"^(single_blocks\.\d+)\.attn\.norm_q\.weight": r"\1.norm.query_norm.scale",
        r"^(single_blocks\.\d+)\.attn\.norm_k\.weight": r"\1.norm.key_norm.scale",
        r"^(single_blocks\.\d+)\.attn\.to_qkv_mlp_proj\.": r"\1.linear1.",
        r"^(single_blocks\.\d+)\.attn\.to_out\.": r"\1.linear2.",
        r"\.attn\.to_[qkv]\.": ".img_attn.qkv.",
        r"\.attn\.add_[qkv]_proj\.": ".txt_attn.qkv.",
        r"\.attn\.to_out\.0\.": ".img_attn.proj.",
        r"\.attn\.to_add_out\.": ".txt_attn.proj.",
        r"\.attn\.norm_q\.weight": ".img_attn.norm.query_norm.scale",
        r"\.attn\.norm_k\.weight": ".img_attn.norm.key_norm.scale",
        r"\.attn\.norm_added_q\.weight": ".txt_attn.norm.query_norm.scale",
        r"\.attn\.norm_added_k\.weight": ".txt_attn.norm.key_norm.scale",
        r"\.ff\.linear_in\.": ".img_mlp.0.",
        r"\.ff\.linear_out\.": ".img_mlp.2.",
        r"\.ff_context\.linear_in\.": ".txt_mlp.0.",
        r"\.ff_context\.linear_out\.": ".txt_mlp.2.",
        r"^x_embedder\.": "img_in.",
        r"^context_embedder\.": "txt_in.",
        r"^time_guidance_embed\.timestep_embedder\.linear_1\.": "time_in.in_layer.",
        r"^time_guidance_embed\.timestep_embedder\.linear_2\.": "time_in.out_layer.",
        r"^(\w+_stream_modulation\w*)\.linear\.": r"\1.lin.",
        r"^proj_out\.": "final_layer.linear.",
        r"^norm_out\.linear\.": "final_layer.adaLN_modulation.1.",
    }
)
"""diffusers' names -> those of Black Forest Labs' file."""


class Klein(TwoStream):
    """FLUX.2 Klein, 4B and 9B, distilled and base; FLUX.2-dev has another encoder.

    As in FLUX.1, no group can tell what reads the text in the single-stream blocks.
    """

    name = "klein"
    label = "FLUX.2 Klein"
    pipelines = ("Flux2KleinPipeline",)
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType({"text_encoder": "tokenizer"})
    experimental = True
    groups: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **TwoStream.groups,
            "noxattn": rf"^(?!norm_out\.|proj_out\.|time_guidance_embed\.)(?!.*\.{OWN})",
            "text": (
                rf"^double_stream_modulation_txt\.|^transformer_blocks\..*\.(ff_context\.|{OWN})"
            ),
            "single": r"^single_transformer_blocks\.",
        }
    )
    names = ORIGINAL
    from_one = True
    patch = 2

    def __init__(self, index: Mapping[str, Any] | None = None) -> None:
        super().__init__(index)
        self.distilled = bool(self.index.get("is_distilled"))
        self.steps, self.guidance = (4, 1.0) if self.distilled else (50, 4.0)

    def guides(self, denoiser: nn.Module) -> str:
        """The distilled models have no guidance."""
        return "none" if self.distilled else "cfg"

    def width(self, config: Any) -> int:
        """Of three states side by side."""
        return int(config.joint_attention_dim)

    def state_width(self, parts: Parts) -> int:
        """Three layers' side by side."""
        return len(LAYERS) * super().state_width(parts)

    def encode(self, parts: Parts, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """Three hidden states of every token, side by side."""
        encoder = parts["text_encoder"]
        asked = qwen.tokenized(parts["tokenizer"], prompts, False, device)
        found = encoder(**asked, output_hidden_states=True, use_cache=False).hidden_states
        deep = encoder.config.num_hidden_layers
        return Conditioning(torch.cat([found[round(deep * x)] for x in LAYERS], 2))

    def limits(self, parts: Parts) -> dict[str, int]:
        """What the template leaves."""
        return {"text_encoder": qwen.room(parts["tokenizer"], False)}

    def last_word(self, parts: Parts, prompts: Sequence[str]) -> Tensor:
        """Positions inside the template."""
        return qwen.last_word(parts["tokenizer"], prompts, False)[:, None]

    def latent_shape(self, parts: Parts) -> tuple[int, int, int]:
        """A token is a latent: 2x2 of the autoencoder's."""
        return (parts["transformer"].config.in_channels, SIDE, SIDE)

    def tokens(self, shape: tuple[int, int, int]) -> int:
        """One a latent."""
        return shape[1] * shape[2]

    def shift(self, config: Mapping[str, Any], tokens: int, steps: int) -> float:
        """As diffusers' pipeline has it, of both."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return float(compute_empirical_mu(tokens, steps))

    def unscaled(self, vae: Any, z: Tensor) -> Tensor:
        """By the statistics that the autoencoder keeps, and 2x2 apart again."""
        mean, var = (x.view(1, -1, 1, 1).to(z) for x in (vae.bn.running_mean, vae.bn.running_var))
        z = z * (var + vae.config.batch_norm_eps).sqrt() + mean
        b, c, h, w = z.shape
        apart = z.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return apart.reshape(b, c // 4, 2 * h, 2 * w)

    def scaled(self, vae: Any, x: Tensor) -> Tensor:
        """2x2 together, by the statistics that the autoencoder keeps."""
        b, c, h, w = x.shape
        near = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        z = near.reshape(b, 4 * c, h // 2, w // 2)
        mean, var = (v.view(1, -1, 1, 1).to(z) for v in (vae.bn.running_mean, vae.bn.running_var))
        plain: Tensor = (z - mean) / (var + vae.config.batch_norm_eps).sqrt()
        return plain

    def inputs(self, asked: Asked) -> dict[str, Any]:
        """Latents as tokens, σ, states, and positions (0, row, column, place in the text)."""
        z, states = asked.z, asked.cond.states
        b, _, h, w = z.shape
        at = torch.zeros(h * w, 4, dtype=torch.long, device=z.device)
        at[:, 1] = torch.arange(h, device=z.device).repeat_interleave(w)
        at[:, 2] = torch.arange(w, device=z.device).repeat(h)
        read = torch.zeros(states.shape[1], 4, dtype=torch.long, device=z.device)
        read[:, 3] = torch.arange(len(read), device=z.device)
        return {
            "hidden_states": z.flatten(2).transpose(1, 2),
            "timestep": asked.t / 1000,
            "guidance": None,
            "encoder_hidden_states": states,
            "txt_ids": read.expand(b, -1, -1),
            "img_ids": at.expand(b, -1, -1),
        }

    def output(self, out: Tensor, z: Tensor) -> Tensor:
        """Tokens as latents."""
        return out.transpose(1, 2).reshape(z.shape)
