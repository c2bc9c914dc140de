"""Opening the components of a diffusers folder, and refusing what does not fill them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.errors import UserError
from efface.models.files.configs import ODD, check_fields, read_json
from efface.models.files.stored import variant, weight_files

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def component_class(folder: Path, what: Sequence[str]) -> Any:
    """The class of a component, by its library's and its own name.

    Raises:
        UserError: no such class, or fields of its config that make no sense.
    """
    library, kind = what
    import diffusers
    import transformers

    source: Any = transformers if library == "transformers" else diffusers
    cls = getattr(source, kind, None)
    if cls is None:
        raise UserError(f"{str(folder)!r} is a {kind}, unknown to {library} {source.__version__}.")
    path = folder / "config.json"
    check_fields(path, read_json(path, f"the model has no {folder.name}"), cls)
    return cls


def refuse_quantised(folder: Path) -> None:
    """Refuse a denoiser that is stored quantised, by its config.

    Raises:
        UserError: it is; says by what.
    """
    told = read_json(folder / "config.json", f"the model has no {folder.name}")
    if packed := told.get("quantization_config"):
        how = packed.get("quant_method", "") if isinstance(packed, dict) else ""
        raise UserError(
            f"{str(folder)!r} is quantised{how and f' ({how})'}: such weights cannot be edited. "
            "Give the folder that it was made of; quantise='nf4' (--quantise nf4) packs what an "
            "erasure leaves alone."
        )


def open_component(folder: Path, what: Sequence[str], dtype: torch.dtype) -> nn.Module:
    """A network of diffusers or transformers, by its library's and its class's name."""
    library, cls = what[0], component_class(folder, what)
    precision = "dtype" if library == "transformers" else "torch_dtype"
    options = {precision: dtype, "variant": variant(folder), "use_safetensors": True}
    return open_part(cls, folder, local_files_only=True, **options)


def open_tokenizer(folder: Path, kind: str) -> Any:
    """A tokenizer of transformers, by its class's name."""
    import transformers

    cls = getattr(transformers, kind, None)
    if cls is None:
        raise UserError(
            f"{str(folder)!r} is a {kind}, unknown to transformers {transformers.__version__}."
        )
    for path in sorted(folder.glob("*.json")):
        read_json(path, "the model has no tokenizer")
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # noqa: BLE001 (the tokenizers library raises nothing narrower)
        reason = " ".join(str(e).split())
        raise UserError(f"cannot open {str(folder)!r}: damaged ({reason[:300]}).") from None


def check_files(folder: Path) -> None:
    """Refuse missing and pickled weights before anything is opened."""
    if weight_files(folder):
        return
    pickled = next((p for p in sorted(folder.glob("*")) if p.suffix.lower() in PICKLES), None)
    if pickled is not None:
        refuse_pickle(pickled)
    raise UserError(
        f"no *.safetensors in {str(folder)!r}: "
        "the download is incomplete, or this is no model folder."
    )


def refuse_pickle(path: Path) -> None:
    """A pickle runs whatever code its author put in: never opened."""
    raise UserError(
        f"{str(path)!r} is a pickle, which can run any code when opened; "
        "only safetensors are read. "
        "Convert it on a machine you can lose, or download the model's safetensors."
    )


def open_part(cls: Any, folder: Path, **options: Any) -> nn.Module:
    """``from_pretrained`` that refuses files which do not fill the architecture exactly.

    Raises:
        UserError: unreadable or truncated file, missing, unexpected or misshapen tensors.
    """
    import safetensors
    from huggingface_hub.errors import StrictDataclassError

    try:
        found: tuple[nn.Module, dict[str, Any]] = cls.from_pretrained(
            folder, output_loading_info=True, **options
        )
    except ImportError as e:  # of a quantised text encoder
        reason = " ".join(str(e).split())
        raise UserError(f"cannot open {str(folder)!r}: it needs {reason[:300]}") from None
    except (OSError, RuntimeError, safetensors.SafetensorError, StrictDataclassError, *ODD) as e:
        reason = " ".join(str(e).split())
        raise UserError(
            f"cannot open {str(folder)!r}: truncated, damaged or another architecture "
            f"({reason[:300]})"
        ) from None
    module, info = found
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        wrong = [k for k in info.get(what, ()) if "position_ids" not in str(k)]
        if wrong:
            raise UserError(
                f"{str(folder)!r} holds another architecture than its config.json says: "
                f"{len(wrong)} {what.replace('_', ' ')}, first {sorted(map(str, wrong))[0]!r}."
            )
    return module


@torch.no_grad()
def check_finite(module: nn.Module, folder: Path) -> None:
    """Refuse weights with NaN or infinity, naming the first tensor that has one."""
    for name, w in module.named_parameters():
        if not torch.isfinite(w).all():
            raise damaged(folder, name)


def damaged(folder: Path, name: str) -> UserError:
    """A weight that is not finite."""
    return UserError(f"the weights in {str(folder)!r} are damaged: {name!r} holds NaN or infinity.")
