"""Twofold: AP where nothing recalls; what recalls, against slow and obvious versions of itself."""

from dataclasses import replace

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, job_of, quick, shaken

from efface.concepts import TEMPLATES
from efface.errors import UserError
from efface.methods.ap import AP
from efface.methods.twofold import Twofold
from efface.models import encoded_with
from efface.seeds import generator
from efface.training import Bank, Student
from efface.training.forecast import forecast
from efface.training.held import drawing
from efface.training.recall import Latents, Recall, States, Tokens
from efface.training.search import Exact, Setting

SMALL = Bank(ddim_steps=3, trajectories=2)
NONE = Recall(states=False, tokens=False, latents=False)
ONE = Recall(batch=3, steps=1, eta=1.0)


def draws(n=0):
    return generator(n, "test of a recall")


@pytest.fixture
def job(tiny):
    return job_of(tiny, [CHURCH, DOG], Twofold(latents=SMALL))


@pytest.fixture
def bank(job):
    return SMALL.open(job)


@pytest.fixture
def student(tiny):
    return Student(tiny, shaken(tiny))


@pytest.mark.parametrize(
    "own",
    [{"reuse": 1, "batch": 1}, {"reuse": 0, "preserve": 0.5, "search": Exact(refresh=2, probes=1)}],
)
def test_without_a_channel_it_is_ap_bit_for_bit(tiny, words, own):
    twofold = quick(Twofold(recall=NONE, keep=("moon",), **own), words, updates=3)
    ap = quick(AP(keep=("moon",), latents=twofold.latents, **own), words, updates=3)
    assert twofold.rows == ap.rows
    one, two = (m.erase(tiny, [CHURCH, DOG], QUIET) for m in (twofold, ap))
    assert one.digest == two.digest
    assert one.meta["cost"] == two.meta["cost"]


@pytest.mark.slow
def test_an_update_costs_at_most_half_more_than_aps(tiny, words):
    concepts, spent = [replace(CHURCH, anchor="moon")], []
    for method in (Twofold(latents=SMALL), AP(latents=SMALL)):
        method = replace(method, vocabulary=str(words))
        one, two = (forecast(replace(method, updates=n), tiny, concepts) for n in (30, 60))
        spent.append(two.forward + two.backward - one.forward - one.backward)
    assert 1.3 * spent[1] < spent[0] <= 1.5 * spent[1]


def test_what_recalls_is_erased_as_the_name_is(tiny, job, bank, student):
    method = Twofold(batch=3, preserve_batch=2, preserve=0.7, against=2.5, eta=1.5, latents=SMALL)
    setting = Setting(job, method.candidates(job), bank)
    search, told = method.search.start(setting), []
    search.learn = lambda chosen, harm: told.append((chosen, harm.detach()))
    recalls = replace(ONE, rows=6, refresh=2).open(job, bank)
    for _ in range(3):  # one search
        recalls.begin(student, 3, draws())
    weights = {k: w.requires_grad_() for k, w in student.weights.items()}
    rows = drawing(setting, search, 3, 2, 0)
    value = method.loss(job, rows, search, recalls)(Student(tiny, weights), draws(5))

    g = draws(5)
    b, chosen, words = rows(student, g)
    again = recalls.draw(g)
    assert len(again.z) == 6

    def far(z, t, cond, goal):
        return (tiny.predict(z, t, cond, weights) - goal).square().mean()

    slow = (
        far(b.z, b.t, b.concept, b.e_anchor - 1.5 * (b.e_concept - b.e_anchor))
        + 0.7 * far(words.z, words.t, words.cond, tiny.predict(words.z, words.t, words.cond))
        + 2.5 * far(*again)
    )
    torch.testing.assert_close(value, slow, rtol=1e-4, atol=1e-6)
    ((which, harm),) = told
    assert torch.equal(which, chosen)
    guess = tiny.predict(words.z, words.t, words.cond, weights).detach()
    torch.testing.assert_close(harm, (guess - words.goal).square().mean((1, 2, 3)))
    some = list(weights.values())
    for a, c in zip(*(torch.autograd.grad(v, some) for v in (value, slow)), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-5)


def test_nothing_is_searched_before_the_first_update_and_then_as_often_as_said(tiny, job, bank):
    recalls = replace(ONE, refresh=3).open(job, bank)
    seen = []
    for name, channel in recalls.channels.items():
        channel.search = lambda s, g, name=name: seen.append((recalls.calls, name))
    for _ in range(8):
        recalls.begin(Student(tiny, shaken(tiny)), 2, draws())
    assert seen == [(n, name) for n in (3, 6) for name in ("states", "tokens", "latents")]


# -- text states -----------------------------------------------------------------------------------


def test_states_go_down_the_signs_of_the_gradient_within_the_ball(tiny, bank, student):
    channel = States(bank, ONE)
    own = bank.encoded.concept.states
    ball = 0.3 * float(own.square().mean().sqrt())
    b, still = bank.draw(draws(), 3), student.still()
    slow = torch.zeros_like(channel.found)
    for i in range(3):
        x = b.concept.states[[i]].clone().requires_grad_()
        guess = tiny.predict(b.z[[i]], b.t[[i]], replace(b.concept[[i]], states=x), still.weights)
        goal = tiny.predict(b.z[[i]], b.t[[i]], b.concept[[i]])
        slow[int(b.which[i])] += torch.autograd.grad((guess - goal).square().sum(), x)[0][0]
    channel.search(still, draws())
    sure = slow.abs() > 1e-3 * slow.abs().max()
    assert torch.equal(channel.found[sure], (-0.25 * ball * slow.sign())[sure])
    for n in range(12):
        channel.search(still, draws(n))
    assert channel.found.abs().max() == pytest.approx(ball)


@pytest.mark.slow
def test_under_what_is_found_more_of_the_concept_comes_back(tiny, job, bank):
    turn = torch.eye(16) + torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    own = tiny.parameters()  # an edit that a change of the text states can undo
    student = Student(tiny, {k: own[k] @ turn for k in tiny.text_maps()})
    recall = Recall(batch=32, steps=6)
    for channel in (States(bank, recall), Tokens(job, bank, recall)):

        def missed(channel=channel):
            b, found = bank.draw(draws(9), 100), channel.draw(100, draws(9))
            assert torch.equal(b.z, found.z)
            with torch.no_grad():
                guess = student(found.z, found.t, found.cond)
            return float((guess - b.e_concept).square().mean())

        before = missed()
        for n in range(5):
            channel.search(student, draws(n))
        assert missed() < 0.9 * before, type(channel)


# -- token vectors ---------------------------------------------------------------------------------


def test_a_vector_is_read_in_the_place_of_the_name(tiny, job, bank):
    channel = Tokens(job, bank, ONE)
    table = tiny.parts["text_encoder"].get_input_embeddings().weight
    ids = [tiny.tokenizer(n, add_special_tokens=False).input_ids for n in ("church", "dog")]
    want = torch.stack([table[i].mean(0) for i in ids])
    torch.testing.assert_close(channel.found["text_encoder"], want)
    texts = [t.format(n) for n in ("church", "dog") for t in TEMPLATES["object"]]
    if all(len(i) == 1 for i in ids):
        torch.testing.assert_close(channel.cond.states, tiny.embed(texts).states)
    found = channel.draw(20, draws())
    b = bank.draw(draws(), 20)
    rows = torch.cdist(found.cond.states.flatten(1), channel.cond.states.flatten(1)).argmin(1)
    assert (rows // 5).tolist() == b.which.tolist()  # its own concept's, in several templates
    assert len(set(rows.tolist())) > 4
    torch.testing.assert_close(found.goal, b.goal(1.0))


def test_vectors_go_down_the_signs_of_the_gradient(tiny, job, bank, student):
    channel = Tokens(job, bank, ONE)
    start = channel.found["text_encoder"].clone()
    channel.search(student.still(), draws())
    g = draws()
    b = bank.draw(g, 3)
    chosen = channel.chosen(b, g).tolist()
    texts = [t.format(channel.mark) for _ in range(2) for t in TEMPLATES["object"]]
    x, slow = start.clone().requires_grad_(), 0.0
    for i in range(3):
        row = {"text_encoder": x[[int(b.which[i])]]}
        cond = encoded_with(tiny, [texts[chosen[i]]], channel.mark, row)
        guess = tiny.predict(b.z[[i]], b.t[[i]], cond, student.still().weights)
        slow = slow + (guess - tiny.predict(b.z[[i]], b.t[[i]], b.concept[[i]])).square().sum()
    (grad,) = torch.autograd.grad(slow, x)
    table = tiny.parts["text_encoder"].get_input_embeddings().weight
    step = 0.1 * float(table.square().mean().sqrt())
    sure = grad.abs() > 1e-3 * grad.abs().max()
    moved = channel.found["text_encoder"] - start
    torch.testing.assert_close(moved[sure], (-step * grad.sign())[sure], rtol=1e-4, atol=1e-7)


# -- latents ---------------------------------------------------------------------------------------


def test_latents_move_within_the_ball_to_where_both_models_agree_more(tiny, bank, student):
    channel = Latents(bank, Recall(batch=64, steps=5, latents_radius=0.2, eta=1.5))
    plain = channel.draw(4, draws())
    assert torch.equal(plain.z, bank.draw(draws(), 4).z)
    channel.search(student.still(), draws(3))
    path, step = channel.found["path"], channel.found["step"]
    b, z = bank.at(path, step), channel.found["z"]
    assert len(z) == 32
    far = (z - b.z).abs().amax((1, 2, 3)) / b.z.square().mean((1, 2, 3)).sqrt()
    assert 0.1 < far.min() <= far.max() < 0.2 * (1 + 1e-4)

    def apart(z):
        with torch.no_grad():
            two = student(z, b.t, b.concept) - tiny.predict(z, b.t, b.concept)
        return float(two.square().mean())

    g = draws(7)
    random = [b.z + (z - b.z)[torch.randperm(32, generator=g)].flip(2) for _ in range(5)]
    assert apart(z) < 0.97 * min(apart(b.z), *map(apart, random))
    found = channel.draw(10, draws(5))
    for i in range(10):
        at = next(j for j in range(32) if torch.equal(z[j], found.z[i]))
        name = bank.row[path[at]]
        with torch.no_grad():
            c, a = (
                tiny.predict(z[[at]], b.t[[at]], cond[[int(name)]])
                for cond in (bank.encoded.concept, bank.encoded.anchor)
            )
        torch.testing.assert_close(found.goal[[i]], a - 1.5 * (c - a), rtol=1e-4, atol=1e-5)


# -- what is kept, and what is refused -------------------------------------------------------------


def test_the_finds_come_back_from_a_checkpoint(job, bank, student):
    one, two = (replace(ONE, refresh=1).open(job, bank) for _ in range(2))
    for _ in range(3):
        one.begin(student, 2, draws())
    two.restore({k: w.clone() for k, w in one.state().items()})
    for searches in (one, two):
        searches.begin(student, 2, draws())
    a, b = one.draw(draws(4)), two.draw(draws(4))
    assert torch.equal(a.z, b.z)
    assert torch.equal(a.cond.states, b.cond.states)
    assert torch.equal(a.goal, b.goal)
    assert one.calls == two.calls == 4


def test_a_model_without_token_vectors_is_told_how_to_do_without(tiny, words, monkeypatch):
    monkeypatch.setattr(type(tiny.family), "crosses", False)
    method = quick(Twofold(), words)
    with pytest.raises(UserError, match=r"--recall.no-tokens leaves it out.*no cross-attention"):
        method.erase(tiny, [CHURCH], QUIET)
    method = replace(method, recall=replace(method.recall, tokens=False))
    assert method.erase(tiny, [CHURCH], QUIET).weights
