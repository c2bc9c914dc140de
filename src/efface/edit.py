"""The weights that an erasure changed, with their provenance."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.errors import UserError
from efface.models import PICKLES, DiffusionModel, configs, refuse_pickle, stored_dtype, variant

FORMAT = "efface-edit-1"


@dataclass(frozen=True)
class Gate:
    """A low-rank part of an edit that a prompt switches on as much as it asks for its concept.

    Source: arXiv:2312.16145, section 3.4 ("facilitated transport").
    """

    names: tuple[str, ...]
    """The erased concept's name and synonyms."""
    factors: Mapping[str, Tensor]
    """``NAME/up`` (out, r) and ``NAME/down`` (r, in) for each weight."""

    def change(self, name: str) -> Tensor:
        """The change of a weight with the gate open, (out, in)."""
        return self.factors[f"{name}/up"] @ self.factors[f"{name}/down"]

    def opening(self, model: DiffusionModel, prompt: str) -> float:
        """How far a prompt opens it, 0 to 1.

        The larger of the cosine of the flattened text states and the share of the concept's tokens
        that the prompt holds; the largest over the names.
        """
        states = model.embed([prompt, *self.names]).states.float().flatten(1)
        near = torch.cosine_similarity(states[:1], states[1:]).max().item()

        def tokens(text: str) -> set[int]:
            return set(model.tokenizer(text, add_special_tokens=False).input_ids)

        asked = tokens(prompt)
        shared = max(len(tokens(n) & asked) / max(len(tokens(n)), 1) for n in self.names)
        return min(max(near, shared, 0.0), 1.0)


@dataclass(frozen=True)
class Edit:
    """Changed weights only; lies over the base model without touching it."""

    weights: Mapping[str, Tensor]
    """Parameter name of the denoiser -> its new value, fp32 on the CPU; all gates open."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON: efface version, method and config, concepts, base model and its hash, seed, costs."""
    gates: tuple[Gate, ...] = ()
    """What depends on the prompt; mostly nothing."""

    def tensors(self) -> dict[str, Tensor]:
        """All that a file holds: the weights, and the factors of the gates."""
        found = {k: w.detach().cpu().contiguous() for k, w in self.weights.items()}
        for i, gate in enumerate(self.gates):
            found |= {f"gate{i}/{k}": w.cpu().contiguous() for k, w in gate.factors.items()}
        return found

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over names, shapes and bytes of the tensors."""
        h = hashlib.sha256()
        for name, w in sorted(self.tensors().items()):
            h.update(name.encode() + str(w.dtype).encode() + struct.pack(f"{w.dim()}q", *w.shape))
            h.update(w.view(torch.uint8).numpy().tobytes() if w.dim() else w.numpy().tobytes())
        return h.hexdigest()[:16]

    def change(self, name: str, own: Tensor) -> Tensor:
        """What it adds to a weight, fp32 on the CPU.

        An edit that was made in half precision set out from the base model rounded to it, and that
        rounding is no part of the change.

        Args:
            own: the base model's value.
        """
        made_in = getattr(torch, self.meta.get("dtype", "float32"))
        return self.weights[name].cpu().float() - own.detach().cpu().to(made_in).float()

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        weights = self.tensors()
        gates = {"gates": [list(gate.names) for gate in self.gates]} if self.gates else {}
        about, digest = json.dumps(dict(self.meta) | gates), self.digest
        meta = {"format": FORMAT, "digest": digest, "meta": about, "seal": seal(digest, about)}
        write(path, lambda p: save_file(weights, p, meta))

    @classmethod
    def load(cls, path: Path) -> Edit:
        """Read an edit back.

        Raises:
            UserError: no such file, no edit, truncated, or its content is not what was written.
        """
        path = path / "edit.safetensors" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"no edit at {str(path)!r}; give a run folder or an edit.safetensors.")
        if path.suffix in PICKLES:
            refuse_pickle(path)
        try:
            with safe_open(path, "pt") as f:
                meta = f.metadata() or {}
                weights = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as e:
            raise UserError(f"{str(path)!r} cannot be read: truncated or damaged ({e}).") from None
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{str(path)!r} is no efface edit "
                f"(its format is {meta.get('format')!r}, not {FORMAT!r})."
            )
        digest, about = meta.get("digest", ""), meta.get("meta", "")
        if meta.get("seal") != seal(digest, about):
            raise UserError(f"{str(path)!r} is damaged: its content is not what was written.")
        known = json.loads(about)
        gates = tuple(
            Gate(tuple(names), take(weights, f"gate{i}/"))
            for i, names in enumerate(known.pop("gates", ()))
        )
        edit = cls(weights, known, gates)
        if edit.digest != digest:
            raise UserError(f"{str(path)!r} is damaged: its content is not what was written.")
        return edit

    def check(self, model: DiffusionModel) -> None:
        """Refuse a model that this edit does not belong to.

        Raises:
            UserError: another base (by hash), or another architecture (by names and shapes).
        """
        own = model.parameters()
        for name, w in self.weights.items():
            if name not in own or own[name].shape != w.shape:
                has = tuple(own[name].shape) if name in own else "no such weight"
                raise UserError(
                    f"the edit is of another architecture than {model.name!r}: {name!r} is "
                    f"{tuple(w.shape)} in the edit, {has} in the model."
                )
            if not torch.isfinite(w).all():
                raise UserError(f"the edit is damaged: {name!r} holds NaN or infinity.")
        base = self.meta.get("base")
        if base and base != model.base:
            raise UserError(
                f"the edit was made for {self.meta.get('model', 'another model')!r} (hash {base}); "
                f"{model.name!r} has "
                f"hash {model.base}: load the model it was made for."
            )

    def on(self, model: DiffusionModel, prompt: str | None = None) -> dict[str, Tensor]:
        """The weights on the model's device, for ``weights=`` of its verbs.

        Args:
            prompt: what the gates are to be opened for; None: all are open.

        Raises:
            UserError: as :meth:`check`.
        """
        self.check(model)
        weights = {k: w.to(model.device) for k, w in self.weights.items()}
        for gate in self.gates if prompt is not None else ():
            shut = 1 - gate.opening(model, str(prompt))
            for k, w in weights.items():
                weights[k] = w - shut * gate.change(k).view_as(w).to(w.device)
        return weights

    @contextmanager
    def applied(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """Put the weights into the model, and its own back at the end of the block, bit for bit."""
        self.check(model)
        own = model.parameters()
        before = {k: own[k].data for k in self.weights}
        try:
            for k, w in self.weights.items():
                own[k].data = w.to(own[k].device, own[k].dtype)
            yield model
        finally:
            for k, data in before.items():
                own[k].data = data


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take what begins with ``prefix`` out of a dict, without the prefix."""
    return {k.removeprefix(prefix): tensors.pop(k) for k in list(tensors) if k.startswith(prefix)}


def seal(digest: str, about: str) -> str:
    """Hash of an edit's digest and provenance: the first 16 hex digits of their SHA-256."""
    return hashlib.sha256(f"{digest}\n{about}".encode()).hexdigest()[:16]


def write(path: Path, save: Any) -> None:
    """Call ``save`` on a temporary name beside ``path``, then rename: whole, or not at all.

    Raises:
        UserError: no permission, no space, or a folder that is missing.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save(part)
        os.replace(part, path)
    except (OSError, SafetensorError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise UserError(
            f"cannot write {str(path)!r}: {reason}; nothing was left half-written."
        ) from None
    finally:  # also when stopped from the keyboard
        if part.exists():  # not unlink(missing_ok): that raises below a file
            part.unlink()


def merge_single(model: DiffusionModel, edit: Edit, out: Path) -> Path:
    """Write one file in the original layout with the edit in it, for A1111 and ComfyUI.

    Of SD3 and FLUX it holds the transformer alone.

    Args:
        model: the base, opened from a folder.
        out: a safetensors file that does not exist yet; stored in the base model's precision.

    Raises:
        UserError: ``out`` exists, cannot be written, or the edit is not of this model.
    """
    edit.check(model)
    if out.exists():
        raise UserError(f"{str(out)!r} exists already; name a file that does not.")
    if model.folder is None:
        raise UserError(f"{model.name!r} was not opened from a folder: nothing to merge into.")
    dtype = stored_dtype(model.folder / model.family.denoiser)
    with edit.applied(model):
        found = model.family.original(model.parts)
        tensors = {k: w.detach().to("cpu", dtype).contiguous().clone() for k, w in found.items()}
    about = {
        "format": "pt",
        "efface": json.dumps(dict(edit.meta)),
        "configs": json.dumps(configs(model.folder)),
    }
    write(out, lambda p: save_file(tensors, p, about))
    return out


def merge(model: DiffusionModel, edit: Edit, out: Path, card: str = "") -> Path:
    """Write a whole diffusers folder with the edit in it, whole or not at all.

    The weights are stored in the precision that the base model's are stored in.

    Args:
        model: the base, opened from a folder, from the hub, or shipped.
        out: a folder that does not exist yet.
        card: text of its README.md, instead of the base model's.

    Raises:
        UserError: ``out`` exists, cannot be written, or the edit is not of this model.
    """
    edit.check(model)
    if out.exists():
        raise UserError(f"{str(out)!r} exists already; name a folder that does not.")
    if model.folder is None:
        raise UserError(f"{model.name!r} was not opened from a folder: nothing to merge into.")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    own = model.family.denoiser
    dtype = stored_dtype(model.folder / own)
    try:
        shutil.copytree(model.folder, part, ignore=shutil.ignore_patterns(own, "erasures*"))
        (part / own).mkdir()
        shutil.copy(model.folder / own / "config.json", part / own)
        with edit.applied(model):
            state = {k: v.to(dtype).contiguous() for k, v in model.denoiser.state_dict().items()}
            kind = variant(model.folder / own)
            name = f"diffusion_pytorch_model{f'.{kind}' if kind else ''}.safetensors"
            save_file(state, part / own / name, {"format": "pt"})
        if card:
            (part / "README.md").write_text(card, encoding="utf8")
        os.replace(part, out)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"cannot write {str(out)!r}: {getattr(e, 'strerror', None) or e}."
        ) from None
    return out
