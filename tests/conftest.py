"""Tiny random models of real classes, and the shipped one."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from efface.models import ASSETS, DiffusionModel, load

torch.set_num_threads(1)  # tiny models on a busy machine: many times faster


@pytest.fixture(scope="session")
def tokenizer():
    return CLIPTokenizer.from_pretrained(ASSETS / "emoji" / "tokenizer")


def tiny_pipeline(tokenizer, prediction="epsilon", seed=0):
    """A Stable Diffusion pipeline of real classes, small and random."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=8,
    )
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def tiny_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder) -> DiffusionModel:
    model = load(tiny_folder, device="cpu")
    model.steps, model.lr = 4, 1e-3
    return model


@pytest.fixture(scope="session")
def emoji() -> DiffusionModel:
    return load("emoji", device="cpu")
