"""The weights that an erasure changed, with their provenance."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from efface.edits.about import known_meta
from efface.edits.gates import Gate
from efface.edits.rounding import Stored, lost, tell, unmeasured
from efface.edits.unfinished import EDIT, unfinished
from efface.errors import UserError
from efface.models import PICKLES, DiffusionModel, load, plain, refuse_pickle, weight_files
from efface.models.files.tensors import readers, save
from efface.settings import Range, shown_plainly
from efface.storage import make_folder

FORMAT = "efface-edit-1"
STRENGTHS = Range(0, 10)
"""How much of an edit can be asked for: 0 is the base model, 1 the edit."""


@dataclass(frozen=True)
class Edit:
    """Changed weights only; lies over the base model without touching it."""

    weights: Mapping[str, Tensor]
    """Parameter name of the denoiser -> its new value, fp32 on the CPU; all gates open."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON: efface version, method and config, concepts, base model and its hash, seed, costs."""
    gates: tuple[Gate, ...] = ()
    """What depends on the prompt; mostly nothing."""
    base: DiffusionModel | None = field(default=None, repr=False, compare=False)
    """The model that it was made for, where that is at hand."""
    spent: Mapping[str, float] = field(default_factory=dict, compare=False)
    """What its making took besides (``seconds``), where that is at hand; no part of the file, which
    is the same for the same run."""

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

    @property
    def whole(self) -> str:
        """Digest of the edit at its own strength, whatever strength this is."""
        return str(self.meta.get("whole") or self.digest)

    def change(self, name: str, own: Tensor) -> Tensor:
        """What it adds to a weight, fp32 on the CPU.

        An edit that was made in half precision set out from the base model rounded to it, and that
        rounding is no part of the change.

        Args:
            own: the base model's value.
        """
        return self.weights[name].cpu().float() - own.detach().cpu().to(self.made_in).float()

    @property
    def made_in(self) -> torch.dtype:
        """The precision of the base model that it was made on."""
        return getattr(torch, self.meta.get("dtype", "float32"))  # type: ignore[no-any-return]

    def based_on(self, model: DiffusionModel) -> dict[str, Tensor]:
        """The base's own values of what it changes, as :func:`base_values`."""
        return base_values(model, self.weights, self.made_in)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; folders that are missing are made.

        Args:
            path: a file that ends in ``.safetensors``, or a run's folder.

        Raises:
            UserError: the folder cannot be written, the disk is full, or as :meth:`sane`.
        """
        path = Path(path).expanduser()
        self.sane("the edit")
        if path.suffix.lower() != ".safetensors":
            path = path / EDIT
        make_folder(path.absolute().parent)
        gates = {"gates": [list(gate.names) for gate in self.gates]} if self.gates else {}
        about, digest = json.dumps(dict(self.meta) | gates), self.digest
        meta = {"format": FORMAT, "digest": digest, "meta": about, "seal": seal(digest, about)}
        save(path, self.tensors(), meta)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read an edit back: from a run's folder, or from its file.

        Raises:
            UserError: no such file, no edit, or none yet, truncated, its content is not what was
                written, or as :meth:`sane`.
        """
        if not isinstance(path, (str, Path)):
            raise UserError(f"got {shown_plainly(path)} for an edit; give a run folder or a file.")
        path = Path(path).expanduser()
        if waits := unfinished(path):
            raise UserError(waits)
        path = path / EDIT if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"no edit at {str(path)!r}; give a run folder or an edit.safetensors.")
        if path.suffix.lower() in PICKLES:
            refuse_pickle(path)
        try:
            with safe_open(path, "pt") as f:
                meta = f.metadata() or {}
                weights = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as e:
            if path.suffix.lower() != ".safetensors":  # a file of the run's, or of something else
                whole = (path.parent / EDIT).is_file()
                give = f"the run's folder, {str(path.parent)!r}" if whole else "a run's folder"
                raise UserError(f"{str(path)!r} is no edit, or damaged; give {give}.") from None
            raise UserError(f"{str(path)!r} cannot be read: truncated or damaged ({e}).") from None
        if meta.get("format") != FORMAT:
            made = "a LoRA or a whole model that efface made of one" if "efface" in meta else ""
            raise UserError(
                f"{str(path)!r} is no efface edit, but {made}: give the edit itself."
                if made
                else f"{str(path)!r} is no efface edit "
                f"(its format is {meta.get('format')!r}, not {FORMAT!r})."
            )
        digest, about = meta.get("digest", ""), meta.get("meta", "")
        if meta.get("seal") != seal(digest, about):
            raise UserError(f"{str(path)!r} is damaged: its content is not what was written.")
        known = known_meta(about, f"the metadata of {str(path)!r}")
        gates = tuple(
            Gate(tuple(names), take(weights, f"gate{i}/"))
            for i, names in enumerate(known.pop("gates", ()))
        )
        edit = cls(weights, known, gates)
        if edit.digest != digest:
            raise UserError(f"{str(path)!r} is damaged: its content is not what was written.")
        edit.sane(repr(str(path)))
        return edit

    def sane(self, where: str) -> None:
        """Refuse an edit without weights, or with such as no model can have.

        Args:
            where: what it is, for messages.

        Raises:
            UserError: it changes nothing, or holds NaN or infinity (names the tensor).
        """
        if not self.weights:
            raise UserError(f"{where} holds no changed weights: nothing would be erased.")
        for name, w in self.tensors().items():
            if not torch.isfinite(w).all():
                raise UserError(f"{where} is damaged: {name!r} holds NaN or infinity.")

    def check(self, model: DiffusionModel) -> None:
        """Refuse a model that this edit does not belong to.

        Raises:
            UserError: another base (by hash), another architecture (by names and shapes), or as
            :meth:`sane`.
        """
        self.sane("the edit")
        own = model.parameters()
        for name, w in self.weights.items():
            if name not in own or own[name].shape != w.shape:
                has = tuple(own[name].shape) if name in own else "no such weight"
                raise UserError(
                    f"the edit is of another architecture than {model.name!r}: {name!r} is "
                    f"{tuple(w.shape)} in the edit, {has} in the model."
                )
        if any(own[name].is_meta for name in self.weights):
            model.fill()
        base = self.meta.get("base")
        if base and base != model.base:
            raise UserError(
                f"the edit was made for {self.meta.get('model', 'another model')!r} (hash {base}); "
                f"{model.name!r} has "
                f"hash {model.base}: load the model it was made for."
            )

    def on(self, model: Any, prompt: str | None = None, strength: float = 1.0) -> dict[str, Tensor]:
        """The weights on the model's device, for ``weights=`` of its verbs.

        Args:
            model: a model or a pipeline.
            prompt: what the gates are to be opened for; None: all are open.
            strength: how much of the edit; 1: all of it.

        Raises:
            UserError: as :meth:`check`, or a strength outside of :data:`STRENGTHS`.
        """
        model = load(model)
        self.check(model)
        own = model.parameters()
        weights = {k: self.laid(k, own[k], strength).to(model.device) for k in self.weights}
        for gate in self.gates if prompt is not None else ():
            shut = strength * (1 - gate.opening(model, str(prompt)))
            for k, w in weights.items() if shut else ():
                weights[k] = w - shut * gate.change(k).view_as(w).to(w.device)
        return weights

    def laid(self, name: str, own: Tensor, strength: float = 1.0) -> Tensor:
        """A weight's new value, fp32: the base's own and ``strength`` times the change.

        At 0 it is the base's, at 1 the edit's, bit for bit: unless the edit was made on the base
        rounded to half precision, and this one is not.

        Raises:
            UserError: a strength outside of :data:`STRENGTHS`.
        """
        if strength not in STRENGTHS:
            raise UserError(f"got {strength} for strength; {STRENGTHS} is needed, 1 is whole.")
        if strength == 1 and self.made_in == torch.float32:
            return self.weights[name]
        base = own.detach().to("cpu", torch.float32, copy=True)
        if strength == 1 and torch.equal(base.to(self.made_in).float(), base):
            return self.weights[name]
        return base + strength * self.change(name, own) if strength else base

    def scaled(self, strength: float, model: Any = None) -> Edit:
        """The same edit, ``strength`` times as strong: an edit of its own, gates as well.

        Args:
            strength: 0 is the base model, 1 the edit; up to 10.
            model: the base; None: the one at hand, or what the edit says it was made for.

        Raises:
            UserError: as :meth:`on`.
        """
        base = self.home(model)
        self.check(base)
        own = self.based_on(base)
        return self.scaled_on(own, strength, precision_of(own))

    def scaled_on(self, own: Mapping[str, Tensor], strength: float, precision: str) -> Edit:
        """As :meth:`scaled`, on the base's own values.

        Args:
            precision: what they are rounded to, such as ``float32``.

        Raises:
            UserError: a strength outside of :data:`STRENGTHS`.
        """
        weights = {k: self.laid(k, own[k], strength) for k in self.weights}
        if strength == 1:
            return self
        more = {
            "dtype": precision,
            "strength": strength * self.strength,
            "whole": self.whole,
        }
        gates = tuple(g.scaled(strength) for g in self.gates if strength)
        return replace(self, weights=weights, gates=gates, meta={**self.meta, **more})

    @property
    def strength(self) -> float:
        """How much of the edit that was made this is: 1, all of it."""
        return float(self.meta.get("strength", 1.0))

    def home(self, model: Any = None) -> DiffusionModel:
        """The base model: the one given, the one at hand, or what the edit was made for, opened.

        Raises:
            UserError: it cannot be opened.
        """
        if model is None:
            model = self.base or self.meta.get("model") or "emoji"
        return load(model)

    @contextmanager
    def applied(self, model: Any, strength: float = 1.0) -> Iterator[Any]:
        """Put the weights into a model, and its own back at the end of the block, bit for bit.

        Gates are open for every prompt, which stored weights cannot tell apart.

        Args:
            model: a model or a diffusers pipeline; the block gets it back.
            strength: how much of the edit; 1: all of it.

        Raises:
            UserError: as :meth:`check`.
        """
        denoiser = self._denoiser(model)
        own = dict(denoiser.named_parameters())
        before = {k: own[k].data for k in self.weights}
        inside = noted(model)
        inside.append(f"{self.digest} {strength}")
        try:
            self._put(denoiser, strength)
            yield model
        finally:
            for k, data in before.items():
                own[k].data = data.to(own[k].device, own[k].dtype)  # where the block moved it
            inside.pop()

    def merged_into(self, model: Any, strength: float = 1.0) -> Any:
        """Put the weights into a model or a pipeline for good, and give it back.

        Raises:
            UserError: as :meth:`check`.
        """
        self._put(self._denoiser(model), strength)
        noted(model).append(f"{self.digest} {strength}")
        return model

    def _denoiser(self, model: Any) -> nn.Module:
        """The denoiser of a model or a pipeline that fits this edit."""
        known = load(model)
        self.check(known)
        known.fill()
        found: nn.Module = plain(getattr(model, known.family.denoiser, known.denoiser))
        return found

    def _put(self, denoiser: nn.Module, strength: float) -> None:
        own = dict(denoiser.named_parameters())
        kinds = (own[k].dtype for k in self.weights)
        half = next((d for d in kinds if d != torch.float32), torch.float32)
        new = half != torch.float32 and unmeasured(denoiser, f"{self.digest} {strength} {half}")

        def rounded() -> Iterator[Stored]:  # each is let go of before the next one is made
            for k in self.weights:
                was, meant = own[k].data, self.laid(k, own[k], strength)
                own[k].data = meant.to(was.device, was.dtype)
                if new and was.dtype != torch.float32:
                    yield Stored(meant.to(was.device) - was.float(), was, own[k])

        tell(lost(rounded()), "the model in memory", half)

    def save_lora(
        self, path: str | Path, rank: int = 64, form: str = "peft", model: Any = None
    ) -> float:
        """Write the edit as a LoRA file; gives the part of its change that is left out, 0 to 1.

        Args:
            form: ``peft`` (diffusers) or ``kohya`` (A1111, ComfyUI).
            model: as in :meth:`scaled`.

        Raises:
            UserError: as :func:`efface.edits.lora.factorise` and ``save``.
        """
        from efface.edits.lora import factorise
        from efface.edits.lora import save as save_lora

        base = self.home(model)
        found = factorise(base, self, rank)
        save_lora(base, found, Path(path).expanduser(), form)
        return found.error


def base_values(
    model: DiffusionModel, names: Iterable[str], made_in: torch.dtype
) -> dict[str, Tensor]:
    """The base's own values, no coarser than what an edit was made on.

    A model in half precision holds them rounded, and what the rounding took would count as change:
    they are read from its folder then.

    Args:
        model: one that the edit fits (:meth:`Edit.check`).
        made_in: :attr:`Edit.made_in`.
    """
    own, names = model.parameters(), list(names)
    if model.folder is None or all(own[k].element_size() >= made_in.itemsize for k in names):
        return {k: own[k] for k in names}  # without a folder these are the base, to the bit
    model.hashed()  # refuses a folder that was changed since
    files = weight_files(model.folder / model.family.denoiser)
    found = {k: read for path in files for k, read in readers(path).items()}
    return {k: found[k]() for k in names}


def precision_of(weights: Mapping[str, Tensor]) -> str:
    """The finest precision among weights: ``float32``."""
    return str(max((w.dtype for w in weights.values()), key=lambda d: d.itemsize))[len("torch.") :]


def noted(model: Any) -> list[str]:
    """Where a model notes what was put into it; a pipeline is looked at when it is opened."""
    return model.inside if isinstance(model, DiffusionModel) else []


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take what begins with ``prefix`` out of a dict, without the prefix."""
    return {k.removeprefix(prefix): tensors.pop(k) for k in list(tensors) if k.startswith(prefix)}


def seal(digest: str, about: str) -> str:
    """Hash of an edit's digest and provenance: the first 16 hex digits of their SHA-256."""
    return hashlib.sha256(f"{digest}\n{about}".encode()).hexdigest()[:16]
