"""What ``efface sensitivity`` costs: the closed form at Stable Diffusion 1.4's size, and batching.

The weights are random; the sizes are real. Writes ``bench/sensitivity.json``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.evaluation.bench import peak_memory
from efface.evaluation.sensitivity import closed_form, prediction, text_states
from efface.methods.uce import UCE
from efface.models import DiffusionModel, StableDiffusion, load
from efface.models.files.standard import STANDARD

HERE = Path(__file__).parent
SD14 = {k: v for k, v in STANDARD["sd1"]["unet/config.json"].items() if k != "_class_name"}
TEXT = CLIPTextConfig(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    bos_token_id=49406,
    eos_token_id=49407,
)


def large(tokenizer: object) -> DiffusionModel:
    """Stable Diffusion 1.4's text side: its encoder, and what reads it; the rest has no memory."""
    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD14)
    for name in ("conv_in.weight", *StableDiffusion.text_maps(unet)):
        module, _, leaf = name.rpartition(".")
        shape = unet.get_submodule(module)._parameters[leaf].shape
        own = nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5, requires_grad=False)
        unet.get_submodule(module)._parameters[leaf] = own
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return DiffusionModel(
        "sd14-size",
        StableDiffusion(),
        {
            "tokenizer": tokenizer,
            "text_encoder": CLIPTextModel(TEXT),
            "unet": unet,
            "vae": load("emoji").vae,
            "scheduler": scheduler,
        },
        "random",
    )


def ranked() -> dict[str, float | int]:
    """All tokens ranked by the closed form."""
    small = load("emoji")
    model = large(small.tokenizer)
    own = model.parameters()
    g = torch.Generator().manual_seed(0)
    weights = {n: own[n] + 0.01 * torch.randn(own[n].shape, generator=g) for n in model.text_maps()}
    edit = Edit(weights, {"base": "random"})
    vocabulary = model.tokenizer.get_vocab()
    words = [model.tokenizer.decode([i]) for i in sorted(vocabulary.values())]
    with tempfile.TemporaryDirectory() as cache:
        began = perf_counter()
        text_states(model, words, Path(cache))
        states = perf_counter() - began
        began = perf_counter()
        found = closed_form(model, edit, words, Path(cache))
        order = found.order()
    return {
        "tokens": len(order),
        "layers": len(found.draws),
        "text_states_seconds": round(states, 1),
        "rank_seconds": round(perf_counter() - began, 1),
        "peak_memory_gb": round((peak_memory(torch.device("cpu")) or 0) / 1024, 2),
    }


def batched(n: int = 64) -> dict[str, float | int]:
    """Words in batches against one word at a time, on the shipped model."""
    model = load("emoji")
    edit = UCE().erase(model, [Concept("church")])
    words = [f"word {i}" for i in range(n)]
    seconds = {}
    for name, batch in (("batched", 0), ("one at a time", 1)):
        began = perf_counter()
        prediction(model, edit, words, latents=2, batch=batch, progress=False)
        seconds[name] = perf_counter() - began
    return {
        "words": n,
        **{f"{k} seconds": round(v, 2) for k, v in seconds.items()},
        "times_faster": round(seconds["one at a time"] / seconds["batched"], 2),
    }


if __name__ == "__main__":
    told = {"threads": torch.get_num_threads(), "prediction": batched(), "closed form": ranked()}
    (HERE / "sensitivity.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))
