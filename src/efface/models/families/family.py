"""What differs between families of models, and nothing else."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from efface.errors import UserError, pick
from efface.models.conditioning import Conditioning

PACKED = int(transformers.__version__.partition(".")[0]) >= 5
"""Whether CLIP takes a mask for each pair of tokens."""
Parts = Mapping[str, Any]
"""Components of a diffusers pipeline by name, those that a family has."""


class Asked(NamedTuple):
    """What a denoiser is asked."""

    denoiser: Any
    z: Tensor
    """Latents, (B, C, H, W)."""
    t: Tensor
    """Timesteps, (B,)."""
    cond: Conditioning
    guidance: float
    """For denoisers that are told one."""
    pixels: tuple[int, int]
    """Width and height of the picture."""


class Fit(NamedTuple):
    """Two numbers of a model's components that must be the same."""

    one: str
    """What has the first, by its component's name."""
    n: int
    other: str
    """What has the second."""
    m: int


class Family(ABC):
    """A family: conditioning, the denoiser's call, weight groups, and what reads the text."""

    name: ClassVar[str]
    """What :data:`~efface.models.FAMILIES` calls it."""
    label: ClassVar[str]
    """What people call it."""
    pipelines: ClassVar[tuple[str, ...]]
    """diffusers' pipeline classes."""
    denoiser: ClassVar[str] = "transformer"
    """Which component denoises."""
    encoders: ClassVar[Mapping[str, str]]
    """Text encoder -> its tokenizer; the first one's tokens are what a word is."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Text encoders that may be left out."""
    groups: ClassVar[Mapping[str, str]]
    """Weight group -> regular expression of its parameters' names."""
    reads: ClassVar[str]
    """Regular expression of the weights (out, D) that read text states and nothing else, which
    closed-form methods edit."""
    crosses: ClassVar[bool] = False
    """Whether there are cross-attention blocks (``attn2``), where one can see what looks at what
    word."""
    from_one: ClassVar[bool] = False
    """Whether sampling spreads σ evenly from 1."""
    patch: ClassVar[int] = 1
    """Side of what a latent is of the autoencoder's own latents."""
    packed: ClassVar[int] = 1
    """Latents that the denoiser takes as one token's channels."""
    experimental: ClassVar[bool] = False
    """Whether diffusers' own classes are so young that they may still change."""
    steps: int = 28
    """Default sampling steps."""
    guidance: float = 7.0
    """Default scale of guidance."""

    def __init__(self, index: Mapping[str, Any] | None = None) -> None:
        self.index = dict(index or {})
        """The pipeline's own settings (``model_index.json``)."""

    def guides(self, denoiser: nn.Module) -> str:
        """How guidance works: ``cfg``, ``embedded`` (the denoiser is told a number) or ``none``."""
        return "cfg"

    @abstractmethod
    def encode(self, parts: Parts, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """Encode prompts, a row each."""

    def null(self, encoded: Conditioning) -> Conditioning:
        """What guidance takes as no prompt, given the encoded prompt ``""``."""
        return encoded

    @abstractmethod
    def inputs(self, asked: Asked) -> dict[str, Any]:
        """The denoiser's arguments."""

    def output(self, out: Tensor, z: Tensor) -> Tensor:
        """The denoiser's output in the shape of the latents."""
        return out

    def unscaled(self, vae: Any, z: Tensor) -> Tensor:
        """Latents as the autoencoder knows them."""
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        plain: Tensor = z / vae.config.scaling_factor + shift
        return plain

    def scaled(self, vae: Any, x: Tensor) -> Tensor:
        """What the autoencoder gives as latents: :meth:`unscaled` the other way round."""
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        z: Tensor = (x - shift) * vae.config.scaling_factor
        return z

    def latent_shape(self, parts: Parts) -> tuple[int, int, int]:
        """(C, H, W) of the family's own picture size."""
        config = parts[self.denoiser].config
        return (config.in_channels, config.sample_size, config.sample_size)

    def tokens(self, shape: tuple[int, int, int]) -> int:
        """Image tokens of latents, for schedules that depend on them."""
        return shape[1] * shape[2] // 4

    def shift(self, config: Mapping[str, Any], tokens: int, steps: int) -> float:
        """Shift of a flow's schedule where it is dynamic: straight in the image tokens.

        Args:
            config: the scheduler's.
        """
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        start, end = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return float(start + (end - start) / (high - low) * (tokens - low))

    def fits(self, parts: Parts) -> list[Fit]:
        """What must be the same in the components of a model.

        Here: channels of a latent, and width of the text states.
        """
        config, scale = parts[self.denoiser].config, self.packed * self.patch**2
        latent = parts["vae"].config.latent_channels * scale
        return [
            Fit(f"{self.denoiser} in_channels", config.in_channels, "latents of the vae", latent),
            Fit(
                f"{self.denoiser} text width",
                self.width(config),
                "text encoders' states",
                self.state_width(parts),
            ),
        ]

    @abstractmethod
    def width(self, config: Any) -> int:
        """Width D of the text states that a denoiser of some config reads."""

    def state_width(self, parts: Parts) -> int:
        """Width D of the text states that the encoders give."""
        return width_of(parts[next(iter(self.encoders))])

    def seen(self, parts: Parts, states: Tensor) -> Tensor:
        """Text states (…, D) as the weights that read them are given them."""
        return states

    def limits(self, parts: Parts) -> dict[str, int]:
        """Longest prompt of each text encoder that is there, in tokens."""
        return {
            encoder: parts[tokenizer].model_max_length
            for encoder, tokenizer in self.encoders.items()
            if parts.get(encoder) is not None
        }

    def last_word(self, parts: Parts, prompts: Sequence[str]) -> Tensor:
        """Positions of each prompt's last word among the states, (n, r): once for each encoder."""
        tokenizer = parts[next(iter(self.encoders.values()))]
        return last_subject(tokenizer, prompts)[:, None]

    def word_states(self, parts: Parts, words: Sequence[str], device: torch.device) -> Tensor:
        """States of every word's last token, (n, r, D): one of each of r text encoders."""
        states = self.encode(parts, words, device).states
        at = self.last_word(parts, words).to(states.device)
        return states[torch.arange(len(states), device=states.device)[:, None], at]

    @abstractmethod
    def original(self, parts: Parts) -> dict[str, Tensor]:
        """Tensors by the names of the family's published single files.

        Of flow models only the denoiser's, which is what ComfyUI loads.
        """

    def kohya(self, parts: Parts, module: str) -> str:
        """A module's name in LoRA files by kohya's names.

        Raises:
            UserError: files of this family have peft's names.
        """
        raise UserError(
            f"LoRA files of {self.label} have peft's names, which ComfyUI reads as well: "
            "choose the form 'peft'."
        )

    @classmethod
    def group(cls, denoiser: nn.Module, group: str) -> list[str]:
        """Names of the denoiser's parameters in a weight group.

        Raises:
            UserError: no such group.
        """
        rule = re.compile(pick(cls.groups, group, "weight group"))
        return [n for n, _ in denoiser.named_parameters() if rule.search(n)]

    @classmethod
    def text_maps(cls, denoiser: nn.Module) -> list[str]:
        """Names of the weights (out, D) that read text states and nothing else."""
        rule = re.compile(cls.reads)
        return [n for n, _ in denoiser.named_parameters() if rule.search(n)]


def width_of(encoder: Any) -> int:
    """Width of a text encoder's states."""
    return int(encoder.config.hidden_size)


def check_vectors(tokenizer: Any, prompts: Sequence[str]) -> None:
    """Refuse prompts with a part of a word that was learned as several vectors.

    diffusers' pipelines write such a word (textual inversion, arXiv:2208.01618) out before they
    encode it; here a prompt is encoded as it is.

    Raises:
        UserError: says how the word is written.
    """
    added = getattr(tokenizer, "added_tokens_encoder", None) or {}
    for word in (w for w in added if f"{w}_1" in added):
        n = next(i for i in count(1) if f"{word}_{i}" not in added)
        all_of_it = " ".join([word, *(f"{word}_{i}" for i in range(1, n))])
        for prompt in prompts:
            if word in prompt.replace(all_of_it, ""):
                raise UserError(
                    f"{word!r} in {prompt[:100]!r} was learned as {n} vectors: write "
                    f"{all_of_it!r}, in the names of concepts as well."
                )


def warn_long(family: Family, parts: Parts, prompts: Sequence[str]) -> None:
    """Warn of prompts that are cut, and say what no text encoder sees.

    Raises:
        UserError: as :func:`check_vectors`.
    """
    check_vectors(parts[next(iter(family.encoders.values()))], prompts)
    limits = family.limits(parts)
    encoder, limit = max(limits.items(), key=lambda x: x[1])
    tokenizer = parts[family.encoders[encoder]]
    for prompt in prompts:
        if len(prompt.encode()) <= limit - 2:
            continue  # a token is at least one byte
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        if len(ids) > limit - 2:
            lost = tokenizer.decode(ids[limit - 2 :])
            warnings.warn(
                f"the prompt is longer than {limit} tokens; cut off: {lost!r}", stacklevel=3
            )


def tokenized(tokenizer: Any, prompts: Sequence[str], length: int, device: Any) -> Tensor:
    """Token numbers (B, L), padded to ``length`` and cut there."""
    ids: Tensor = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    ).input_ids
    return ids.to(device)


def penultimate(encoder: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """A CLIP's states before its last layer (B, L, D), and its first output (pooled, if it is)."""
    out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[-2], out[0]


def sentencepiece_last(tokenizer: Any, prompts: Sequence[str], longest: int) -> Tensor:
    """Position of each prompt's last token, (n,), in T5: no start token, one at the end."""
    lengths = [
        min(len(tokenizer(p, add_special_tokens=False).input_ids), longest - 1) for p in prompts
    ]
    return torch.tensor([max(n - 1, 0) for n in lengths])


def causal(
    encoder: nn.Module, tokenizer: Any, words: Sequence[str], layer: int, device: Any
) -> Tensor:
    """A CLIP's state of every word's last token, (n, D).

    Words that are the same tokens are computed once, as many as fit behind one start token: each
    sees that token and its own, as if it stood alone.

    Args:
        layer: of the hidden states, from the end; 0: the output after the final norm.
    """
    longest = tokenizer.model_max_length
    asked = tokenizer(list(words), add_special_tokens=False).input_ids
    ids = [tuple(i[: longest - 2]) for i in asked]
    packs: list[list[tuple[int, ...]]] = []
    room = 0
    for word in sorted(set(ids), key=len):
        if room < len(word) or not packs or not PACKED:
            packs.append([])
            room = longest - 1
        packs[-1].append(word)
        room -= len(word)
    tokens, places, owners = (torch.zeros(len(packs), longest, dtype=torch.long) for _ in range(3))
    tokens[:, 0], at = tokenizer.bos_token_id, dict[tuple[int, ...], tuple[int, int]]()
    for row, pack in enumerate(packs):
        end = 0
        for k, word in enumerate(pack, 1):
            own = slice(end + 1, end + 1 + len(word))
            tokens[row, own], owners[row, own] = torch.tensor(word, dtype=torch.long), k
            places[row, own] = torch.arange(1, len(word) + 1)
            end += len(word)
            at[word] = (row, end if word else 0)
    used = int((owners > 0).sum(1).max()) + 1
    tokens, places, owners = (x[:, :used].to(device) for x in (tokens, places, owners))
    seen = (owners[:, :, None] == owners[:, None]) | (torch.arange(used, device=device) == 0)
    seen = seen & torch.ones(used, used, dtype=torch.bool, device=device).tril()
    dtype = next(encoder.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=dtype, device=device)
    mask = mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    found = encoder(tokens, mask if PACKED else None, places, output_hidden_states=bool(layer))
    states: Tensor = found.hidden_states[layer] if layer else found[0]
    rows, columns = zip(*(at[i] for i in ids), strict=True)
    return states[torch.tensor(rows), torch.tensor(columns)]


def last_subject(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Position of each prompt's last token, (n,); of the start token for the null prompt."""
    limit = tokenizer.model_max_length
    lengths = [
        min(len(tokenizer(p, add_special_tokens=False).input_ids), limit - 2) for p in prompts
    ]
    return torch.tensor(lengths)
