"""Reading the JSON files of a model, and saying which field of which is wrong."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.settings import read_json as settings_json

ODD = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What other libraries raise where a config makes no sense."""
NOISE = ("beta_start", "beta_end", "beta_schedule")
"""Fields of a diffusion's schedule whose defaults are no published model's."""


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """A JSON file of named fields, or one line that says what is missing."""
    if not path.exists():
        raise UserError(f"{otherwise}: no {path.name} in {str(path.parent)!r}.")
    found = settings_json(path, "file")
    if not isinstance(found, dict):
        raise UserError(f"{str(path)!r} holds {kind_of(found)}; an object of fields is needed.")
    return found


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {dict: "an object", list: "a list", tuple: "a list", str: "a string"}
    return next((word for kind, word in kinds.items() if isinstance(value, kind)), "a number")


def check_index(path: Path, index: Mapping[str, Any], names: list[str]) -> None:
    """Refuse a ``model_index.json`` whose components are no pairs of library and class.

    Raises:
        UserError: names the component.
    """
    for name in names:
        value = index.get(name)
        pair = isinstance(value, list) and len(value) == 2
        if value is not None and not (pair and all(isinstance(x, str | None) for x in value)):
            raise UserError(
                f"{str(path)!r}: {name!r} is {json.dumps(value)[:80]}; a pair of library and "
                "class is needed."
            )


def check_fields(path: Path, config: Mapping[str, Any], cls: Any) -> None:
    """Refuse fields of another kind than a class of diffusers or transformers takes.

    Raises:
        UserError: names the file, the field, and what is needed.
    """
    for name, (default, said) in fields_of(cls).items():
        value = config.get(name)
        wanted = None if value is None else wrong(value, default, said)
        if wanted:
            raise UserError(
                f"{str(path)!r}: {name!r} is {json.dumps(value)[:80]}; {wanted} is needed."
            )


def wrong(value: Any, default: Any, said: str) -> str | None:
    """What should be there instead of a value; None: it will do.

    Args:
        default: of the field.
        said: its annotation, in small letters; "": nothing is known.
    """
    if default is None:
        odd = isinstance(value, (str, dict)) and said
        return "a number or null" if odd and type(value).__name__ not in said else None
    wanted = plain_kind(default)
    if wanted == "a list":
        inner = {plain_kind(x) for x in default}
        if not isinstance(value, (list, tuple)):
            return "a list"
        if len(inner) == 1 and {plain_kind(x) for x in value} - inner - {"a list", "null"}:
            return f"a list of {inner.pop()[2:]}s"
        return None
    if isinstance(value, (list, tuple)) and (not said or "tuple" in said or "list" in said):
        kinds = {plain_kind(x) for x in value}
        return wanted if kinds - {wanted, "a list", "null"} else None
    return None if plain_kind(value) == wanted else wanted


def plain_kind(value: Any) -> str:
    """As :func:`kind_of`; true and false are numbers."""
    return "a number" if isinstance(value, bool) else kind_of(value)


def fields_of(cls: Any) -> dict[str, tuple[Any, str]]:
    """The fields of a config by name: the default, and the annotation in small letters."""
    own = getattr(cls, "config_class", None)  # of transformers, whose fields may be lists
    if own is not None:
        return {k: (v, "") for k, v in vars(own()).items() if not k.startswith("_")}
    found = {}
    for name, p in inspect.signature(cls.__init__).parameters.items():
        if p.default is not p.empty:
            found[name] = (p.default, "" if p.annotation is p.empty else str(p.annotation).lower())
    return found


def open_scheduler(folder: Path) -> Any:
    """The diffusers scheduler of a folder.

    Raises:
        UserError: none is there, an unknown one, fields are missing or of a wrong kind, or it
            follows a schedule that efface cannot.
    """
    import diffusers

    path = folder / "scheduler_config.json"
    config = read_json(path, "the model has no scheduler")
    name = config.get("_class_name", "")
    cls = getattr(diffusers, str(name), None)
    if cls is None or not str(name).endswith("Scheduler"):
        raise UserError(
            f"the model's scheduler {name!r} is unknown to diffusers {diffusers.__version__}."
        )
    check_scheduler(config)
    check_fields(path, config, cls)
    needed = ("shift",) if name.startswith("FlowMatch") else NOISE
    has_own = config.get("trained_betas") is not None
    lost = [k for k in needed if k in fields_of(cls) and config.get(k) is None and not has_own]
    if lost:
        raise UserError(
            f"{str(path)!r} lacks {lost[0]!r}, without which the model's noise is unknown."
        )
    times = config.get("num_train_timesteps", 1000)
    if times < 1:
        raise UserError(f"{str(path)!r}: 'num_train_timesteps' is {times}; 1 or more is needed.")
    try:
        return cls.from_config(config)
    except (RuntimeError, *ODD) as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{str(path)!r}: {name} cannot be made of it ({reason}).") from None


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Refuse a schedule that efface cannot follow.

    Raises:
        UserError: it ends in pure noise.
    """
    if config.get("rescale_betas_zero_snr"):
        raise UserError(
            "the model's schedule ends in pure noise (rescale_betas_zero_snr), from which noise "
            "predictions give no picture: efface does not read such models."
        )
