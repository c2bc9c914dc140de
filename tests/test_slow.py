"""What takes minutes: the full size of Stable Diffusion 1.4."""

import ctypes
import gc
import os
from pathlib import Path

import pytest
import torch
from conftest import CHURCH, QUIET, SD14
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from efface.evaluation.bench import peak_memory
from efface.methods.esd import ESD
from efface.models import DiffusionModel, plan
from efface.models.families.stable_diffusion import StableDiffusion
from efface.testing import tiny_pipeline
from efface.training import Bank

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("large")]  # one at a time


@pytest.fixture
def all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


def sd14(tokenizer):
    """Stable Diffusion 1.4 with random weights, its UNet at full size."""
    small = tiny_pipeline()
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    torch.manual_seed(0)
    return DiffusionModel(
        "random",
        StableDiffusion(),
        {
            "tokenizer": tokenizer,
            "text_encoder": CLIPTextModel(config),
            "unet": UNet2DConditionModel(**SD14),
            "vae": small.vae,
            "scheduler": small.scheduler,
        },
        hashed=lambda: "random",
    )


def test_one_update_at_full_size_fits_into_24_gb_and_moves_cross_attention_only(
    tokenizer, all_threads
):
    model = sd14(tokenizer)

    def sums():
        return {k: (float(p.sum()), float(p.norm())) for k, p in model.parameters().items()}

    before = sums()
    method = ESD(latents=Bank(ddim_steps=1, trajectories=1), updates=1, batch=1)
    edit = method.erase(model, [CHURCH], QUIET)
    assert set(edit.weights) == set(model.group("xattn"))
    assert all(".attn2." in k for k in edit.weights)
    assert sum(w.numel() for w in edit.weights.values()) == 43_962_560
    own = model.parameters()
    assert all(not torch.equal(w, own[k]) for k, w in edit.weights.items())
    assert all(torch.isfinite(w).all() for w in edit.weights.values())
    assert sums() == before
    assert (edit.meta["cost"]["forward"], edit.meta["cost"]["backward"]) == (3, 1)
    assert peak_memory(torch.device("cpu")) < 24_000


def memory(key):
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{key}:"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' counters")
def test_the_plan_is_within_a_fifth_of_what_a_training_takes(tokenizer, all_threads):
    model = sd14(tokenizer)
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # what earlier tests freed would be used again, and not be seen
    loaded = memory("VmRSS")
    found = plan(model, "xattn", 1)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    method = ESD(latents=Bank(ddim_steps=1, trajectories=1), updates=1, batch=1)
    method.erase(model, [CHURCH], QUIET)
    took = found.frozen + memory("VmHWM") - loaded
    assert found.total == pytest.approx(took, rel=0.2)
