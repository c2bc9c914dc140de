"""The contract of a method, for whoever writes one: ``check_method(Mine())`` in a test of theirs.

Brings a tiny random model of real diffusers classes, so that a check takes a second and no network.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.models import DiffusionModel, load
from efface.settings import from_json, to_json
from efface.storage import ASSETS
from efface.training import AUTO, Method, Run, Tuning

M = TypeVar("M", bound=Method)

ERASED = (Concept("church"), Concept("dog", anchor="cat", synonyms=("hound",)))
"""What a check erases."""
WORDS = tuple(
    f"{how} {what}"
    for how in ("red", "blue", "big", "small")
    for what in ("house", "cow", "sun", "tree", "river")
)
"""The vocabulary of a check."""
SMALL: Mapping[str, Mapping[str, int]] = {
    "latents": {"ddim_steps": 3, "trajectories": 2},
    "search": {"refresh": 2, "probes": 2, "top": 3},
    "pictures": {"n": 2, "ddim_steps": 3},
    "recall": {"refresh": 1, "batch": 2},
}
"""What makes the parts of a method quick."""
QUIET = Run(progress=False)


def tiny_pipeline(prediction: str = "epsilon", seed: int = 0) -> Any:
    """A Stable Diffusion pipeline of diffusers' own classes, small and random.

    Args:
        prediction: ``epsilon`` or ``v_prediction``.
        seed: of its weights.
    """
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            latent_channels=4,
            norm_num_groups=2,
            sample_size=8,
        )
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            projection_dim=16,
            bos_token_id=49406,
            eos_token_id=49407,
        )
        text_encoder = CLIPTextModel(config)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(ASSETS / "emoji" / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_model(seed: int = 0) -> DiffusionModel:
    """A small random model: 4×4 latents, text states of 16 numbers, four sampling steps."""
    model = load(tiny_pipeline(seed=seed))
    model.steps, model.lr = 4, 1e-3
    return model


def small(method: M, words: str | Path, updates: int = 2) -> M:
    """A method with its settings made small; whatever it does not have is left alone.

    Args:
        words: a word list file, in place of its vocabulary.
    """
    changes: dict[str, Any] = {}
    for name, values in SMALL.items():
        part = getattr(method, name, None)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            own = {k: v for k, v in values.items() if hasattr(part, k)}
            changes[name] = dataclasses.replace(part, **own)
    if isinstance(method, Tuning):
        changes |= {"updates": updates, "save_every": 2, "batch": min(method.batch, 2)}
    if getattr(method, "vocabulary", ""):
        changes["vocabulary"] = str(words)
    if getattr(method, "pool_size", 0):
        changes["pool_size"] = 6
    return dataclasses.replace(method, **changes)


def check_method(method: Method, model: DiffusionModel | None = None) -> None:
    """See whether a method keeps what every method promises.

    The same seed gives the same weights, whatever torch's global one; the base model is left alone;
    only the weights of the edit change, of a trained method those of its group; an edit comes back
    from its file, and the settings from its JSON, as they were; two concepts can be erased at once,
    and words kept, but not what is erased; no concept at all is refused. Trained methods are
    checked with a few small updates.

    Args:
        method: with any settings.
        model: None: :func:`tiny_model`.

    Raises:
        AssertionError: what it does not keep.
    """
    must(isinstance(method, Method), f"{type(method).__name__} is no efface.Method")
    check_settings(method)
    model = tiny_model() if model is None else model
    before = {k: w.clone() for k, w in model.parameters().items()}
    with TemporaryDirectory() as temporary, torch.random.fork_rng(devices=[]):
        folder = Path(temporary)
        (folder / "words.txt").write_text("\n".join(WORDS) + "\n", encoding="utf8")
        quick = small(method, folder / "words.txt")
        torch.manual_seed(1)
        edit = taken(quick, model)
        check_alone(model, before)
        torch.manual_seed(2)
        again = taken(quick, model)
        must(edit.digest == again.digest, "the same seed gives other weights")
        check_weights(quick, edit, model, before)
        check_file(quick, edit, folder)
        check_keeps(quick, model)
        check_alone(model, before)


def taken(method: Method, model: DiffusionModel) -> Edit:
    """The edit of :data:`ERASED`; a refusal is a broken promise, with its reason."""
    try:
        return method.erase(model, ERASED, QUIET)
    except UserError as e:
        keeping = f" and keep {', '.join(map(repr, method.keep))}" if method.keep else ""
        asked = " and ".join(repr(c.name) for c in ERASED)
        raise AssertionError(f"it cannot erase {asked}{keeping}: {e}") from e


def must(holds: bool, otherwise: str) -> None:
    """Raise AssertionError, whether or not Python runs with ``-O``."""
    if not holds:
        raise AssertionError(otherwise)


def check_settings(method: Method) -> None:
    """It has a name, a label, and settings that come back from JSON, its presets' too."""
    cls = type(method)
    for what in ("name", "label"):
        said = getattr(cls, what, None)
        must(isinstance(said, str) and said.strip() == said != "", f"it has no {what}")
    frozen = getattr(cls, "__dataclass_params__", None)
    must(frozen is not None and frozen.frozen, f"{cls.__name__} is no frozen dataclass")
    entered = {f"line-up {n!r}": e.method for n, e in cls.lineup().items()}
    named = {f"preset {n!r}": m for n, m in cls.presets().items()}
    for what, one in {"defaults": cls(), "settings": method, **named, **entered}.items():
        must(isinstance(one, cls), f"{what}: {type(one).__name__} is no {cls.__name__}")
        written = json.loads(json.dumps(to_json(one)))
        must(from_json(cls, written) == one, f"{what}: other settings come back from JSON")


def check_alone(model: DiffusionModel, before: Mapping[str, Tensor]) -> None:
    """The base model is as it was before."""
    own = model.parameters()
    must(same(own, before), "the base model was changed")
    touched = [k for k, w in own.items() if w.requires_grad or w.grad is not None]
    must(not touched, f"the base model was left ready to train: {touched[:1]}")
    must(not model.denoiser.training, "the base model was left in training mode")


def check_weights(
    method: Method, edit: Edit, model: DiffusionModel, before: Mapping[str, Tensor]
) -> None:
    """The edit holds plain numbers, of the weights that were to be changed and of no others."""
    must(bool(edit.weights), "the edit holds no weights")
    for k, w in edit.weights.items():
        must(k in before and w.shape == before[k].shape, f"the model has no such weight: {k}")
        plain = (w.dtype, w.device.type, w.requires_grad) == (torch.float32, "cpu", False)
        must(plain, f"{k} is not fp32 on the CPU without a gradient")
        must(bool(torch.isfinite(w).all()), f"{k} is not finite")
    if isinstance(method, Tuning):
        strange = sorted(set(edit.weights) - set(model.group(method.group)))
        must(not strange, f"weights outside the group {method.group!r}: {strange[:1]}")
    must(not same(edit.weights, before), "nothing was changed")
    with edit.applied(model):
        own = model.parameters()
        moved = {k for k, w in own.items() if not torch.equal(w, before[k])}
        must(moved <= set(edit.weights), "weights moved that are not in the edit")


def check_file(method: Method, edit: Edit, folder: Path) -> None:
    """Edit and settings come back from the file."""
    edit.save(folder / "edit.safetensors")
    back = Edit.load(folder / "edit.safetensors")
    must(back.digest == edit.digest, "another edit comes back from its file")
    must(back.meta.get("method") == method.name, "the edit does not say its method")
    found = from_json(type(method), back.meta.get("config") or {})
    must(found == method, "other settings come back from the edit's file")
    concepts = [from_json(Concept, c) for c in back.meta.get("concepts") or ()]
    steered = method.anchor != AUTO or all(c.anchor for c in concepts)
    given = [
        dataclasses.replace(c, anchor=c.anchor if e.anchor else "")
        for c, e in zip(concepts, ERASED, strict=False)
    ]
    must(steered and given == list(ERASED), "the edit does not say what it erased")


def check_keeps(method: Method, model: DiffusionModel) -> None:
    """Words can be kept; nothing to erase, and what is to be kept and erased, are refused."""
    kept = replaced(method, keep=("moon", ""))
    edit = taken(kept, model)
    must(tuple(edit.meta["config"]["keep"]) == ("moon", ""), "the edit does not say what it kept")
    must(all(math.isfinite(float(w.sum())) for w in edit.weights.values()), "keep: not finite")
    refused(replaced(method, keep=("Hound",)), model, ERASED, "what is erased can be kept, too")
    refused(method, model, (), "no concept at all is not refused")


def replaced(method: M, **changes: Any) -> M:
    """The method with other settings."""
    return dataclasses.replace(method, **changes)


def refused(
    method: Method, model: DiffusionModel, concepts: tuple[Concept, ...], otherwise: str
) -> None:
    """It must raise a UserError."""
    try:
        method.erase(model, concepts, QUIET)
    except UserError:
        return
    raise AssertionError(otherwise)


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether all weights of the first are in the second, bit for bit."""
    return all(torch.equal(w, two[k]) for k, w in one.items())
