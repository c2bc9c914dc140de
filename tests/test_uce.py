import dataclasses
import math

import pytest
import torch
from conftest import CHURCH, DOG, QUIET

from efface.errors import UserError
from efface.methods import METHODS
from efface.methods.rece import RECE
from efface.methods.speed import SPEED
from efface.methods.uce import UCE
from efface.settings import ranges
from efface.training.change import check_change
from efface.training.closed_form import solve, solved


@pytest.fixture(scope="module")
def problem():
    """Vectors to erase (5), their anchors, and ones to keep (9), in 16 dimensions; a map to 7."""
    g = torch.Generator().manual_seed(0)
    c, a, p, w = (torch.randn(n, 16, generator=g, dtype=torch.float64) for n in (5, 5, 9, 7))
    return c, a, p, w


SCALES = [(1.0, 1.0, 0.5), (3.0, 0.2, 0.01), (0.5, 2.0, 4.0)]


@pytest.mark.parametrize(("s_e", "s_p", "ridge"), SCALES)
def test_q_is_the_formula_of_the_paper(problem, s_e, s_p, ridge):
    c, a, p, _ = problem
    eye = torch.eye(16, dtype=torch.float64)
    left, right = ridge * eye, ridge * eye
    for x, y in zip(c, a, strict=True):
        left, right = left + s_e * torch.outer(y, x), right + s_e * torch.outer(x, x)
    for x in p:
        left, right = left + s_p * torch.outer(x, x), right + s_p * torch.outer(x, x)
    torch.testing.assert_close(solve(c, a, p, s_e, s_p, ridge), left @ torch.linalg.inv(right))


@pytest.mark.parametrize(("s_e", "s_p", "ridge"), SCALES)
@pytest.mark.parametrize("keeping", [True, False])
def test_the_edit_solves_the_stacked_least_squares_problem(problem, s_e, s_p, ridge, keeping):
    c, a, p, w = problem
    keep = p if keeping else None
    eye = torch.eye(16, dtype=torch.float64)
    rows, goals = [s_e**0.5 * c, ridge**0.5 * eye], [s_e**0.5 * a @ w.T, ridge**0.5 * w.T]
    if keeping:
        rows, goals = [*rows, s_p**0.5 * p], [*goals, s_p**0.5 * p @ w.T]
    slow = torch.linalg.lstsq(torch.cat(rows), torch.cat(goals)).solution.T
    torch.testing.assert_close(w @ solve(c, a, keep, s_e, s_p, ridge), slow)


def test_kept_vectors_orthogonal_to_the_erased_are_unchanged():
    g = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=g, dtype=torch.float64))[0]
    c = torch.randn(3, 6, generator=g, dtype=torch.float64) @ basis[:6]
    p = torch.randn(4, 10, generator=g, dtype=torch.float64) @ basis[6:]
    a = torch.randn(3, 16, generator=g, dtype=torch.float64)
    for keep in (p, None):
        torch.testing.assert_close(p @ solve(c, a, keep, 1.0, 1.0, 0.5).T, p)


def test_without_ridge_the_erased_goes_where_its_anchor_goes(problem):
    c, a, _, w = problem
    q = solve(c, a, None, 1.0, 1.0, 1e-9)
    torch.testing.assert_close(c @ (w @ q).T, a @ w.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [UCE(ridge=0.0), RECE(ridge=0.0, rows="subject")])
def test_a_singular_system_is_refused_in_a_line(tiny, method):
    with pytest.raises(UserError, match=r"equations are singular: .* the 16 directions .*ridge"):
        method.erase(tiny, [CHURCH], QUIET)
    g = torch.Generator().manual_seed(0)
    some = torch.randn(30, 40, generator=g, dtype=torch.float64)
    below = some.T @ some  # of rank 30, but for rounding, which LU does not see
    with pytest.raises(UserError, match=r"a ridge of 0 leave some of the 40 directions"):
        solved(below, torch.ones(40, 1).double(), 0.0)


def test_rounding_that_is_blown_up_is_no_edit(tiny):
    own = {k: tiny.parameters()[k] for k in tiny.text_maps()}
    name = next(iter(own))
    check_change({k: 100 * w for k, w in own.items()}, own)
    for far in (1e6, float("nan")):
        with pytest.raises(UserError, match=f"change '{name}' by .* its size.*Raise the ridge"):
            check_change({name: far * own[name]}, own)
    for method in (UCE(erase_scale=0.0), UCE(ridge=1e9)):
        with pytest.raises(UserError, match="the edit would change nothing"):
            method.erase(tiny, [CHURCH], QUIET)


@pytest.mark.parametrize(
    "method",
    [
        UCE(ridge=1e-9, erase_scale=1e9),
        UCE(ridge=1e-9, keep=("moon",), keep_weight=1e9),
        RECE(ridge=1e-9, erase_scale=1e9),
    ],
)
def test_a_ridge_that_is_lost_beside_a_weight_is_refused_in_a_line(tiny, method):
    """The solve would fill what nothing holds with rounding, many times the maps' own size."""
    with pytest.raises(UserError, match=r"a ridge of 1e-09 leave some of the 16 directions"):
        method.erase(tiny, [CHURCH], QUIET)


def test_a_retain_scale_that_is_lost_is_refused_in_a_line(tiny, words):
    method = SPEED(vocabulary=str(words), null=10.0, retain_scale=1e-18)
    with pytest.raises(UserError, match="a retain_scale of 1e-18 is rounding"):
        method.erase(tiny, [CHURCH], QUIET)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.closed_form])
def test_a_weight_of_the_equations_has_an_end(name):
    """Every number of a closed form without an end of its own is one that is no weight."""
    open_ended = {k for k, r in ranges(METHODS[name]).items() if r.high == math.inf}
    assert open_ended <= {"null"}


@pytest.mark.parametrize("field", ["erase_scale", "preserve_scale", "ridge", "keep_weight"])
def test_a_huge_weight_is_refused_by_its_range(field):
    with pytest.raises(UserError, match=rf"got 1e\+300 for {field}; 0 to 1,000,000,000 is"):
        UCE(**{field: 1e300})


def test_nothing_to_move_is_the_identity(problem):
    c, _, p, _ = problem
    eye = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(solve(c, c, p, 1.0, 1.0, 0.5), eye)


@pytest.mark.parametrize("rows", ["subject", "all"])
def test_every_map_of_the_model_gets_the_same_q(tiny, rows):
    method = UCE(rows=rows, keep=("moon", "red house"))
    edit = method.erase(tiny, [CHURCH, DOG], QUIET)

    def vectors(prompts):
        states = tiny.embed(prompts).states.double()
        if rows == "all":
            return states.flatten(0, 1)
        ids = tiny.tokenizer(prompts, padding="max_length").input_ids
        ends = [row.index(tiny.tokenizer.eos_token_id) for row in ids]
        return torch.stack([s[e - 1] for s, e in zip(states, ends, strict=True)])

    n = len(vectors([""]))  # dog and hound are one concept: half a row each
    half = torch.tensor([1, 0.5, 0.5]).double().sqrt().repeat_interleave(n)[:, None]
    q = solve(
        half * vectors(["church", "dog", "hound"]),
        half * vectors(["", "cat", "cat"]),
        vectors(["moon", "red house"]),
        1.0,
        1.0,
        0.5,
    )
    own, maps = tiny.parameters(), tiny.text_maps()
    assert set(edit.weights) == set(maps)
    assert maps
    for name in maps:
        torch.testing.assert_close(edit.weights[name], (own[name].double() @ q).float())


def test_the_subject_is_the_last_word_before_the_end_token(tiny):
    prompts = ["", "dog", "a big red dog", "word " * 40]
    ids = tiny.tokenizer(prompts, padding="max_length", truncation=True).input_ids
    assert tiny.last_word(prompts)[:, 0].tolist() == [
        row.index(tiny.tokenizer.eos_token_id) - 1 for row in ids
    ]


def test_kept_words_move_less(tiny):
    def far(method):
        edit, own = method.erase(tiny, [CHURCH], QUIET), tiny.parameters()
        v = tiny.embed(["moon"]).states[0, 1]
        return sum(float(((w - own[k]) @ v).square().sum()) for k, w in edit.weights.items())

    loose = UCE()
    kept = dataclasses.replace(loose, keep=("moon",), preserve_scale=100.0)
    assert far(kept) < 0.1 * far(loose)


def test_a_vocabulary_is_kept_without_what_is_erased(tiny, tmp_path):
    path = tmp_path / "w.txt"
    path.write_text("moon\nchurch\nChurch\nred house\n")
    a = UCE(vocabulary=str(path)).erase(tiny, [CHURCH], QUIET)
    b = UCE(keep=("moon", "red house")).erase(tiny, [CHURCH], QUIET)
    assert a.digest == b.digest
