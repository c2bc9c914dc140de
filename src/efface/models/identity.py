"""What draws a picture, as one hash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import sha256
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from efface.models.diffusion import DiffusionModel
from efface.models.files.stored import hash_tensors

Seen = dict[str, tuple[Any, str]]
"""What has been hashed of each part: how one sees that it changed, and the hash."""


def identity(model: DiffusionModel) -> str:
    """Hash of all that a model draws with, as it is in memory: 16 hex digits.

    Weights and configs of the denoiser, the autoencoder and the text encoders, the tokenizers, the
    scheduler's config and the pipeline's own settings. A part is hashed again when a tensor of it
    was replaced or changed in place.
    """
    model.fill()
    return of_parts(model, model.parts)


def beside(model: DiffusionModel) -> str:
    """As :func:`identity`, without the denoiser, whose hash a model's ``base`` is."""
    return of_parts(model, [k for k in model.parts if k != model.family.denoiser])


def apart(one: DiffusionModel, two: DiffusionModel) -> list[str]:
    """The parts besides the denoiser in which two models differ, or that only one of them has."""
    sides = [vars(m).setdefault("_seen", {}) for m in (one, two)]

    def told(name: str) -> list[Any]:
        return [
            of_part(name, m.parts[name], seen) if name in m.parts else None
            for m, seen in zip((one, two), sides, strict=True)
        ]

    names = sorted({*one.parts, *two.parts} - {one.family.denoiser, two.family.denoiser})
    return [
        n for n in names if len({json.dumps(x, sort_keys=True, default=str) for x in told(n)}) > 1
    ]


def of_parts(model: DiffusionModel, names: Iterable[str]) -> str:
    """Hash of some of a model's parts and of the pipeline's own settings."""
    seen: Seen = vars(model).setdefault("_seen", {})
    found: dict[str, Any] = {k: of_part(k, model.parts[k], seen) for k in sorted(names)}
    found["pipeline"] = plain(model.family.index)
    return short(json.dumps(found, sort_keys=True, default=str))


def of_part(name: str, part: Any, seen: Seen) -> list[Any]:
    """What makes a component this one, as JSON."""
    kind = type(part).__name__
    if isinstance(part, nn.Module):
        every = dict(chain(part.named_parameters(), part.named_buffers()))
        own = {k: w for k, w in every.items() if type(w.data) is Tensor}
        packed = {k: f"{type(w.data).__name__} {list(w.shape)}" for k, w in every.items()}
        packed = {k: told for k, told in packed.items() if k not in own}  # has no plain bytes
        stamp = [(StorageWeakRef(w.untyped_storage()), w._version) for w in own.values()]
        get = {k: partial(Tensor.detach, w) for k, w in own.items()}
        digest = once(name, stamp, seen, lambda: hash_tensors(get))
        return [kind, plain(part.config), digest, *([packed] if packed else [])]
    if hasattr(part, "model_max_length"):
        words = once(name, (part, len(part)), seen, lambda: short(vocabulary(part)))
        return [kind, part.model_max_length, part.special_tokens_map, words]
    return [kind, plain(part.config)]


def once(name: str, stamp: Any, seen: Seen, make: Callable[[], str]) -> str:
    """A part's hash, made again where its stamp is another."""
    if name not in seen or seen[name][0] != stamp:
        seen[name] = (stamp, make())
    return seen[name][1]


def vocabulary(tokenizer: Any) -> str:
    """All that a tokenizer knows, but not how it was last asked to pad and cut."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return json.dumps(tokenizer.get_vocab(), sort_keys=True)
    known = json.loads(inner.to_str())
    return json.dumps({k: v for k, v in known.items() if k not in ("padding", "truncation")})


def plain(config: Any) -> dict[str, Any]:
    """A config without what it says of files and programs."""
    found: Mapping[str, Any] = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {k: v for k, v in found.items() if k[0] != "_" and k != "transformers_version"}


def short(text: str) -> str:
    """First 16 hex digits of a text's SHA-256."""
    return sha256(text.encode()).hexdigest()[:16]
