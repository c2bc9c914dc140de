"""How much faster evaluation pictures are made than by a plain loop over prompts, in one run.

The loop is stock diffusers, a prompt at a time; both draw the same pictures. Writes
``bench/generation.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from diffusers import StableDiffusionPipeline

from efface.evaluation.samples import Wanted, generate
from efface.models import MODELS, load
from efface.storage import ASSETS
from efface.vocabularies import brought


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pictures", type=int, default=96)
    a = p.parse_args()
    names = brought(ASSETS / "emoji", "emoji", "names").words
    wanted = [Wanted(names[i % len(names)], i, names[i % len(names)]) for i in range(a.pictures)]
    model, emoji = load("emoji"), MODELS["emoji"]
    pipe = StableDiffusionPipeline.from_pretrained(emoji.folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def plain() -> torch.Tensor:
        made = [
            pipe(
                w.prompt,
                num_inference_steps=emoji.steps,
                guidance_scale=emoji.guidance,
                generator=torch.Generator().manual_seed(w.seed),
                output_type="pt",
            ).images[0]
            for w in wanted
        ]
        return torch.stack(made)

    def ours() -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            return generate(model, wanted, Path(folder), progress=False).images()

    seconds, made = {"plain loop": [], "efface": []}, {}
    for _ in range(3):  # in turns, so that the machine's moods meet both
        for name, make in (("plain loop", plain), ("efface", ours)):
            began = perf_counter()
            made[name] = make()
            seconds[name].append(perf_counter() - began)
    least = {k: min(v) for k, v in seconds.items()}
    row = {
        "pictures": a.pictures,
        "steps": emoji.steps,
        "threads": torch.get_num_threads(),
        "seconds": {k: [round(s, 2) for s in v] for k, v in seconds.items()},
        "times_faster": round(least["plain loop"] / least["efface"], 2),
        "mean_difference": round(float((made["plain loop"] - made["efface"]).abs().mean()), 5),
    }
    (Path(__file__).parent / "generation.json").write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
