"""Pictures and texts as vectors that fit each other: the shipped tiny CLIP, or any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from efface.errors import UserError
from efface.evaluation.judges.emoji import Block
from efface.models import MODELS, DiffusionModel
from efface.storage import ASSETS

SHIPPED = ASSETS / "clip"
TEXT = ASSETS / "emoji"
OWN = "emoji"
"""The name of the shipped one, for a model that is not the shipped model."""


class Eye(nn.Module):
    """The picture side of the shipped CLIP: (B, 3, 64, 64) in [-1, 1] to (B, D)."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), out: int = 128) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        pairs = pairwise(widths)
        self.stages = nn.Sequential(*(Block(a, b, 2) for a, b in pairs))
        self.head = nn.Linear(widths[-1], out)

    def forward(self, x: Tensor) -> Tensor:
        """Not normalised."""
        features: Tensor = self.stages(self.stem(1 - x)).mean((2, 3))
        projected: Tensor = self.head(features)
        return projected


class TinyClip:
    """The CLIP whose text tower is the ``emoji`` model's text encoder."""

    def __init__(self) -> None:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        weights = load_file(SHIPPED / "clip.safetensors")
        config = json.loads((SHIPPED / "config.json").read_text(encoding="utf8"))
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(TEXT / "tokenizer")
        self.text: Any = CLIPTextModelWithProjection.from_pretrained(
            TEXT / "text_encoder", dtype=torch.float32
        ).eval()
        self.text.text_projection.weight.data = weights.pop("text_projection.weight").float()
        self.eye = Eye(config["widths"], config["dimensions"])
        self.eye.load_state_dict({k: w.float() for k, w in weights.items()})
        self.eye.eval()
        digest = hashlib.sha256((SHIPPED / "clip.safetensors").read_bytes()).hexdigest()
        self.name = f"tiny CLIP of emoji, {digest[:8]}"

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Tensor:
        """Unit vectors (N, D) of pictures (N, 3, H, W) in [0, 1]."""
        x = images if images.shape[-1] == 64 else interpolate(images, (64, 64), mode="area")
        return torch.cat([normalize(self.eye(2 * b - 1), dim=-1) for b in x.split(256)])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, D) of texts."""
        t = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return normalize(self.text(**t).text_embeds, dim=-1)


class TransformersClip:
    """Any CLIP that ``transformers`` opens, by path or hub id."""

    def __init__(self, name_or_path: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        try:
            self.model: Any = CLIPModel.from_pretrained(name_or_path, use_safetensors=True).eval()
            self.processor: Any = AutoProcessor.from_pretrained(name_or_path)
        except (OSError, ValueError) as e:
            first = str(e).strip().splitlines()[0]
            raise UserError(f"no CLIP at {name_or_path!r}: {first}") from None
        self.name = f"CLIP {Path(name_or_path).name}"

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Tensor:
        """Unit vectors (N, D) of pictures (N, 3, H, W) in [0, 1]."""
        parts = []
        for batch in images.split(32):
            x = self.processor(images=list(batch), return_tensors="pt", do_rescale=False)
            parts.append(features(self.model.get_image_features(x.pixel_values)))
        return normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, D) of texts."""
        x = self.processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
        return normalize(features(self.model.get_text_features(**x)), dim=-1)


def features(out: Any) -> Tensor:
    """The projected vectors, whatever this version of transformers wraps them in."""
    found: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return found


Clip = TinyClip | TransformersClip


@lru_cache(1)
def load(name: str = "") -> Clip:
    """A CLIP: ``""`` or ``emoji`` is the shipped one, else a path or a hub id.

    Raises:
        UserError: no CLIP there.
    """
    return TransformersClip(name) if name not in ("", OWN) else TinyClip()


def check_known(model: DiffusionModel, name: str) -> None:
    """Refuse to look at another model's pictures by the shipped CLIP, unless it is named.

    Raises:
        UserError: no CLIP is named, and the model is not the shipped one; or none is there.
    """
    if not name and model.name not in MODELS:
        raise UserError(
            f"the shipped CLIP knows emoji drawings only, {model.name!r} is another model: name a "
            f"CLIP, such as openai/clip-vit-base-patch32 (or {OWN}, for the shipped one)."
        )
    load(name)  # kept for its use
