"""The smallest largest harm: against a general optimiser, its certificate, and its limits."""

import dataclasses
import math

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, WORDS, job_of

from efface.concepts import Concept
from efface.errors import UserError
from efface.evaluation.protocols import load as load_protocol
from efface.methods.minimax import Minimax
from efface.methods.uce import UCE
from efface.seeds import generator
from efface.training.anchors import half_made, half_way
from efface.training.closed_form import solve, text_vectors
from efface.training.minimax import least_harm, lengths, seen_by
from efface.training.weighing import by_attention, by_drift, spread


def problem(n=2, m=1, k=12, d=5, r=1, seed=0):
    """Erased, anchors, hard rows, words, and the form of two maps."""
    g = torch.Generator().manual_seed(seed)
    c, a, h = (torch.randn(x, d, generator=g, dtype=torch.float64) for x in (n, n, m))
    words = torch.randn(k, r, d, generator=g, dtype=torch.float64)
    maps = [torch.randn(x, d, generator=g, dtype=torch.float64) for x in (4, 3)]
    return c, a, h, words, maps


def slow_harm(y, c, a, words, maps):
    """Word by word, map by map."""
    found = []
    for w in words:
        changes = [m @ (a - c).T @ y.T for m in maps]
        up = sum(float((x @ row).square().sum()) for x in changes for row in w)
        found.append(
            math.sqrt(up / sum(float((m @ row).square().sum()) for m in maps for row in w))
        )
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize("m", [0, 1])
def test_it_erases_keeps_and_harms_as_it_says(m, r):
    c, a, h, words, maps = problem(m=m, r=r)
    found = least_harm(c, a, h, words, seen_by(maps))
    q = torch.eye(5, dtype=torch.float64) + (a - c).T @ found.y.T
    torch.testing.assert_close(c @ q.T, a)
    torch.testing.assert_close(h @ q.T, h)
    torch.testing.assert_close(found.harm, slow_harm(found.y, c, a, words, maps))
    assert 0 <= found.gap <= 0.01
    assert found.bound <= float(found.harm.max())
    assert found.weights.sum() == pytest.approx(1)


def test_no_general_optimiser_finds_less():
    """Each map with a change of its own, which is more than one Q for all can do."""
    c, a, h, words, maps = problem(n=1, m=0, k=6, d=3)
    found = least_harm(c, a, h, words, seen_by(maps), tolerance=1e-4, rounds=5000)
    w, e = torch.cat(maps), words[:, 0]  # one map of 7 rows: harm sums over maps
    size = (e @ w.T).norm(dim=1)
    exact = torch.linalg.pinv(c).T  # one change that erases; all others differ by what c is not
    start = w @ (a - c).T @ exact
    rest = torch.eye(3, dtype=torch.float64) - exact.T @ c
    free = torch.zeros(7, 3, dtype=torch.float64, requires_grad=True)

    def harms():
        return (e @ (start + free @ rest).T).norm(dim=1) / size

    for power in (10.0, 100.0, 3000.0):  # ever nearer to the largest
        steps = torch.optim.LBFGS([free], max_iter=500, line_search_fn="strong_wolfe")

        def closure(power=power, steps=steps):
            steps.zero_grad()
            value = (power * harms().log()).logsumexp(0) / power
            value.backward()
            return value

        steps.step(closure)
    changed = start + free.detach() @ rest
    torch.testing.assert_close(c @ changed.T, (a - c) @ w.T)
    best = float(harms().max().detach())
    assert best >= found.bound * (1 - 1e-4)
    assert best == pytest.approx(float(found.harm.max()), rel=2e-3)


def test_even_weights_are_the_limit_of_least_squares():
    c, a, _, words, maps = problem(m=0)
    form = seen_by(maps)
    scaled = words[:, 0] / lengths(words, form)[:, None]
    q = solve(c, a, scaled, 1e6, 1.0, 1e-6)
    once = least_harm(c, a, c[:0], words, form, rounds=1)
    torch.testing.assert_close(
        torch.eye(5, dtype=torch.float64) + (a - c).T @ once.y.T, q, rtol=1e-4, atol=1e-5
    )
    best = least_harm(c, a, c[:0], words, form)
    assert float(best.harm.max()) < float(once.harm.max())


def test_every_round_is_a_proof():
    c, a, h, words, maps = problem(k=40, d=8)
    form, best = seen_by(maps), math.inf
    for rounds in (1, 2, 5, 20, 100):
        found = least_harm(c, a, h, words, form, rounds=rounds, tolerance=0.0)
        assert found.gap >= -1e-9
        assert float(found.harm.max()) <= best + 1e-9
        best = float(found.harm.max())
    tight = least_harm(c, a, h, words, form, rounds=5000, tolerance=1e-4)
    for rounds in (1, 5, 100):
        loose = least_harm(c, a, h, words, form, rounds=rounds, tolerance=0.0)
        assert loose.bound <= float(tight.harm.max()) + 1e-9
        assert tight.bound <= float(loose.harm.max()) + 1e-9


def test_a_large_ridge_is_the_smallest_edit():
    c, a, h, words, maps = problem()
    found = least_harm(c, a, h, words, seen_by(maps), ridge=1e9)
    least = torch.linalg.pinv(torch.cat([c, h]))[:, :2]
    torch.testing.assert_close(found.y, least, rtol=1e-4, atol=1e-5)
    assert found.bound <= float(found.harm.max())


def test_few_words_need_not_be_harmed():
    c, a, h, words, maps = problem(k=2, d=8)
    found = least_harm(c, a, h, words, seen_by(maps))
    assert float(found.harm.max()) < 1e-4
    assert found.gap == 0 or found.bound < 1e-4


@pytest.mark.parametrize("rows", ["subject", "all"])
def test_the_edit_of_a_model_has_its_certificate(tiny, words, rows):
    method = Minimax(vocabulary=str(words), keep=("moon",), rows=rows)
    job = job_of(tiny, [CHURCH, DOG], method)
    made, own = method.make(job), tiny.parameters()
    last = {w: text_vectors(tiny, [w])[0] for w in ("church", "dog", "hound", "", "cat", "moon")}
    maps = [own[n].double() for n in tiny.text_maps()]
    change = [made.weights[n].double() - w for n, w in zip(tiny.text_maps(), maps, strict=True)]
    for d, w in zip(change, maps, strict=True):
        for word, anchor in (("church", ""), ("dog", "cat"), ("hound", "cat")):
            torch.testing.assert_close((w + d) @ last[word], w @ last[anchor], rtol=1e-3, atol=1e-3)
        for word in ("", "cat", "moon"):
            assert (d @ last[word]).abs().max() < 1e-3
    told, harm = job.notes["certificate"], {}
    for word in WORDS:
        e = text_vectors(tiny, [word], rows)
        up, down = (sum(float((x @ e.T).square().sum()) for x in m) for m in (change, maps))
        harm[word] = 100 * math.sqrt(up / down)
    assert max(harm.values()) == pytest.approx(told["harm"], rel=1e-2)
    assert harm[told["worst"]] == pytest.approx(told["harm"], rel=1e-2)
    assert 0 < told["bound"] <= told["harm"]
    assert told["chief"] in WORDS
    assert told["worst"] in job.notes["said"]
    assert "for the same strength of erasure, no linear edit" in job.notes["said"]


def test_least_squares_harm_their_worst_word_more(tiny, words):
    plain = UCE(vocabulary=str(words), erase_scale=1e6, ridge=1e-6)
    best = Minimax(vocabulary=str(words), rows="subject", ridge=0.0, keep_anchors=False)

    def worst(method):
        edit, own, found = method.erase(tiny, [CHURCH], QUIET), tiny.parameters(), []
        for word in WORDS:
            e = text_vectors(tiny, [word])[0]
            up = sum(
                float(((w - own[k]).double() @ e).square().sum()) for k, w in edit.weights.items()
            )
            found.append(
                up / sum(float((own[k].double() @ e).square().sum()) for k in edit.weights)
            )
        return max(found)

    assert worst(best) <= worst(plain) * 1.001


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_no_edit_of_the_same_strength_that_is_as_small_is_below_the_bound(ridge):
    """Changes of each map of their own, that erase as much and hold the same rows."""
    c, a, h, words, maps = problem(d=8)
    found = least_harm(c, a, h, words, seen_by(maps), ridge)
    fixed = torch.cat([c, h])
    rest = torch.eye(8, dtype=c.dtype) - torch.linalg.pinv(fixed) @ fixed  # nothing fixed sees it
    ours = [w @ (a - c).T @ found.y.T for w in maps]
    size = sum(float(d.square().sum()) for d in ours)
    g, below = torch.Generator().manual_seed(0), 0
    for i in range(300):
        away = [torch.randn(d.shape, generator=g, dtype=c.dtype) @ rest for d in ours]
        least = [d - d @ rest for d in ours]  # the smallest that erases as much
        other = [
            x + (i % 10) / 9 * (d - x) + 0.1 * r for x, d, r in zip(least, ours, away, strict=True)
        ]
        if sum(float(d.square().sum()) for d in other) > size:
            continue
        below += 1
        for d, w in zip(other, maps, strict=True):
            torch.testing.assert_close(d @ c.T, w @ (a - c).T)
            torch.testing.assert_close(d @ h.T, torch.zeros_like(d @ h.T), atol=1e-9, rtol=0)
        harm = max(
            sum(float((d @ w[0]).square().sum()) for d in other)
            / sum(float((m @ w[0]).square().sum()) for m in maps)
            for w in words
        )
        assert harm**0.5 >= found.bound
    assert below > 20


def test_half_the_strength_is_half_the_change(tiny, words):
    whole = Minimax(vocabulary=str(words))
    half = dataclasses.replace(whole, strength=0.5)
    one, two = (m.erase(tiny, [CHURCH], QUIET) for m in (whole, half))
    own = tiny.parameters()
    for k, w in one.weights.items():
        torch.testing.assert_close(
            two.weights[k] - own[k], 0.5 * (w - own[k]), rtol=1e-3, atol=1e-6
        )
    for number in ("harm", "bound"):
        assert two.meta["certificate"][number] == pytest.approx(
            one.meta["certificate"][number] / 2, rel=2e-3
        )
    # the bound is of the same strength: a weaker edit's worst word is below it
    assert two.meta["certificate"]["harm"] < one.meta["certificate"]["bound"]


def test_what_cannot_be_is_refused(tiny, tmp_path):
    path = tmp_path / "w.txt"
    path.write_text("church\nChurches\n")
    with pytest.raises(UserError, match="holds no word but what is erased"):
        Minimax(vocabulary=str(path)).erase(tiny, [CHURCH], QUIET)


@pytest.mark.parametrize("split", ["1", "2"])
def test_the_worst_of_the_shipped_names_is_within_a_hundredth_of_the_bound(emoji, split):
    names = load_protocol("emoji-objects-2").erased(split)
    for erased in ([names[0]], names):
        told = Minimax().erase(emoji, erased, QUIET).meta["certificate"]
        assert told["bound"] <= told["harm"] <= 1.0101 * told["bound"]
        assert told["harm"] > 5


# -- how much of a map is seen ---------------------------------------------------------------------


def test_a_map_weighs_what_unrelated_edits_of_it_do_to_predictions(tiny):
    maps = tiny.text_maps()
    found = by_drift(tiny, maps, WORDS, generator(3))
    some = spread(WORDS)
    cond = tiny.embed(some)
    z, t = half_made(tiny, cond, generator(3)), half_way(tiny)
    edits = [
        (i, UCE().erase(tiny, [Concept(some[i + 1], some[i])], QUIET).weights) for i in (0, 2, 4, 6)
    ]
    slow = []
    for name in maps:
        up, down = 0.0, 0.0
        for to, weights in edits:
            new, old = weights[name], tiny.parameters()[name]
            for i, word in enumerate(some):
                if i not in (to, to + 1):
                    row = z[[i]], t[None], cond[[i]]
                    two = (tiny.predict(*row, weights=x) for x in ({name: new}, None))
                    up += float((next(two) - next(two)).square().mean())
                    far = (new - old) @ text_vectors(tiny, [word])[0].float()
                    down += float(far.square().sum())  # as harm counts it
        slow.append(up / down)
    mean = sum(slow) / len(slow)
    assert found == pytest.approx([x / mean for x in slow], rel=1e-3, abs=1e-5)
    assert max(found) > 1.2 * min(found)


def test_a_layer_weighs_what_it_looks_at_the_word(tiny):
    maps = tiny.text_maps()
    found = dict(zip(maps, by_attention(tiny, maps, WORDS, generator(3)), strict=True))
    some = spread(WORDS)
    cond, at = tiny.embed(some), tiny.last_word(some)[:, -1]
    z, t = half_made(tiny, cond, generator(3)), half_way(tiny)
    looked = {}
    for name, layer in tiny.denoiser.named_modules():
        if name.endswith(".attn2"):  # one at a time: no order to be wrong about
            seen = []
            hooks = [
                layer.to_q.register_forward_hook(lambda *x, s=seen: s.append(x[2])),
                layer.to_k.register_forward_hook(lambda *x, s=seen: s.append(x[2])),
            ]
            tiny.predict(z, t.expand(len(some)), cond)
            for hook in hooks:
                hook.remove()
            q, k = (x.unflatten(2, (layer.heads, -1)).transpose(1, 2) for x in seen)
            share = (q @ k.transpose(2, 3) * layer.scale).softmax(3)
            mine = torch.stack([a[..., int(i)] for a, i in zip(share, at, strict=True)])
            looked[name] = float(mine.square().mean())
    want = [looked[m.rpartition(".to_")[0]] for m in maps]
    mean = sum(want) / len(want)
    assert list(found.values()) == pytest.approx([x / mean for x in want], rel=1e-3)


@pytest.mark.parametrize(("harm", "weigh"), [("drift", by_drift), ("attention", by_attention)])
def test_the_worst_word_is_the_one_that_is_seen_to_be_harmed(tiny, words, harm, weigh):
    maps, worst = tiny.text_maps(), {}
    own = [tiny.parameters()[n].double() for n in maps]
    for kind in (harm, "states"):
        method = Minimax(vocabulary=str(words), harm=kind, ridge=1e-6, tolerance=1e-3)
        job = job_of(tiny, [CHURCH], method)
        weights = weigh(tiny, maps, WORDS, job.generator("harm"))
        made = method.make(job).weights
        change = [made[n].double() - w for n, w in zip(maps, own, strict=True)]
        found = []
        for e in text_vectors(tiny, WORDS):
            up, down = (
                sum(x * float((m @ e).square().sum()) for x, m in zip(weights, some, strict=True))
                for some in (change, own)
            )
            found.append(100 * math.sqrt(up / down))
        worst[kind] = max(found)
        if kind == harm:
            told = job.notes["certificate"]
            assert told["harm"] == pytest.approx(max(found), rel=1e-3)
            assert told["worst"] == WORDS[found.index(max(found))]
    assert worst[harm] < worst["states"]


def test_attention_says_nothing_of_other_maps(tiny):
    with pytest.raises(UserError, match="'proj' is in no cross-attention block"):
        by_attention(tiny, ["proj"], WORDS, generator(0))
    with pytest.raises(UserError, match="kind of harm"):
        Minimax(harm="pixels")
