"""What an erased concept becomes where nobody says: an anchor, searched for in the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from efface.concepts import Concept, check
from efface.errors import UserError
from efface.models import Conditioning, DiffusionModel, stack
from efface.names import normal
from efface.seeds import generator
from efface.training.runs import Notes
from efface.vocabularies import load, styles_of, told
from efface.vocabulary import Vocabulary, stems_of
from efface.wordlists import broader, is_style, kinds, relatives, styles_among

AUTO = "auto"
"""The anchor that is searched for."""
STEPS, AT = 25, 0.6
"""Candidates are compared where a trajectory of so many steps has made so much of a picture: there
the prediction depends most on the word (earlier on the noise, later on the picture)."""
COARSE = 10
"""Steps of the trajectories of a candidate's own pictures."""
OTHERS, LIKELIER = 16, 2
"""Of so many other words, so many at least must resemble an anchor more than the concept's name
does, on the anchor's own pictures: else these can be taken for the concept's. Found with the
unedited model alone, by ``bench/anchors.py``."""
LATENTS, BEST = 2, 8
"""Half-made pictures on which they are compared, the concept's own and the anchor's; on all but the
concept's first, only so many that are best on that one. With four or eight the anchor is less a
seed's luck, but taken for the concept no less often, and costs more (``bench/anchors.py``)."""
MANY = 20
"""Concepts from which on a bar is shown."""
MOST, AMONG = 200, 1000
"""Of a larger vocabulary so many are compared, evenly chosen among so many nearest by text."""


class Compared(NamedTuple):
    """How candidates stand to a concept, on the concept's own half-made pictures."""

    words: tuple[str, ...]
    cosine: Tensor
    """Of what the word and what the concept add to the null prompt's prediction, (K,)."""
    far: Tensor
    """Squared distance of their predictions, by that of the concept and the null prompt, (K,)."""
    strength: Tensor
    """Norm of what the word adds, by the concept's, (K,)."""


@torch.no_grad()
def half_made(
    model: DiffusionModel, cond: Conditioning, g: torch.Generator, steps: int = STEPS
) -> Tensor:
    """Latents where the prediction depends most on the word; two evaluations a step and latent.

    Args:
        cond: B encoded prompts.
        steps: of a whole trajectory.

    Returns:
        A latent for each, (B, C, H, W).
    """
    made = range(int(AT * steps))
    return model.rollout(model.noise(len(cond), g), cond, model.schedule(steps), made, 3.0)


def own_pictures(
    model: DiffusionModel, name: str, seed: int, steps: int = STEPS, n: int = LATENTS
) -> Tensor:
    """Half-made pictures of a concept or a word, the same for a seed.

    Args:
        steps: of a whole trajectory.

    Returns:
        (n, C, H, W).
    """
    cond = model.embed([name]).repeat(n)
    return half_made(model, cond, generator(seed, "anchor", name), steps)


def half_way(model: DiffusionModel, steps: int = STEPS) -> Tensor:
    """The timestep of :func:`half_made`, ()."""
    return model.schedule(steps).timesteps[int(AT * steps)].to(model.device)


@torch.no_grad()
def compare(
    model: DiffusionModel,
    name: str,
    words: Sequence[str],
    z: Tensor,
    steps: int = STEPS,
    encoded: Conditioning | None = None,
) -> Compared:
    """Compare candidates with a concept by what the frozen model predicts.

    Costs ``(K + 2) n`` evaluations.

    Args:
        words: K candidates.
        z: half-made pictures of the concept, (n, C, H, W).
        steps: of the trajectories that they are of.
        encoded: the candidates, encoded; None: not yet.
    """
    t = half_way(model, steps)
    encoded = model.embed(words, null=True) if encoded is None else encoded
    rows = stack([model.null(1), model.embed([name]), encoded])
    found = []
    for one in z:
        parts = [
            model.predict(one.expand(len(some), -1, -1, -1), t.expand(len(some)), some)
            for some in (rows[i : i + model.at_once] for i in range(0, len(rows), model.at_once))
        ]
        found.append(torch.cat(parts).flatten(1).cpu())
    e = torch.stack(found, 1)  # (K + 2, n, D)
    own, more = e[1] - e[0], (e[2:] - e[0]).flatten(1)
    whole = own.norm()
    return Compared(
        tuple(words),
        torch.cosine_similarity(more, own.flatten()[None]),
        (e[2:] - e[1]).flatten(1).norm(dim=1).square() / whole.square(),
        more.norm(dim=1) / whole,
    )


def candidates(
    model: DiffusionModel, concept: Concept, erased: Sequence[Concept], source: str
) -> Vocabulary:
    """The words that a concept, or another one of its kind, may become.

    None that is erased, shares a word with an erased name, or is known to be a kind of one, or what
    one is a kind of (WordNet). A style becomes another style, and no artist's.

    Args:
        erased: all that is erased, with ``concept``.
        source: of :func:`efface.vocabularies.load`.

    Returns:
        Nothing for a style where the vocabulary holds no other.

    Raises:
        UserError: none is left for a thing.
    """
    (concept,) = told(model, [concept])
    found = load(source, model, [concept], erased).without(erased, model.tokenizer, parts=True)
    names = {normal(n) for c in erased for n in c.names}
    kin = {normal(w) for w in kinds(names) | broader(names)}
    taken = {s for c in erased for n in c.names for s in parts_of(n)}
    taken -= shared(concept)
    free = tuple(
        w for w in found.words if normal(w) and normal(w) not in kin and not parts_of(w) & taken
    )
    if is_style(concept):
        free = styles_among(free, styles_of(model))
    elif not free:
        raise UserError(
            f"the vocabulary ({found.source}) holds no word that {concept.name!r} could become: "
            "give a larger one, or its anchor: 'name -> anchor'."
        )
    return Vocabulary(free, found.source, beside=tuple(c.name for c in erased), seen={})


def shared(concept: Concept) -> frozenset[str]:
    """What a style may share with its anchor: "pixel art" is no nearer to "folk art" for its end.

    Of a thing nothing.
    """
    ends = [" ".join(n.split()[1:][-1:]) for n in concept.names] if is_style(concept) else []
    return frozenset(s for end in ends for s in parts_of(end))


def parts_of(name: str) -> frozenset[str]:
    """The words of a name, without regular plurals."""
    return frozenset(s for w in re.findall(r"[^\W\d_]{3,}", normal(name)) for s in stems_of(w))


def steered(
    model: DiffusionModel,
    concepts: Sequence[Concept],
    anchor: str,
    source: str,
    seed: int,
    progress: bool = False,
    notes: Notes | None = None,
) -> tuple[Concept, ...]:
    """The concepts with their anchors: those without one get the method's.

    Args:
        anchor: a word, :data:`AUTO`, or nothing.
        source: the vocabulary in which an anchor is searched for.
        seed: of the pictures on which candidates are compared.
        progress: show a bar, where there are many.
        notes: what was found before a kill, and keeps what is found.

    Raises:
        UserError: the anchor is erased itself, or none can be found.
    """
    if anchor != AUTO:
        found = [replace(c, anchor=c.anchor or anchor) for c in concepts]
        return check(found, (), model.tokenizer)[0]
    words: dict[tuple[str, ...], Vocabulary] = {}
    encoded: dict[tuple[str, ...], Conditioning] = {}
    found = []
    quiet = not progress or len(concepts) < MANY
    for c in tqdm(concepts, desc="anchors", unit="concept", disable=quiet):
        if not c.anchor and notes is not None and c.name in notes.anchors:
            c = replace(c, anchor=notes.anchors[c.name])
        elif not c.anchor:
            kin = (c.kind, *relatives([c]), *shared(c))  # which words there are depends on it
            if kin not in words:
                words[kin] = candidates(model, c, concepts, source)
            if words[kin].words:
                c = searched(model, c, words[kin], seed, encoded=encoded)
            if notes is not None:
                notes.keep(c.name, c.anchor)
        found.append(c)
    return check(found, (), model.tokenizer)[0]


def narrowed(model: DiffusionModel, concept: Concept, words: Vocabulary) -> Vocabulary:
    """Those of many words that are compared with a concept."""
    size = MOST if len(words) > MOST else 0
    return words.pool(model, concept, size, size and AMONG, "even")


def likelier(
    model: DiffusionModel, word: str, name: str, words: Sequence[str], seed: int, n: int = LATENTS
) -> int:
    """How many of some other words resemble a word more than a concept's name does.

    On the word's own half-made pictures, by the cosine of what both add to the null prompt's
    prediction. Costs ``n (12 + OTHERS + 3)`` evaluations.

    Args:
        words: of which :data:`OTHERS`, evenly chosen, are looked at.
        n: half-made pictures.
    """
    left = [w for w in words if w not in (word, name)]
    k = min(OTHERS, len(left))
    some = [left[i * len(left) // k] for i in range(k)]
    z = own_pictures(model, word, seed, COARSE, n)
    own, *others = compare(model, word, [name, *some], z, COARSE).cosine.tolist()
    return sum(cosine >= own for cosine in others)  # alike where a forecast predicts nothing


def searched(
    model: DiffusionModel,
    concept: Concept,
    words: Vocabulary,
    seed: int,
    least: int = LIKELIER,
    encoded: dict[tuple[str, ...], Conditioning] | None = None,
    n: int = LATENTS,
) -> Concept:
    """A concept with its anchor: near on its own pictures, and apart on the anchor's.

    It is the word that is predicted most nearly as the concept is, on the concept's half-made
    pictures, of those whose own pictures can't be taken for the concept; where there is none among
    the nearest, the one that most words resemble more.

    Args:
        words: :func:`candidates`.
        least: how many other words must resemble an anchor more; 0: the nearest word is taken.
        encoded: the candidates of the concept before, encoded; those of this one are put there.
        n: half-made pictures on which words are compared.
    """
    some = narrowed(model, concept, words).words
    z = own_pictures(model, concept.name, seed, n=n)
    rows = (encoded or {}).get(some)
    rows = model.embed(some, null=True) if rows is None else rows
    if encoded is not None:
        encoded.clear()
        encoded[some] = rows
    first = compare(model, concept.name, some, z[:1], encoded=rows)
    best = tuple(some[int(i)] for i in first.far.argsort()[:BEST])
    found = compare(model, concept.name, best, z)
    apart: dict[str, int] = {}
    for word in (best[int(i)] for i in found.far.argsort()):
        apart[word] = likelier(model, word, concept.name, some, seed, n) if least else 0
        if apart[word] >= least:
            return replace(concept, anchor=word)
    return replace(concept, anchor=max(apart, key=apart.__getitem__))
