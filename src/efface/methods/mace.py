"""MACE: clear the other words of the concept, starve its attention, fuse in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from efface.concepts import Concept, templates
from efface.errors import UserError
from efface.models import Conditioning, DiffusionModel, check_crosses, watched
from efface.settings import Range
from efface.training import Job, Made, Method, Pictures, Student, Tuning
from efface.training.closed_form import WEIGHT, solve, solved, text_vectors
from efface.training.pictures import Noised


@dataclass(frozen=True, kw_only=True)
class MACE(Method, Tuning):
    """Refinement, one low-rank adapter a concept, and fusion, all on keys and values.

    Source: arXiv:2403.06135, sections 3.1 to 3.3. Left out: the segmenter (masks are the frozen
    model's own cross-attention above half of its range), pictures and captions of others (the prior
    is the vocabulary instead of COCO), AdamW's weight decay, and the attention of padding, which
    the authors' code counts as the concept's.
    """

    name: ClassVar[str] = "mace"
    label: ClassVar[str] = "MACE"
    apart: ClassVar[bool] = True

    updates: Annotated[int, Range(1, 10**7)] = 50
    """Weight updates of each concept's adapter."""
    batch: Annotated[int, Range(1, 4096)] = 4
    """Pictures in an update."""
    group: str = "kv"
    """Which weights are trained: kv only."""
    rank: Annotated[int, Range(0, 4096)] = 1
    """Rank of each concept's adapter."""
    exclude_parts: bool = False
    """Also leave out words that are nothing but a part of an erased name ("mug" for "beer mug")."""
    pictures: Pictures = Pictures(n=8)
    """Pictures of each erased concept that its attention is starved on."""
    prior: Annotated[float, WEIGHT] = 1e-2
    """μ, weight of the vocabulary's text states in both closed forms."""
    ridge: Annotated[float, WEIGHT] = 1e-2
    """λ, how much the maps hold on to themselves."""
    keep: tuple[str, ...] = ()
    """Words of the prior with ``keep_weight`` times the weight: the fused maps hold on to them,
    whatever the adapters do."""
    keep_weight: Annotated[float, Range(0)] = 10.0
    """κ, weight of a kept word, in units of a word of the prior."""
    focal: bool = True
    """Draw timesteps between 200 and 400 oftener, as for objects and styles; else all alike."""
    vocabulary: str = "auto"
    """The prior: auto, names, tags, nouns, styles, people, tokens, a word list file, or
    "words: fox, sky"; the erased concepts are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group != "kv" or not self.rank:
            raise UserError("MACE trains adapters (rank 1 or more) on the group 'kv' only.")

    @property
    def rows(self) -> int:
        """Kept words are in the closed forms alone."""
        return self.batch

    def make(self, job: Job) -> Made:
        """Refine, starve each concept, fuse."""
        model, concepts, run = job.model, job.concepts, job.run
        check_crosses(model)
        if run.checkpointing:
            raise UserError("MACE looks at the attention, which checkpointing does not keep.")
        prior = self.prior_rows(job)
        weights = model.parameters()
        own = {n: weights[n].cpu().double() for n in model.text_maps()}
        rest, instead = refinement_rows(model, concepts, self.diversify)
        q = solve(rest, instead, prior, 1.0, self.prior, self.ridge)
        refined = {n: w @ q for n, w in own.items()}
        parts = []
        for i in range(len(concepts)):
            alone = job.alone(i)
            parts.append(job.part(i, partial(self.starve, alone, refined)))
        return Made(self.fuse(model, concepts, own, refined, parts, prior))

    def prior_rows(self, job: Job) -> Tensor:
        """Text states (m, D) that should stay, the keep list's scaled up."""
        rows = text_vectors(job.model, job.words(self.vocabulary).words[:3000], "all")
        if not self.keep:
            return rows
        return torch.cat([rows, self.keep_weight**0.5 * text_vectors(job.model, self.keep, "all")])

    def starve(self, job: Job, refined: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stage 2: keys and values by which the concept's pixels do not look at its words."""
        model, concept = job.model, job.concepts[0]
        pictures = self.pictures.make(job, concept.names)
        some = templates(concept.kind, self.diversify)
        prompts = [[t.format(n) for t in some] for n in concept.names]
        cond = [model.embed(p) for p in prompts]
        where = [[span_of(model, t, n) for t in some] for n in concept.names]
        found = self.masks(model, pictures, cond, where, job.generator("masks"))
        of_name = [pictures.prompt == i for i in range(len(prompts))]
        own_pictures, masks = [only(pictures, m) for m in of_name], [found[m] for m in of_name]
        t = torch.arange(model.process.times, dtype=torch.float32)
        focal = (0.05 * (t - 200)).sigmoid() - (0.05 * (t - 400)).sigmoid()
        chance = focal.clamp(min=1e-6) if self.focal else None

        def loss(student: Student, g: torch.Generator) -> Tensor:
            # One name for the batch: pictures, masks and the words looked at are all its own.
            name = int(torch.randint(0, len(prompts), (), generator=g)) if len(prompts) > 1 else 0
            z, t, rows = own_pictures[name].draw(g, self.batch, chance)
            template = int(torch.randint(0, len(prompts[name]), (), generator=g))
            with watched(model) as seen:
                student(z, t, cond[name][[template]].repeat(len(z)))
            mine = masks[name][rows].to(z.device)
            value = torch.zeros((), device=z.device)
            for attention in seen:
                side = int(attention.shape[2] ** 0.5)
                m = (interpolate(mine[:, None], size=(side, side)) > 0.5).flatten(1)  # (B, H·W)
                words = attention[..., where[name][template]]  # (B, heads, H·W, words)
                starved = words * m[:, None, :, None]
                # Where the mask is empty the norm's gradient is 0, a square root's would be NaN.
                value = value + torch.linalg.vector_norm(starved, dim=(1, 2, 3)).mean()
            model.counter.watch(len(z), value)
            return value

        own = model.parameters()
        start = {n: w.float() for n, w in refined.items()}
        start |= {n: own[n] for n in own if n not in start}
        return job.train(loss, start=start)

    @torch.no_grad()
    def masks(
        self,
        model: DiffusionModel,
        pictures: Noised,
        cond: Sequence[Conditioning],
        where: Sequence[Sequence[slice]],
        g: torch.Generator,
    ) -> Tensor:
        """Where each picture shows the concept by the frozen model's attention, (N, H, W) of 0, 1.

        At 30 % of the noise's timesteps; above the middle of the attention's range.
        """
        found = []
        for z0, name in zip(pictures.z0, pictures.prompt.tolist(), strict=True):
            t = torch.tensor([int(0.3 * model.process.times)], device=model.device)
            noise = torch.randn(z0.shape, generator=g).to(model.device)
            z = model.process.noised(z0[None].to(model.device), noise[None], t)
            with watched(model) as seen:
                model.predict(z, t, cond[name][[0]])
            maps = []
            for attention in seen:
                side = int(attention.shape[2] ** 0.5)
                plain = attention[..., where[name][0]].sum(3).mean(1).view(1, 1, side, side)
                maps.append(interpolate(plain, size=z.shape[2:], mode="bilinear"))
            m = torch.cat(maps).mean((0, 1))
            found.append((m > (m.min() + m.max()) / 2).float().cpu())
        return torch.stack(found)

    def fuse(
        self,
        model: DiffusionModel,
        concepts: Sequence[Concept],
        own: Mapping[str, Tensor],
        refined: Mapping[str, Tensor],
        parts: Sequence[Mapping[str, Tensor]],
        prior: Tensor,
    ) -> dict[str, Tensor]:
        """Stage 3: maps that do to each concept's prompts what its adapter did, and else nothing.

        Source: arXiv:2403.06135, equation 6. The names of a concept weigh as one together.
        """
        eye = torch.eye(prior.shape[1], dtype=prior.dtype)
        g2 = self.prior * prior.T @ prior
        seen = []
        for c in concepts:
            prompts = [t.format(n) for n in c.names for t in templates(c.kind, self.diversify)]
            x = text_vectors(model, prompts, "all")
            seen.append(x.T @ x / len(c.names))
        below = sum(seen, g2 + self.ridge * eye)
        found = {}
        for name, w in refined.items():
            above = own[name] @ g2 + self.ridge * w
            for part, x in zip(parts, seen, strict=True):
                above = above + part[name].double() @ x
            found[name] = solved(below, above.T, self.ridge).T.float().contiguous()
        return found

    @classmethod
    def presets(cls) -> Mapping[str, MACE]:
        """``searched``: found on ``emoji`` (split 4)."""
        return {"searched": cls(prior=1.0, lr=1e-2, updates=80)}


def only(pictures: Noised, which: Tensor) -> Noised:
    """Some of the pictures, (N,) of booleans."""
    some = copy(pictures)
    some.z0, some.prompt = pictures.z0[which], pictures.prompt[which]
    return some


def span_of(model: DiffusionModel, template: str, name: str) -> slice:
    """Which token positions of a filled template are the concept's words."""
    tok, limit = model.tokenizer, model.tokenizer.model_max_length - 1

    def count(text: str) -> int:
        return len(tok(text, add_special_tokens=False).input_ids)

    before = count(template.split("{}")[0])
    return slice(min(1 + before, limit), min(1 + before + count(name), limit))


def refinement_rows(
    model: DiffusionModel, concepts: Sequence[Concept], prompts: int = 0
) -> tuple[Tensor, Tensor]:
    """Stage 1: states of the words around each concept, and where its anchor's prompt has them.

    The text tower is causal, so that only what comes behind the concept differs: the rest of the
    sentence, its end and the padding. The names of a concept weigh as one together.

    Args:
        prompts: in which each name stands; 0: those of its kind.

    Returns:
        Two (n, D) tensors, row by row.
    """
    erased, instead = [], []
    length = model.tokenizer.model_max_length
    for c in concepts:
        share = len(c.names) ** -0.5  # of a row; squares are summed
        for template in templates(c.kind, prompts):
            end_anchor = span_of(model, template, c.anchor).stop
            anchor = model.embed([template.format(c.anchor)]).states[0].cpu().double()
            for name in c.names:
                end = span_of(model, template, name).stop
                states = model.embed([template.format(name)]).states[0].cpu().double()
                n = length - max(end, end_anchor)
                erased.append(share * states[end : end + n])
                instead.append(share * anchor[end_anchor : end_anchor + n])
    return torch.cat(erased), torch.cat(instead)
