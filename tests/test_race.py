"""RACE and STEREO against their formulas, one latent at a time."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, job_of, mostly_slow, quick, same_weights, shaken

from efface.errors import UserError
from efface.methods.race import RACE
from efface.methods.stereo import STEREO
from efface.seeds import generator
from efface.training import EDIT, Bank, Run, Student
from efface.training.latents import Banked
from efface.training.student import Clock

SMALL = Bank(ddim_steps=3, trajectories=2)


def draws(n=0):
    return generator(n, "test of race")


@pytest.fixture
def student(tiny):
    return Student(tiny, {k: w.requires_grad_() for k, w in shaken(tiny).items()})


def at(update):
    clock = Clock()
    clock.update = update
    return clock


def agree(value, slow, weights):
    torch.testing.assert_close(value, slow, rtol=1e-4, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(v, weights) for v in (value, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# -- RACE ------------------------------------------------------------------------------------------


def slow_adversary(tiny, student, method, b, goal, g):
    """Row by row, number by number: a random start, ten steps by signs, two clamps."""
    start = 2 * torch.rand(b.concept.states.shape, generator=g) - 1
    rows = []
    for i in range(len(b.z)):
        own = b.concept.states[i]
        ball = method.radius * own.square().mean().sqrt()

        def held(x, own=own, ball=ball):
            x = torch.minimum(torch.maximum(x, own - ball), own + ball)
            return x.clamp(own.min(), own.max()) if method.bounded else x

        x = held(own + ball * start[i])
        for _ in range(method.steps):
            leaf = x.detach().requires_grad_()
            guess = tiny.predict(
                b.z[[i]],
                b.t[[i]],
                replace(b.concept[[i]], states=leaf[None]),
                student.still().weights,
            )
            (grad,) = torch.autograd.grad((guess - goal[[i]]).square().sum(), leaf)
            x = held(x - ball / 4 * grad.sign())
        rows.append(x)
    return torch.stack(rows)


@pytest.mark.parametrize("inner", ["teacher", "start_noise"])
@pytest.mark.parametrize("bounded", [False, True])
def test_race_erases_under_the_adversarys_states(tiny, student, inner, bounded):
    method = RACE(
        steps=3,
        radius=0.2,
        batch=3,
        eta=1.5,
        lasso=0.7,
        bounded=bounded,
        inner_target=inner,
        latents=SMALL,
        keep=("moon",),
    )
    job = job_of(tiny, [CHURCH, DOG], method)
    bank = SMALL.open(job)
    value = method.loss(job, bank, at(399))(student, draws())
    g = draws()
    path, step = bank.pick(g, 3)
    b = bank.at(path, step)
    goal = b.e_concept if inner == "teacher" else bank.z[path, torch.zeros_like(step)]
    states = slow_adversary(tiny, student, method, b, goal, g)
    own = b.concept.states
    assert (states - own).abs().max() <= 0.2 * own.square().mean((1, 2)).sqrt().max() * 1.0001
    assert not bounded or states.max() <= own.max()
    guess = tiny.predict(b.z, b.t, replace(b.concept, states=states), student.weights)
    erased = (guess - (b.e_anchor - 1.5 * (b.e_concept - b.e_anchor))).square().mean()
    base = tiny.parameters()
    far = sum((w - base[k]).abs().mean() for k, w in student.weights.items())
    kept = job.keeping().term(student, b.z, b.t, g)
    slow = erased + 0.7 * far + kept
    torch.testing.assert_close(value, slow, rtol=1e-3, atol=1e-6)


def test_the_trajectory_sets_out_from_its_noise(tiny):
    job = job_of(tiny, [CHURCH], RACE(latents=SMALL))
    bank = SMALL.open(job)
    noise = tiny.noise(2, job.generator("bank"))
    assert torch.equal(bank.z[:, 0], noise)


def test_the_first_updates_of_race_are_esd(tiny, student):
    method = RACE(plain=0.3, updates=10, batch=3, latents=SMALL)
    job = job_of(tiny, [CHURCH], method)
    bank = SMALL.open(job)
    b = bank.draw(draws(), 3)
    esd = (tiny.predict(b.z, b.t, b.concept, student.weights) - b.goal(1.0)).square().mean()
    agree(method.loss(job, bank, at(2))(student, draws()), esd, list(student.weights.values()))
    later = method.loss(job, bank, at(3))(student, draws())
    assert not torch.isclose(later, esd, rtol=1e-4)


def test_the_clock_goes_on_from_a_checkpoint(tiny, student):
    one, two = Clock(), Clock()
    for _ in range(3):
        one.begin(student, 1, draws())
    two.restore(one.state())
    two.begin(student, 1, draws())
    assert (one.update, two.update) == (2, 3)


def test_what_race_cannot_do_is_refused(tiny, words, monkeypatch):
    with pytest.raises(UserError, match="unknown inner target 'teach'; did you mean 'teacher'"):
        RACE(inner_target="teach")
    monkeypatch.setattr(tiny, "process", object())
    with pytest.raises(UserError, match="predicts velocities"):
        quick(RACE(inner_target="start_noise"), words).erase(tiny, [CHURCH], QUIET)


# -- STEREO ----------------------------------------------------------------------------------------


def test_the_second_stage_of_stereo_takes_concept_and_vectors_away(tiny, student):
    method = STEREO(guidance=2.5, batch=4, latents=SMALL, keep=("moon",))
    job = job_of(tiny, [CHURCH, DOG], method)
    bank = SMALL.open(job)
    found = [tiny.embed([f"{w} {i}" for i in range(10)]) for w in ("river", "sun")]  # 5 a concept
    value = method.second(job, bank, found)(student, draws())
    g = draws()
    b = bank.draw(g, 4)
    row = b.which * 5 + torch.randint(0, 5, (4,), generator=g)
    pick = torch.randint(0, 3, (4,), generator=g)
    slow = []
    for i in range(4):
        z, t, null = b.z[[i]], b.t[[i]], tiny.embed([""])
        asked = [b.concept[[i]], *(f[[int(row[i])]] for f in found)]
        with torch.no_grad():
            e0 = tiny.predict(z, t, null)
            away = sum(tiny.predict(z, t, c) - e0 for c in asked) / 3
            goal = e0 + 1.5 * (b.e_anchor[[i]] - e0) - 3.5 * away
        guess = tiny.predict(z, t, asked[int(pick[i])], student.weights)
        slow.append((guess - goal).square().mean())
    slow = torch.stack(slow).mean() + job.keeping().term(student, b.z, b.t, g)
    agree(value, slow, list(student.weights.values()))


def tiny_stereo(**changes):
    return STEREO(
        **{
            "updates": 6,
            "batch": 2,
            "save_every": 2,
            "inversion": 3,
            "inversion_batch": 2,
            "latents": SMALL,
            **changes,
        }
    )


def test_rounds_erase_what_was_found_last_and_vectors_move_on(tiny, monkeypatch):
    method = tiny_stereo(rounds=3, updates=12)
    seen, real = [], STEREO.round

    def watched(self, job, bank, words, weights, last):
        kept = real(self, job, bank, words, weights, last)
        seen.append((dict(weights), list(last), kept))
        return kept

    monkeypatch.setattr(STEREO, "round", watched)
    method.erase(tiny, [CHURCH], QUIET)
    assert [len(last) for _, last, _ in seen] == [0, 1, 1]
    start = method.opened(
        job_of(tiny, [CHURCH], method), Banked(tiny, [CHURCH], SMALL, draws(), False)
    ).found["text_encoder"]
    vectors = [kept["v/text_encoder"] for *_, kept in seen]
    assert all((v - start).abs().max() > 0 for v in vectors)
    assert not torch.equal(vectors[0], vectors[1])
    for (_, _, before), (weights, _, _) in pairwise(seen):
        assert same_weights(weights, {k[2:]: w for k, w in before.items() if k[0] == "w"})
    own = tiny.parameters()
    assert any(not torch.equal(w, own[k]) for k, w in seen[1][0].items())


@pytest.mark.parametrize(("updates", "share", "each"), [(6, 0.5, 1), (10, 1.0, 4), (2, 0.5, 0)])
def test_the_updates_are_shared_out(tiny, updates, share, each):
    heard = []
    method = tiny_stereo(updates=updates, share=share)
    method.erase(tiny, [CHURCH], Run(on_update=lambda n, *_: heard.append(n), progress=False))
    last = updates - 2 * each
    assert heard == [*range(1, each + 1)] * 2 + [*range(1, last + 1)]


class Killed(Exception):
    """As good as SIGKILL."""


@pytest.mark.parametrize("after", mostly_slow((1, 2, 4, 5), (2,)))
def test_killed_stereo_goes_on_and_ends_with_the_same_bits(tiny, tmp_path, after):
    method = tiny_stereo()
    whole = method.erase(tiny, [CHURCH, DOG], QUIET)
    seen = []

    def on_update(*heard):
        seen.append(heard[0])
        if len(seen) == after:
            raise Killed

    with pytest.raises(Killed):
        method.erase(tiny, [CHURCH, DOG], Run(tmp_path, on_update, progress=False))
    edit = method.erase(tiny, [CHURCH, DOG], Run(tmp_path, progress=False))
    assert same_weights(dict(edit.weights), dict(whole.weights))
    assert [p.name for p in tmp_path.iterdir()] == [EDIT]


def test_too_small_a_batch_of_an_inversion_is_refused_by_its_name():
    with pytest.raises(UserError, match="got 1 for inversion_batch; 2 to 4,096 is needed"):
        STEREO(inversion_batch=1)


def test_a_model_without_token_vectors_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.family), "crosses", False)
    with pytest.raises(UserError, match="the method 'stereo' works on token vectors of CLIP"):
        tiny_stereo().erase(tiny, [CHURCH], QUIET)
