"""What ``bench/size.py`` compares with, and the model that all of it runs on.

A model of an exact published architecture, with random weights; diffusers' own way to train a LoRA;
and the loop of ESD's published settings (arXiv:2303.07345, section 4). Both are written from their
descriptions, with diffusers' and peft's own classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from efface.models import DiffusionModel
from efface.models.families.sdxl import StableDiffusionXL
from efface.models.families.stable_diffusion import StableDiffusion
from efface.models.files.standard import BETAS, STANDARD
from efface.storage import ASSETS

TINY: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
    },
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "sample_size": 16,
    },
    "text_encoder": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    },
}
"""What of 1.4's configs is smaller in ``tiny``."""
ARCHITECTURES = {"sd14": "sd1", "sdxl": "sdxl", "tiny": "sd1"}


def random_model(name: str, device: str, dtype: torch.dtype, size: int = 0) -> DiffusionModel:
    """A model of an architecture with random weights, all at the device.

    Args:
        name: of :data:`ARCHITECTURES`.
        size: side of a picture; 0: the architecture's own.
    """
    known = STANDARD[ARCHITECTURES[name]]
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    if name == "sdxl":
        classes["text_encoder_2"] = transformers.CLIPTextModelWithProjection
    parts: dict[str, Any] = {}
    for part, cls in classes.items():
        config = {k: v for k, v in known[f"{part}/config.json"].items() if k[0] != "_"}
        config |= TINY.get(part, {}) if name == "tiny" else {}
        own = CLIPTextConfig(**config) if part.startswith("text") else None
        torch.set_default_dtype(torch.float32 if (part, name) == ("vae", "sdxl") else dtype)
        try:
            with torch.device("meta"):
                module = cls(**config) if own is None else cls(own)
        finally:
            torch.set_default_dtype(torch.float32)
        parts[part] = filled(module.to_empty(device=device))
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "emoji" / "tokenizer")
    tokenizer.model_max_length = 77
    parts |= {t: tokenizer for e, t in FAMILY[name].encoders.items() if e in parts}
    parts["scheduler"] = DDIMScheduler(**{k: v for k, v in BETAS.items() if "prk" not in k})
    family = FAMILY[name](dict(known["model_index.json"]))
    return DiffusionModel(f"random {name}", family, parts, lambda: f"random-{name}", size=size)


FAMILY = {"sd14": StableDiffusion, "sdxl": StableDiffusionXL, "tiny": StableDiffusion}


@torch.no_grad()
def filled(module: nn.Module) -> nn.Module:
    """The same with numbers: N(0, 1 / inputs), norms 1, biases 0, position numbers in order.

    Cross-attention is four times as large, so that the text can be told from rounding. A large
    model draws its numbers where it lies: they are others there than on a CPU.
    """
    device = next(module.parameters()).device
    large = sum(w.numel() for w in module.parameters()) > 10**7
    g = torch.Generator(device if large else "cpu").manual_seed(0)
    for name, w in module.named_parameters():
        if w.ndim > 1:
            scale = (4 if ".attn2." in name else 1) / w[0].numel() ** 0.5
            w.copy_(torch.randn(w.shape, generator=g, device=g.device) * scale)
        else:
            w.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, b in module.named_buffers():
        if "position_ids" in name:
            b.copy_(torch.arange(b.shape[-1]).expand_as(b))
    return module


@contextmanager
def lora_step(model: DiffusionModel, batch: int) -> Iterator[Any]:
    """diffusers' LoRA training: adapters of rank 4 on all attention, pictures through the VAE.

    One call of what it gives is a step: encode a batch of pictures and their captions, add noise,
    predict it, and move the adapters with AdamW, gradients clipped at 1.
    """
    from peft import LoraConfig

    unet, device = model.denoiser, model.device
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
    unet.add_adapter(config)
    trained = [p for p in unet.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()
    adam = torch.optim.AdamW(trained, lr=1e-4)
    g = torch.Generator().manual_seed(0)
    pictures = torch.rand((batch, 3, *model.picture_size[::-1]), generator=g) * 2 - 1

    def step() -> None:
        with torch.no_grad():
            vae = model.vae
            seen = vae.encode(pictures.to(device, next(vae.parameters()).dtype)).latent_dist
            z0 = (seen.sample() * vae.config.scaling_factor).float()
            cond = model.embed([f"a photo of a church, {i}" for i in range(batch)])
        noise = torch.randn(z0.shape, generator=g).to(device)
        t = torch.randint(0, model.process.times, (batch,), generator=g).to(device)
        z = model.process.noised(z0, noise, t)
        with torch.autocast(device.type, model.dtype, enabled=model.dtype != torch.float32):
            guess = unet(**asked(model, z, t, cond))[0]
        mse_loss(guess.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad()

    unet.train()
    try:
        yield step
    finally:
        unet.unload_lora()
        unet.eval().requires_grad_(False)


def asked(model: DiffusionModel, z: Tensor, t: Tensor, cond: Any) -> dict[str, Any]:
    """What the denoiser is called with."""
    from efface.models.families.family import Asked

    question = Asked(model.denoiser, z.to(model.dtype), t, cond, 1.0, model.picture_size)
    return {**model.family.inputs(question), "return_dict": False}


@contextmanager
def esd_loop(model: DiffusionModel, batch: int) -> Iterator[Any]:
    """The loop of ESD's published settings, at their batch of 1, whatever is asked.

    A second network in memory; at each iteration the student itself draws a latent by up to 50
    guided steps (scale 3), stops where a random draw says, and is trained on what the frozen
    network predicts there for the concept and for no prompt (η = 1, Adam at 1e-5, cross-attention).
    """
    del batch
    frozen = model.denoiser
    student = copy.deepcopy(frozen).float()
    trained = [p.requires_grad_() for n, p in student.named_parameters() if ".attn2." in n]
    adam = torch.optim.Adam(trained, lr=1e-5)
    g, steps, device = torch.Generator().manual_seed(0), 50, model.device
    concept, null = model.embed(["church"]), model.embed([""])
    pair = torch.cat([null.states, concept.states])
    schedule = model.schedule(steps)

    def run(net: Any, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        dtype = next(net.parameters()).dtype
        with torch.autocast(device.type, model.dtype, enabled=dtype != model.dtype):
            found = net(z.to(dtype), t, states.to(dtype), return_dict=False)[0]
        return found.float()

    def step() -> None:
        z = model.noise(1, g)
        stop = int(torch.randint(0, steps, (1,), generator=g))
        with torch.no_grad():
            for i in range(stop):
                t = schedule.timesteps[i].expand(2)
                e0, e1 = run(student, torch.cat([z, z]), t, pair).chunk(2)
                z = schedule.step(z, e0 + 3 * (e1 - e0), i)
            t = schedule.timesteps[stop].expand(1)
            e0 = run(frozen, z, t, null.states)
            e1 = run(frozen, z, t, concept.states)
        mse_loss(run(student, z, t, concept.states), e0 - (e1 - e0)).backward()
        adam.step()
        adam.zero_grad()

    yield step


PEERS = {"diffusers' LoRA step": lora_step, "ESD's published loop": esd_loop}
