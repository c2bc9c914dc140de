"""Does similarity of texts predict which concepts an erasure harms, and what predicts it better?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.concepts import Concept
from efface.evaluation.clip import load as load_clip
from efface.evaluation.sensitivity import PROXIES, closed_form, prediction, text_states
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import DiffusionModel, watched
from efface.reporting.figures import OTHER, QUIET, panels, svg
from efface.scores import Score, rank_correlation, ranks
from efface.seeds import generator
from efface.studies.lab import Lab
from efface.vocabulary import tokens_of

ERASED = ("church", "wolf", "beer mug")


def run(
    lab: Lab, erased: tuple[str, ...] = ERASED, updates: int = 60, n: int = 2
) -> dict[str, Any]:
    """Rank every concept by real harm and by what could be known before; correlate.

    Real harm: the fall of the CLIP score at equal seeds under ESD without preservation, and the
    change of the predicted noise.
    """
    edits, table = [], {}
    for name in erased:
        edit = lab.edit(ESD(updates=updates), [Concept(name)])
        edits.append(edit)
        others = [w for w in lab.names if w != name]
        proxies = {k: lab.edit(make(), [Concept(name)]) for k, make in PROXIES.items()}
        signed = cosines(lab.model, [name], others)[0]
        told = {
            "harm: picture": lab.lost(edit, others, n).harm,
            "harm: prediction": prediction(lab.model, edit, others, 4, progress=False).harm,
            "text cosine": signed,
            "text cosine, without its sign": signed.abs(),
            "shared tokens": shared(lab.model, name, others),
            "picture features": seen_alike(lab, name, others, n),
            "attention overlap": overlap(lab.model, name, others),
            "closed form, of a UCE edit": closed_form(
                lab.model, lab.edit(UCE(), [Concept(name)]), others, progress=False
            ).harm,
            **{
                f"prediction, of {k}": prediction(lab.model, p, others, 4, progress=False).harm
                for k, p in proxies.items()
            },
        }
        table[name] = {k: [round(float(x), 5) for x in v] for k, v in told.items()}
        table[name]["words"] = others  # type: ignore[assignment]
    return {**lab.about(edits), "pictures": n, "updates": updates, "erased": table}


@torch.no_grad()
def cosines(model: DiffusionModel, names: Sequence[str], words: Sequence[str]) -> Tensor:
    """Cosines of the text states of last words, (names, words)."""
    one, two = (
        normalize(text_states(model, w, progress=False).float().flatten(1), dim=1)
        for w in (names, words)
    )
    return (one @ two.T).cpu()


def shared(model: DiffusionModel, name: str, words: Sequence[str]) -> Tensor:
    """Jaccard index of the tokens."""
    mine, found = tokens_of(model.tokenizer, name), []
    for w in words:
        its = tokens_of(model.tokenizer, w)
        found.append(len(mine & its) / len(mine | its))
    return torch.tensor(found)


def seen_alike(lab: Lab, name: str, words: Sequence[str], n: int) -> Tensor:
    """Cosine of the mean CLIP features of the unedited model's pictures."""
    samples, clip = lab.samples(None, [name, *words], n), load_clip()
    mean = clip.pictures(samples.images()).view(1 + len(words), n, -1).mean(1)
    mean = normalize(mean, dim=1)
    return mean[1:] @ mean[0]


@torch.no_grad()
def overlap(
    model: DiffusionModel, name: str, words: Sequence[str], latents: int = 2, batch: int = 64
) -> Tensor:
    """Cosine of where the denoiser looks at the words, over all layers, on shared noise."""
    z = model.noise(latents, generator(0, "similarity"))
    t = torch.linspace(0.3, 0.9, latents).mul(model.process.times).long().to(model.device)

    def maps(some: Sequence[str]) -> Tensor:
        cond, at = model.embed(some), model.last_word(some)[:, 0]
        found = []
        for k in range(latents):
            with watched(model) as seen:
                model.predict(z[[k]].expand(len(some), -1, -1, -1), t[[k]].expand(len(some)), cond)
            rows = torch.arange(len(some))
            found += [normalize(a[rows, :, :, at].mean(1), dim=1) for a in seen]
        return torch.cat(found, 1)

    mine = maps([name])
    parts = [
        torch.cosine_similarity(maps(words[i : i + batch]), mine)
        for i in range(0, len(words), batch)
    ]
    return torch.cat(parts).cpu()


def pooled(tables: Sequence[Mapping[str, Any]], key: str) -> Tensor:
    """Ranks within each erased concept, one after the other."""
    return torch.cat([ranks(torch.tensor(t[key], dtype=torch.float64)) for t in tables])


def correlations(found: Mapping[str, Any], harm: str) -> dict[str, Score]:
    """Rank correlation of each predictor with the real harm, within each erased concept."""
    tables = list(found["erased"].values())
    keys = [k for k in tables[0] if k != "words" and not k.startswith("harm")]
    told = {k: rank_correlation(pooled(tables, k), pooled(tables, harm)) for k in keys}
    return dict(sorted(told.items(), key=lambda kv: -kv[1].value))


def figure(found: Mapping[str, Any]) -> str:
    """Correlations with intervals, for both kinds of real harm."""
    drawing, axes = panels(11, 3.6, 2, sharey=True)
    both = [correlations(found, f"harm: {k}") for k in ("picture", "prediction")]
    order = list(both[0])
    for ax, told, harm in zip(axes, both, ("picture", "prediction"), strict=True):
        ax.axvline(0, color=QUIET)
        ax.barh(range(len(order)), [told[k].value for k in order], color=OTHER)
        ends = zip(*(told[k].ends for k in order), strict=True)
        ax.hlines(range(len(order)), *ends, color="#111")
        ax.set_yticks(range(len(order)), order)
        ax.set_xlabel(f"rank correlation with the {harm}'s harm")
    axes[0].invert_yaxis()
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words."""
    real, noise = (correlations(found, f"harm: {k}") for k in ("picture", "prediction"))
    best, second = list(real)[:2]
    tables = list(found["erased"].values())
    agree = rank_correlation(pooled(tables, "harm: picture"), pooled(tables, "harm: prediction"))
    return (
        f"{', '.join(found['erased'])} erased one at a time by ESD, {found['updates']} updates, "
        "nothing preserved; every other concept ranked by the fall of the CLIP score of "
        f"{found['pictures']} pictures. Rank correlation with it: text cosine "
        f"{real['text cosine'].said(2)}, without its sign "
        f"{real['text cosine, without its sign'].said(2)}; best is {best} "
        f"({real[best].said(2)}), then {second} ({real[second].said(2)}). With the change of the "
        f"predicted noise as the harm, best is {next(iter(noise))} "
        f"({next(iter(noise.values())).said(2)}). The two kinds of harm agree by {agree.said(2)}."
    )
