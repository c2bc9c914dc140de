"""Adversarial preservation against slow, obvious versions of itself, and the released behaviour."""

import dataclasses
import itertools
from importlib import import_module

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, WORDS, job_of, quick, shaken
from diffusers import DDIMScheduler, UNet2DConditionModel

from efface.concepts import Concept, normal
from efface.errors import UserError
from efface.methods.ap import AP
from efface.methods.esd import ESD
from efface.models import load, mix
from efface.seeds import generator
from efface.testing import tiny_pipeline
from efface.training import Bank, Rollout, Run, Student
from efface.training.closed_form import text_vectors
from efface.training.latents import Banked, RolledOut
from efface.training.search import Exact, Gumbel, Pools, Random, Setting
from efface.vocabularies import load as load_vocabulary
from efface.vocabulary import Vocabulary, kmeans_1d


def ratio(abar):
    """What an error of the noise is as one of the clean latent."""
    return float((1 - abar) / abar)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# -- where the latents come from ---------------------------------------------------------------


def stock_ddim(model, steps):
    """diffusers' DDIM of a model's noise schedule, in the setting of the authors of ESD and AP."""
    own = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    config = {**model.scheduler.config, **own, "timestep_spacing": "leading"}
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [50, 7])
def test_our_ddim_step_is_that_of_diffusers(tiny, steps):
    ours, stock, g = tiny.schedule(steps), stock_ddim(tiny, steps), seeded()
    assert torch.equal(ours.timesteps, stock.timesteps)
    for i, t in enumerate(stock.timesteps):
        z, eps = (torch.randn(2, 4, 4, 4, generator=g) for _ in range(2))
        slow = stock.step(eps, t, z, eta=0.0).prev_sample
        torch.testing.assert_close(ours.step(z, eps, i), slow, rtol=1e-5, atol=1e-5)


def test_a_rollout_is_that_of_diffusers_with_guidance(tiny):
    scheduler, cond = stock_ddim(tiny, 6), tiny.embed(["church", "dog"])
    null, weights = tiny.embed(["", ""]), shaken(tiny)
    start = tiny.noise(2, seeded())
    for w in (None, weights):
        z = start
        for t in scheduler.timesteps[1:5]:
            e0, e1 = (tiny.predict(z, t.expand(2), c, w) for c in (null, cond))
            z = scheduler.step(e0 + 3.0 * (e1 - e0), t, z).prev_sample
        mine = tiny.rollout(start, cond, tiny.schedule(6), range(1, 5), 3.0, w)
        torch.testing.assert_close(mine, z, rtol=1e-5, atol=1e-5)


def test_official_stopping_points(tiny):
    """k of 50: 50 - k steps, at most 49, the first timestep skipped; t up to 19 above 20k."""
    source = RolledOut(tiny, [CHURCH], Rollout(ddim_steps=50, aligned=False))
    times = source.schedule.timesteps.tolist()
    assert times == list(range(981, 0, -20))
    offsets, steps = {}, {}
    for seed in range(1500):
        draw = source.stop(seeded(seed), 1)
        k = draw.t // 20
        offsets.setdefault(k, set()).add(draw.t - 20 * k)
        steps[k] = len(draw.span)
        assert draw.span == range(1, 1 + min(50 - k, 49))
        assert draw.weight == ratio(tiny.process.alphas[20 * k + 1])
        assert times[draw.span[0]] == 961
        reached = times[draw.span[-1]] - 20  # of the latent that comes out
        if k >= 2:
            assert reached == 20 * (k - 2) + 1
            assert 39 <= draw.t - reached <= 58  # cleaner than what the denoiser is told
        else:
            assert reached < 0
    assert sorted(steps) == list(range(50))
    assert set().union(*offsets.values()) == set(range(20))
    assert sum(steps.values()) / 50 == pytest.approx(25.48)


def test_aligned_stopping_points(tiny):
    source = RolledOut(tiny, [CHURCH], Rollout(ddim_steps=50))
    seen = set()
    for seed in range(1000):
        draw = source.stop(seeded(seed), 1)
        k = len(draw.span)
        seen.add(k)
        assert draw.span == range(k)
        assert draw.t == source.schedule.timesteps[k]
        assert draw.weight == ratio(tiny.process.alphas[draw.t])
    assert seen == set(range(50))


@pytest.mark.parametrize("source", ["bank", "anchored", "frozen", "student"])
def test_predictions_that_come_with_the_latents_are_the_models_own(tiny, source):
    concepts = [CHURCH, DOG]
    kinds = {"bank": Bank(trajectories=3), "anchored": Bank(trajectories=1, anchored=2)}
    made = dataclasses.replace(kinds.get(source) or Rollout(of=source), ddim_steps=4).open(
        job_of(tiny, concepts)
    )
    b = made.draw(seeded(3), 12, shaken(tiny))
    assert sorted(set(b.which.tolist())) == [0, 1]
    names = ["church", "dog", "hound"]
    anchors = {"church": "", "dog": "cat", "hound": "cat"}
    rows = tiny.embed(names).states
    for i in range(12):
        name = names[int((rows - b.concept.states[i]).flatten(1).norm(dim=1).argmin())]
        assert (name == "church") == (b.which[i] == 0)
        z, t = b.z[[i]], b.t[[i]]
        for got, prompt in ((b.e_concept, name), (b.e_anchor, anchors[name])):
            slow = tiny.predict(z, t, tiny.embed([prompt]))
            torch.testing.assert_close(got[[i]], slow, rtol=1e-4, atol=1e-5)
        assert float(b.weight[i]) == pytest.approx(ratio(tiny.process.alphas[b.t[i]]))


def test_the_bank_holds_whole_trajectories_from_pure_noise(tiny):
    bank = Banked(tiny, [CHURCH], Bank(ddim_steps=5, trajectories=2), seeded(4))
    noise = tiny.noise(2, seeded(4))
    assert torch.equal(bank.z[:, 0], noise)
    last = tiny.rollout(noise, tiny.embed(["church"] * 2), tiny.schedule(5), range(4), 3.0)
    torch.testing.assert_close(bank.z[:, 4], last, rtol=1e-5, atol=1e-5)


def test_trajectories_of_an_anchor_are_its_own_and_there_nothing_is_pushed_away(tiny):
    config = Bank(ddim_steps=5, trajectories=2, anchored=1)
    bank, g = Banked(tiny, [CHURCH, DOG], config, seeded(4)), seeded(4)
    follows = ["church", "church", "", "dog", "dog", "cat", "hound", "hound", "cat"]
    sizes = [2, 1] * 3
    starts = torch.cat([tiny.noise(n, g) for n in sizes])
    assert torch.equal(bank.z[:, 0], starts)
    for z, start, name in zip(bank.z, starts, follows, strict=True):
        way = tiny.schedule(5), range(4), 3.0
        slow = tiny.rollout(start[None], tiny.embed([name], null=True), *way)
        torch.testing.assert_close(z[None, 4], slow, rtol=1e-5, atol=1e-5)
    path = torch.arange(9)
    b = bank.at(path, torch.full((9,), 3))
    assert b.which.tolist() == [0] * 3 + [1] * 6
    away = b.goal(2.0) - b.e_anchor
    for i, name in enumerate(follows):
        if name in ("", "cat"):
            assert not away[i].any()
        else:
            torch.testing.assert_close(away[i], 2 * (b.e_anchor - b.e_concept)[i])


def test_a_bank_without_an_anchors_trajectories_is_what_it_was(tiny):
    plain = Banked(tiny, [DOG], Bank(ddim_steps=3, trajectories=2), seeded(4))
    assert plain.push.tolist() == [1.0] * 4
    both = Banked(tiny, [DOG], Bank(ddim_steps=3, trajectories=2, anchored=1), seeded(4))
    assert torch.equal(both.z[:2], plain.z[:2])  # of the first name: the same noise
    assert len(both.z) == 6


def test_the_students_latents_come_from_the_student(tiny):
    weights = shaken(tiny)
    frozen, student = (
        RolledOut(tiny, [CHURCH], Rollout(of=source, ddim_steps=4))
        for source in ("frozen", "student")
    )
    seed = next(s for s in range(50) if student.begin(seeded(s), 2)[1].span)
    _, how = student.begin(seeded(seed), 2)
    b = student.draw(seeded(seed), 2, weights)
    slow = tiny.rollout(how.noise, b.concept, tiny.schedule(4), how.span, 3.0, weights)
    assert torch.equal(b.z, slow)
    assert not torch.allclose(frozen.draw(seeded(seed), 2, weights).z, slow, atol=1e-4)


def test_v_prediction_becomes_noise_as_in_diffusers(tmp_path):
    tiny_pipeline(prediction="v_prediction").save_pretrained(tmp_path / "v")
    model = load(tmp_path / "v", device="cpu")
    scheduler = DDIMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(1000)
    z, cond = torch.randn(1, 4, 4, 4, generator=seeded()), model.embed(["church"])
    for t in (1, 500, 999):
        with torch.no_grad():
            v = model.denoiser(z, t, cond.states).sample
        eps = model.predict(z, torch.tensor([t]), cond)
        a = scheduler.alphas_cumprod[t]
        torch.testing.assert_close(eps, a.sqrt() * v + (1 - a).sqrt() * z)
        x0 = scheduler.step(v, t, z).pred_original_sample
        torch.testing.assert_close(z, a.sqrt() * x0 + (1 - a).sqrt() * eps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (Rollout, {"of": "studnt"}, "unknown owner of the rollouts 'studnt'; did you mean"),
        (Rollout, {"ddim_steps": 0}, "got 0 for ddim_steps"),
        (Bank, {"ddim_steps": 0}, "got 0 for ddim_steps"),
        (Bank, {"trajectories": -1}, "got -1 for trajectories"),
    ],
)
def test_latents_that_cannot_be_are_refused(kind, config, message):
    with pytest.raises(UserError, match=message):
        kind(**config)


def test_words_on_latents_of_their_own_come_from_the_batchs_noise(tiny):
    source = RolledOut(tiny, [CHURCH], Rollout(ddim_steps=4, own=True))
    plain, weights = RolledOut(tiny, [CHURCH], Rollout(ddim_steps=4)), shaken(tiny)
    words = tiny.embed(["boat", "dog", "cat"])
    seed = next(s for s in range(50) if source.begin(seeded(s), 2)[1].span)
    _, how = source.begin(seeded(seed), 2)
    b, beside = source.draw_beside(seeded(seed), 2, weights, lambda which: words)
    apart = [how.noise[0], how.noise[1], how.noise[0]]
    for i, noise in enumerate(apart):
        slow = tiny.rollout(noise[None], words[[i]], tiny.schedule(4), how.span, 3.0, weights)
        torch.testing.assert_close(beside.z[[i]], slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.z, source.draw(seeded(seed), 2, weights).z, rtol=1e-4, atol=1e-5)
    assert beside.rows.tolist() == [0, 1, 0]
    _, lent = plain.draw_beside(seeded(seed), 2, weights, lambda which: words)
    assert torch.equal(lent.z, source.draw(seeded(seed), 2, weights).z[[0, 1, 0]])


# -- the loss ----------------------------------------------------------------------------------


def test_comparing_pictures_is_comparing_noise_times_the_weight():
    g = seeded()
    z, one, two = (torch.randn(50, 4, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    abar = torch.linspace(0.005, 0.999, 50, dtype=torch.float64)
    a = abar.view(-1, 1, 1, 1)
    x0 = [(z - (1 - a).sqrt() * eps) / a.sqrt() for eps in (one, two)]
    pictures = (x0[0] - x0[1]).square().mean((1, 2, 3))
    noise = (one - two).square().mean((1, 2, 3))
    weight = AP(x0_weighting=True)._weighted((1 - abar) / abar)
    torch.testing.assert_close(weight * noise, pictures, rtol=1e-10, atol=0)
    assert torch.equal(AP()._weighted(abar), torch.ones(50, dtype=torch.float64))


def counts(tiny, method):
    """Evaluations spent in each update."""
    spent = []

    def on_update(*_):
        spent.append(tiny.counter.copy())

    method.erase(tiny, [CHURCH, DOG], Run(on_update=on_update, progress=False))
    return [b.since(a) for a, b in itertools.pairwise(spent)]


@pytest.mark.parametrize("name", ["official", "paper"])
def test_evaluations_per_update_are_what_the_formula_says(tiny, words, name):
    """213.8 a forward evaluation per update in the released code; we leave one of them out.

    An update has two passes, each with latents of its own: m (outer) and n (inner) DDIM steps,
    two evaluations each for the guidance. official: for z and for the latents under the word, so
    4m + 4n; frozen ε of concept and anchor in both passes: 4; frozen ε of the word: 2; student: the
    word (inner), concept and word (outer): 3. So 4(m + n) + 9, and 3 backward. On 50 steps the
    mean of m and n is 25.48: 212.8; the released inner pass also evaluates the student under the
    concept, for nothing. paper: no latents under the word, hence 2(m + n) + 9, and 4 backward, as
    the gradient goes through the frozen model as well.
    """
    steps, updates = 6, 6
    method = quick(AP.presets()[name], words, updates=updates)
    latents = dataclasses.replace(method.latents, ddim_steps=steps)
    method = dataclasses.replace(method, latents=latents)
    found = counts(tiny, method)
    pools, rolled = method.candidates(job_of(tiny, [CHURCH, DOG])).of, []
    for update in range(1, updates):
        g, passes = generator(0, "update", update, "batch", 0), []
        for inner in (True, False):
            odds = torch.tensor([1, 0.5, 0.5])  # of church, dog, hound
            name_drawn = int(torch.multinomial(odds, 1, replacement=True, generator=g))
            tiny.noise(1, g)
            k = int(torch.randint(0, steps, (1,), generator=g))
            if name == "official":
                torch.randint(0, 1000 // steps, (1,), generator=g)
            passes.append(min(steps - k, steps - 1) if name == "official" else k)
            if inner:
                torch.rand(len(pools[min(name_drawn, 1)]), generator=g)  # the word
        rolled.append(sum(passes))
    a_step, backward = {"official": (4, 3), "paper": (2, 4)}[name]
    assert [c.forward for c in found] == [a_step * n + 9 for n in rolled]
    assert [c.backward for c in found] == [backward] * (updates - 1)
    assert len(set(rolled)) > 1


def test_esd_on_the_bank_costs_one_forward_and_backward_a_latent(tiny, words):
    found = counts(tiny, quick(ESD(), words, updates=3))
    assert [(c.forward, c.backward) for c in found] == [(2, 2)] * 2


def test_exact_search_costs_a_scoring_every_refresh(tiny, words):
    exact = AP.presets()["exact"]
    found = counts(tiny, quick(exact, words, updates=6))  # scored at updates 0, 2, 4
    plain = 8 + 2 + 8  # goals of 8 preserved; student on 2 erased and 8 preserved
    assert [c.forward for c in found] == [plain + len(WORDS) * (u % 2 == 0) for u in range(1, 6)]


def test_ours_costs_what_is_trained_once_the_held_words_are_asked(tiny, words):
    """No more of the frozen model: 4 latents of each word come before the first update."""
    method = dataclasses.replace(quick(AP(), words, updates=6), preserve_batch=20)
    assert [c.forward for c in counts(tiny, method)] == [2 + 20] * 5
    few = dataclasses.replace(method, preserve_batch=6)  # asked for fewer words than there are
    assert [c.forward for c in counts(tiny, few)] == [6 + 2 + 6] * 5


def test_official_updates_equal_the_pseudo_code(tiny, words):
    """Section 1.8 of the facts, on a deep copy, diffusers' scheduler and one sample at a time."""
    steps, lr, eta, scale = 5, 1e-3, 1.0, 3.0
    method = quick(AP.presets()["official"], words, updates=3)
    latents = dataclasses.replace(method.latents, ddim_steps=steps)
    method = dataclasses.replace(method, latents=latents)
    edit = method.erase(tiny, [CHURCH], QUIET)

    pool = method.candidates(job_of(tiny, [CHURCH]))
    table = tiny.embed([pool.words[i] for i in pool.of[0].tolist()]).states.flatten(1)
    size = len(table)
    frozen = tiny.denoiser
    student = UNet2DConditionModel.from_config(frozen.config).eval().requires_grad_(False)
    student.load_state_dict(frozen.state_dict())
    trained = {k: p.requires_grad_() for k, p in student.named_parameters() if ".attn2." in k}
    logits = torch.full((1, size), 1.0 / size, requires_grad=True)
    opt = torch.optim.Adam(trained.values(), lr=lr)
    opt_pi = torch.optim.Adam([logits], lr=1e-2)
    scheduler, alphas = stock_ddim(tiny, steps), tiny.scheduler.alphas_cumprod
    null, concept = tiny.embed([""]).states, tiny.embed(["church"]).states

    def eps(net, z, t, c):
        return net(z, torch.tensor([t]), c).sample

    @torch.no_grad()
    def rolled(x, c, count):
        for t in scheduler.timesteps[1 : 1 + count]:
            e0, e1 = eps(student, x, int(t), null), eps(student, x, int(t), c)
            x = scheduler.step(e0 + scale * (e1 - e0), t, x).prev_sample
        return x

    def stop(g):
        torch.randint(0, 1, (1,), generator=g)
        x = torch.randn(1, 4, 4, 4, generator=g)
        k = int(torch.randint(0, steps, (1,), generator=g))
        t = 200 * k + int(torch.randint(0, 200, (1,), generator=g))
        return x, min(steps - k, steps - 1), t, alphas[200 * k + 1]

    def word(g):
        u = torch.rand(size, generator=g)[None]
        y = ((logits - (-(u + 1e-10).log() + 1e-10).log()) / 2).softmax(-1)
        hard = torch.zeros_like(y).scatter(1, y.argmax(1, keepdim=True), 1.0)
        return ((hard - y).detach() + y) @ table

    mse = torch.nn.functional.mse_loss
    for update in range(3):
        g = generator(0, "update", update, "batch", 0)
        if update:  # the inner pass, after the outer one of the update before
            x, count, t, a = stop(g)
            c = word(g).view(1, *concept.shape[1:])
            z = rolled(x, c.detach(), count)
            with torch.no_grad():
                goal = eps(frozen, z, t, c)
            climb = -(1 - a) / a * mse(eps(student, z, t, c), goal)
            logits.grad = torch.autograd.grad(climb, logits)[0]
            opt_pi.step()

        x, count, t, a = stop(g)  # the outer pass
        c = word(g).view(1, *concept.shape[1:]).detach()
        z, zr = rolled(x, concept, count), rolled(x, c, count)
        with torch.no_grad():
            e0, en = eps(frozen, z, t, null), eps(frozen, z, t, concept)
            er = eps(frozen, zr, t, c)

        def x0(z, e, a=a):
            return (z - (1 - a).sqrt() * e) / a.sqrt()

        erased = mse(x0(z, eps(student, z, t, concept)), x0(z, e0) - eta * (x0(z, en) - x0(z, e0)))
        kept = mse(x0(zr, eps(student, zr, t, c)), x0(zr, er))
        opt.zero_grad()
        (erased + kept).backward()
        opt.step()

    own = tiny.parameters()
    assert set(trained) == set(edit.weights)
    moved, slow = (
        torch.cat([(w[k].detach() - own[k]).flatten() for k in trained])
        for w in (edit.weights, trained)
    )
    assert slow.norm() > 0.1 * lr * len(slow) ** 0.5
    assert (moved - slow).norm() < 0.02 * slow.norm()


# -- the search --------------------------------------------------------------------------------


def words_of(pools, which):
    return {pools.words[i] for i in pools.of[which].tolist()}


@pytest.fixture
def awkward(tmp_path):
    """A word list with much that asks for what is erased."""
    path = tmp_path / "awkward.txt"
    asks = ["church", "Church", "CHURCH", "chapel", "beer mug", "Beer-Mug", "churches", "stein"]
    path.write_text("\n".join([*WORDS, *asks, *OTHERS]) + "\n")
    return path, asks


OTHERS = ("teddy bear", "mug", "beer")
"""Words that are no erased name, two of them parts of one."""
MUG = Concept("beer mug", synonyms=("stein",))
CHAPEL = Concept("church", synonyms=("chapel",))


def test_no_pool_holds_what_is_erased(tiny, awkward):
    path, _ = awkward
    pools = AP(vocabulary=str(path)).candidates(job_of(tiny, [CHAPEL, MUG]))
    for which in (0, 1):
        assert words_of(pools, which) == {*WORDS, *OTHERS}


def test_unless_it_is_told_to(tiny, awkward):
    path, asks = awkward
    pools = AP(vocabulary=str(path), exclude_erased=False).candidates(job_of(tiny, [CHAPEL, MUG]))
    for which in (0, 1):
        assert words_of(pools, which) == {*WORDS, *OTHERS, *asks}


@pytest.mark.parametrize("name", AP.presets())
def test_presets_exclude_or_not(tiny, awkward, name):
    path, asks = awkward
    method = dataclasses.replace(AP.presets()[name], vocabulary=str(path), pool_size=0, nearest=0)
    found = words_of(method.candidates(job_of(tiny, [CHAPEL, MUG])), 0)
    assert bool(found & set(asks)) == name.startswith("official")


def test_a_pool_of_its_own_loses_the_erased_as_well(tiny, words):
    own = Concept("church", pool=("Church", "temple", "mosque"))
    pools = AP(vocabulary=str(words)).candidates(job_of(tiny, [own, DOG]))
    assert words_of(pools, 0) == {"temple", "mosque"}
    assert words_of(pools, 1) == set(WORDS)


def test_kept_words_do_not_thin_the_candidates(tiny, words):
    job = job_of(tiny, [CHURCH, DOG])
    with_keep = AP(vocabulary=str(words), keep=("moon",), pool_size=4).candidates(job)
    without = AP(vocabulary=str(words), pool_size=4).candidates(job)
    assert with_keep.words == without.words


def test_an_empty_pool_is_refused(tiny):
    with pytest.raises(UserError, match="no word is left to preserve while erasing 'church'"):
        AP(vocabulary="tokens").candidates(job_of(tiny, [Concept("church", pool=("Church",))]))


def test_a_vocabulary_below_k_is_refused(tiny, words):
    with pytest.raises(UserError, match="holds 20 words without the erased ones; 21 were asked"):
        AP(vocabulary=str(words), pool_size=21).candidates(job_of(tiny, [CHURCH]))
    with pytest.raises(UserError, match="got nearest 3 below the pool size 5"):
        AP(vocabulary=str(words), pool_size=5, nearest=3).candidates(job_of(tiny, [CHURCH]))


def test_the_nearest_pool_is_the_nearest_by_text_states(tiny, words):
    vocabulary = load_vocabulary(str(words), tiny)
    centre = tiny.embed(["church"]).states[0]
    far = {w: float((tiny.embed([w]).states[0] - centre).norm()) for w in WORDS}
    nearest = sorted(WORDS, key=far.__getitem__)[:7]
    assert list(vocabulary.pool(tiny, CHURCH, 7, 0, "nearest").words) == nearest
    assert set(vocabulary.pool(tiny, CHURCH, 3, 7, "even").words) <= set(nearest)


def test_kmeans_spreads_over_the_distances():
    far = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 9.0, 9.1, 9.2])
    assert kmeans_1d(far, 3).tolist() == [1, 4, 7]
    assert len(kmeans_1d(torch.rand(1000, generator=seeded()).sort().values, 100)) >= 90


def test_a_model_that_says_nothing_of_itself_gets_shipped_words(tiny, emoji):
    assert load_vocabulary("auto", tiny).words == load_vocabulary("nouns", tiny).words
    assert load_vocabulary("auto", emoji).words == load_vocabulary("names", emoji).words


def test_a_large_list_waits_on_the_cpu_and_gives_the_same_rows(tiny, words, monkeypatch):
    here = AP(vocabulary=str(words)).candidates(job_of(tiny, [CHURCH]))
    monkeypatch.setattr(import_module("efface.training.search.pools"), "WORTH", 100)
    embed, asked = type(tiny).embed, []

    def noting(model, prompts, batch=0, where="", null=False):
        asked.append(where)
        return embed(model, prompts, batch, where, null)

    monkeypatch.setattr(type(tiny), "embed", noting)
    there = AP(vocabulary=str(words)).candidates(job_of(tiny, [CHURCH]))
    assert asked == ["cpu"]
    index = torch.tensor([3, 0])
    assert torch.equal(there.take(index).states, here.rows[index].states)
    assert torch.equal(there.take(slice(2, 4)).states, here.rows[2:4].states)


def test_token_words_are_letters_and_hold_no_erased_one(tiny):
    words = load_vocabulary("tokens", tiny).words
    assert all(w.isascii() and w.isalpha() and w == normal(w) for w in words)
    assert {"church", "dog"} <= set(words)
    few = Vocabulary((*words[:500], "church", "dog"), "some")
    assert not {"church", "dog"} & set(few.without([CHURCH, DOG], tiny.tokenizer).words)


def search_over(tiny, config, concepts=(CHURCH, DOG), source=None):
    """A Gumbel search over the word list, on the bank."""
    candidates = pools_of(tiny, concepts)
    job = job_of(tiny, concepts, AP(search=config))
    source = source or Bank(ddim_steps=4, trajectories=2).open(job)
    return config.start(Setting(job, candidates, source, job.method._objective(job)))


def exact_over(tiny, candidates, source, **config):
    """An exact search over some candidates."""
    return Exact(**config).start(Setting(job_of(tiny, [CHURCH, DOG]), candidates, source, None))


def pools_of(tiny, concepts=(CHURCH, DOG)):
    some = [torch.arange(0, 12), torch.arange(5, 20)][: len(concepts)]
    return Pools(tuple(WORDS), tiny.embed(WORDS), tuple(some))


@pytest.mark.parametrize("tau", [0.1, 2.0, 50.0])
def test_hard_gumbel_frequencies_are_softmax_of_the_logits_whatever_tau(tiny, tau):
    search = search_over(tiny, Gumbel(hard=True, tau=tau))
    logits = torch.linspace(-1.5, 1.5, 12)
    search.logits[0].data.copy_(logits)
    n, g, count = 4000, seeded(5), torch.zeros(12)
    with torch.no_grad():
        for _ in range(n):
            y = search.sample(0, g)
            count += y.round()
        assert y.max().item() == pytest.approx(1.0)
        assert y.sum().item() == pytest.approx(1.0)
    expected = n * logits.softmax(0)
    assert count.sum() == n
    chi2 = float(((count - expected).square() / expected).sum())
    assert chi2 < 31.3  # 99.9 % of chi-square with 11 degrees of freedom


def test_a_climb_in_half_precision_sees_the_gradient_of_a_large_latent(tiny, tiny_folder):
    """A mean over many numbers has a gradient that fp16 rounds to nothing by itself."""
    half = load(tiny_folder, device="cpu", dtype="fp16")
    size, found = 2e3, []  # as many times larger than the tiny model's latent
    moved = shaken(tiny)
    for model in (tiny, half):
        search = search_over(model, Gumbel(tau=1.0))
        plain = search.objective
        search.objective = lambda *args, plain=plain: plain(*args) / size
        weights = {k: w.to(model.dtype) for k, w in moved.items()}
        search.climb(Student(model, weights), 2, seeded(3))
        found.append(torch.cat([x.grad for x in search.logits if x.grad is not None]))
    assert found[1].any()
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.3


def test_soft_gumbel_samples_are_mixtures_that_sharpen_as_tau_falls(tiny):
    sharp = []
    for tau in (5.0, 1.0, 0.05):
        search = search_over(tiny, Gumbel(tau=tau))
        with torch.no_grad():
            y = torch.stack([search.sample(0, g) for g in map(seeded, range(50))])
        torch.testing.assert_close(y.sum(1), torch.ones(50))
        sharp.append(float(y.max(1).values.mean()))
    assert sharp[0] < sharp[1] < sharp[2]
    assert sharp[2] > 0.9


@pytest.mark.parametrize("start", [0.0, 1.0 / 12])
def test_logits_start_uniform(tiny, start):
    search = search_over(tiny, Gumbel(uniform_start=start > 0))
    torch.testing.assert_close(search.logits[0].detach(), torch.full((12,), start))


def harm_by_hand(tiny, search, student, logits, seed, fixed_goal=None):
    """The harm that a climb sees, computed anew; and the frozen model's side of it."""
    search.logits[0].data.copy_(logits)
    g = seeded(seed)
    batch = search.source.draw(g, 2)
    with torch.no_grad():
        rows = [
            mix(search.sample(0, g)[None], search.pools.rows[search.pools.of[0]]) for _ in range(2)
        ]
        harms, goals = [], []
        for i, row in enumerate(rows):
            z, t = batch.z[[i]], batch.t[[i]]
            goals.append(tiny.predict(z, t, row) if fixed_goal is None else fixed_goal[i])
            harms.append((student(z, t, row) - goals[i]).square().mean())
    return torch.stack(harms).mean(), goals


@pytest.mark.parametrize("through_teacher", [True, False])
def test_inner_gradient_against_finite_differences(tiny, through_teacher):
    config = Gumbel(teacher_gradient=through_teacher, tau=1.0)
    search = search_over(tiny, config, [CHURCH])
    student = Student(tiny, shaken(tiny, by=1.0))
    logits, seed = torch.linspace(-0.5, 0.5, 12), 3
    search.logits[0].data.copy_(logits)
    harm = search.climb(student, 2, seeded(seed))
    gradient = -search.logits[0].grad  # of the harm; the search steps on minus it
    by_hand, goals = harm_by_hand(tiny, search, student, logits, seed)
    torch.testing.assert_close(harm, by_hand, rtol=1e-4, atol=1e-7)
    fixed = None if through_teacher else goals  # then only the student's side moves
    slow = torch.zeros(12)
    h = 0.05
    for j in range(12):
        up, down = logits.clone(), logits.clone()
        up[j] += h
        down[j] -= h
        a, b = (harm_by_hand(tiny, search, student, x, seed, fixed)[0] for x in (up, down))
        slow[j] = (a - b) / (2 * h)
    assert slow.norm() > 0
    assert (gradient - slow).norm() < 0.05 * slow.norm()


def test_the_two_gradients_differ(tiny):
    student, found = Student(tiny, shaken(tiny, by=1.0)), []
    for through_teacher in (True, False):
        config = Gumbel(teacher_gradient=through_teacher)
        search = search_over(tiny, config, [CHURCH])
        search.climb(student, 2, seeded(3))
        found.append(search.logits[0].grad)
    assert (found[0] - found[1]).norm() > 0.05 * found[0].norm()


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("through_teacher", [True, False])
def test_inner_gradient_is_zero_before_anything_is_learnt(tiny, hard, through_teacher):
    config = Gumbel(hard=hard, teacher_gradient=through_teacher)
    search = search_over(tiny, config, [CHURCH])
    own = tiny.parameters()
    student = Student(tiny, {k: own[k].clone().requires_grad_() for k in own if ".attn2." in k})
    harm, gradient = search.climb(student, 3, seeded()), search.logits[0].grad
    if through_teacher:  # both sides run the same code: exactly nothing
        assert harm == 0
        assert torch.equal(gradient, torch.zeros(12))
        assert torch.equal(search.logits[0].detach(), torch.zeros(12))
    else:  # with and without gradient, kernels may round in other ways
        assert float(harm) < 1e-11
        assert float(gradient.norm()) < 1e-7
    assert all(w.grad is None for w in student.weights.values())


def drawn_for_both(source, n=4):
    """A batch that holds both concepts."""
    batches = (source.draw(seeded(s), n) for s in range(100))
    return next(b for b in batches if set(b.which.tolist()) == {0, 1})


def test_exact_search_scores_as_one_word_at_a_time_and_picks_the_worst(tiny):
    student = Student(tiny, shaken(tiny, by=1.0))
    pools = pools_of(tiny)
    source = Banked(tiny, [CHURCH, DOG], Bank(ddim_steps=4, trajectories=2), seeded(0))
    search = exact_over(tiny, pools, source, refresh=1, probes=3, memory=0.0, top=1)
    batch, g = drawn_for_both(source), seeded(1)
    for call in range(4):
        probe = call % 3
        z, t = search.probe.z[[probe]], search.probe.t[[probe]]
        slow = []
        for word in WORDS:
            cond = tiny.embed([word])
            with torch.no_grad():
                change = student(z, t, cond) - tiny.predict(z, t, cond)
            slow.append(change.square().mean())
        slow = torch.stack(slow)
        search.begin(student, 4, g)
        drawn = search.draw(batch.which, 6, g)
        torch.testing.assert_close(search.harm, slow, rtol=2e-3, atol=1e-9)
        for row, index in enumerate(drawn.chosen.tolist()):
            mine = pools.of[int(batch.which[row % 4])]
            assert index in mine
            assert slow[index] >= (1 - 1e-3) * slow[mine].max()
        assert torch.equal(drawn.cond.states, pools.rows.states[drawn.chosen])


def test_exact_search_scores_those_of_which_the_maps_make_most_else(tiny):
    student, pools = Student(tiny, shaken(tiny, by=1.0)), pools_of(tiny)
    source = Banked(tiny, [CHURCH, DOG], Bank(ddim_steps=4, trajectories=2), seeded(0))
    whole, some = (
        exact_over(tiny, pools, source, refresh=1, probes=2, memory=0.0, among=n)
        for n in (len(WORDS), 6)
    )
    slow = []
    for word in WORDS:
        e = text_vectors(tiny, [word])[0].float()
        far = ((student.weights[m] - tiny.parameters()[m]) @ e for m in tiny.text_maps())
        slow.append(sum(float(x.square().sum()) for x in far))
    listed = torch.tensor(slow).topk(6).indices
    some.harm = torch.arange(20.0)  # of earlier scorings
    before = tiny.counter.copy()
    found = some.score(student, 1)
    assert tiny.counter.since(before).forward == 12
    torch.testing.assert_close(found[listed], whole.score(student, 1)[listed], rtol=2e-3, atol=1e-9)
    rest = torch.ones(20, dtype=torch.bool).index_fill(0, listed, False)
    assert torch.equal(found[rest], torch.arange(20.0)[rest])
    assert whole.states is None


def test_a_short_list_needs_a_trained_text_map(tiny):
    method = AP(group="selfattn", search=Exact(among=3))
    setting = Setting(job_of(tiny, [CHURCH], method), pools_of(tiny, [CHURCH]), None, None)
    with pytest.raises(UserError, match="what trained text maps make of a word, and none is"):
        method.search.start(setting)


def test_exact_search_remembers_and_draws_among_the_top(tiny):
    student, pools = Student(tiny, shaken(tiny)), pools_of(tiny, [CHURCH])
    source = Banked(tiny, [CHURCH], Bank(ddim_steps=4, trajectories=2), seeded(0))
    search = exact_over(tiny, pools, source, refresh=2, probes=2, memory=0.25, top=3)
    batch, g = source.draw(seeded(), 1), seeded(2)
    first, second = search.score(student, 0), search.score(student, 1)
    wanted = [first, first, 0.25 * first + 0.75 * second]
    for harm in wanted:
        search.begin(student, 1, g)
        drawn = search.draw(batch.which, 40, g).chosen
        torch.testing.assert_close(search.harm, harm)
        assert set(drawn.tolist()) == set(harm[:12].topk(3).indices.tolist())


def test_exact_search_draws_every_word_by_its_share_of_all_harm(tiny):
    student, pools, n = Student(tiny, shaken(tiny, by=1.0)), pools_of(tiny), 4000
    source = Banked(tiny, [CHURCH, DOG], Bank(ddim_steps=4, trajectories=2), seeded(0))
    search = exact_over(tiny, pools, source, top=0)
    search.begin(student, 1, seeded())
    for which, mine in enumerate(pools.of):
        drawn = search.draw(torch.tensor([which]), n, seeded(2)).chosen
        share = search.harm[mine] / search.harm[mine].sum()
        seen = torch.bincount(drawn, minlength=len(WORDS))[mine] / n
        assert (seen - share).abs().max() < 4 * (0.25 / n) ** 0.5
        assert float((drawn[:, None] == mine).any(1).float().min()) == 1


@pytest.mark.parametrize("top", [0, 3])
def test_exact_search_draws_any_word_while_nothing_is_harmed(tiny, top):
    pools = pools_of(tiny, [CHURCH])
    source = Banked(tiny, [CHURCH], Bank(ddim_steps=4, trajectories=2), seeded(0))
    search = exact_over(tiny, pools, source, top=top)
    search.begin(Student(tiny, {}), 1, seeded())
    assert torch.equal(search.harm, torch.zeros(len(WORDS)))
    drawn = search.draw(torch.tensor([0]), 500, seeded(2)).chosen
    assert set(drawn.tolist()) == set(pools.of[0].tolist())


def test_random_search_draws_from_every_concepts_own_pool(tiny):
    pools = pools_of(tiny)
    source = Banked(tiny, [CHURCH, DOG], Bank(ddim_steps=2, trajectories=2), seeded(0))
    batch = drawn_for_both(source)
    drawn = (
        Random()
        .start(Setting(job_of(tiny, [CHURCH, DOG]), pools, source, None))
        .draw(batch.which, 2000, seeded(1))
        .chosen
    )
    for which in (0, 1):
        rows = [i for i in range(2000) if int(batch.which[i % 4]) == which]
        assert set(drawn[rows].tolist()) == set(pools.of[which].tolist())


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (Exact, {"refresh": 0}, "got 0 for refresh"),
        (Exact, {"top": -1}, "got -1 for top"),
        (Gumbel, {"tau": 0.0}, "got 0.0 for tau"),
        (Gumbel, {"passes": 0}, "got 0 for passes"),
    ],
)
def test_searches_that_cannot_be_are_refused(kind, config, message):
    with pytest.raises(UserError, match=message):
        kind(**config)


def test_ap_settings_that_cannot_be_are_refused(tiny, words):
    with pytest.raises(UserError, match="got -1 for pool_size"):
        AP(pool_size=-1)
    with pytest.raises(UserError, match="unknown spread 'evn'; did you mean 'even'"):
        AP(vocabulary=str(words), pool_size=3, spread="evn").candidates(job_of(tiny, [CHURCH]))


def test_the_presets_are_what_the_facts_say():
    official, paper, ours = AP.presets()["official"], AP.presets()["paper"], AP.presets()["ours"]
    assert ours == AP()
    assert (official.eta, paper.eta) == (1.0, 0.0)
    assert official.preserve == paper.preserve == 1.0
    for p in (official, paper):
        assert (p.pool_size, p.nearest, p.spread) == (100, 1000, "kmeans")
        s = p.search
        assert (s.kind, s.tau, s.lr, s.passes) == ("gumbel", 2.0, 1e-2, 2)
        assert (p.latents.of, p.latents.ddim_steps, p.latents.cfg) == ("student", 50, 3.0)
        assert (p.batch, p.group, p.preserve_batch) == (1, "xattn", 0)
    assert official.search.hard
    assert official.search.uniform_start
    assert not official.search.teacher_gradient
    assert not official.latents.aligned
    assert official.latents.own
    assert official.x0_weighting
    assert not official.exclude_erased


def test_a_climb_through_both_models_needs_room_for_both():
    small = {"batch": 4, "preserve_batch": 1}
    assert AP(**small, search=Gumbel(teacher_gradient=True)).rows == 8
    assert AP(**small, search=Gumbel(teacher_gradient=False)).rows == 5
    assert AP(**small).rows == 5
