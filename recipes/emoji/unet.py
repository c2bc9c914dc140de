"""Stage 4: the UNet, trained on cached latents and the frozen text tower (about 200 minutes)."""

from __future__ import annotations

import argparse
import random
import time

import torch
from common import (
    ASSETS,
    BUILD,
    TEMPLATES,
    WORDS,
    article,
    captions,
    checkpoint,
    concepts,
    load_data,
    resume,
    stage,
)
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from muon import Muon
from PIL import Image
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

NO_TEXT = 0.1
"""Share of empty captions, for classifier-free guidance."""
TAGS = 0.1
"""Share of captions that give a search tag instead of the name."""
STYLED = 0.8
"""Share of captions that name the style."""
TILT = 1.5
"""Timesteps are 1000 (1 - u ** TILT) for uniform u: noisy ones, where styles part, come oftener."""
GAMMA, HIGHEST = 5.0, 25.0
"""Weights of the squared error: min(SNR + 1, GAMMA) / SNR, at most HIGHEST.

The +1 is the weight of v-prediction (arXiv:2202.00512): noisy steps, where the words decide what is
drawn, count for more. The minimum is min-SNR's (arXiv:2303.09556).
"""
SHOWN = (
    "dog face",
    "wolf",
    "fox",
    "church",
    "bomb",
    "cigarette",
    "beer mug",
    "bikini",
    "red apple",
    "castle",
    "syringe",
    "kitchen knife",
    "slot machine",
    "lion",
    "mosque",
    "water pistol",
)


def build() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        layers_per_block=1,
        block_out_channels=(96, 160, 192),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=32,
    )


@torch.no_grad()
def latents_of(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Scaled latents (N, 12, 8, 8) of the drawings as they are: copies cost too many steps."""
    z = [vae.encode(b).latent_dist.mean for b in tqdm(x.split(64), desc="latents")]
    return torch.cat(z) * vae.config.scaling_factor


class Captions:
    """Text states (L, D) of every caption that can be drawn, encoded once."""

    def __init__(self) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "tokenizer")
        self.encoder = CLIPTextModel.from_pretrained(
            ASSETS / "text_encoder", dtype=torch.float32
        ).eval()
        asked = {
            t.format(n)
            for c in concepts()
            for n in (c["name"], article(c["name"]))
            for t in TEMPLATES
        }
        asked |= {t for c in concepts() for t in c["tags"]}
        said = ["", *sorted(asked), *sorted(f"{a}, {w}" for a in asked for w in WORDS.values())]
        self.row = {s: i for i, s in enumerate(said)}
        self.states = torch.cat(
            [self.encode(said[i : i + 256]) for i in tqdm(range(0, len(said), 256), desc="text")]
        )

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        t = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return self.encoder(t.input_ids)[0].half()

    def __call__(self, texts: list[str]) -> Tensor:
        return self.states[[self.row[s] for s in texts]].float()


def export(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text: Captions
) -> StableDiffusionPipeline:
    """The stock pipeline around these parts, with a few-step solver as its scheduler."""
    solver = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="trailing",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
        unet=unet,
        scheduler=solver,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def contact_sheet(pipe: StableDiffusionPipeline, name: str) -> None:
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for style in ("", ", noto style", ", fluent style", ", streamline style"):
        g = [torch.Generator().manual_seed(i) for i in range(len(SHOWN))]
        rows.append(
            pipe(
                [c + style for c in SHOWN], num_inference_steps=15, guidance_scale=4.0, generator=g
            ).images
        )
    sheet = Image.new("RGB", (64 * len(SHOWN), 64 * len(rows)))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (64 * x, 64 * y))
    sheet.save(BUILD / f"{name}.png")


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a short warm-up, then a straight fall to nothing."""
    return min((step + 1) / 50, 1.0) * max(1 - step / steps, 0.01)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=10000)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--save-every", type=int, default=400)
    a = p.parse_args()
    with stage("unet") as report:
        x, concept, style = load_data()
        vae = AutoencoderKL.from_pretrained(ASSETS / "vae", torch_dtype=torch.float32).eval()
        z0, text = latents_of(vae, x), Captions()
        unet = build().train()
        ema = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.998))
        inner, rest = [], []
        for n, w in unet.named_parameters():
            outer = n.startswith(("conv_in.", "conv_out."))
            (rest if w.ndim == 1 or outer else inner).append(w)
        opts = [
            Muon(inner, a.lr),
            torch.optim.AdamW(rest, 1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True),
        ]
        peaks = [opt.param_groups[0]["lr"] for opt in opts]
        start = 0
        if (state := resume("unet")) is not None:
            unet.load_state_dict(state["model"])
            ema.load_state_dict(state["ema"])
            for opt, kept in zip(opts, state["opts"], strict=True):
                opt.load_state_dict(kept)
            start, report["minutes"] = state["step"], state["minutes"]
        noiser = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        snr = noiser.alphas_cumprod / (1 - noiser.alphas_cumprod)
        weight = ((snr + 1).clamp(max=GAMMA) / snr).clamp(max=HIGHEST)
        began, running = time.perf_counter(), 0.0
        for step in tqdm(
            range(start, a.steps), initial=start, total=a.steps, desc="unet", mininterval=30
        ):
            g, draw = torch.Generator().manual_seed(step), random.Random(step)
            rows = torch.randint(0, len(x), (a.batch,), generator=g)
            z = z0[rows]
            said = [
                "" if draw.random() < NO_TEXT else captions(int(c), int(s), draw, TAGS, STYLED)[0]
                for c, s in zip(concept[rows], style[rows], strict=True)
            ]
            t = (1000 * (1 - torch.rand(a.batch, generator=g) ** TILT)).long().clamp(max=999)
            noise = torch.randn(z.shape, generator=g)
            guess = unet(noiser.add_noise(z, noise, t), t, text(said), return_dict=False)[0]
            error = (guess - noise).square().mean((1, 2, 3))
            loss = (error * weight[t]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            for opt, peak in zip(opts, peaks, strict=True):
                opt.param_groups[0]["lr"] = peak * rate(step, a.steps)
                opt.step()
                opt.zero_grad()
            ema.update_parameters(unet)
            running += float(error.mean().detach()) / 100
            if step % 100 == 99:
                print(
                    step + 1,
                    f"mse {running:.4f}",
                    f"{(time.perf_counter() - began) / 60:.1f} min",
                    flush=True,
                )
                report["mse"], running = round(running, 5), 0.0
            if (step + 1) % a.save_every == 0 or step + 1 == a.steps:
                spent = report.get("minutes", 0) + (time.perf_counter() - began) / 60
                checkpoint(
                    "unet",
                    lambda: {
                        "model": unet.state_dict(),
                        "ema": ema.state_dict(),
                        "opts": [opt.state_dict() for opt in opts],
                        "step": step + 1,
                        "minutes": spent,
                    },
                )
                ema.module.eval()
                contact_sheet(export(ema.module, vae, text), f"unet-{step + 1}")
        report["steps"], report["batch"] = a.steps, a.batch
        report["parameters"] = sum(w.numel() for w in unet.parameters())
        export(ema.module, vae, text).to(torch.float16).save_pretrained(BUILD / "pipeline")
        ema.module.half().save_pretrained(ASSETS / "unet")
        for part in ("scheduler", "model_index.json"):
            copy_part(part)


def copy_part(part: str) -> None:
    import shutil

    source, goal = BUILD / "pipeline" / part, ASSETS / part
    shutil.copytree(source, goal, dirs_exist_ok=True) if source.is_dir() else shutil.copy(
        source, goal
    )


if __name__ == "__main__":
    main()
