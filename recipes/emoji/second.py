"""Stage 7: the second judge, a linear head on another network's features (about 10 minutes)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache

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
from judge import copies, distort, nudge, share
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from efface.evaluation.judges.second import Backbone, SecondConfig, SecondJudge
from efface.models import load

OUT = ASSETS.parent / "judge-second"
ROUNDS = 2
"""How often the drawings are distorted, coded by the autoencoder, and the copies nudged."""
UNSEEN = 2**31
"""No view of the training has this seed; torch reads 32 bits of a seed, so 2**32 would be 0."""
SEEDS = range(2)
"""Of the shipped model's pictures: they test the judge and teach it nothing."""


class Views:
    """Features of many views of the drawings; what a killed run had made is not made again."""

    def __init__(self, config: SecondConfig) -> None:
        self.config, self.backbone = config, Backbone()
        self.setup = [config.side, *config.depths]
        state = resume("second")
        if state is None or state["setup"] != self.setup:
            state = {"views": {}, "minutes": 0.0}
        self.made, self.minutes, self.began = state["views"], state["minutes"], time.perf_counter()

    def of(self, name: str, pictures: Callable[[], Tensor]) -> Tensor:
        """Features (N, F) of pictures (N, 3, 64, 64) in [0, 1]."""
        if name not in self.made:
            c = self.config
            parts = tqdm(pictures().split(16), desc=name, mininterval=10)
            found = [self.backbone.features(part, c.side, c.depths) for part in parts]
            self.made[name] = torch.cat(found).half()
            spent = self.minutes + (time.perf_counter() - self.began) / 60
            state = {"setup": self.setup, "views": self.made, "minutes": spent}
            checkpoint("second", lambda: state)
        return self.made[name].float()

    def round(self, name: str, x: Tensor, seed: int) -> list[Tensor]:
        """Features of drawings (N, 3, 64, 64): distorted, copied, and as nudged copies."""
        copied = cache(lambda: copies(x, torch.Generator().manual_seed(seed)))
        views = {
            "distorted": lambda: changed(x, distort, seed),
            "copied": copied,
            "nudged": lambda: changed(copied(), nudge, seed),
        }
        return [self.of(f"{name} {kind} {seed}", view) for kind, view in views.items()]


def changed(x: Tensor, how: Callable[[Tensor, torch.Generator], Tensor], seed: int) -> Tensor:
    """Pictures (N, 3, H, W) changed in random batches, in their own order."""
    g = torch.Generator().manual_seed(seed)
    order, out = torch.randperm(len(x), generator=g), torch.empty_like(x)
    for rows in order.split(256):
        out[rows] = how(x[rows], g)
    return out


def fitted(x: Tensor, concept: Tensor, epochs: int) -> tuple[Tensor, Tensor]:
    """Weights (K, F) and biases (K,) of a softmax regression on features (N, F)."""
    torch.manual_seed(0)
    middle, spread = x.mean(0), x.std(0) + 1e-3
    x = (x - middle) / spread
    head = torch.nn.Linear(x.shape[1], len(concepts()))
    torch.nn.init.zeros_(head.weight)
    opt = torch.optim.AdamW(head.parameters(), 2e-3, weight_decay=0.5)
    plan = OneCycleLR(opt, 2e-3, total_steps=epochs * (len(x) // 256) + 1)
    for _ in tqdm(range(epochs), desc="head"):
        for rows in torch.randperm(len(x))[: len(x) // 256 * 256].split(256):
            cross_entropy(head(x[rows]), concept[rows], label_smoothing=0.1).backward()
            opt.step()
            plan.step()
            opt.zero_grad()
    weight = head.weight.detach() / spread  # reads the features as they come
    return weight, head.bias.detach() - weight @ middle


def generated() -> Tensor:
    """The shipped model's picture of each concept for each seed, (SEEDS x K, 3, 64, 64)."""
    names = [c["name"] for c in concepts()]
    prompts, seeds = names * len(SEEDS), [s for s in SEEDS for _ in names]
    made = load("emoji").generate(prompts, seeds, batch=16, progress=True, output_type="pt")
    return (255 * torch.stack(list(made))).round() / 255  # as they are kept on disk


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--side", type=int, default=128)
    a = p.parse_args()
    with stage("second") as report:
        x, concept, _ = load_data((*STYLES, *JUDGE_ONLY))
        x, rounds = (x + 1) / 2, range(ROUNDS)
        config = SecondConfig(
            tuple(c["name"] for c in concepts()),
            "emoji-second-1",
            f"{len(x)} drawings of {', '.join((*STYLES, *JUDGE_ONLY))}: each as it is, and "
            f"{ROUNDS} times distorted, coded by the emoji model's autoencoder with errors in its "
            "latents, and so coded, moved and softened; no generated picture",
            Backbone().sha256,
            a.side,
        )
        views = Views(config)
        report["minutes"] = views.minutes
        seen = [
            views.of("drawings", lambda: x),
            *(v for s in rounds for v in views.round("seen", x, s)),
        ]
        SecondJudge(config, *fitted(torch.cat(seen), concept.repeat(len(seen)), a.epochs)).save(OUT)
        judge = SecondJudge.load(OUT)

        def right(name: str, features: Tensor, truth: Tensor) -> None:
            best = (features @ judge.weight.T + judge.bias).topk(5).indices == truth[:, None]
            report[f"{name}_top1"], report[f"{name}_top5"] = share(best[:, 0]), share(best.any(1))

        right("drawings", seen[0], concept)
        new, truth, _ = load_data((HELD_OUT,))
        new = (new + 1) / 2
        right("held_out", views.of("held out", lambda: new), truth)
        kinds = "distorted", "copied", "nudged"
        for name, pictures, answer in (("seen", x, concept), ("held_out", new, truth)):
            for kind, features in zip(kinds, views.round(name, pictures, UNSEEN), strict=True):
                right(f"{name}_{kind}", features, answer)
        truth = torch.arange(len(concepts())).repeat(len(SEEDS))
        right("generated", views.of("generated", generated), truth)


if __name__ == "__main__":
    main()
