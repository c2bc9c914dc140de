"""Which files of a model folder hold the denoiser's weights, in whatever form."""

from __future__ import annotations

import os
import re
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from efface.edits.edit import FORMAT
from efface.errors import UserError
from efface.models import family_of, weight_files
from efface.models.files.configs import read_json
from efface.models.files.stored import STORED
from efface.models.files.tensors import Entry, Header, header
from efface.storage import LOCK, PART

LEDGER = "erasures.json"
KEPT = "erasures"
"""Folder beside it: the edits, and the base model's own values of what they change."""
ORIGINAL = (
    "diffusion_model.",
    "input_blocks.",
    "output_blocks.",
    "joint_blocks.",
    "double_blocks.",
    "double_stream_modulation",
    "cap_embedder.",
)
"""Parts of a denoiser's names in the original layouts."""
BEFORE = re.compile(r"^((model|module|pipe|unet|transformer|denoiser|ema\w*)\.)+")
"""What other programs put before diffusers' names."""
ADAPTER = re.compile(r"lora|lokr|hada|\.alpha$|\.dora_scale$", re.IGNORECASE)
"""Parts of the names in a file that only adds to a model."""
TEXTS = (".json", ".txt", ".md", ".py", ".yaml", ".yml", ".jinja", ".pdf")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".mp4", ".webm", ".mov")
"""Suffixes of what nothing takes for weights."""
STRAY = ("Thumbs.db", "ehthumbs.db", "Icon\r")
"""What file managers leave in folders, beside files that begin with a dot."""


@dataclass(frozen=True)
class Contents:
    """The files of a model folder by what they hold; paths are relative to it."""

    part: str
    """The denoiser's component."""
    own: list[str] = field(default_factory=list)
    """The weights that are opened."""
    alike: list[str] = field(default_factory=list)
    """The denoiser once more, by the same names and shapes: other precisions, other shards."""
    foreign: list[str] = field(default_factory=list)
    """The denoiser in a form that cannot be edited, what cannot be looked into, and folders inside
    that have a ledger of their own."""
    other: list[str] = field(default_factory=list)
    """Weights of something else, and edits of runs that lie in the folder."""
    plain: list[str] = field(default_factory=list)
    """Texts and pictures."""
    hidden: list[str] = field(default_factory=list)
    """Folders that begin with a dot, and files that do and are no safetensors: nothing opens them,
    and nothing looks into them."""


def contents(folder: Path) -> Contents:
    """Look through a diffusers folder.

    Only safetensors are looked into, by their tensors' names and shapes. Whatever else is no text
    and does not lie with another component, or names the denoiser, counts as the denoiser.

    Raises:
        UserError: no such folder, or no weights of its denoiser.
    """
    part = family_of(folder).denoiser
    own = set(weight_files(folder / part))
    if not own:
        raise UserError(f"no *.safetensors in {str(folder / part)!r}.")
    shapes = {k: e.shape for path in own for k, e in header(path).tensors.items()}
    index = read_json(folder / "model_index.json", "this is no diffusers model folder")
    rest = tuple(k for k, v in index.items() if isinstance(v, list) and k != part)
    found = Contents(part)
    for path in sorted(files_of(folder, found.hidden, found.foreign)):
        name = path.relative_to(folder).as_posix()
        if path in own:
            found.own.append(name)
        elif path.suffix.lower() == ".safetensors" and (inside := looked(path)) is not None:
            {"alike": found.alike, "foreign": found.foreign, "other": found.other}[
                kind(inside, shapes, name.startswith(f"{part}/"))
            ].append(name)
        elif path.suffix.lower() in TEXTS + PICTURES or text(path):
            found.plain.append(name)
        elif path.name.startswith(".") or path.name in STRAY:
            found.hidden.append(name)
        elif part not in name and "/" in name and name.startswith(rest):  # vae/, vae_decoder/
            found.other.append(name)
        else:
            found.foreign.append(name)
    return found


def files_of(folder: Path, hidden: list[str], accounted: list[str]) -> Iterator[Path]:
    """The files of a model folder, without our own records; links that lead round are not followed.

    Args:
        hidden: takes the hidden folders on the way.
        accounted: takes the models on the way that account for edits of their own.

    Raises:
        UserError: a link to nothing, or something that is no file.
    """
    for where, folders, files in os.walk(folder, followlinks=True):
        here, top = Path(where), Path(where) == folder
        above = [here, *here.parents][: len(here.relative_to(folder).parts) + 1]
        if not top and os.path.realpath(here) in map(os.path.realpath, above[1:]):
            folders.clear()
            continue
        dots = [f for f in folders if f.startswith(".")]
        models = [f for f in folders if f not in dots and (here / f / LEDGER).exists()]
        for some, taken in ((dots, hidden), (models, accounted)):
            taken += [f"{(here / f).relative_to(folder).as_posix()}/" for f in sorted(some)]
        folders[:] = [f for f in folders if f not in dots + models and not (top and f == KEPT)]
        for name in files:
            if name == LOCK or PART.fullmatch(name) or (top and name == LEDGER):
                continue
            if not (here / name).is_file():
                raise UserError(
                    f"{str(here / name)!r} is a link to nothing, or no file: take it out of the "
                    "folder, or fetch the model again."
                )
            yield here / name


def looked(path: Path) -> Header | None:
    """What a safetensors file holds; None where it cannot be read."""
    try:
        return header(path)
    except UserError:
        return None


def kind(found: Header, shapes: Mapping[str, tuple[int, ...]], home: bool) -> str:
    """Which list of :class:`Contents` a safetensors file belongs to.

    Args:
        shapes: the denoiser's, by name.
        home: it lies in the denoiser's folder.
    """
    inside = found.tensors
    if inside and all(ADAPTER.search(k) for k in inside):
        return "other"
    if found.meta.get("format") == FORMAT and not home:  # a run's, which apply must not change
        return "other"
    same = sum(shapes.get(k) == e.shape for k, e in inside.items())
    if inside and same == len(inside) and all(e.dtype in STORED for e in inside.values()):
        return "alike"
    named = sum(BEFORE.sub("", k) in shapes for k in inside)
    marked = any(mark in k for k in inside for mark in ORIGINAL)
    many = max(2 * named > len(inside), 2 * behind(inside, shapes) > min(len(inside), len(shapes)))
    return "foreign" if home or marked or same or many else "other"


def behind(inside: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many tensors have the denoiser's names and shapes behind one and the same beginning."""
    found: Counter[str] = Counter()
    for name, e in inside.items():
        parts = name.split(".")
        for i in range(1, len(parts)):
            if shapes.get(".".join(parts[i:])) == e.shape:
                found[".".join(parts[:i])] += 1
    return max(found.values(), default=0)


def text(path: Path) -> bool:
    """Whether a file is a text, which holds no weights: to its end, for some only begin so."""
    decode = getincrementaldecoder("utf8")().decode
    with path.open("rb") as f:
        while some := f.read(2**20):
            try:
                said = decode(some)  # may end inside a letter
            except UnicodeDecodeError:
                return False
            if any(c < " " and c not in "\t\n\r\f" for c in said):
                return False
    return True
