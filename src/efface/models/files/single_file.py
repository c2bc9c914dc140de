"""Opening a single file in the original layout, as A1111 and ComfyUI have them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from efface.errors import UserError
from efface.models.families.family import Family
from efface.models.files.components import PICKLES
from efface.models.files.configs import ODD, check_scheduler, read_json
from efface.models.files.folder import present, which
from efface.models.files.standard import BETAS, STANDARD, Configs
from efface.models.files.stored import STORED, precisions, the_one, weight_files
from efface.storage import ASSETS, cache_folder, sweep

OPEN_CLIP = "cond_stage_model.model."
"""What the text encoder of Stable Diffusion 2.x begins with."""
MARKS: Mapping[str, str] = {
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_stream_modulation_img.": "Flux2KleinPipeline",
    "double_blocks.": "FluxPipeline",
    "cap_embedder.": "ZImagePipeline",
    "conditioner.embedders.1.": "sdxl",
    OPEN_CLIP: "sd2",
    "cond_stage_model.transformer.": "sd1",
}
"""What a file is, by what some key of it holds."""
CLIP_WORDS = 49408
"""Words of CLIP's vocabulary."""
OURS = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.",
    "conditioner.embedders.",
)
"""Prefixes of what is read; what else a file holds (EMA weights, schedules) is not looked at."""
SCHEDULES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "global_step",
)
"""Keys without a point that a training leaves in a file, and that say nothing new."""
SPOKEN: Mapping[str, str] = MappingProxyType(
    {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
)
"""What ``modelspec.prediction_type`` may say."""
SPARE = ("position_ids", "logit_scale", "text_projection", "transformer.resblocks.23.")
"""Ends and parts of keys that published files hold and no component needs."""


def unpacked(path: Path, families: Collection[type[Family]]) -> Path:
    """A single file as a diffusers folder, converted once and kept in the cache.

    What the file says of its predictions, by keys (``v_pred``, ``ztsnr``) or in its metadata
    (``modelspec.prediction_type``), is honoured. Configs come from a diffusers folder beside the
    file (``x/`` for ``x.safetensors``; of SD3 and FLUX with the other components' weights), from
    the file's metadata where efface wrote it, or are those of the published Stable Diffusion 1.x,
    2.x and SDXL.

    Raises:
        UserError: no such model, missing or extra keys (says which), a marker that is unknown or
            says what efface cannot follow, or a damaged file.
    """
    try:
        with safe_open(path, "pt") as f:
            keys, meta = set(f.keys()), f.metadata() or {}
            kind = next((k for mark, k in MARKS.items() if any(mark in x for x in keys)), "")
            if not kind:
                raise UserError(
                    f"{str(path)!r} is no checkpoint that efface knows (Stable Diffusion 1.x, 2.x, "
                    f"SDXL, SD3, FLUX, Z-Image): its first key is {min(keys, default='')!r}."
                )
            told = told_prediction(f, keys, meta, kind, str(path))
            if told is None and kind == "sd2" and "configs" not in meta:
                told = "v_prediction" if told_v(f, keys) else "epsilon"
            whole = {k for k in keys if k.startswith(OURS[0])} or keys
            own = the_one(precisions(f, whole), str(path))
            kinds = precisions(f, {k for k in keys if k.startswith(OURS)} | whole)
            dtype = next((d for k, d in STORED.items() if k in kinds), torch.float32)
    except (SafetensorError, OSError) as e:
        raise unreadable(path, e) from None
    beside, out = path.with_suffix(""), place_of(path)
    if converted(out):
        return out
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent)
        shutil.rmtree(part, ignore_errors=True)  # of a dead process with our number
        shutil.rmtree(out, ignore_errors=True)  # one that has lost its weights
        part.mkdir()
        if (beside / "model_index.json").exists():
            lean = without_weights if kind in STANDARD else without_denoiser
            shutil.copytree(beside, part, ignore=lean, dirs_exist_ok=True)
        elif kind in STANDARD:
            if "configs" in meta:
                lay(part, told_configs(meta["configs"], str(path)))
            else:
                lay(part, STANDARD[kind], told == "v_prediction")
        else:
            raise UserError(
                f"{str(path)!r} holds the transformer of a {kind} alone: put its diffusers folder, "
                f"with the text encoders, tokenizers and autoencoder, beside it as {beside.name!r}."
            )
        agree(part, told, str(path))
        convert(path, keys, part, families, dtype, own)
        if not out.is_dir():  # another process was quicker
            os.replace(part, out)
    except (OSError, SafetensorError, RuntimeError, *ODD) as e:
        raise UserError(f"cannot convert {str(path)!r}: {' '.join(str(e).split())[:300]}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def converted(folder: Path) -> bool:
    """Whether a converted file's folder is there, with its denoiser's weights."""
    return any(weight_files(folder / part) for part in ("unet", "transformer"))


WEIGHTS = [f"*{end}*" for end in (".safetensors", *PICKLES, ".msgpack", ".onnx")]
without_weights = shutil.ignore_patterns(*WEIGHTS)
"""Leaves the weights of a folder where they are: the file's own are to be opened, in one form."""


def without_denoiser(folder: str, names: list[str]) -> set[str]:
    """As :data:`without_weights`, of the transformer alone."""
    return without_weights(folder, names) if Path(folder).name == "transformer" else set()


def unreadable(path: Path, e: Exception) -> UserError:
    """What is said of a file that is no safetensors, or not a whole one."""
    with path.open("rb") as f:
        if f.read(4) == b"GGUF":
            return UserError(
                f"{str(path)!r} is in GGUF, quantised for ComfyUI: its weights cannot be edited. "
                "Give the safetensors that it was made of."
            )
    return UserError(f"{str(path)!r} cannot be read: truncated or damaged ({e}).")


def place_of(path: Path) -> Path:
    """Where in the cache a single file's folder lies: another one after every change."""
    state, beside = path.stat(), path.with_suffix("")
    known = [f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"]
    known += [f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in sorted(beside.rglob("*"))]
    own = hashlib.sha256("\n".join(known).encode(errors="surrogateescape")).hexdigest()[:12]
    stem = os.fsencode(path.stem)[:200].decode(errors="ignore")  # leaves room for our own ending
    return cache_folder() / "single" / f"{stem}-{own}"


def told_configs(text: str, where: str) -> Configs:
    """The configs that a file of ours carries in its metadata.

    Raises:
        UserError: no JSON, not a config for each name, or one that is needed is missing.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where!r} is damaged: its configs are broken JSON ({e}).") from None
    parts = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(x, dict) for x in parts):
        raise UserError(f"{where!r} is damaged: its configs are not an object for each component.")
    index = found.get("model_index.json", {})
    tokenizers = [n for n in index if n.startswith("tokenizer") and present(index, n)]
    encoders = [n.replace("tokenizer", "text_encoder") for n in tokenizers]
    needed = ["model_index.json", "scheduler/scheduler_config.json"]
    for name in (*needed, *(f"{n}/config.json" for n in encoders)):
        if name not in found:
            raise UserError(f"{where!r} is damaged: its configs lack {name!r}.")
    return found  # type: ignore[no-any-return]


def told_prediction(
    f: Any, keys: set[str], meta: Mapping[str, str], kind: str, where: str
) -> str | None:
    """What a file says that its model predicts: ``epsilon`` or ``v_prediction``; None: nothing.

    Raises:
        UserError: an unknown marker, two that contradict, or a schedule that efface cannot follow.
    """
    diffusion = kind in STANDARD
    marks = {k for k in keys if k.startswith("edm_") or (diffusion and "." not in k)}
    unknown = sorted(marks - {"v_pred", "ztsnr", *SCHEDULES} if diffusion else marks)
    if not diffusion:
        unknown += sorted(keys & {"v_pred", "ztsnr"})
    if unknown:
        raise UserError(
            f"{where!r} holds the marker {unknown[0]!r}, which efface does not know: what the "
            "model predicts, or how it is noised, may be another than it would take it for."
        )
    if not diffusion:
        return None
    said = meta.get("modelspec.prediction_type", "").strip().lower().replace("-", "_")
    if said and said not in SPOKEN:
        raise UserError(
            f"{where!r} says that it predicts {said!r} (modelspec.prediction_type); efface knows "
            "epsilon and v."
        )
    if "v_pred" in keys and SPOKEN.get(said) == "epsilon":
        raise UserError(
            f"{where!r} contradicts itself: its key 'v_pred' says v, its "
            "modelspec.prediction_type epsilon."
        )
    check_alphas(f, keys, where)
    zero = "ztsnr" in keys or meta.get("ss_zero_terminal_snr", "").lower() == "true"
    check_scheduler({"rescale_betas_zero_snr": zero})
    return "v_prediction" if "v_pred" in keys else SPOKEN.get(said)


def check_alphas(f: Any, keys: set[str], where: str) -> None:
    """Refuse a file whose own noise schedule is not the published one.

    Raises:
        UserError: it says which value differs.
    """
    if "alphas_cumprod" not in keys:
        return
    own = f.get_tensor("alphas_cumprod").double()
    check_scheduler({"rescale_betas_zero_snr": len(own) == 1000 and float(own[-1]) < 1e-6})
    start, end = (float(BETAS[k]) ** 0.5 for k in ("beta_start", "beta_end"))
    known = (1 - torch.linspace(start, end, 1000, dtype=torch.float64).square()).cumprod(0)
    if own.shape != known.shape or not torch.allclose(own, known, rtol=0.05, atol=1e-3):
        raise UserError(
            f"{where!r} was trained on another noise schedule than Stable Diffusion's: its "
            f"alphas_cumprod ends in {float(own[-1]):.4g}, not in {float(known[-1]):.4g}."
        )


def agree(folder: Path, told: str | None, where: str) -> None:
    """Refuse configs that say another prediction than the file does.

    Raises:
        UserError: both are named.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json", "the model has no scheduler")
    has = config.get("prediction_type", "epsilon")
    if told is not None and has != told:
        raise UserError(
            f"{where!r} says that it predicts {told}, its scheduler_config.json {has}: "
            "mend prediction_type there."
        )


def told_v(f: Any, keys: set[str]) -> bool:
    """Whether a Stable Diffusion 2.x predicts v, by the weight that ComfyUI looks at."""
    return MARK_OF_V not in keys or seems_v(f.get_tensor(MARK_OF_V))


MARK_OF_V = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
"""The weight that ComfyUI looks at."""


def seems_v(weight: Tensor) -> bool:
    """What that weight says of a Stable Diffusion 2.x."""
    return float(weight.float().std()) > 0.09


def lay(folder: Path, configs: Configs, v: bool | None = None) -> None:
    """Write a folder of configs, with CLIP's tokenizers.

    Args:
        v: whether a published architecture predicts v; None: as the configs say.
    """
    from transformers import CLIPTokenizer

    for name, content in configs.items():
        part, _, file = name.rpartition("/")
        if not file.endswith(".json") or "/" in part or ".." in part or "\\" in name:
            raise UserError(f"the file's metadata names {name!r}, which is no config of a model.")
        if file == "scheduler_config.json" and v is not None:
            content = {**content, "prediction_type": "v_prediction" if v else "epsilon"}
        if name == "unet/config.json" and v is False and content["sample_size"] == 96:
            content = {**content, "sample_size": 64}  # Stable Diffusion 2.x base
        (folder / part).mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    own = ASSETS / "emoji" / "tokenizer"
    for name in configs["model_index.json"]:
        if name.startswith("tokenizer") and present(configs["model_index.json"], name):
            config = configs[f"{name.replace('tokenizer', 'text_encoder')}/config.json"]
            if config.get("vocab_size") != CLIP_WORDS:
                raise UserError("the file's text encoder does not have CLIP's vocabulary.")
            spare = "!" if config.get("hidden_act") == "gelu" else "<|endoftext|>"
            length = int(config.get("max_position_embeddings", 77))
            CLIPTokenizer.from_pretrained(
                own, pad_token=spare, model_max_length=length
            ).save_pretrained(folder / name)


def convert(
    path: Path,
    keys: set[str],
    folder: Path,
    families: Collection[type[Family]],
    dtype: torch.dtype,
    own: torch.dtype,
) -> None:
    """Put the file's weights into a folder that holds the configs.

    Args:
        dtype: the widest precision in the file.
        own: the denoiser's, in which it is stored, so that it is the same model as elsewhere.
    """
    import diffusers

    family, index = which(folder, str(path), families)
    check_keys(path, keys, family, index, folder)
    options = {"config": str(folder), "local_files_only": True, "torch_dtype": dtype}
    link, source = folder / "whole.safetensors", str(path)
    if path.suffix != ".safetensors":  # diffusers takes .sft and .SAFETENSORS for a pickle
        link.symlink_to(path.resolve())
        source = str(link)
    if family.denoiser == "unet":
        cls = getattr(diffusers, index["_class_name"])
        spare = {k: None for k in ("safety_checker", "feature_extractor") if k in index}
        pipe = cls.from_single_file(source, **options, **spare)
        pipe.unet.to(own)
        pipe.save_pretrained(folder)
    else:
        kind = getattr(diffusers, index[family.denoiser][1])
        denoiser = kind.from_single_file(source, subfolder=family.denoiser, **options)
        denoiser.to(own).save_pretrained(folder / family.denoiser)
    link.unlink(missing_ok=True)


def check_keys(
    path: Path, keys: set[str], family: type[Family], index: dict[str, Any], folder: Path
) -> None:
    """Refuse a file that holds more or less than its architecture."""
    import diffusers
    import transformers

    parts: dict[str, Any] = {}
    with torch.device("meta"):
        for name in (family.denoiser, "vae", *family.encoders):
            if family.denoiser != "unet" and name != family.denoiser:
                continue
            if not present(index, name):
                continue
            library, kind = index[name]
            cls = getattr(transformers if library == "transformers" else diffusers, kind)
            config = read_json(folder / name / "config.json", f"the model has no {name}")
            if library == "transformers":
                parts[name] = cls(cls.config_class.from_dict(config))
            else:
                parts[name] = cls.from_config(config)
        wanted = set(family(index).original(parts))
    prefix = "" if family.denoiser == "unet" else "model.diffusion_model."
    inside = {k for k in keys if k.startswith(prefix)} or keys  # other components may lie beside it
    have = {k.removeprefix(prefix) for k in inside}
    missing = sorted(wanted - have)
    looked = have if prefix else {k for k in have if k.startswith(OURS)}
    extra = sorted(k for k in looked - wanted if not any(s in k for s in SPARE))
    for what, found in (("misses", missing), ("has besides", extra)):
        if found:
            raise UserError(
                f"{str(path)!r} is another architecture than its configs say: it {what} "
                f"{len(found)} keys, first {found[0]!r}."
            )
