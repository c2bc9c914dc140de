"""Stage 6: the shipped model's quality by the judge, and its model card (about 10 minutes)."""

from __future__ import annotations

import json

import torch
from common import ASSETS, BUILD, HELD_OUT, STYLES, WORDS, concepts, load_data, stage
from torch import Tensor

from efface.evaluation.judges.emoji import EmojiJudge
from efface.models import load
from efface.scores import rate
from efface.vocabularies import brought

SEEDS = range(8)
CARD = """---
license: apache-2.0
pipeline_tag: text-to-image
library_name: diffusers
---

# emoji: a small Stable Diffusion

Text encoder (CLIP, real tokenizer), UNet with cross-attention and KL autoencoder, trained on
licensed
emoji drawings (see `../SOURCES.md`): {concepts} concepts, {styles} styles, 64x64 pixels. It is
there so
that erasing can be measured on any machine; it draws emoji and nothing else.

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(path)  # stock diffusers, nothing of ours
pipe("a dog face, noto style", num_inference_steps=12, guidance_scale=4).images[0]
```

Styles are asked for in words: {words}.

## Measured

One picture each of {seeds} seeds for every concept, prompt = the bare name, {steps} steps of the
shipped
solver, guidance {guidance:g}; percent with 95 % Wilson intervals; by the shipped judge.

| figure | percent | pictures |
| --- | --- | --- |
| concept recognised, top-1 | {top1} | {n} |
| concept recognised, top-5 | {top5} | {n} |
| style recognised (prompt "NAME, STYLE style") | {style} | {style_n} |
| the same, where someone drew that concept in that style | {drawn} | {nearest_n} |
| of the concept's drawings, the nearest is in the style asked for | {nearest} | {nearest_n} |

The last two rows leave out the pairs of concept and style that no one drew. The last needs no
judge: of
the drawings of this concept, at most six, which has the least mean squared error to the picture.

{worst}

The judge never saw a generated picture. On the drawings of a set that nothing was trained on
({held_out}) it is right on {held1:.1f} % (top-1) and {held5:.1f} % (top-5).

## Made by

`make model`; minutes on two cores: {minutes}. Autoencoder: mean squared error {mse} on [-1, 1].
UNet: {unet_steps} steps of batch {batch}, {parameters:,} parameters. CLIP: zero-shot accuracy on
the
training drawings {zero_shot:.1%}.
"""


def nearest(pictures: Tensor, asked: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Whether the drawing of its concept that is nearest to a picture has the style asked for.

    Args:
        pictures: (N, 3, 64, 64) in [0, 1].
        asked: index of concept and of style of each.

    Returns:
        (N,) whether it has, and (N,) whether that concept was drawn in that style at all.
    """
    x, concept, style = load_data()
    x, found, drawn = (x + 1) / 2, [], []
    for picture, (c, s) in zip(pictures, asked, strict=True):
        rows = (concept == c).nonzero()[:, 0]
        errors = (x[rows] - picture).square().mean((1, 2, 3))
        found.append(bool(style[rows[errors.argmin()]] == s))
        drawn.append(bool((style[rows] == s).any()))
    return torch.tensor(found), torch.tensor(drawn)


def main() -> None:
    with stage("quality") as report:
        model, judge = load("emoji"), EmojiJudge.load()
        concept_names = brought(ASSETS, "emoji", "names").words
        names = [n for n in concept_names for _ in SEEDS]
        seeds = [s for _ in concept_names for s in SEEDS]
        pictures = torch.stack(
            list(model.generate(names, seeds, batch=64, progress=True, output_type="pt"))
        )
        guess = judge.classify(pictures).concepts
        hit = guess == torch.tensor([judge.index(n) for n in names])[:, None]
        top1, top5 = hit[:, 0], hit.any(1)
        by_concept = top1.view(-1, len(SEEDS)).double().mean(1)
        asked = [(n, s) for n in concept_names for s in range(len(STYLES))]
        prompts = [f"{n}, {WORDS[STYLES[s]]}" for n, s in asked]
        styled = torch.stack(
            list(
                model.generate(
                    prompts, [0] * len(prompts), batch=64, progress=True, output_type="pt"
                )
            )
        )
        style = judge.classify(styled).styles[:, 0] == torch.tensor([s for _, s in asked])
        near, drawn = nearest(
            styled, [(i, s) for i in range(len(concept_names)) for s in range(len(STYLES))]
        )
        near = near[drawn]
        low = [i for i in by_concept.argsort()[:12].tolist() if by_concept[i] < 1]
        report["top1"], report["top5"] = rate(top1).to_json(), rate(top5).to_json()
        report["style"] = rate(style).to_json()
        report["style_drawn"] = rate(style[drawn]).to_json()
        report["nearest_drawing"] = rate(near).to_json()
        report["style_by_style"] = {
            s: round(100 * float(style[i :: len(STYLES)].double().mean()), 1)
            for i, s in enumerate(STYLES)
        }
        report["worst"] = {concept_names[i]: round(100 * float(by_concept[i]), 1) for i in low}
        made = {
            k: json.loads((BUILD / f"{k}.json").read_text())
            for k in ("data", "vae", "clip", "unet", "judge")
        }
        card = CARD.format(
            concepts=len(concepts()),
            styles=len(STYLES),
            words=", ".join(f'"{w}"' for w in WORDS.values()),
            seeds=len(SEEDS),
            steps=model.steps,
            guidance=model.guidance,
            top1=rate(top1),
            top5=rate(top5),
            n=len(names),
            style=rate(style),
            drawn=rate(style[drawn]),
            style_n=len(prompts),
            nearest=rate(near),
            nearest_n=len(near),
            worst="Worst recognised concepts: "
            + (", ".join(f"{k} ({v:g})" for k, v in report["worst"].items()) or "none below 100")
            + ".",
            held_out=HELD_OUT,
            held1=100 * made["judge"]["held_out_top1"],
            held5=100 * made["judge"]["held_out_top5"],
            minutes=", ".join(f"{k} {v['minutes']:g}" for k, v in made.items()),
            mse=made["vae"]["mse"],
            unet_steps=made["unet"]["steps"],
            batch=made["unet"]["batch"],
            parameters=made["unet"]["parameters"],
            zero_shot=made["clip"]["zero_shot"],
        )
        (ASSETS / "README.md").write_text(card)
    (ASSETS / "quality.json").write_text((BUILD / "quality.json").read_text())


if __name__ == "__main__":
    main()
