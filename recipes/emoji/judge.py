"""Stage 5: the judge, trained on the drawings, never on generated pictures (about 30 minutes)."""

from __future__ import annotations

import argparse
import math
import time

import torch
from common import (
    ASSETS,
    HELD_OUT,
    JUDGE_ONLY,
    STYLES,
    checkpoint,
    concepts,
    load_data,
    resume,
    stage,
)
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, cross_entropy, grid_sample, interpolate, pad
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from efface.evaluation.judges.emoji import EmojiJudge, JudgeConfig

STYLE_WEIGHT = 1.0
CYCLE = 1800
"""Steps of a learning-rate cycle; ``--steps`` is a multiple."""
COPIES = 4
"""Copies of each drawing through the autoencoder; of three pictures that teach styles, two are."""
UNSEEN = 10
"""One concept in so many teaches no style: shows how far the style head generalises."""


def build() -> EmojiJudge:
    torch.manual_seed(0)
    judge = EmojiJudge(JudgeConfig(concepts=tuple(c["name"] for c in concepts()), styles=STYLES))
    return judge.to(memory_format=torch.channels_last)


def uniform(low: float, high: float, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def warp(x: Tensor, g: torch.Generator, much: float = 1.0) -> Tensor:
    """Scale, turn, move and gently bend each picture (B, 3, H, W) in [0, 1], on white; flip half.

    Args:
        much: share of the full range of each; below 1, nothing is flipped.
    """
    b = len(x)
    size = uniform(1 - 0.25 * much, 1 + 0.1 * much, (b,), g)
    turn = much * uniform(-math.pi / 12, math.pi / 12, (b,), g)
    flip = torch.where(torch.rand(b, generator=g) < (0.5 if much == 1 else 0.0), -1.0, 1.0)
    move = much * uniform(-0.1, 0.1, (2, b), g)  # the picture is 2 wide
    cos, sin = turn.cos() / size, turn.sin() / size
    theta = torch.stack([flip * cos, -flip * sin, move[0], sin, cos, move[1]], 1).reshape(b, 2, 3)
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    bend = torch.randn((b, 2, 5, 5), generator=g) * uniform(0, 0.06 * much, (b, 1, 1, 1), g)
    bend = interpolate(bend, size=x.shape[-2:], mode="bicubic", align_corners=True)
    return 1 - grid_sample(1 - x, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def recolour(x: Tensor, g: torch.Generator) -> Tensor:
    """Other contrast, saturation, hue and brightness for each picture; white stays white."""
    b = len(x)
    contrast, saturation = uniform(0.75, 1.2, (b, 1, 1), g), uniform(0.6, 1.4, (b, 1, 1), g)
    hue = uniform(-0.2, 0.2, (b, 1, 1), g)
    grey = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(
        3
    )  # turns about the grey axis
    mix = grey + saturation * (hue.cos() * (torch.eye(3) - grey) + hue.sin() * across)
    ink = torch.bmm(contrast * mix, (1 - x).flatten(2)).view_as(x)
    return (1 - ink).clamp(0, 1) ** uniform(-0.35, 0.35, (b, 1, 1, 1), g).exp()


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, 3, H, W), ``sigma`` in pixels."""
    bell = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    bell = bell / bell.sum()
    y = pad(x.flatten(0, 1)[:, None], (3,) * 4, mode="replicate")
    return conv2d(conv2d(y, bell.view(1, 1, 1, 7)), bell.view(1, 1, 7, 1)).view_as(x)


def soften(x: Tensor, g: torch.Generator) -> Tensor:
    """A third of the batch through a lower resolution, a third blurred, a third as it is."""
    low, blurred, sharp = x.tensor_split(3)
    side = int(torch.randint(20, 44, (1,), generator=g))
    low = interpolate(low, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    low = interpolate(low, size=x.shape[-2:], mode="bicubic", align_corners=False)
    return torch.cat([low, blur(blurred, float(uniform(0.5, 1.4, (1,), g))), sharp])


def stain(x: Tensor, g: torch.Generator) -> Tensor:
    """Cut out a square; add grain and the coloured blotches that a wrong latent decodes to."""
    b, side = len(x), x.shape[-1]
    place = torch.arange(side)
    middle, half = uniform(0, side, (2, b, 1), g), uniform(-8, 10, (b, 1), g)  # below 0: no square
    rows, cols = ((place - m).abs() < half for m in middle)
    x = x.masked_fill((rows[:, :, None] & cols[:, None, :])[:, None], 1.0)
    blotches = torch.randn((b, 3, 8, 8), generator=g) * uniform(0, 0.06, (b, 1, 1, 1), g)
    blotches = interpolate(blotches, size=x.shape[-2:], mode="bicubic", align_corners=False)
    grain = torch.randn(x.shape, generator=g) * uniform(0, 0.04, (b, 1, 1, 1), g)
    return (x + blotches + grain).clamp(0, 1)


def distort(x: Tensor, g: torch.Generator) -> Tensor:
    """What a generator may do to a drawing, to pictures (B, 3, H, W) in [0, 1] in random order."""
    x = stain(soften(recolour(warp(x, g), g), g), g)
    return x.contiguous(memory_format=torch.channels_last)


def nudge(x: Tensor, g: torch.Generator) -> Tensor:
    """Pictures moved a little, softened and stained: a style shows in colours and outlines."""
    x = stain(soften(warp(x, g, 0.4), g), g)
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def copies(x: Tensor, g: torch.Generator) -> Tensor:
    """Drawings (N, 3, H, W) in [0, 1], coded with errors in the latents and decoded, (N, 3, H, W).

    No picture of the UNet's: what is drawn stays the drawing.
    """
    vae = AutoencoderKL.from_pretrained(ASSETS / "vae", torch_dtype=torch.float32).eval()
    done = []
    for part in tqdm(x.split(64), desc="copies"):
        z = vae.encode(2 * part - 1).latent_dist.mean
        error = torch.randn(z.shape, generator=g) * uniform(0, 0.5, (len(z), 1, 1, 1), g)
        done.append(vae.decode(z + error / vae.config.scaling_factor).sample)
    return ((torch.cat(done) + 1) / 2).clamp(0, 1)


def taught(concept: Tensor, style: Tensor) -> Tensor:
    """Which drawings (N,) the style head learns from."""
    return (style < len(STYLES)) & (concept % UNSEEN != 0)


def loss_of(
    judge: EmojiJudge, x: Tensor, concept: Tensor, style: Tensor, g: torch.Generator
) -> Tensor:
    """Concepts from all pictures, the first half distorted; styles from the other half alone."""
    half = len(x) // 2
    seen = torch.cat([distort(x[:half], g), nudge(x[half:], g)])
    concepts_said, styles_said = judge(seen)
    rows = taught(concept, style) & (torch.arange(len(x)) >= half)
    return cross_entropy(
        concepts_said, concept, label_smoothing=0.1
    ) + STYLE_WEIGHT * cross_entropy(styles_said[rows], style[rows], label_smoothing=0.1)


def share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4)


def quality(judge: EmojiJudge, x: Tensor, concept: Tensor, style: Tensor) -> dict[str, float]:
    """Shares of right answers, on distorted training drawings and on what it never learned from."""
    judge.eval()
    g = torch.Generator().manual_seed(2**32)  # no step has this seed
    order = torch.randperm(len(x), generator=g)
    x, concept, style = x[order], concept[order], style[order]
    seen = judge.classify(torch.cat([distort(b, g) for b in x.split(256)]))
    moved = judge.classify(torch.cat([nudge(b, g) for b in x.split(256)]))
    plain = judge.classify(x).concepts[:, 0] == concept
    known = taught(concept, style)
    fresh = (style < len(STYLES)) & ~known
    new, truth, _ = load_data((HELD_OUT,))
    order = torch.randperm(len(new), generator=g)
    new, truth = (new[order] + 1) / 2, truth[order]
    held = judge.classify(new).concepts == truth[:, None]
    rough = judge.classify(distort(new, g)).concepts == truth[:, None]
    return {
        "held_out_top1": share(held[:, 0]),
        "held_out_top5": share(held.any(1)),
        "held_out_distorted_top1": share(rough[:, 0]),
        "held_out_distorted_top5": share(rough.any(1)),
        "drawings_top1": share(plain),
        "distorted_top1": share(seen.concepts[:, 0] == concept),
        "style": share(moved.styles[known, 0] == style[known]),
        "style_unseen_concepts": share(moved.styles[fresh, 0] == style[fresh]),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=3 * CYCLE)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=2e-3)
    a = p.parse_args()
    with stage("judge") as report:
        x, concept, style = load_data((*STYLES, *JUDGE_ONLY))
        x = (x + 1) / 2
        g = torch.Generator().manual_seed(0)
        shown = torch.stack([x, *(copies(x, g) for _ in range(COPIES))])
        which = torch.tensor([0] * (COPIES // 2) + list(range(1, COPIES + 1)))
        judge = build().train()
        opt = torch.optim.AdamW(
            judge.parameters(), a.lr, betas=(0.9, 0.99), weight_decay=0.1, fused=True
        )
        plan = OneCycleLR(opt, a.lr, total_steps=CYCLE + 1, pct_start=0.15)
        start = 0
        if (state := resume("judge")) is not None:
            judge.load_state_dict(state["model"])
            opt.load_state_dict(state["opt"])
            plan.load_state_dict(state["plan"])
            start, report["minutes"] = state["step"], state["minutes"]
        began, running = time.perf_counter(), 0.0
        for step in tqdm(
            range(start, a.steps), initial=start, total=a.steps, desc="judge", mininterval=10
        ):
            if step and step % CYCLE == 0:
                plan = OneCycleLR(opt, a.lr, total_steps=CYCLE + 1, pct_start=0.15)
            g = torch.Generator().manual_seed(step)
            rows = torch.randint(0, len(x), (a.batch,), generator=g)
            pick = which[torch.randint(0, len(which), (a.batch,), generator=g)]
            pick[: a.batch // 2] = 0
            loss = loss_of(judge, shown[pick, rows], concept[rows], style[rows], g)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
            opt.step()
            plan.step()
            opt.zero_grad()
            running += float(loss.detach()) / 100
            if step % 100 == 99:
                spent = report.get("minutes", 0) + (time.perf_counter() - began) / 60
                print(step + 1, f"loss {running:.4f}", f"{spent:.1f} min", flush=True)
                running = 0.0
                checkpoint(
                    "judge",
                    lambda: {
                        "model": judge.state_dict(),
                        "opt": opt.state_dict(),
                        "plan": plan.state_dict(),
                        "step": step + 1,
                        "minutes": spent,
                    },
                )
        judge.save(ASSETS.parent / "judge")
        report.update(quality(EmojiJudge.load(ASSETS.parent / "judge"), x, concept, style))
        report["steps"], report["batch"] = a.steps, a.batch
        report["parameters"] = sum(w.numel() for w in judge.parameters())


if __name__ == "__main__":
    main()
