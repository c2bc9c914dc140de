"""Stage 2: the autoencoder, 64x64x3 -> 8x8x12 latents -> 64x64x3 (about 25 minutes)."""

from __future__ import annotations

import argparse
import math
import time

import torch
from common import ASSETS, BUILD, JUDGE_ONLY, STYLES, augment, checkpoint, load_data, resume, stage
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, l1_loss, mse_loss
from tqdm import tqdm

LATENTS = 12
KL_WEIGHT = 2e-4
CYCLE = 1200
"""Steps of a learning-rate cycle; ``--steps`` is a multiple."""


def build() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.diff(dim=-1), x.diff(dim=-2)


def loss_of(vae: AutoencoderKL, x: Tensor, g: torch.Generator) -> Tensor:
    posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=g)
    y = vae.decode(posterior.mean + posterior.std * noise).sample
    sharp = sum(l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    colour = mse_loss(avg_pool2d(y, 8), avg_pool2d(x, 8))  # else hues come last
    return l1_loss(y, x) + 2 * mse_loss(y, x) + 0.5 * sharp + 4 * colour + KL_WEIGHT * kl


def rate(step: int, peak: float) -> float:
    """Learning rate within a cycle: 5 % warm-up, then half a cosine."""
    warm = CYCLE // 20
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (CYCLE - warm)))


@torch.no_grad()
def quality(vae: AutoencoderKL, x: Tensor) -> dict[str, float]:
    """Mean squared error of the round trip in [-1, 1], and the latents' standard deviation."""
    vae.eval()
    z = torch.cat([vae.encode(b).latent_dist.mean for b in x.split(64)])
    y = torch.cat([vae.decode(b).sample for b in z.split(64)]).clamp(-1, 1)
    pairs = torch.stack([x[::97][:16], y[::97][:16]]).permute(0, 3, 1, 4, 2).reshape(2 * 64, -1, 3)
    Image.fromarray(((pairs + 1) * 127.5).round().byte().numpy()).save(BUILD / "vae.png")
    return {"mse": round(float(mse_loss(y, x)), 5), "latent_std": round(float(z.std()), 4)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=2 * CYCLE)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=3e-3)
    a = p.parse_args()
    with stage("vae") as report:
        x, _, _ = load_data((*STYLES, *JUDGE_ONLY))
        vae = build().train()
        opt = torch.optim.AdamW(vae.parameters(), a.lr, betas=(0.9, 0.99), weight_decay=0.0)
        start = 0
        if (state := resume("vae")) is not None:
            vae.load_state_dict(state["model"])
            opt.load_state_dict(state["opt"])
            start, report["minutes"] = state["step"], state["minutes"]
        began = time.perf_counter()
        for step in tqdm(
            range(start, a.steps), initial=start, total=a.steps, desc="vae", mininterval=10
        ):
            g = torch.Generator().manual_seed(step)
            batch = augment(x[torch.randint(0, len(x), (a.batch,), generator=g)], g)
            for group in opt.param_groups:
                group["lr"], group["betas"] = rate(step % CYCLE, a.lr), (0.9, 0.99)
            loss = loss_of(vae, batch, g)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
            if step % 100 == 99:
                print(step + 1, f"loss {float(loss):.4f}", flush=True)
                spent = report.get("minutes", 0) + (time.perf_counter() - began) / 60
                checkpoint(
                    "vae",
                    lambda: {
                        "model": vae.state_dict(),
                        "opt": opt.state_dict(),
                        "step": step + 1,
                        "minutes": spent,
                    },
                )
        report.update(quality(vae, x))
        vae.register_to_config(scaling_factor=round(1 / report["latent_std"], 5))
        report["parameters"] = sum(w.numel() for w in vae.parameters())
        vae.half().save_pretrained(ASSETS / "vae")


if __name__ == "__main__":
    main()
