"""The published architectures, for single files that do not say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

UNET = {
    "_class_name": "UNet2DConditionModel",
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "in_channels": 4,
    "out_channels": 4,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
CLIP = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
CLIP_L = {
    **CLIP,
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
INDEX = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
ONE = {
    **INDEX,
    "_class_name": "StableDiffusionPipeline",
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}

Configs = Mapping[str, Mapping[str, Any]]
"""JSON files of a diffusers folder, by their place in it."""

STANDARD: Mapping[str, Configs] = MappingProxyType(
    {
        "sd1": {
            "model_index.json": {**ONE, "scheduler": ["diffusers", "PNDMScheduler"]},
            "unet/config.json": {
                **UNET,
                "sample_size": 64,
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
            },
            "vae/config.json": VAE,
            "text_encoder/config.json": CLIP_L,
            "scheduler/scheduler_config.json": {**BETAS, "_class_name": "PNDMScheduler"},
        },
        "sd2": {
            "model_index.json": {**ONE, "scheduler": ["diffusers", "DDIMScheduler"]},
            "unet/config.json": {
                **UNET,
                "sample_size": 96,
                "cross_attention_dim": 1024,
                "attention_head_dim": [5, 10, 20, 20],
                "use_linear_projection": True,
                "upcast_attention": True,
            },
            "vae/config.json": {**VAE, "sample_size": 768},
            "text_encoder/config.json": {
                **CLIP_L,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "hidden_act": "gelu",
                "projection_dim": 512,
            },
            "scheduler/scheduler_config.json": {
                **BETAS,
                "_class_name": "DDIMScheduler",
                "prediction_type": "v_prediction",
            },
        },
        "sdxl": {
            "model_index.json": {
                **INDEX,
                "_class_name": "StableDiffusionXLPipeline",
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                "tokenizer_2": ["transformers", "CLIPTokenizer"],
                "scheduler": ["diffusers", "EulerDiscreteScheduler"],
                "feature_extractor": [None, None],
                "image_encoder": [None, None],
                "force_zeros_for_empty_prompt": True,
            },
            "unet/config.json": {
                **UNET,
                "sample_size": 128,
                "block_out_channels": [320, 640, 1280],
                "down_block_types": [
                    "DownBlock2D",
                    "CrossAttnDownBlock2D",
                    "CrossAttnDownBlock2D",
                ],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "transformer_layers_per_block": [1, 2, 10],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            "vae/config.json": {
                **VAE,
                "sample_size": 1024,
                "scaling_factor": 0.13025,
                "force_upcast": True,
            },
            "text_encoder/config.json": CLIP_L,
            "text_encoder_2/config.json": {
                **CLIP_L,
                "architectures": ["CLIPTextModelWithProjection"],
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "hidden_act": "gelu",
                "projection_dim": 1280,
            },
            "scheduler/scheduler_config.json": {
                **BETAS,
                "_class_name": "EulerDiscreteScheduler",
                "timestep_spacing": "leading",
            },
        },
    }
)
"""Stable Diffusion 1.x, 2.x (768 pixels, v-prediction) and SDXL."""
