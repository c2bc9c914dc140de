"""SPEED's and DP's null space, DP's exactness, and what is refused for want of room."""

import dataclasses

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, WORDS, job_of, quick

from efface.concepts import Concept
from efface.errors import UserError
from efface.methods import METHODS
from efface.methods.dp import DP
from efface.methods.speed import SPEED
from efface.training.closed_form import Erased, maps_of, text_vectors
from efface.training.projection import (
    change,
    check_leverage,
    fits,
    fulfilled,
    independent,
    left_free,
    leverage,
    made_of,
    null_space,
    reduced,
)

BOTH = [CHURCH, DOG]


def rows(*sizes, d=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=g, dtype=torch.float64) for n in sizes]


def test_both_projections_are_exact():
    c, a, kept = rows(3, 3, 9)
    free = left_free(kept, kept[:0], 1.0)
    assert free.shape == (24, 15)
    torch.testing.assert_close(free.T @ free, torch.eye(15, dtype=torch.float64))
    far = change(c, a, free, kept[:0], 0.0, 0.0)
    assert (far @ kept.T).abs().max() < 1e-12
    torch.testing.assert_close(c + c @ far.T, a)
    x = c @ free  # arXiv:2604.10032, written out
    slow = (a - c).T @ torch.linalg.inv(x @ x.T) @ x @ free.T
    torch.testing.assert_close(far, slow)


def test_double_projection_is_the_limit_of_the_null_space_edit():
    c, a, kept, fixed = rows(2, 2, 6, 2)
    free = null_space(kept, 1e-9)
    for still in (fixed[:0], fixed):
        limit = change(c, a, free, still, 0.0, 0.0)
        near = change(c, a, free, still, 1e-9, 0.0)
        torch.testing.assert_close(near, limit, rtol=1e-4, atol=1e-6)
        assert (limit @ still.T).norm() < 1e-9


def test_soft_vectors_keep_a_share_of_their_squares():
    hard, soft = rows(2, 40, d=12)
    soft = soft * torch.logspace(0, -3, 12, dtype=torch.float64)
    for energy in (0.5, 0.9, 0.999, 1.0):
        free = left_free(hard, soft, energy)
        assert (hard @ free).norm() < 1e-9
        inside = soft @ left_free(hard, soft[:0], 1.0)
        assert (soft @ free).square().sum() <= (1 - energy + 1e-9) * inside.square().sum()
    assert left_free(hard, soft, 1.0).shape[1] == 0
    assert left_free(hard, soft, 0.0).shape[1] == 10
    sizes = [left_free(hard, soft, e).shape[1] for e in (0.5, 0.9, 0.999)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_combinations_that_are_no_more_are_dropped():
    c, a = rows(3, 3, d=8)
    c, a = torch.cat([c, c[:1], 2 * c[1:2]]), torch.cat([a, a[:1], 2 * a[1:2]])
    less_c, less_a = reduced(c, a, 1.0)
    assert less_c.shape == less_a.shape == (3, 8)
    one, two = (torch.linalg.pinv(x) @ y for x, y in ((c, a), (less_c, less_a)))
    torch.testing.assert_close(one, two)
    long = torch.diag(torch.tensor([10.0, 3.0, 0.1], dtype=torch.float64))
    assert reduced(long, long, 0.99)[0].shape == (2, 3)
    assert reduced(long, long, 0.5)[0].shape == (1, 3)


def erased_of(c, *names):
    return Erased(c, c, names)


def test_leverage_is_what_the_preserved_words_leave():
    eye = torch.eye(4, dtype=torch.float64)
    c = torch.tensor([[3.0, 0, 4, 0], [1, 0, 0, 0]], dtype=torch.float64)
    free = left_free(eye[:1], eye[:0], 1.0)
    torch.testing.assert_close(leverage(c, free), torch.tensor([0.8, 0.0], dtype=torch.float64))
    found = check_leverage(erased_of(c[:1], "fox"), free, eye[:1], ["cow"], 0.5)
    assert found == {"fox": pytest.approx(0.8)}
    two = check_leverage(erased_of(c, "fox", "fox"), free, eye[:1], ["cow"], 0.0)
    assert two == {"fox": pytest.approx(0.0, abs=1e-12)}


def test_a_combination_of_preserved_words_is_refused_by_name_with_what_would_fit():
    words = ["cow", "sun", "tree", "river"]
    kept = rows(4, d=8)[0]
    own = rows(1, d=8, seed=5)[0][0]
    c = torch.stack([own, 5 * kept[0] + kept[3]])
    free = left_free(kept, kept[:0], 1.0)
    with pytest.raises(UserError) as e:
        check_leverage(erased_of(c, "fox", "bull"), free, kept, words, 0.3)
    assert "'bull' is a combination of the preserved words ('cow', 'river'" in str(e.value)
    assert "30 % is needed" in str(e.value)
    assert "\n" not in str(e.value)
    n = fits(c[1], kept, words, 0.3)
    assert f"The first {n} of the 4 words would fit" in str(e.value)
    assert n < 4
    for some, enough in ((n, True), (n + 1, False)):
        left = left_free(kept[:some], kept[:0], 1.0)
        assert bool(leverage(c[1:], left)[0] >= 0.3) == enough
    assert made_of(c[1], kept, words, 2) == ["'cow'", "'river'"]


def test_concepts_that_are_combinations_of_each_other_are_refused():
    eye, names = torch.eye(4, dtype=torch.float64), ["a", "b"]
    some = independent(eye[:2], eye[2:], eye, names, 1.0)
    assert [x.shape for x in some] == [(2, 4), (2, 4)]
    told = r"a, b cannot all be erased: .* combinations of each other, with {} directions"
    with pytest.raises(UserError, match=told.format(1)):  # fewer directions than concepts
        independent(eye[:2], eye[2:], eye[:, :1], names, 1.0)
    with pytest.raises(UserError, match=told.format(2)):  # both have the same one left
        independent(eye[:2] + eye[3], eye[2:], eye[:, 2:], names, 1.0)
    twice = eye[[0, 0]]
    independent(twice, eye[[2, 2]], eye, names, 1.0)
    assert fulfilled(twice, eye[[2, 2]])
    assert not fulfilled(twice, eye[2:])
    with pytest.raises(UserError, match=told.format(4)):  # one state that is to go to two anchors
        independent(twice, eye[2:], eye, names, 1.0)
    independent(twice, eye[2:], eye, names, 0.99)  # a share of them is asked for


@pytest.mark.parametrize("name", ["dp", "minimax"])
def test_more_concepts_than_the_width_allows_are_refused(tiny, words, name):
    method = quick(METHODS[name](keep_anchors=False), words)
    if name == "dp":
        method = dataclasses.replace(method, vocabulary="")
    some = [Concept(w) for w in (*WORDS[:15], "moon", "church")]
    with pytest.raises(UserError, match=r"red house, .* \(17 in all\) cannot all be erased"):
        method.erase(tiny, some, QUIET)


def test_speed_refuses_what_its_preserved_words_leave_nothing_of(tiny, tmp_path):
    path = tmp_path / "w.txt"
    path.write_text("castle")
    SPEED(vocabulary=str(path)).erase(tiny, [CHURCH], QUIET)
    listed = f"words: {', '.join(WORDS)}"
    for more in ({"keep": tuple(WORDS)}, {"vocabulary": listed, "null": 1e-9}):
        method = SPEED(**{"vocabulary": str(path), **more})
        with pytest.raises(UserError, match=r"'church' is nearly a comb.* \('\w+ \w+', .*is free"):
            method.erase(tiny, [CHURCH], QUIET)


def test_the_only_word_is_preserved(tiny):
    w, (c, a, p) = torch.eye(16, dtype=torch.float64), rows(1, 1, 1, d=16)
    assert torch.equal(SPEED(draws=0).influenced(w, c, a, p), p)


def test_words_with_several_rows_fit_as_wholes():
    kept = torch.eye(6, dtype=torch.float64)[[0, 1, 1, 2]]  # two rows a word, one of them twice
    c = torch.tensor([0, 0, 1.0, 0, 0, 0.2], dtype=torch.float64)
    assert fits(c, kept, ["a", "b"], 0.5) == 1
    assert fits(c, kept, ["a", "b"], 0.1) == 2


@pytest.mark.parametrize("vocabulary", ["", "some"])
def test_dp_is_exact_in_a_model(tiny, tmp_path, vocabulary):
    path = tmp_path / "w.txt"
    path.write_text("\n".join(WORDS[:5]) + "\nchurch\n")
    method = DP(keep=("moon",), vocabulary=str(path) if vocabulary else "", energy=1.0)
    job = job_of(tiny, BOTH, method)
    made, own = method.make(job), tiny.parameters()
    last = {w: text_vectors(tiny, [w])[0] for w in ("church", "dog", "hound", "", "cat", "moon")}
    assert set(made.weights) == set(tiny.text_maps())
    for name, new in made.weights.items():
        w, new = own[name].double(), new.double()
        for word, anchor in (("church", ""), ("dog", "cat"), ("hound", "cat")):
            torch.testing.assert_close(new @ last[word], w @ last[anchor], rtol=1e-3, atol=1e-4)
        for word in ("", "cat", "moon", *(WORDS[:5] if vocabulary else ())):
            v = last.get(word, text_vectors(tiny, [word])[0])
            torch.testing.assert_close(new @ v, w @ v, rtol=1e-4, atol=1e-4)
    assert job.notes["free_directions"] == 16 - 3 - (5 if vocabulary else 0)
    assert set(job.notes["leverage"]) == {"church", "dog", "hound"}
    assert all(0.1 <= x <= 1 for x in job.notes["leverage"].values())


def test_speed_without_its_additions_is_dp_as_its_ridge_vanishes(tiny, tmp_path):
    """The regression that ties both to one code path."""
    path = tmp_path / "w.txt"
    path.write_text("\n".join(WORDS[:5]))
    exact = DP(vocabulary=str(path), energy=1.0, maps="kv").erase(tiny, BOTH, QUIET)
    plain = SPEED(
        vocabulary=str(path),
        maps="kv",
        keep=("", "cat"),
        filter=False,
        draws=0,
        invariants=False,
        null=1e-9,
        retain_scale=1e-9,
    )
    for method, same in ((plain, True), (dataclasses.replace(plain, retain_scale=1.0), False)):
        edit = method.erase(tiny, BOTH, QUIET)
        near = [
            torch.allclose(edit.weights[k], w, rtol=1e-3, atol=1e-4)
            for k, w in exact.weights.items()
        ]
        assert all(near) == same


def test_a_concept_without_an_anchor_goes_to_what_the_safe_words_make_of_it(tiny):
    method = DP(proxy=("cow", "tree", "Church"), keep_anchors=False)
    made, own = method.make(job_of(tiny, BOTH, method)), tiny.parameters()
    safe = text_vectors(tiny, ["cow", "tree"]).T
    church = text_vectors(tiny, ["church"])[0]
    near = safe @ torch.linalg.lstsq(safe, church[:, None]).solution[:, 0]
    goals = {"church": near, "dog": text_vectors(tiny, ["cat"])[0]}  # it has an anchor
    for name, new in made.weights.items():
        for word, goal in goals.items():
            c = text_vectors(tiny, [word])[0]
            torch.testing.assert_close(
                new.double() @ c, own[name].double() @ goal, rtol=1e-3, atol=1e-4
            )
    with pytest.raises(UserError, match="every word of proxy is erased itself"):
        DP(proxy="church").erase(tiny, BOTH, QUIET)


@pytest.mark.parametrize("name", ["dp", "minimax"])
def test_more_kept_words_than_the_width_allows_are_refused(tiny, words, name):
    method = quick(METHODS[name](keep=tuple(WORDS)), words)
    with pytest.raises(UserError, match=r"combination of the preserved words .*words would fit"):
        method.erase(tiny, BOTH, QUIET)


def test_no_word_at_all_leaves_everything_free(tiny):
    assert text_vectors(tiny, []).shape == (0, 16)
    assert null_space(torch.zeros(0, 5, dtype=torch.float64), 0.1).shape == (5, 5)


@pytest.mark.parametrize("name", ["uce", "speed", "dp", "oce", "minimax", "ap", "age"])
def test_a_vocabulary_of_nothing_but_what_is_erased_is_refused(tiny, tmp_path, name):
    path = tmp_path / "w.txt"
    path.write_text("church\nChurches\n")
    method = METHODS[name](vocabulary=str(path))
    with pytest.raises(UserError, match="holds no word"):
        method.erase(tiny, [CHURCH], QUIET)


def test_maps_that_a_family_does_not_have_are_refused(tiny, monkeypatch):
    assert maps_of(tiny, "all") == tiny.text_maps()
    assert all(".to_v." in n for n in maps_of(tiny, "v"))
    with pytest.raises(UserError, match="unknown choice of maps 'vk'"):
        maps_of(tiny, "vk")
    monkeypatch.setattr(type(tiny.family), "reads", "context_embedder")
    with pytest.raises(UserError, match="has no weights that read the text alone"):
        DP().erase(tiny, [Concept("church")], QUIET)
    monkeypatch.setattr(type(tiny.family), "reads", r"\.to_k\.")
    with pytest.raises(UserError, match=r"no maps 'v' that read the text alone.*choose maps 'all'"):
        maps_of(tiny, "v")
