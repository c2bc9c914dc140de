"""Concepts share an erasure equally, however many synonyms one has; names share their concept."""

from dataclasses import replace

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, quick

import efface.methods.mace as mace_module
from efface.concepts import TEMPLATES, Concept
from efface.methods.ca import CA
from efface.methods.mace import MACE, refinement_rows
from efface.methods.speed import SPEED
from efface.methods.uce import UCE
from efface.models import DiffusionModel
from efface.training.closed_form import evened, solve, text_vectors
from efface.training.latents import Bank, Banked, RolledOut, Rollout
from efface.training.pictures import Noised

MANY = Concept("dog", anchor="cat", synonyms=("hound", "puppy", "mutt"))
EACH = {"church": 1 / 2, "dog": 1 / 8, "hound": 1 / 8, "puppy": 1 / 8, "mutt": 1 / 8}
"""Share of the rows of each name of two concepts."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def source_of(tiny, kind, concepts):
    if kind == "bank":
        return Banked(tiny, concepts, Bank(ddim_steps=2, trajectories=2), seeded(), progress=False)
    return RolledOut(tiny, concepts, Rollout(ddim_steps=2))


def rows_of(source, g, n):
    """The name of each of ``n`` rows that a source draws, by its encoding."""
    if isinstance(source, RolledOut):
        return source.begin(g, n)[0]
    drawn = source.draw(g, n).concept.states.flatten(1)
    return torch.cdist(drawn, source.encoded.concept.states.flatten(1)).argmin(1)


@pytest.mark.parametrize("kind", ["bank", "rollout"])
def test_concepts_share_rows_equally_and_names_within(tiny, kind):
    rows = rows_of(source_of(tiny, kind, [CHURCH, MANY]), torch.Generator().manual_seed(0), 4000)
    share = rows.bincount(minlength=5) / 4000
    torch.testing.assert_close(share, torch.tensor(list(EACH.values())), rtol=0, atol=0.03)


@pytest.mark.parametrize("kind", ["bank", "rollout"])
@pytest.mark.parametrize("concepts", [[CHURCH, Concept("dog")], [MANY]], ids=["plain", "one"])
def test_rows_of_concepts_with_as_many_names_are_drawn_as_ever(tiny, kind, concepts):
    source = source_of(tiny, kind, concepts)
    names = sum(len(c.names) for c in concepts)
    rows = rows_of(source, torch.Generator().manual_seed(3), 50)
    g = torch.Generator().manual_seed(3)
    if kind == "bank":
        assert torch.equal(rows, torch.randint(0, 2 * names, (50,), generator=g) // 2)
    else:
        assert torch.equal(rows, torch.randint(0, names, (50,), generator=g))


def seen_prompts(tiny, monkeypatch, method, concepts):
    """How often each name's prompts are trained on: those of a student, by their encoding."""
    prompts = [(n, t.format(n)) for c in concepts for n in c.names for t in TEMPLATES[c.kind]]
    states = tiny.embed([p for _, p in prompts]).states.flatten(1)
    counts, predict = dict.fromkeys((n for n, _ in prompts), 0), DiffusionModel.predict

    def noting(self, z, t, cond, weights=None):
        if weights is not None:
            for i in torch.cdist(cond.states.detach().flatten(1), states).argmin(1).tolist():
                counts[prompts[i][0]] += 1
        return predict(self, z, t, cond, weights)

    monkeypatch.setattr(DiffusionModel, "predict", noting)
    method.erase(tiny, concepts, QUIET)
    return counts


def test_ca_trains_concepts_equally_and_names_within(tiny, words, monkeypatch):
    method = replace(quick(CA(), words, updates=4), batch=300)
    counts = seen_prompts(tiny, monkeypatch, method, [CHURCH, MANY])
    total = sum(counts.values())
    assert total == 1200
    for name, share in EACH.items():
        assert counts[name] / total == pytest.approx(share, abs=0.05)


def test_closed_forms_weigh_concepts_equally(tiny):
    once = text_vectors(tiny, ["church", "dog", "hound", "puppy", "mutt"])
    weight = torch.tensor(list(EACH.values()), dtype=once.dtype)[:, None]  # sums to 1
    rows = evened(once, [CHURCH, MANY])
    torch.testing.assert_close(rows.T @ rows, once.T @ (2 * weight * once))
    plain = text_vectors(tiny, ["church", "dog"])
    assert evened(plain, [CHURCH, Concept("dog")]) is plain
    several = text_vectors(tiny, ["church", "dog", "hound"], "all")
    assert evened(several, [CHURCH, DOG]).shape == several.shape


def test_uce_and_speed_weigh_concepts_equally(tiny, words):
    """The same name thrice as synonyms of another spelling is that name once."""
    thrice = Concept("dog", "cat", synonyms=("Dog", "DOG"))
    alone = Concept("dog", "cat")
    for method in (UCE(), quick(SPEED(), words), quick(MACE(updates=1, lr=1e-12), words)):
        if isinstance(method, MACE):
            a, b = (refinement_rows(tiny, [CHURCH, c]) for c in (alone, thrice))
            torch.testing.assert_close(
                solve(*b, None, 1.0, 0.0, 0.1), solve(*a, None, 1.0, 0.0, 0.1)
            )
            continue
        one, other = (method.erase(tiny, [CHURCH, c], QUIET) for c in (alone, thrice))
        for name, w in one.weights.items():
            torch.testing.assert_close(other.weights[name], w, rtol=1e-4, atol=1e-5)


def test_mace_fuses_concepts_equally(tiny, words):
    method = quick(MACE(), words)
    own = {n: tiny.parameters()[n].double() for n in tiny.text_maps()[:1]}
    parts = [{n: w.roll(i) for n, w in own.items()} for i in (1, 2)]
    prior = torch.eye(16).double()
    alone, thrice = Concept("dog", "cat"), Concept("dog", "cat", synonyms=("Dog", "DOG"))
    one, other = (method.fuse(tiny, [CHURCH, c], own, own, parts, prior) for c in (alone, thrice))
    for name, w in one.items():
        torch.testing.assert_close(other[name], w, rtol=1e-4, atol=1e-5)


class Marked(MACE):
    """MACE whose masks say which picture they belong to."""

    def masks(self, model, pictures, cond, where, g):
        found = super().masks(model, pictures, cond, where, g)
        marks = torch.arange(1.0, 1 + len(found))
        return marks[:, None, None].expand_as(found).contiguous()


def test_mace_looks_at_picture_mask_and_word_of_one_row(tiny, words, monkeypatch):
    concept = Concept("church", synonyms=("beer mug", "cathedral", "chapel"))
    method = quick(Marked(updates=12), words, updates=12)
    whole, noised, drawn, masked, names = [], [], [], [], []

    make, draw = Noised.__init__, Noised.draw
    predict, resize = DiffusionModel.predict, mace_module.interpolate

    def making(self, *args, **kwargs):
        make(self, *args, **kwargs)
        whole.append((self.z0.clone(), self.prompt.clone()))

    def drawing(self, g, batch, chance=None):
        z, t, rows = draw(self, g, batch, chance)
        drawn.append(self.z0[rows])  # the pictures that z is made of
        noised.append(z)
        return z, t, rows

    def resizing(x, **kwargs):
        if x.shape[-1] and x.flatten(1).std(1).eq(0).all() and x.min() >= 1:
            masked.append(x[:, 0, 0, 0].long() - 1)
        return resize(x, **kwargs)

    prompts = [(n, t.format(n)) for n in concept.names for t in TEMPLATES["object"]]
    states = tiny.embed([p for _, p in prompts]).states.flatten(1)

    def predicting(self, z, t, cond, weights=None):
        if weights is not None:
            assert z is noised[-1]
            near = torch.cdist(cond.states.flatten(1), states).argmin(1).tolist()
            names.append([concept.names.index(prompts[i][0]) for i in near])
        return predict(self, z, t, cond, weights)

    monkeypatch.setattr(Noised, "__init__", making)
    monkeypatch.setattr(Noised, "draw", drawing)
    monkeypatch.setattr(mace_module, "interpolate", resizing)
    monkeypatch.setattr(DiffusionModel, "predict", predicting)
    method.erase(tiny, [concept], QUIET)

    ((z0, prompt),) = whole
    layers = len(masked) // len(drawn)
    assert len(drawn) == len(names) == 12
    assert layers * 12 == len(masked)
    used = set()
    for i in range(12):
        pictures = torch.cdist(drawn[i].flatten(1), z0.flatten(1)).argmin(1)
        for mask in masked[layers * i : layers * (i + 1)]:
            assert torch.equal(mask, pictures)
        assert prompt[pictures].tolist() == names[i]
        used |= set(names[i])
    assert len(used) > 1  # more than one name had its turn
