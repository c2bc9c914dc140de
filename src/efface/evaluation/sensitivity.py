"""How far each concept of a vocabulary moved under an edit: three instruments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.clip import check_known
from efface.evaluation.clip import load as load_clip
from efface.evaluation.evaluate import brought_protocol, drawn, edit_folder, samples_folder
from efface.evaluation.parts import Pictures, Predicted, Share, Texts, here
from efface.evaluation.protocols import Protocol
from efface.evaluation.samples import Apart, Samples, Wanted
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import DiffusionModel
from efface.models.identity import of_part
from efface.scores import Score, grouped_mean, rank_correlation
from efface.storage import VERSION, cache_folder, write
from efface.training import Bank


@dataclass(frozen=True)
class Moved:
    """What one instrument says of every word: a larger number is more harm."""

    instrument: str
    """Its name, with what it depends on."""
    unit: str
    words: tuple[str, ...]
    draws: Tensor
    """A row a draw (a latent, a picture's seed, a layer), a column a word, (D, K)."""

    @property
    def harm(self) -> Tensor:
        """The mean over the draws, (K,)."""
        return self.draws.mean(0)

    def order(self) -> list[int]:
        """Indices of the words, most harmed first."""
        found: list[int] = self.harm.argsort(descending=True, stable=True).tolist()
        return found

    def score(self, word: int) -> Score:
        """A word's harm, with an interval over the draws."""
        return grouped_mean(self.draws[:, word], torch.arange(len(self.draws)), "draws")

    @property
    def few(self) -> bool:
        """Whether the draws are too few for an interval that says anything."""
        return len(self.draws) < 4

    def stability(self) -> Score | None:
        """Rank correlation of the words between the two halves of the draws; None: one draw."""
        if len(self.draws) < 2:
            return None
        return rank_correlation(self.draws[::2].mean(0), self.draws[1::2].mean(0))

    def to_json(self) -> dict[str, Any]:
        """Every word's harm, most harmed first; intervals for the first hundred."""
        order, stable = self.order(), self.stability()
        return {
            "instrument": self.instrument,
            "unit": self.unit,
            "draws": len(self.draws),
            "stability": stable and stable.to_json(),
            "words": {self.words[i]: round(float(self.harm[i]), 5) for i in order},
            "intervals": {self.words[i]: self.score(i).to_json() for i in order[:100]},
        }


def prediction(
    model: DiffusionModel,
    edit: Edit,
    words: Sequence[str],
    latents: int = 4,
    seed: int = 0,
    batch: int = 0,
    progress: bool = True,
    share: Share | None = None,
) -> Moved:
    """How much the predicted noise changed: 100 ‖ε' - ε‖² / ‖ε‖² on latents that all words share.

    An edit with gates is looked at word by word, with its gates as each opens them. A latent is a
    step of an unconditional trajectory of its own of the base model; the steps are spread evenly
    over the noise levels.

    Args:
        latents: D, shared latents.
        batch: words at a time; 0: by the size of a latent.
        share: who does it; None: this process.

    Source: the instrument of arXiv:2410.15618, section 3.2, with several latents instead of one.
    """
    batch = batch or model.at_once
    some = [tuple(words[i : i + batch]) for i in range(0, len(words), batch)]
    parts = [Predicted(part, latents, seed) for part in some]
    found = together(parts, share or here(model, edit), "prediction", progress)
    unit = "% of the squared noise"
    return Moved(f"prediction ({latents} latents)", unit, tuple(words), torch.cat(found, 1))


def together(
    parts: Sequence[Predicted | Texts], share: Share, what: str, progress: bool
) -> list[Tensor]:
    """What comes of parts, in their order."""
    total = sum(len(p.words) for p in parts)
    bar = tqdm(total=total, desc=what, unit="word", disable=not progress)
    found: dict[Any, Tensor] = {}
    for part, result in share(parts):
        found[part] = result
        bar.update(len(getattr(part, "words", ())))
    bar.close()
    return [found[p] for p in parts]


@torch.no_grad()
def closed_form(
    model: DiffusionModel,
    edit: Edit,
    words: Sequence[str],
    cache: Path | None = None,
    progress: bool = True,
    share: Share | None = None,
) -> Moved:
    """How much what the layers read of a word changed: 100 ``|ΔW e| / |W e|``.

    A draw is a layer that reads the text (of cross-attention: keys and values together); e is the
    text state of the word's last token, of all text encoders together.

    Args:
        cache: folder where the text states of long lists are kept.
        share: who makes text states; None: this process.

    Raises:
        UserError: the edit changes no weight that reads the text, or has gates.
    """
    if edit.gates:
        raise UserError(
            "this edit has gates that each prompt opens in its own way, which the closed form does "
            "not see: use the instrument 'prediction' or 'picture'."
        )
    maps = [n for n in model.text_maps() if n in edit.weights]
    if not maps:
        raise UserError(
            "this edit changes no weight that reads the text (keys and values of cross-attention): "
            "use the instrument 'prediction' or 'picture'."
        )
    edit.check(model)
    own, layers = model.parameters(), dict.fromkeys(n.rsplit(".", 2)[0] for n in maps)
    states = text_states(model, words, cache, progress, share)
    e = model.family.seen(model.parts, states).float()
    rows = e.flatten(0, 1)
    draws = []
    for layer in tqdm(layers, desc="closed form", unit="layer", disable=not progress):
        both = [n for n in maps if n.rsplit(".", 2)[0] == layer]
        base = torch.cat([own[n].float() for n in both])
        change = torch.cat([edit.change(n, own[n]).to(base) for n in both])
        far = [_size(w, rows).view(e.shape[:2]).norm(dim=1) for w in (change, base)]
        draws.append(100 * far[0] / far[1])
    return Moved(
        f"closed form ({len(layers)} layers)",
        "% of what the layer reads",
        tuple(words),
        torch.stack(draws).cpu(),
    )


def _size(w: Tensor, e: Tensor) -> Tensor:
    """``|W e|`` for many e, (K,), by eᵀ(WᵀW)e where that is the smaller product."""
    if w.shape[0] <= w.shape[1]:
        return torch.cat([(part @ w.T).norm(dim=1) for part in e.split(8192)])
    gram = w.T @ w
    return torch.cat([((p @ gram) * p).sum(1).clamp(min=0).sqrt() for p in e.split(8192)])


@torch.no_grad()
def text_states(
    model: DiffusionModel,
    words: Sequence[str],
    cache: Path | None = None,
    progress: bool = True,
    share: Share | None = None,
) -> Tensor:
    """The text encoders' states of every word's last token, (K, r, D): one each of r encoders.

    Words go through them in order of their length, so that little padding is computed.

    Args:
        cache: a folder; lists of 4,000 words or more are kept there by a hash of all that
            reads the words (encoders, tokenizers, their settings), and the words.
        share: who makes them; None: this process.
    """
    path = None
    if cache is not None and len(words) >= 4000:
        readers = [k for k in model.parts if k.startswith("tokenizer")]
        readers += model.family.limits(model.parts)
        whole = {k: of_part(k, model.parts[k], {}) for k in readers}
        about = [VERSION, model.precision, whole, list(words)]
        told = json.dumps(about, sort_keys=True, default=str)
        path = cache / "text" / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"
        try:
            return load_file(path)["states"].to(model.device)
        except (OSError, SafetensorError, KeyError):
            pass
    ids = model.tokenizer(list(words), add_special_tokens=False).input_ids
    order = sorted(range(len(words)), key=lambda i: (len(ids[i]), ids[i]))  # the same together
    parts = [Texts(tuple(words[k] for k in order[i : i + 512])) for i in range(0, len(order), 512)]
    share = share or here(model, Edit({}))
    found = together(parts, share, "text states", progress)
    states = torch.empty((len(ids), *found[0].shape[1:]), dtype=model.dtype, device=model.device)
    states[torch.tensor(order, device=model.device)] = torch.cat(found).to(model.device)
    if path is not None:
        kept = {"states": states.cpu().contiguous()}
        with suppress(OSError, UserError):  # a cache only
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, lambda p: save_file(kept, p))
    return states


def picture(before: Samples, after: Samples, clip: str = "") -> Moved:
    """How much worse pictures fit their word: the fall of the CLIP score at equal seeds.

    Args:
        before: the base model's pictures; every word with the same seeds.
        after: the edit's, of the same rows.
        clip: path or hub id of a CLIP; "": the shipped one.

    Raises:
        ValueError: the two sets are not of the same words and seeds.
    """
    if before.rows != after.rows:
        raise ValueError("the two sets of pictures are not of the same prompts and seeds.")
    words = tuple(dict.fromkeys(r.concept for r in before.rows))
    seeds = sorted({r.seed for r in before.rows})
    at = {(r.concept, r.seed): i for i, r in enumerate(before.rows)}
    index = torch.tensor([[at[w, s] for w in words] for s in seeds])
    judge = load_clip(clip)
    text = judge.texts([r.prompt for r in before.rows])
    fit = [100 * (judge.pictures(s.images()) * text).sum(1) for s in (before, after)]
    return Moved(
        f"picture ({judge.name}, {len(seeds)} seeds)",
        "points of CLIP score lost",
        words,
        (fit[0] - fit[1])[index],
    )


def suggested(found: Sequence[Moved], n: int = 6) -> list[str]:
    """Words to keep: of the first instrument's worst, those in the worse half for every other."""
    halves = [{m.words[i] for i in m.order()[: (len(m.words) + 1) // 2]} for m in found[1:]]
    first = found[0]
    worst = [first.words[i] for i in first.order()[: 4 * n]]
    return [w for w in worst if all(w in half for half in halves)][:n]


def agreement(one: Moved, two: Moved) -> Score:
    """Rank correlation of the words that both instruments looked at."""
    at = {w: i for i, w in enumerate(two.words)}
    both = [(i, at[w]) for i, w in enumerate(one.words) if w in at]
    a, b = (torch.tensor(x) for x in zip(*both, strict=True))
    return rank_correlation(one.harm[a], two.harm[b])


@dataclass(frozen=True)
class Look:
    """All that an instrument may use."""

    model: DiffusionModel
    edit: Edit
    words: Sequence[str]
    latents: int = 8
    """prediction: latents that all words share."""
    pictures: int = 4
    """picture: pictures of each word, before and after."""
    home: Path | None = None
    """picture: the run's folder, for the edit's; None: the cache folder."""
    clip: str = ""
    """picture: a CLIP by path or hub id; "": the shipped one, for the shipped model."""
    share: Share | None = None
    """Who does the work; None: this process."""


def pictured(look: Look) -> Moved:
    """Make the pictures that :func:`picture` compares, as the model's own protocol has them made.

    A model without a protocol draws the bare word by its own settings.

    Raises:
        UserError: no CLIP is named for a model that is not the shipped one.
    """
    model, edit = look.model, look.edit
    check_known(model, look.clip)
    edit.check(model)
    protocol = brought_protocol(model) or Protocol("the bare word")
    prompt = protocol.template if not protocol.subjects else "{}"
    wanted = [Wanted(prompt.format(w), s, w) for w in look.words for s in range(look.pictures)]
    home = look.home or edit_folder(model, edit)
    before = drawn(model, None, None, wanted, protocol, apart=apart(look, protocol, False))
    folder = samples_folder(home, model, protocol)
    after = drawn(model, edit, folder, wanted, protocol, apart=apart(look, protocol, True))
    return picture(before, after, look.clip)


def apart(look: Look, protocol: Protocol, edited: bool) -> Apart | None:
    """Who draws pictures: None: this process."""
    share = look.share
    if share is None:
        return None

    def drawing(
        some: Sequence[Sequence[Wanted]],
    ) -> Iterator[tuple[Sequence[Wanted], Sequence[Tensor]]]:
        parts = [Pictures(edited, tuple(b), protocol.steps, protocol.guidance) for b in some]
        for part, found in share(parts):
            assert isinstance(part, Pictures)
            yield part.batch, list(found)

    return drawing


INSTRUMENTS: dict[str, Callable[[Look], Moved]] = {
    "prediction": lambda x: prediction(x.model, x.edit, x.words, x.latents, share=x.share),
    "closed-form": lambda x: closed_form(x.model, x.edit, x.words, cache_folder(), share=x.share),
    "picture": pictured,
}
"""By the name that the command has for them."""

PROXIES: dict[str, Callable[[], Any]] = {
    "closed-form": UCE,
    "steps": lambda: ESD(latents=Bank(trajectories=2), updates=10, batch=4),
}
"""Cheap edits that stand for a real one before it exists."""
