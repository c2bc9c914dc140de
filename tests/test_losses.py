"""The loss of each method against the formula of its paper, one latent and one word at a time."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pytest
import torch
from conftest import DOG, WORDS, job_of, quick, shaken
from torch.nn.functional import interpolate

import efface.training.erasure as erasure
from efface.concepts import TEMPLATES, Concept
from efface.methods.age import AGE
from efface.methods.ap import AP
from efface.methods.ca import CA
from efface.methods.esd import ESD
from efface.methods.mace import MACE, span_of
from efface.methods.speed import SPEED, fixed_vectors
from efface.methods.spm import SPM, random_like
from efface.methods.uce import UCE
from efface.models import Conditioning, watched
from efface.seeds import generator
from efface.training import Bank, Pictures, Rollout, Run, Student
from efface.training.pictures import Noised
from efface.training.search import Exact, Gumbel, Online, Random, Setting

CHURCH = Concept("church", pool=("moon",))
HOUND = replace(DOG, pool=("small river",))  # dog -> cat, with a synonym
BOTH = [CHURCH, HOUND]
NAMES = ["church", "dog", "hound"]
ANCHOR = {"church": "", "dog": "cat", "hound": "cat"}
POOL = {"church": "moon", "dog": "small river", "hound": "small river"}
SMALL = Bank(ddim_steps=3, trajectories=2)


class Caught(NamedTuple):
    """What a method hands to the fine-tuning."""

    job: Any
    loss: Any
    stateful: Any
    start: Any
    adapters: Any


@pytest.fixture
def caught(monkeypatch):
    """What is handed to the fine-tuning, which gives back the weights that it was started with."""
    seen = []

    def record(job, loss, stateful=(), start=None, adapters=None):
        own = job.model.parameters() if start is None else start
        seen.append(Caught(job, loss, stateful, start, adapters))
        moved = {
            k: own[k].detach() * (1 + 0.1 * len(seen)) for k in job.model.group(job.method.group)
        }
        return moved, job.method.updates

    monkeypatch.setattr(erasure, "finetune", record)
    return seen


@dataclass
class Spy(Student):
    """A student that remembers what it was asked."""

    asked: list = field(default_factory=list)

    def __call__(self, z, t, cond):
        self.asked.append((z, t, cond))
        return super().__call__(z, t, cond)


def student_of(model, group="xattn"):
    """A student that has learnt something."""
    return Spy(model, {k: w.requires_grad_() for k, w in shaken(model, group).items()})


def draws(n=0):
    return generator(n, "test of a loss")


def eps(model, z, t, word, weights=None):
    """What is predicted on one latent for one word."""
    return model.predict(z[None], t[None], model.embed([word]), weights)[0]


def squared(a, b):
    return (a - b).square().mean()


def pushed(model, z, t, name, eta, anchor=None):
    """ε(c_a) - η (ε(c_e) - ε(c_a)) of the frozen model (arXiv:2303.07345, equation 5)."""
    towards = eps(model, z, t, ANCHOR[name] if anchor is None else anchor)
    return towards - eta * (eps(model, z, t, name) - towards)


def said(model, cond, prompts):
    """Which of some prompts each row encodes."""
    own, theirs = (c.states.detach().flatten(1) for c in (cond, model.embed(prompts)))
    far = torch.cdist(own, theirs, compute_mode="donot_use_mm_for_euclid_dist")
    near, index = far.min(1)
    assert near.max() < 1e-4
    return [prompts[i] for i in index.tolist()]


def changed(model, student, z, t, word):
    """How much the prediction for a word has moved."""
    return squared(eps(model, z, t, word, student.weights), eps(model, z, t, word))


def mean(values):
    return torch.stack(list(values)).mean()


def agree(value, slow, student):
    """Whether a loss and the slow formula have one value, and one gradient."""
    torch.testing.assert_close(value, slow, rtol=1e-4, atol=1e-6)
    weights = list(student.weights.values())
    quick, careful = (
        torch.autograd.grad(x, weights, allow_unused=True, materialize_grads=True)
        for x in (value, slow)
    )
    assert any(b.any() for b in careful)
    for a, b in zip(quick, careful, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 + 1e-4 * float(b.abs().max()))


def x0_weight(model, t):
    """(1 - ᾱ)/ᾱ."""
    alphas = model.process.alphas[t.long()]
    return (1 - alphas) / alphas


# -- what is kept --------------------------------------------------------------------------------


def test_every_kept_word_has_its_share_of_the_latents(tiny):
    keep = ("moon", "", "blue sun")
    job = job_of(tiny, BOTH, ESD(keep=keep, keep_weight=2.5))
    student, g = student_of(tiny), draws()
    z, t = tiny.noise(7, g), torch.tensor([1, 50, 300, 500, 700, 900, 999])
    value = job.keeping().term(student, z, t, g)
    ((_, _, cond),) = student.asked
    words = said(tiny, cond, keep)
    assert sorted(words.count(w) for w in keep) == [2, 2, 3]
    slow = 2.5 * mean(changed(tiny, student, *row) for row in zip(z, t, words, strict=True))
    agree(value, slow, student)
    assert job_of(tiny, BOTH, ESD()).keeping().term(student, z, t, g) == 0
    assert job_of(tiny, BOTH, ESD(keep=keep, keep_weight=0)).keeping().rows is None


# -- ESD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 2.5])
def test_esd_pushes_away_and_keeps(tiny, caught, eta):
    method = ESD(eta=eta, keep=("moon",), keep_weight=3.0, batch=5, latents=SMALL)
    job = job_of(tiny, BOTH, method)
    method.make(job)
    student = student_of(tiny)
    value = caught[0].loss(student, draws())
    b = SMALL.open(job).draw(draws(), 5)
    names = said(tiny, b.concept, NAMES)
    assert {*names} > {"church"}
    rows = list(zip(b.z, b.t, names, strict=True))
    away = mean(squared(eps(tiny, *r, student.weights), pushed(tiny, *r, eta)) for r in rows)
    kept = mean(changed(tiny, student, z, t, "moon") for z, t, _ in rows)
    agree(value, away + 3 * kept, student)


# -- AP ------------------------------------------------------------------------------------------


def ap_value(tiny, student, method, b, words):
    """Erase every row; preserve word i on the latent of row i, the rows over again; keep one."""
    names = said(tiny, b.concept, NAMES)
    n = len(names)
    w = x0_weight(tiny, b.t) if method.x0_weighting else torch.ones(n)
    rows = list(zip(b.z, b.t, names, strict=True))
    erased = mean(
        w[i] * squared(eps(tiny, *r, student.weights), pushed(tiny, *r, method.eta))
        for i, r in enumerate(rows)
    )
    harm = mean(
        w[i % n] * changed(tiny, student, b.z[i % n], b.t[i % n], word)
        for i, word in enumerate(words)
    )
    kept = mean(changed(tiny, student, z, t, "blue sun") for z, t, _ in rows)
    return erased + method.preserve * harm + method.keep_weight * kept


@pytest.mark.parametrize("x0", [False, True])
@pytest.mark.parametrize("preserved", [0, 7])
def test_ap_erases_preserves_and_keeps(tiny, caught, x0, preserved):
    method = AP(
        eta=1.5,
        preserve=0.7,
        preserve_batch=preserved,
        reuse=0,
        batch=4,
        keep=("blue sun",),
        keep_weight=2.0,
        x0_weighting=x0,
        search=Exact(probes=1),
        latents=SMALL,
    )
    job = job_of(tiny, BOTH, method)
    method.make(job)
    student = student_of(tiny)
    caught[0].stateful[0].begin(student, 4, draws(1))
    value = caught[0].loss(student, draws())
    b = SMALL.open(job).draw(draws(), 4)
    names = said(tiny, b.concept, NAMES)
    words = [POOL[names[i % 4]] for i in range(preserved or 4)]
    agree(value, ap_value(tiny, student, method, b, words), student)


def test_ap_preserves_what_is_harmed_most(tiny, caught):
    pool = ("moon", "small river", "blue sun", "big cow")
    concept = Concept("church", pool=pool)
    search = Exact(probes=2, top=1, refresh=1, memory=0.0)
    method = AP(eta=1.0, preserve_batch=3, batch=2, search=search, latents=SMALL)
    job = job_of(tiny, [concept], method)
    method.make(job)
    student, latents = student_of(tiny), SMALL.open(job)
    probes = latents.draw(job.generator("probes"), 2)
    at_work = caught[0].stateful[0]
    for probe in (0, 1):  # one a scoring, in turn
        at_work.begin(student, 2, draws(1))
        z, t = probes.z[probe], probes.t[probe]
        harm = [changed(tiny, student, z, t, w).item() for w in pool]
        worst = pool[harm.index(max(harm))]
        student.asked.clear()
        caught[0].loss(student, draws())
        ((_, _, cond),) = student.asked
        assert said(tiny, cond, ["church", *pool]) == ["church"] * 2 + [worst] * 3


@pytest.mark.parametrize("x0", [False, True])
def test_ap_holds_words_on_latents_of_their_own(tiny, caught, x0):
    """Each preserved row is one of the word's few pairs of latent and goal."""
    pool = ("moon", "small river", "blue sun")
    method = AP(
        eta=1.5, preserve=0.7, preserve_batch=5, batch=2, reuse=2, x0_weighting=x0,
        search=Random(), latents=SMALL,
    )  # fmt: skip
    job = job_of(tiny, [Concept("church", pool=pool)], method)
    before = tiny.counter.copy()
    method.make(job)
    bank = 2 * 2 * 3 + 2 * 3 * 0  # guided steps of two trajectories; the null prompt's is there
    assert tiny.counter.since(before).forward == bank + 2 * len(pool)
    student = student_of(tiny)
    before = tiny.counter.copy()
    value = caught[0].loss(student, draws())
    assert tiny.counter.since(before).forward == 7  # the student's, and none of the frozen model
    ((z, t, cond),) = student.asked
    words = said(tiny, cond, ["church", *pool])
    assert words[:2] == ["church"] * 2
    places = {w: set() for w in pool}
    for seed in range(40):
        student.asked.clear()
        caught[0].loss(student, draws(seed))
        ((zs, ts, conds),) = student.asked
        for w, one, when in zip(said(tiny, conds, ["church", *pool]), zs, ts, strict=True):
            if w != "church":
                places[w].add((float(one.sum()), int(when)))
    assert all(1 <= len(p) <= 2 for p in places.values())
    assert max(len(p) for p in places.values()) == 2
    w = x0_weight(tiny, t) if x0 else torch.ones(len(t))
    rows = list(zip(z, t, words, strict=True))
    erased = mean(
        w[i] * squared(eps(tiny, *r, student.weights), pushed(tiny, *r, 1.5))
        for i, r in enumerate(rows[:2])
    )
    harm = mean(w[i] * changed(tiny, student, *r) for i, r in enumerate(rows) if i >= 2)
    agree(value, erased + 0.7 * harm, student)


def test_words_are_drawn_as_often_as_they_were_seen_harmed(tiny, caught):
    pool = ("moon", "small river", "blue sun", "big cow")
    search = Online(memory=0.25, any=0.2)
    method = AP(preserve_batch=3, batch=2, search=search, latents=SMALL)
    job = job_of(tiny, [Concept("church", pool=pool)], method)
    method.make(job)
    student, at_work = student_of(tiny), caught[0].stateful[0]
    assert at_work.odds.tolist() == [1.0] * 4
    known = {}
    for update in range(3):
        seen = {}
        student.asked.clear()
        caught[0].loss(student, draws(update))
        ((z, t, cond),) = student.asked
        for w, one, when in list(zip(said(tiny, cond, ["church", *pool]), z, t, strict=True))[2:]:
            seen.setdefault(w, []).append(changed(tiny, student, one, when, w).item())
        for w, harms in seen.items():
            fresh = sum(harms) / len(harms)
            known[w] = 0.25 * known[w] + 0.75 * fresh if w in known else fresh
        at_work.end(student)
    typical = sum(known.values()) / len(known)
    harm = torch.tensor([known.get(w, typical) for w in pool])
    odds = 0.8 * harm / harm.mean() + 0.2
    torch.testing.assert_close(at_work.odds, odds, rtol=1e-3, atol=1e-5)
    again = search.start(Setting(job, at_work.pools, None, None))
    again.restore(at_work.state())
    assert torch.equal(again.odds, at_work.odds)
    drawn = at_work.draw(torch.zeros(4000, dtype=torch.long), 4000, draws(2)).chosen.bincount()
    torch.testing.assert_close(drawn / 4000, odds / odds.sum(), rtol=0, atol=0.03)


@pytest.mark.parametrize("teacher", [False, True])
def test_the_logits_of_ap_climb_the_harm(tiny, caught, teacher):
    method = AP(batch=3, search=Gumbel(teacher_gradient=teacher), latents=SMALL, x0_weighting=True)
    job = job_of(tiny, BOTH, method)
    method.make(job)
    climbs_as(tiny, caught[0].stateful[0], SMALL.open(job), 1.0, teacher)


def climbs_as(tiny, search, latents, weight, teacher, x0=True):
    """Whether a search's objective is the weighted harm, by value and by gradient to the words."""
    student, g = student_of(tiny).still(), draws()
    cond = tiny.embed(["moon", "blue sun", "small river"]).each(
        lambda x: x.clone().requires_grad_()
    )
    b, beside = latents.draw_beside(g, 3, student.weights, lambda which: cond)
    value = search.objective(student, b, beside)
    slow = []
    for i in range(3):
        one = cond[[i]]
        goal = tiny.predict(beside.z[[i]], beside.t[[i]], one)[0]
        moved = tiny.predict(beside.z[[i]], beside.t[[i]], one, student.weights)[0]
        w = x0_weight(tiny, beside.t[i]) if x0 else 1.0
        slow.append(weight * w * squared(moved, goal if teacher else goal.detach()))
    slow = mean(slow)
    torch.testing.assert_close(value, slow, rtol=1e-4, atol=1e-7)
    a, b = (torch.autograd.grad(v, cond.states)[0] for v in (value, slow))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


# -- AGE -----------------------------------------------------------------------------------------

OWN = Rollout(of="student", ddim_steps=3, own=True)


@pytest.mark.parametrize("x0", [False, True])
@pytest.mark.parametrize("latents", [SMALL, OWN], ids=["bank", "own"])
def test_age_steers_to_the_anchor_that_it_preserves(tiny, caught, latents, x0):
    concepts = [CHURCH, replace(HOUND, anchor="")]
    method = AGE(
        eta=1.5,
        preserve=0.7,
        batch=4,
        keep=("blue sun",),
        keep_weight=2.0,
        x0_weighting=x0,
        latents=latents,
    )
    job = job_of(tiny, concepts, method)
    method.make(job)
    student = student_of(tiny)
    value = caught[0].loss(student, draws())

    def choose(which):
        return tiny.embed([concepts[i].pool[0] for i in which.tolist()])

    b, words = latents.open(job).draw_beside(draws(), 4, student.weights, choose)
    names = said(tiny, b.concept, NAMES)
    w = x0_weight(tiny, b.t) if x0 else torch.ones(4)
    slow = []
    for i, name in enumerate(names):
        z, t, anchor = b.z[i], b.t[i], POOL[name]
        goal = pushed(tiny, z, t, name, 1.5, anchor)
        away = squared(eps(tiny, z, t, name, student.weights), goal)
        harm = changed(tiny, student, words.z[i], t, anchor)
        kept = changed(tiny, student, z, t, "blue sun")
        slow.append(w[i] * (away + 0.7 * harm) + 2 * kept)
    agree(value, mean(slow), student)


@pytest.mark.parametrize("x0", [False, True])
def test_the_logits_of_age_climb_the_anchors_harm_through_the_student_alone(tiny, caught, x0):
    method = AGE(batch=3, preserve=0.4, latents=SMALL, x0_weighting=x0)
    job = job_of(tiny, BOTH, method)
    method.make(job)
    climbs_as(tiny, caught[0].stateful[0], SMALL.open(job), 0.4, False, x0)


# -- CA ------------------------------------------------------------------------------------------


@pytest.fixture
def noised(monkeypatch):
    """Every draw of noised pictures: the finished ones, the timesteps and their chances."""
    seen, draw = [], Noised.draw

    def noting(self, g, batch, chance=None):
        z, t, rows = draw(self, g, batch, chance)
        seen.append((z, t, self.z0[rows], chance))
        return z, t, rows

    monkeypatch.setattr(Noised, "draw", noting)
    return seen


def finished(model, job, prompts, config):
    """Pictures of some prompts, by the slow way: prompt, and latent (C, H, W)."""
    g, found = job.generator("pictures"), []
    schedule, span = model.schedule(config.ddim_steps), range(config.ddim_steps)
    for p in prompts:
        z = model.noise(config.n, g)
        for i in span:
            t = schedule.timesteps[i].expand(len(z))
            e0, e1 = (model.predict(z, t, model.embed([x]).repeat(len(z))) for x in ("", p))
            z = schedule.step(z, e0 + config.cfg * (e1 - e0), i).detach()
        found += [(p, x) for x in z]
    return found


def whose(pictures, z0):
    """Of which prompt, and which of the pictures, each of some latents is."""
    far = torch.cdist(z0.flatten(1), torch.stack([x for _, x in pictures]).flatten(1))
    near, index = far.min(1)
    assert near.max() < 1e-2
    return [pictures[i][0] for i in index.tolist()], index.tolist()


@pytest.mark.parametrize("live", [False, True])
def test_ca_maps_the_concepts_prompt_onto_its_anchors_on_pictures_of_the_anchor(
    tiny, caught, noised, live
):
    config = Pictures(n=2, ddim_steps=3)
    method = CA(live=live, pictures=config, batch=4, keep=("moon",), keep_weight=2.0)
    job = job_of(tiny, BOTH, method)
    method.make(job)
    pictures = finished(tiny, job, ["", "cat"], config)
    filled = {t.format(n): (n, t) for n in NAMES for t in TEMPLATES["object"]}
    used = set()
    for n in (2, 3):
        student = student_of(tiny, "kv")
        value = caught[0].loss(student, draws(n))
        z, t, z0, chance = noised[-1]
        a = tiny.process.alphas[t][:, None, None, None]
        assert ((z - a.sqrt() * z0) / (1 - a).sqrt()).std() < 2  # nothing but noise is on them
        assert chance is None
        shown, _ = whose(pictures, z0)
        (*_, cond), (*_, kept) = student.asked[-2:]
        slow = []
        for i, prompt in enumerate(said(tiny, cond, [*filled])):
            name, template = filled[prompt]
            assert ANCHOR[name] == shown[i]
            instead = template.format(shown[i]) if shown[i] else ""
            goal = eps(tiny, z[i], t[i], instead, student.weights if live else None).detach()
            away = squared(eps(tiny, z[i], t[i], prompt, student.weights), goal)
            slow.append(away + 2 * changed(tiny, student, z[i], t[i], "moon"))
            used.add((name, template))
        assert said(tiny, kept, ["moon"]) == ["moon"] * 4
        agree(value, mean(slow), student)
    assert {n for n, _ in used} == {*NAMES}
    assert len({t for _, t in used}) > 2


def test_ca_draws_all_templates_alike(tiny, caught):
    method = CA(pictures=Pictures(n=1, ddim_steps=1), batch=400)
    method.make(job_of(tiny, [Concept("church", "cat")], method))
    student = student_of(tiny, "kv")
    with torch.no_grad():
        caught[0].loss(student, draws())
    prompts = [t.format("church") for t in TEMPLATES["object"]]
    told = said(tiny, student.asked[-1][-1], prompts)
    share = [told.count(p) / 400 for p in prompts]
    assert share == pytest.approx([1 / len(prompts)] * len(prompts), abs=0.06)


def test_all_pictures_and_timesteps_are_drawn_alike(tiny):
    pictures = Noised(tiny, ["church", "dog"], Pictures(n=2, ddim_steps=2), draws(), False)
    _, t, rows = pictures.draw(draws(), 8000)
    share = rows.bincount(minlength=4) / 8000
    torch.testing.assert_close(share, torch.full((4,), 0.25), rtol=0, atol=0.03)
    decile = (t // 100).bincount(minlength=10) / 8000
    torch.testing.assert_close(decile, torch.full((10,), 0.1), rtol=0, atol=0.02)
    assert t.min() >= 0
    assert t.max() <= 999


# -- SPM -----------------------------------------------------------------------------------------


def test_spm_pushes_away_while_random_states_stay_put(tiny, caught):
    method = SPM(
        eta=1.5,
        anchoring=4.0,
        anchors=3,
        batch=2,
        keep=("moon",),
        keep_weight=2.0,
        latents=SMALL,
    )
    job = job_of(tiny, BOTH, method)
    made = method.make(job)
    assert [c.job.concepts for c in caught] == [(CHURCH,), (HOUND,)]  # an adapter each
    assert caught[0].adapters is not caught[1].adapters
    assert [g.names for g in made.gates] == [("church",), ("dog", "hound")]
    assert not replace(method, gated=False).make(job).gates
    for c in caught[:2]:
        assert c.adapters.rank == 1
        assert set(c.adapters.base) == {
            k for k in tiny.group("transformer") if tiny.parameters()[k].ndim > 1
        }
        student = student_of(tiny, "transformer")
        value = c.loss(student, draws())
        b = SMALL.open(c.job).draw(draws(), 2)
        names = said(tiny, b.concept, [n for one in c.job.concepts for n in one.names])
        rows = list(zip(b.z, b.t, names, strict=True))
        away = mean(squared(eps(tiny, *r, student.weights), pushed(tiny, *r, 1.5)) for r in rows)
        _, (z, t, cond), _ = student.asked
        assert z.shape[0] == t.shape[0] == len(cond) == 3
        assert torch.equal(z, b.z[[0] * 3])
        assert torch.equal(t, b.t[[0] * 3])
        sizes = cond.states.flatten(1).norm(dim=1) / b.concept.states[0].norm()
        assert 0.8 <= sizes.min() < sizes.max() <= 1.2
        assert torch.pdist(cond.states.flatten(1)).min() > 0
        drift = (
            squared(
                tiny.predict(b.z[:1], b.t[:1], cond[[i]], student.weights),
                tiny.predict(b.z[:1], b.t[:1], cond[[i]]),
            )
            for i in range(3)
        )
        kept = mean(changed(tiny, student, x, s, "moon") for x, s, _ in rows)
        agree(value, away + 4 * mean(drift) + 2 * kept, student)


def test_random_states_have_the_mask_and_about_the_norm_of_the_prompts(tiny):
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    like = Conditioning(3 * torch.ones(1, 5, 8), 2 * torch.ones(1, 6), mask)
    cond = random_like(like, 2000, draws())
    assert torch.equal(cond.mask, mask.expand(2000, -1))
    assert cond.states[:, :3].all()
    assert not cond.states[:, 3:].any()
    for drawn, of in ((cond.states, like.states[:, :3]), (cond.pooled, like.pooled)):
        sizes = drawn.flatten(1).norm(dim=1) / of.norm()
        assert sizes.min() == pytest.approx(0.8, abs=0.001)
        assert sizes.max() == pytest.approx(1.2, abs=0.001)
        assert sizes.mean() == pytest.approx(1, abs=0.01)
        assert drawn.flatten(1).mean(0).norm() < 0.1 * of.norm()  # in every direction
    plain = random_like(Conditioning(like.states), 3, draws())
    assert plain.pooled is None
    assert plain.mask is None
    assert plain.states.all()


# -- MACE ----------------------------------------------------------------------------------------


def prompts_of(concept):
    return {t.format(n): (n, t) for n in concept.names for t in TEMPLATES[concept.kind]}


def positions(model, prompt, name):
    """Where the tokens of a name stand in a prompt, found by looking for them."""
    ids = model.tokenizer(prompt).input_ids
    own = model.tokenizer(name, add_special_tokens=False).input_ids
    starts = [i for i in range(len(ids)) if ids[i : i + len(own)] == own]
    assert len(starts) == 1
    return list(range(starts[0], starts[0] + len(own)))


def attention(model, z, t, prompt, weights=None):
    """Attention of every layer for one latent, (heads, H, W, words) each."""
    with watched(model) as seen:
        model.predict(z[None], t[None], model.embed([prompt]), weights)
    sides = [int(a.shape[2] ** 0.5) for a in seen]
    return [a[0].unflatten(1, (s, s)) for a, s in zip(seen, sides, strict=True)]


def slow_masks(model, job, pictures):
    """The frozen model's attention to the name, at 30 % of the noise, above half of its range."""
    g, found = job.generator("masks"), []
    for name, z0 in pictures:
        noise = torch.randn(z0.shape, generator=g)
        t = torch.tensor(300)
        a = model.process.alphas[300]
        seen = attention(model, a.sqrt() * z0 + (1 - a).sqrt() * noise, t, name)
        where = positions(model, name, name)
        heat = [
            interpolate(
                x[..., where].sum(3).mean(0)[None, None], size=z0.shape[1:], mode="bilinear"
            )[0, 0]
            for x in seen
        ]
        heat = torch.stack(heat).mean(0)
        found.append(heat > (heat.min() + heat.max()) / 2)
    return found


@pytest.mark.parametrize("concept", [Concept("beer mug"), DOG], ids=lambda c: c.name)
def test_mace_starves_the_concepts_words_where_they_are_seen(tiny, words, caught, noised, concept):
    config = Pictures(n=2, ddim_steps=2)
    method = MACE(pictures=config, batch=3, vocabulary=str(words))
    method.make(job_of(tiny, [concept], method))
    (c,) = caught
    pictures = finished(tiny, c.job, concept.names, config)
    masks, prompts = slow_masks(tiny, c.job, pictures), prompts_of(concept)
    assert all(0 < m.float().mean() < 1 for m in masks)
    used = set()
    for n in range(4):
        student = student_of(tiny, "kv")
        value = c.loss(student, draws(n))
        z, t, z0, chance = noised[-1]
        _, index = whose(pictures, z0)
        ((_, _, cond),) = student.asked
        slow = []
        for i, prompt in enumerate(said(tiny, cond, [*prompts])):
            name, template = prompts[prompt]
            assert pictures[index[i]][0] == name
            where = positions(tiny, prompt, name)
            for a in attention(tiny, z[i], t[i], prompt, student.weights):
                m = interpolate(masks[index[i]].float()[None, None], size=a.shape[1:3])[0, 0] > 0.5
                slow.append(a[:, m][..., where].square().sum().sqrt() / len(z))
            used.add((name, template))
        agree(value, torch.stack(slow).sum(), student)
        s = torch.arange(1000.0)
        focal = 1 / (1 + (-0.05 * (s - 200)).exp()) - 1 / (1 + (-0.05 * (s - 400)).exp())
        torch.testing.assert_close(chance / chance.sum(), focal / focal.sum(), rtol=0, atol=1e-5)
    assert {name for name, _ in used} == {*concept.names}
    assert len({template for _, template in used}) > 1
    flat = replace(method, focal=False)
    flat.make(job_of(tiny, [concept], flat))
    caught[-1].loss(student_of(tiny, "kv"), draws())
    assert noised[-1][3] is None


def test_words_behind_the_end_of_a_prompt_are_nowhere(tiny):
    end = tiny.tokenizer.model_max_length - 1  # of 16 positions the last is the end token's
    long = "a " * (end - 3) + "{} emoji"
    where = span_of(tiny, long, "red dog")
    assert (where.start, where.stop) == (end - 2, end)
    assert span_of(tiny, "a" + " " + long, "red dog") == slice(end - 1, end)
    assert span_of(tiny, "a a a " + long, "red dog") == slice(end, end)


def slow_refined(tiny, concepts, w, prior, mu, ridge):
    """Stage 1, word by word: what stands behind the concept goes where it is behind the anchor."""
    eye = torch.eye(w.shape[1]).double()
    below = mu * sum(torch.outer(p, p) for p in prior) + ridge * eye
    above = w @ below
    for c in concepts:
        for name in c.names:
            for template in TEMPLATES["object"]:
                ours, theirs = (template.format(n) for n in (name, c.anchor))
                e, a = (tiny.embed([p]).states[0].double() for p in (ours, theirs))
                end = positions(tiny, ours, name)[-1] + 1
                other = positions(tiny, theirs, c.anchor)[-1] + 1
                for i in range(min(len(e) - end, len(a) - other)):
                    x, y = e[end + i], a[other + i]
                    above = above + torch.outer(w @ y, x) / len(c.names)
                    below = below + torch.outer(x, x) / len(c.names)
    return above @ torch.linalg.inv(below)


def test_mace_refines_then_fuses_what_every_adapter_does(tiny, words, caught):
    concepts = [Concept("beer mug", "red sun"), DOG]
    config = Pictures(n=1, ddim_steps=2)
    method = MACE(
        pictures=config,
        vocabulary=str(words),
        prior=0.3,
        ridge=0.2,
        keep=("moon",),
        keep_weight=4.0,
    )
    made = method.make(job_of(tiny, concepts, method))
    assert [c.job.concepts for c in caught] == [(concepts[0],), (concepts[1],)]
    states = tiny.embed([*WORDS, *["moon"] * 4]).states.flatten(0, 1).double()  # moon weighs four
    own = tiny.parameters()
    assert set(made.weights) == set(tiny.text_maps())
    for name in tiny.text_maps():
        w = own[name].double()
        refined = slow_refined(tiny, concepts, w, states, 0.3, 0.2)
        for c in caught:
            assert set(c.start) == set(own)
            torch.testing.assert_close(c.start[name].double(), refined, rtol=1e-3, atol=1e-4)
        below = 0.3 * states.T @ states + 0.2 * torch.eye(16).double()
        above = 0.3 * w @ states.T @ states + 0.2 * refined
        for i, c in enumerate(concepts):
            x = tiny.embed([*prompts_of(c)]).states.flatten(0, 1).double()
            share = x.T @ x / len(c.names)
            above = above + refined * (1.1 + 0.1 * i) @ share  # what the recorder "trained"
            below = below + share
        slow = above @ torch.linalg.inv(below)
        torch.testing.assert_close(made.weights[name].double(), slow, rtol=1e-3, atol=1e-4)


# -- SPEED ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"filter": False, "draws": 0}, {"slack": 0.5}])
@pytest.mark.parametrize("maps", ["v", "kv"])
def test_speed_is_the_papers_closed_form(tiny, words, maps, change):
    method = quick(SPEED(maps=maps, retain_scale=0.3, null=0.5, draws=3, keep=("moon",)), words)
    method = replace(method, **change)
    job = job_of(tiny, BOTH, method)
    made = method.make(job)

    def last(prompt):
        return tiny.embed([prompt]).states[0, int(tiny.last_word([prompt]))].double()

    eye, share = torch.eye(16).double(), {"church": 1 / 2, "dog": 1 / 4, "hound": 1 / 4}
    pairs = [(last(n), last(ANCHOR[n]), s) for n, s in share.items()]
    t = sum(s * torch.outer(c, c) for c, _, s in pairs)  # means over concepts
    apart = sum(s * torch.outer(a - c, c) for c, a, s in pairs)
    invariant = torch.stack([*fixed_vectors(tiny), last("moon")]).T
    names = [n for n in tiny.text_maps() if any(f".to_{x}." in n for x in maps)]
    assert set(made.weights) == set(names)
    ranks = []
    for name in names:
        w = tiny.parameters()[name].double()
        plain = w @ apart @ torch.linalg.inv(eye + t)
        chosen = [last(x) for x in WORDS]
        if method.filter:
            far = [float((plain @ p).norm()) for p in chosen]
            chosen = [p for p, f in zip(chosen, far, strict=True) if f > sum(far) / len(far)]
        if method.draws:
            v = torch.linalg.svd(w).Vh[min(w.shape) - 1]
            g = generator(0, "augmentation")
            xi = torch.randn(len(chosen) * 3, 16, generator=g, dtype=torch.float64)
            more = [p + (x @ v) * v for p, x in zip(chosen * 3, xi, strict=True)]
            far = [float((plain @ p).norm()) for p in more]
            chosen = chosen + [p for p, f in zip(more, far, strict=True) if f > sum(far) / len(far)]
        chosen = [*chosen, last("moon")]
        s = sum(torch.outer(p, p) for p in chosen) / len(chosen)
        u, values, _ = torch.linalg.svd(s)
        free = u[:, values < 0.5 * values.mean()]
        ranks.append(free.shape[1])
        p = free @ free.T
        m = torch.linalg.inv(t @ p + 0.3 * eye)
        small = invariant.T @ p @ m @ invariant + method.slack * torch.eye(5).double()
        still = eye - m @ invariant @ torch.linalg.pinv(small) @ invariant.T @ p
        slow = w + w @ apart @ p @ still @ m
        torch.testing.assert_close(made.weights[name].double(), slow, rtol=1e-3, atol=1e-4)
        assert (made.weights[name] - w).abs().max() > 1e-3
    assert job.notes["free_directions"] == ranks


# -- UCE -----------------------------------------------------------------------------------------


def test_uce_weighs_what_is_erased_what_is_preserved_and_what_is_kept(tiny, words):
    method = UCE(
        erase_scale=3.0,
        preserve_scale=0.4,
        ridge=0.2,
        keep=("moon",),
        keep_weight=5.0,
        vocabulary=str(words),
    )
    made = method.make(job_of(tiny, BOTH, method))

    def last(prompt):
        return tiny.embed([prompt]).states[0, int(tiny.last_word([prompt]))].double()

    parts = [(3.0 * s, last(n), last(ANCHOR[n])) for n, s in zip(NAMES, (1, 0.5, 0.5), strict=True)]
    parts += [(0.4, last(w), last(w)) for w in WORDS]
    parts += [(0.4 * 5, last("moon"), last("moon"))]
    below = sum((s * torch.outer(c, c) for s, c, _ in parts), 0.2 * torch.eye(16).double())
    for name in tiny.text_maps():
        w = tiny.parameters()[name].double()
        above = sum((s * torch.outer(w @ a, c) for s, c, a in parts), 0.2 * w)
        slow = above @ torch.linalg.inv(below)
        torch.testing.assert_close(made.weights[name].double(), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "bars"), [(CA(), ("pictures", "erase")), (ESD(), ("bank of latents", "erase"))]
)
def test_bars_are_shown_where_they_are_asked_for(tiny, words, capsys, method, bars):
    small = quick(method, words, updates=1)
    small.erase(tiny, ["church"], Run(progress=False))
    assert capsys.readouterr().err == ""
    small.erase(tiny, ["church"], Run(progress=True))
    shown = capsys.readouterr().err
    assert all(f"{bar}:" in shown for bar in bars)


def test_no_prompt_is_the_null_prompt_of_the_guidance(tiny, words, caught, monkeypatch):
    """As in a family whose null prompt is not the encoded ``""``."""
    monkeypatch.setattr(tiny.family.__class__, "null", lambda _, x: x.each(torch.zeros_like))
    monkeypatch.setattr(tiny, "_null", None)
    method = quick(AP(keep=("",)), words)
    job = job_of(tiny, [Concept("church", pool=("", "moon"))], method)
    built = method.build(job)
    zero, moon = (
        built.candidates.rows.states[built.candidates.words.index(w)] for w in ("", "moon")
    )
    assert not zero.any()
    assert moon.any()
    assert not built.source.encoded.anchor.states.any()
    assert built.source.encoded.concept.states.any()
    assert not job.keeping().rows.states.any()
    ca = quick(CA(live=True), words)
    ca.make(job_of(tiny, [Concept("church")], ca))
    student = student_of(tiny, "kv")
    caught[-1].loss(student, draws())
    instead, concept = (cond for _, _, cond in student.asked)
    assert not instead.states.any()
    assert concept.states.any()
