"""A second, different world: a small model of Fashion-MNIST by the recipe of the shipped one.

Grey photographs of ten kinds of clothes (Debian's ``dataset-fashion-mnist``, MIT), drawn dark on
white at 32x32: an autoencoder, a denoiser that reads the shipped text tower (frozen), a judge, and
a protocol, written to ``build/model`` and not shipped. A stage that is there is not made again.
``efface study other-data --model recipes/fashion/build/model`` erases from it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "emoji"))
from muon import Muon  # noqa: E402
from unet import GAMMA, HIGHEST, NO_TEXT, TILT, export, rate  # noqa: E402
from vae import loss_of  # noqa: E402

from efface.evaluation.judges.emoji import EmojiJudge, JudgeConfig  # noqa: E402
from efface.storage import ASSETS  # noqa: E402

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
GOAL = HERE / "build" / "model"
NAMES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""In the order of the data's labels."""
TEMPLATES = "{}", "a {}", "a photo of a {}"
"""How a concept is asked for in training; the last is the protocol's."""
RELATIVES = {
    "sneaker": ["sandal", "ankle boot"],
    "pullover": ["coat", "shirt", "t-shirt"],
    "bag": ["ankle boot"],
    "dress": ["coat", "trousers"],
}
PROTOCOL = {
    "about": "Clothes erased two at a time from a small model of Fashion-MNIST.",
    "splits": {"1": ["sneaker", "pullover"], "2": ["dress", "bag"]},
    "neighbours": RELATIVES,
    "template": TEMPLATES[-1],
    "pictures": {"erased": 50, "preserved": 50},
    "steps": 12,
    "guidance": 2.0,
    "judge": "fashion-1",
}


def load_data(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) in [-1, 1], white around the clothes, and labels (N,)."""
    read = []
    for kind, head in (("images-idx3", 16), ("labels-idx1", 8)):
        path = folder / f"{part}-{kind}-ubyte.gz"
        if not path.exists():
            sys.exit(f"no {path}: apt install dataset-fashion-mnist, or --data FOLDER.")
        read.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=head))
    grey = torch.from_numpy(read[0].copy()).view(-1, 1, 28, 28)
    x = 1 - pad(grey, (2, 2, 2, 2)).float() / 127.5
    return x.expand(-1, 3, -1, -1), torch.from_numpy(read[1].copy()).long()


def bar(steps: int, what: str) -> tqdm:
    return tqdm(range(steps), desc=what, mininterval=10)


def make_vae(x: Tensor, steps: int, report: dict) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    ).train()
    adam = torch.optim.AdamW(vae.parameters(), 3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    plan = OneCycleLR(adam, 3e-3, steps, pct_start=0.05)
    for step in bar(steps, "vae"):
        g = torch.Generator().manual_seed(step)
        loss = loss_of(vae, x[torch.randint(0, len(x), (32,), generator=g)], g)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        plan.step()
    vae.eval()
    with torch.no_grad():
        z = vae.encode(x[:1024]).latent_dist.mean
        report["vae mse"] = round(float((vae.decode(z).sample - x[:1024]).square().mean()), 5)
    vae.register_to_config(scaling_factor=round(float(1 / z.std()), 5))
    return vae


def make_judge(x: Tensor, y: Tensor, steps: int) -> EmojiJudge:
    """Trained on photographs, flipped, moved and made less sharp; never on generated pictures."""
    torch.manual_seed(0)
    config = JudgeConfig(NAMES, ("photo",), (16, 32, 64, 128), (1, 1, 1, 1), PROTOCOL["judge"])
    judge = EmojiJudge(config).to(memory_format=torch.channels_last).train()
    adam = torch.optim.AdamW(judge.parameters(), 1e-2, weight_decay=1e-2)
    plan = OneCycleLR(adam, 1e-2, steps, pct_start=0.1)
    for step in bar(steps, "judge"):
        g = torch.Generator().manual_seed(step)
        rows = torch.randint(0, len(x), (96,), generator=g)
        part = (x[rows] + 1) / 2
        flip = torch.rand(len(part), generator=g) < 0.5
        part = torch.where(flip[:, None, None, None], part.flip(-1), part)
        dy, dx = torch.randint(-2, 3, (2,), generator=g).tolist()
        part = part.roll((dy, dx), (2, 3))
        part[:32] = interpolate(
            interpolate(part[:32], size=(20, 20), mode="area"), size=(32, 32), mode="bilinear"
        )
        part = (part + 0.03 * torch.randn(part.shape, generator=g)).clamp(0, 1)
        part = interpolate(part, size=(64, 64), mode="area")
        loss = cross_entropy(
            judge(part.contiguous(memory_format=torch.channels_last))[0],
            y[rows],
            label_smoothing=0.1,
        )
        loss.backward()
        adam.step()
        adam.zero_grad()
        plan.step()
    return judge.eval()


def make_unet(
    z0: Tensor, y: Tensor, text: SimpleNamespace, steps: int, report: dict
) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=32,
    ).train()
    report["unet parameters"] = sum(w.numel() for w in unet.parameters())
    captions = [t.format(n) for n in NAMES for t in TEMPLATES]
    states = torch.stack([text.encode(c) for c in [*captions, ""]])
    ema = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    inner, rest = [], []
    for n, w in unet.named_parameters():
        outer = n.startswith(("conv_in.", "conv_out."))
        (rest if w.ndim == 1 or outer else inner).append(w)
    opts = [
        Muon(inner, 3e-3),
        torch.optim.AdamW(rest, 1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True),
    ]
    peaks = [opt.param_groups[0]["lr"] for opt in opts]
    noiser = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = noiser.alphas_cumprod / (1 - noiser.alphas_cumprod)
    weight = ((snr + 1).clamp(max=GAMMA) / snr).clamp(max=HIGHEST)
    running = 1.0
    for step in bar(steps, "unet"):
        g, draw = torch.Generator().manual_seed(step), random.Random(step)
        rows = torch.randint(0, len(z0), (64,), generator=g)
        many = len(TEMPLATES)
        said = [
            len(captions) if draw.random() < NO_TEXT else many * c + draw.randrange(many)
            for c in y[rows].tolist()
        ]
        t = (1000 * (1 - torch.rand(64, generator=g) ** TILT)).long().clamp(max=999)
        noise = torch.randn(z0[rows].shape, generator=g)
        guess = unet(noiser.add_noise(z0[rows], noise, t), t, states[said], return_dict=False)[0]
        error = (guess - noise).square().mean((1, 2, 3))
        (error * weight[t]).mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for opt, peak in zip(opts, peaks, strict=True):
            opt.param_groups[0]["lr"] = peak * rate(step, steps)
            opt.step()
            opt.zero_grad()
        ema.update_parameters(unet)
        running += 0.01 * (float(error.mean().detach()) - running)
    report["unet mse"] = round(running, 5)
    return ema.module.eval()


class Text(SimpleNamespace):
    """The shipped tokenizer and text tower, frozen."""

    @torch.no_grad()
    def encode(self, said: str) -> Tensor:
        """States (L, D)."""
        t = self.tokenizer(said, padding="max_length", truncation=True, return_tensors="pt")
        return self.encoder(t.input_ids)[0][0]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, default=DEBIAN, help="folder of the IDX files")
    p.add_argument("--out", type=Path, default=GOAL)
    p.add_argument("--vae-steps", type=int, default=800)
    p.add_argument("--judge-steps", type=int, default=800)
    p.add_argument("--unet-steps", type=int, default=1200)
    a = p.parse_args()
    build = a.out.parent / f"{a.out.name}.parts"
    build.mkdir(parents=True, exist_ok=True)
    noted = build / "report.json"
    report = json.loads(noted.read_text()) if noted.exists() else {}
    x, y = load_data(a.data, "train")
    held, truth = load_data(a.data, "t10k")

    def stage(name: str, make):
        """Make a part in a folder of its own, unless it is there."""
        if (build / name).exists():
            return
        began = time.perf_counter()
        unfinished = build / f"{name}.unfinished"
        make().save_pretrained(unfinished) if name != "judge" else make().save(unfinished)
        os.replace(unfinished, build / name)
        report[f"{name} minutes"] = round((time.perf_counter() - began) / 60, 1)
        noted.write_text(json.dumps(report, indent=1) + "\n")

    stage("vae", lambda: make_vae(x, a.vae_steps, report))
    vae = AutoencoderKL.from_pretrained(build / "vae").eval()
    stage("judge", lambda: make_judge(x, y, a.judge_steps))
    judge = EmojiJudge.load(build / "judge")
    emoji = ASSETS / "emoji"
    text = Text(
        tokenizer=CLIPTokenizer.from_pretrained(emoji / "tokenizer"),
        encoder=CLIPTextModel.from_pretrained(emoji / "text_encoder", dtype=torch.float32).eval(),
    )

    def unet() -> UNet2DConditionModel:
        with torch.no_grad():
            z = [vae.encode(b).latent_dist.mean for b in tqdm(x.split(500), desc="latents")]
        return make_unet(torch.cat(z) * vae.config.scaling_factor, y, text, a.unet_steps, report)

    stage("unet", unet)
    pipe = export(UNet2DConditionModel.from_pretrained(build / "unet").eval(), vae, text)
    unfinished = a.out.with_name(f"{a.out.name}.unfinished")
    pipe.save_pretrained(unfinished)
    judge.save(unfinished / "judge")
    (unfinished / "protocol.json").write_text(json.dumps(PROTOCOL, indent=1) + "\n")
    concepts = {"concepts": [{"name": n, "tags": []} for n in NAMES]}
    (unfinished / "concepts.json").write_text(json.dumps(concepts, indent=1) + "\n")
    report["judge, % of the test photographs"] = score(judge, (held + 1) / 2, truth)
    pipe.set_progress_bar_config(disable=True)
    made = []
    for name in NAMES:
        g = [torch.Generator().manual_seed(i) for i in range(20)]
        made += pipe(
            [TEMPLATES[-1].format(name)] * 20,
            num_inference_steps=PROTOCOL["steps"],
            guidance_scale=PROTOCOL["guidance"],
            generator=g,
            output_type="pt",
        ).images
    pictures = torch.stack(made)
    asked = torch.arange(len(NAMES)).repeat_interleave(20)
    report["judge, % of 20 pictures of each concept"] = score(judge, pictures, asked)
    rows = pictures.view(len(NAMES), 20, 3, 32, 32)[:, :12]
    sheet = rows.permute(0, 3, 1, 4, 2).reshape(len(NAMES) * 32, 12 * 32, 3)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(unfinished / "sheet.png")
    (unfinished / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(a.out, ignore_errors=True)
    os.replace(unfinished, a.out)
    print(json.dumps(report, indent=1), a.out, sep="\n")


def score(judge: EmojiJudge, images: Tensor, truth: Tensor) -> float:
    """Share of pictures whose concept the judge names, in percent."""
    return round(100 * float((judge.classify(images).concepts[:, 0] == truth).float().mean()), 2)


if __name__ == "__main__":
    main()
