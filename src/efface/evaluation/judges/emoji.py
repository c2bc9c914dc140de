"""The judge: which concept a picture shows and in which style it is drawn.

One small residual network with two heads, trained by ``recipes/emoji/judge.py`` on drawings alone,
never on generated pictures. The package ships it in ``assets/judge``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from efface.errors import UserError, pick
from efface.evaluation.judge_files import described, keep, shipped
from efface.evaluation.judges.judge import Judge, Judgement
from efface.storage import ASSETS

SHIPPED, WEIGHTS = ASSETS / "judge", "judge.safetensors"
SIZE = 64
"""Side, in pixels, of the pictures that the network sees; others are resized to it."""


@dataclass(frozen=True)
class JudgeConfig:
    """What a judge knows, and the shape of its network."""

    concepts: tuple[str, ...]
    """Names of the concepts, in the order of the concept head."""
    styles: tuple[str, ...]
    """Names of the styles, in the order of the style head."""
    widths: tuple[int, ...] = (24, 64, 128, 256)
    """Channels of each stage; a stage has half the resolution of the one before, from 32x32 on."""
    blocks: tuple[int, ...] = (1, 1, 2, 1)
    """Residual blocks of each stage."""
    version: str = "emoji-2"
    """Scores of different versions do not compare."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise UserError(
                f"a stage needs a width and a number of blocks: got widths "
                f"{self.widths} and blocks {self.blocks}."
            )
        for name, most in (("widths", 4096), ("blocks", 64)):
            if not all(1 <= n <= most for n in getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}; each is from 1 to {most}.")
        for name in ("concepts", "styles"):
            names = getattr(self, name)
            if not names or len(set(names)) < len(names):
                raise UserError(f"{name} must be names, each once; got {len(names)}.")


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``stride`` 2 halves the resolution."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(wide_in, wide_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(wide_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide_out, wide_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide_out),
        )
        self.shortcut = nn.Sequential()
        if (wide_in, stride) != (wide_out, 1):
            self.shortcut.append(nn.AvgPool2d(stride))
            self.shortcut.append(nn.Conv2d(wide_in, wide_out, 1, bias=False))
            self.shortcut.append(nn.BatchNorm2d(wide_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, wide_in, H, W) -> (B, wide_out, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return torch.relu(y + self.shortcut(x))


class EmojiJudge(nn.Module, Judge):
    """Names the concept and the style of emoji pictures.

    Attributes:
        config: concept and style names, and the shape of the network.
        sha256: first 12 digits of the hash of the weights file; empty before ``load`` or ``save``.
    """

    name: ClassVar[str] = "emoji"

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config, self.sha256 = config, ""
        self.version, self.concept_names = config.version, config.concepts
        wide = config.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, wide, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        for i, (now, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            stride = 1 if i == 0 else 2
            first = Block(wide, now, stride)
            self.stages.append(nn.Sequential(first, *(Block(now, now, 1) for _ in range(1, count))))
            wide = now
        self.concept_head = nn.Linear(wide, len(config.concepts))
        self.style_head = nn.Sequential(
            nn.Linear(sum(config.widths), 256), nn.ReLU(), nn.Linear(256, len(config.styles))
        )

    @classmethod
    def opened(cls, version: str) -> EmojiJudge:
        """The shipped judge, if it is of this version.

        Raises:
            UserError: another version.
        """
        judge = cls.load()
        shipped(version, judge.version)
        return judge

    @classmethod
    def load(cls, folder: Path | None = None) -> EmojiJudge:
        """A trained judge, ready for use: fp32, in evaluation mode, frozen.

        Args:
            folder: holds ``judge.json`` and ``judge.safetensors``; None is the shipped judge.

        Raises:
            UserError: the folder holds no judge, a damaged one, or weights and description that do
                not belong together.
        """
        folder = SHIPPED if folder is None else folder
        config, found = described(folder, WEIGHTS, JudgeConfig)
        judge, weights = cls(config), folder / WEIGHTS
        try:
            judge.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as e:
            said = str(e).strip().splitlines()[-1].strip()
            raise UserError(f"{str(weights)!r} holds no weights of this judge: {said}") from None
        judge.sha256 = found
        return judge.eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write ``judge.safetensors`` (fp16; vectors fp32) and ``judge.json`` into ``folder``."""
        # The variances of batch normalisation can be too small for fp16, and vectors cost nothing.
        packed = {
            k: (w.half() if w.ndim > 1 else w).contiguous() for k, w in self.state_dict().items()
        }
        self.sha256 = keep(folder, WEIGHTS, packed, self.config)

    def index(self, name: str) -> int:
        """The place of a concept in the concept head.

        Raises:
            UserError: the judge does not know this concept.
        """
        return pick({n: i for i, n in enumerate(self.config.concepts)}, name, "concept")

    def label(
        self, name: str, head: str = "concept", labels: Mapping[str, str] | None = None
    ) -> int:
        """The place of a concept, or of a style, in its head.

        Args:
            head: ``concept`` or ``style``.
            labels: what the judge calls it, where that is another name.

        Raises:
            UserError: the judge does not know it.
        """
        own = (labels or {}).get(name, name)
        if head == "concept":
            return self.index(own)
        return pick({n: i for i, n in enumerate(self.config.styles)}, own, "style")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Concept logits (B, K) and style logits (B, S) of images (B, 3, 64, 64) in [0, 1]."""
        x: Tensor = self.stem(1 - images)  # white becomes 0, as the convolutions' padding is
        means = []
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean((2, 3)))
        concepts: Tensor = self.concept_head(means[-1])
        styles: Tensor = self.style_head(torch.cat(means, 1))  # a style shows at every scale
        return concepts, styles

    def features(self, images: Tensor) -> list[Tensor]:
        """What each stage sees of images (B, 3, H, W) in [0, 1]: (B, C, H', W') each."""
        x: Tensor = self.stem(1 - self._prepared(images))
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def concepts(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, K) of the K concepts, in nats.

        Args:
            images: (B, 3, H, W), floating point, in [0, 1].

        Raises:
            ValueError: the images have another shape, type or range.
        """
        logits: Tensor = self(self._prepared(images))[0]
        return logits.log_softmax(-1)

    def styles(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, S) of the S styles, in nats; images as in ``concepts``."""
        logits: Tensor = self(self._prepared(images))[1]
        return logits.log_softmax(-1)

    def classify(self, images: Tensor, batch: int = 256, k: int = 5) -> Judgement:
        """The ``k`` likeliest concepts, and the styles in order, of any number of pictures.

        Args:
            images: (N, 3, H, W), floating point, in [0, 1].
            batch: pictures in the network at a time.
            k: concepts to give for each picture.

        Raises:
            ValueError: the images have another shape, type or range, or there are none.
        """
        with torch.no_grad():
            parts = [self(self._prepared(b)) for b in torch.split(images, batch)]
            logits = torch.cat([p[0] for p in parts])
            concepts = logits.log_softmax(-1).topk(min(k, logits.shape[1]))
            styles = torch.cat([p[1] for p in parts]).log_softmax(-1).sort(descending=True)
        return Judgement(concepts.indices, concepts.values, styles.indices, styles.values)

    def _prepared(self, images: Tensor) -> Tensor:
        """Images (B, 3, 64, 64) of the weights' device and dtype, checked."""
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"images must be (B, 3, H, W) with B > 0; got {tuple(images.shape)}.")
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point in [0, 1]; got {images.dtype}.")
        low, high = (float(v) for v in images.aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # so written, NaN fails too
            raise ValueError(f"images must be in [0, 1]; got [{low:.3g}, {high:.3g}].")
        images = images.to(self.concept_head.weight)
        if images.shape[-2:] != (SIZE, SIZE):
            images = interpolate(images, size=(SIZE, SIZE), mode="area")
        return images
