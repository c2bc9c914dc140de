"""AdvUnlearn against its formulas, one latent at a time."""

from dataclasses import replace

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, job_of, quick, same_weights, shaken

from efface.errors import UserError
from efface.methods.advunlearn import AdvUnlearn, Prefixes
from efface.methods.esd import ESD
from efface.models import encoded_with
from efface.seeds import generator
from efface.training import EDIT, Bank, Run, Student, turns
from efface.training.search import Random, Setting, pools

SMALL = Bank(ddim_steps=3, trajectories=2)
NAMES = ("church", "dog", "hound")
CLIP = "text_encoder"


def draws(n=0):
    return generator(n, "test of advunlearn")


def searched(**own):
    return AdvUnlearn(**{"latents": SMALL, "warm_up": 0.0, "batch": 3, "steps": 2, **own})


def built(model, method, concepts=(CHURCH, DOG)):
    """A method's parts at an update of a training."""
    job = job_of(model, concepts, method)
    bank = SMALL.open(job)
    return job, bank, Prefixes(job, method, bank)


def table(model):
    return model.parts[CLIP].get_input_embeddings().weight.detach()


@pytest.fixture
def student(tiny):
    return Student(tiny, {k: w.requires_grad_() for k, w in shaken(tiny).items()})


@pytest.fixture
def words_of(words):
    """What words are drawn from, for a job."""

    def make(job):
        found = [job.words(str(words), c) for c in job.concepts]
        candidates = pools(job, found)
        return Random().start(Setting(job, candidates, None))

    return make


def behind(model, prefix, name):
    """A name behind token vectors (k, D), encoded."""
    marks = " ".join(["*"] * len(prefix))
    return encoded_with(model, [f"{marks} {name}"], "*", {CLIP: prefix})


# -- the search ------------------------------------------------------------------------------------


def slow_search(model, student, method, bank, path, g, start):
    """Row by row and prompt by prompt, with Adam written out; also where it is sure of its way."""
    lr = method.step * float(table(model).square().mean().sqrt())
    x, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    sure = torch.ones_like(start, dtype=torch.bool)
    for i in range(1, method.steps + 1):
        b, grad = bank.again(g, path), torch.zeros_like(x)
        for k, p in enumerate(path.tolist()):
            row = int(bank.row[p])
            leaf = x[row].clone().requires_grad_()
            guess = student.still()(b.z[[k]], b.t[[k]], behind(model, leaf, NAMES[row]))
            goal = model.predict(b.z[[k]], b.t[[k]], model.embed([NAMES[row]]))
            grad[row] += torch.autograd.grad((guess - goal).square().sum(), leaf)[0]
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad.square()
        moved = (first / (1 - 0.9**i)) / ((second / (1 - 0.999**i)).sqrt() + 1e-8)
        x = x - lr * (grad.sign() if method.signs else moved)
        sure &= grad.abs() > 1e-3 * grad.abs().max()
    return x, sure


@pytest.mark.parametrize("signs", [False, True])
def test_prefixes_go_down_gradients_that_do_not_add_up(tiny, student, signs):
    method = searched(prefix=2, steps=3, batch=4, signs=signs)
    _, bank, prefixes = built(tiny, method)
    prefixes.begin(student, 4, draws())
    g = draws()
    path, _ = bank.pick(g, 4)
    start = table(tiny)[torch.randint(0, len(table(tiny)), (3, 2), generator=g)]
    slow, sure = slow_search(tiny, student, method, bank, path, g, start)
    found = prefixes.found[CLIP]
    rows = bank.row[path].unique().tolist()
    assert sure[rows].float().mean() > 0.5
    torch.testing.assert_close(found[sure], slow[sure], rtol=1e-3, atol=1e-4)
    for row in {0, 1, 2} - set(rows):
        assert torch.equal(found[row], start[row])


def test_behind_a_prefix_more_of_the_concept_comes_back(tiny):
    turn = torch.eye(16) + torch.randn(16, 16, generator=draws(3))
    own = tiny.parameters()  # an edit that other text can undo
    student = Student(tiny, {k: own[k] @ turn for k in tiny.text_maps()})
    method = searched(batch=16, steps=10)
    _, bank, prefixes = built(tiny, method, [CHURCH])

    def missed(prefix):
        b = bank.draw(draws(9), 100)
        with torch.no_grad():
            guess = student(b.z, b.t, behind(tiny, prefix, "church").repeat(100))
        return float((guess - b.e_concept).square().mean())

    prefixes.begin(student, 16, draws())
    g = draws()
    bank.pick(g, 16)
    start = table(tiny)[torch.randint(0, len(table(tiny)), (1, 1), generator=g)][0]
    assert missed(prefixes.found[CLIP][0]) < 0.9 * missed(start)


@pytest.mark.parametrize("start", ["random", "last"])
def test_a_search_sets_out_where_it_is_told_to(tiny, student, start):
    method = searched(start=start, steps=1, step=1e-6)
    _, _, prefixes = built(tiny, method)
    before = prefixes.found[CLIP]
    prefixes.begin(student, 3, draws())
    found = prefixes.found[CLIP]
    assert torch.allclose(found, before, atol=1e-5) == (start == "last")
    one = torch.cdist(found.flatten(1), table(tiny)).min(1).values
    assert one.max() < 1e-4  # tokens, as they are


def test_latents_are_others_of_the_same_prompts(tiny):
    _, bank, _ = built(tiny, searched(batch=1))
    path = torch.tensor([0, 3, 4] * 40)
    b = bank.again(draws(), path)
    assert b.which.tolist() == [0, 1, 1] * 40
    z = bank.z.flatten(0, 1).flatten(1)
    at = torch.cdist(b.z.flatten(1), z).argmin(1)  # which of 6 trajectories, and which step
    seen = [set((at[i::3] // 3).tolist()) for i in range(3)]
    assert seen == [{0, 1}, {2, 3}, {4, 5}]
    assert set((at % 3).tolist()) == {0, 1, 2}
    assert b.t.tolist() == bank.t[at % 3].tolist()


def test_of_very_many_names_those_are_looked_at_whose_turn_it_is(tiny, student, monkeypatch):
    monkeypatch.setattr(turns, "HELD", 2)
    job, _, prefixes = built(tiny, searched(updates=10))
    seen = []
    for job.now in (0, 9):
        prefixes.begin(student, 3, draws(job.now))
        b, _ = prefixes.draw(3, draws())
        seen.append(set(b.which.tolist()))
    assert sorted(seen, key=min) == [{0}, {1}]


# -- the loss --------------------------------------------------------------------------------------


def test_it_erases_behind_the_prefix_and_retains_words(tiny, student, words, words_of):
    method = searched(eta=1.5, prefix=2, preserve=0.7, preserve_batch=4, keep=("moon",))
    job, bank, prefixes = built(tiny, method)
    drawn = words_of(job)
    prefixes.begin(student, 3, draws())
    value = method.loss(job, drawn, prefixes)(student, draws(1))

    g = draws(1)
    b = bank.again(g, prefixes.path)
    cond = drawn.draw(b.which, 4, g).cond
    erased, retained = [], []
    for i in range(3):
        row = int(bank.row[prefixes.path[i]])
        with torch.no_grad():
            e, a = (tiny.predict(b.z[[i]], b.t[[i]], tiny.embed([w])) for w in (NAMES[row], ""))
            if row:  # the dog's anchor
                a = tiny.predict(b.z[[i]], b.t[[i]], tiny.embed(["cat"]))
        asked = behind(tiny, prefixes.found[CLIP][row], NAMES[row])
        guess = tiny.predict(b.z[[i]], b.t[[i]], asked, student.weights)
        erased.append((guess - (a - 1.5 * (e - a))).square().mean())
    for i in range(4):
        at = b.z[[i % 3]], b.t[[i % 3]], cond[[i]]
        guess = tiny.predict(*at, student.weights)
        retained.append((guess - tiny.predict(*at)).square().mean())
    slow = sum(erased) / 3 + 0.7 * sum(retained) / 4 + job.keeping().term(student, b.z, b.t, g)
    torch.testing.assert_close(value, slow, rtol=1e-4, atol=1e-6)
    some = list(student.weights.values())
    for x, y in zip(*(torch.autograd.grad(v, some) for v in (value, slow)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)


def test_while_it_warms_up_it_is_esd(tiny, student, words_of):
    method = searched(warm_up=0.3, updates=10, preserve=0.0)
    job, bank, prefixes = built(tiny, method)
    drawn, before = words_of(job), prefixes.found[CLIP]
    esd = ESD().eta
    b = bank.draw(draws(), 3)
    slow = (student(b.z, b.t, b.concept) - b.goal(esd)).square().mean()
    for job.now, plain in ((0, True), (2, True), (3, False)):
        prefixes.begin(student, 3, draws(5))
        assert torch.equal(prefixes.found[CLIP], before) == plain
        value = method.loss(job, drawn, prefixes)(student, draws())
        assert torch.isclose(value, slow, rtol=1e-4) == plain


# -- what is kept, and what is refused -------------------------------------------------------------


class Killed(Exception):
    """As good as SIGKILL."""


@pytest.mark.slow
def test_killed_it_goes_on_from_the_prefixes_that_it_had(tiny, words, tmp_path):
    method = quick(AdvUnlearn(start="last"), words, updates=5)
    whole = method.erase(tiny, [CHURCH, DOG], QUIET)

    def on_update(update, losses, edit):
        if update == 3:
            raise Killed

    with pytest.raises(Killed):
        method.erase(tiny, [CHURCH, DOG], Run(tmp_path, on_update, progress=False))
    edit = method.erase(tiny, [CHURCH, DOG], Run(tmp_path, progress=False))
    assert same_weights(dict(edit.weights), dict(whole.weights))
    assert edit.meta["cost"] == whole.meta["cost"]
    assert [p.name for p in tmp_path.iterdir()] == [EDIT]
    other = replace(method, start="random").erase(tiny, [CHURCH, DOG], QUIET)
    assert not same_weights(dict(edit.weights), dict(other.weights))


def test_what_it_cannot_do_is_refused(tiny, words, monkeypatch):
    with pytest.raises(UserError, match="unknown start of a search 'lst'; did you mean 'last'"):
        AdvUnlearn(start="lst")
    method = quick(AdvUnlearn(prefix=14), words)
    with pytest.raises(UserError, match=r"with 14 tokens before it, 'church' is cut.* 14 in all"):
        method.erase(tiny, [CHURCH], QUIET)
    monkeypatch.setattr(type(tiny.family), "crosses", False)
    with pytest.raises(UserError, match="the method 'advunlearn' works on token vectors of CLIP"):
        quick(AdvUnlearn(), words).erase(tiny, [CHURCH], QUIET)
