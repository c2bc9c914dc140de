"""Safetensors files as bytes: written the same for the same content, and changed in place."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from efface.errors import UserError
from efface.storage import write

NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls torch's types."""
LONGEST = 100_000_000
"""Bytes of a header, at most: the format's own limit."""


class Entry(NamedTuple):
    """One tensor in a file."""

    dtype: str
    """As the format calls it."""
    shape: tuple[int, ...]
    begin: int
    """Where its bytes are, from the file's first."""
    end: int


class Header(NamedTuple):
    """What a safetensors file says of itself."""

    tensors: Mapping[str, Entry]
    meta: Mapping[str, str]


def raw(w: Tensor) -> Any:
    """A tensor's bytes, in rows."""
    return w.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all; the same content gives the same bytes.

    The library's own writer puts the metadata in random order.

    Raises:
        UserError: as :func:`efface.storage.write`.
    """
    write(path, partial(dump, tensors=tensors, meta=meta))


def dump(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write a safetensors file: the widest types first, so that all lie on whole addresses."""
    names = sorted(tensors, key=lambda k: (-tensors[k].element_size(), k))
    header: dict[str, Any] = {"__metadata__": dict(sorted(meta.items()))}
    at = 0
    for k in names:
        w = tensors[k]
        end = at + w.numel() * w.element_size()
        header[k] = {"dtype": NAMES[w.dtype], "shape": list(w.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for k in names:
            f.write(raw(tensors[k]))


def header(path: Path) -> Header:
    """What lies where in a safetensors file.

    Raises:
        UserError: it cannot be read, or is none; names it.
    """
    try:
        with path.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            if size > LONGEST:
                raise ValueError("its header is too long")
            found = json.loads(f.read(size))
        meta = found.pop("__metadata__", {})
        tensors = {
            str(k): Entry(
                e["dtype"], tuple(e["shape"]), *(8 + size + int(n) for n in e["data_offsets"])
            )
            for k, e in found.items()
        }
        if any(e.end > path.stat().st_size for e in tensors.values()):
            raise ValueError("it ends before its last tensor")
        return Header(tensors, {str(k): str(v) for k, v in meta.items()})
    except OSError as e:
        raise UserError(f"cannot read {str(path)!r}: {e.strerror}.") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as e:
        why = str(e).partition("\n")[0]
        raise UserError(
            f"{str(path)!r} is no safetensors file, truncated or damaged ({why})."
        ) from None


def readers(path: Path) -> dict[str, Callable[[], Tensor]]:
    """What gives each tensor of a file, by its name: one at a time, without mapping the file.

    Raises:
        UserError: as :func:`header`.
    """
    return {k: partial(read_entry, path, k, e) for k, e in header(path).tensors.items()}


def read_entry(path: Path, name: str, entry: Entry) -> Tensor:
    """One tensor of a file.

    Raises:
        UserError: its bytes are not there.
    """
    kind = next((t for t, n in NAMES.items() if n == entry.dtype), None)
    if kind is None:  # of another precision than ours
        with safe_open(path, "pt") as f:
            found: Tensor = f.get_tensor(name)
            return found
    some = bytearray(max(entry.end - entry.begin, 0))
    with path.open("rb") as f:
        f.seek(entry.begin)
        read = f.readinto(some)
    numbers = math.prod(entry.shape)
    if read != len(some) or len(some) != numbers * kind.itemsize:
        raise UserError(f"{str(path)!r} is truncated or damaged ({name!r} is not whole).")
    if not numbers:
        return torch.empty(entry.shape, dtype=kind)
    return torch.frombuffer(some, dtype=kind).view(entry.shape)


def patch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put other values into a file, whole or not at all; everything else keeps its bytes.

    Args:
        tensors: of the names, shapes and types that are there.

    Raises:
        UserError: as :func:`efface.storage.write` and :func:`header`.
    """
    where = header(path).tensors

    def change(part: Path) -> None:
        shutil.copyfile(path, part)
        with part.open("r+b") as f:
            for k, w in tensors.items():
                f.seek(where[k].begin)
                f.write(raw(w))

    write(path, change)
