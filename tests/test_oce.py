"""OCE: rotations alone, an objective that falls, and the released step that reflects."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, WORDS, job_of

from efface.concepts import Concept
from efface.errors import UserError
from efface.methods.oce import OCE, outside, polar, proper, span, widened
from efface.training.closed_form import text_vectors

D = 12


@pytest.fixture(scope="module")
def problem():
    """Directions of two concepts and of two anchors, and what is kept, (12, 12)."""
    g = torch.Generator().manual_seed(0)
    c, a, p = (torch.randn(n, D, generator=g, dtype=torch.float64) for n in (2, 2, 9))
    return span(c, "w"), span(a, "w"), p.T @ p / 9 + 0.1 * torch.eye(D, dtype=torch.float64)


def objective(r, concept, anchor, keep, s_e):
    """What stays outside of the anchors' span, and how far what is kept is turned."""
    turned = r @ concept
    away = turned - anchor @ anchor.T @ turned
    return float(s_e * away.square().sum() - 2 * (r * keep).sum())


@pytest.mark.parametrize("form", ["iterated", "released"])
def test_it_is_a_rotation(problem, form):
    r = OCE(form=form, erase_scale=5.0).rotation(*problem)
    torch.testing.assert_close(r.T @ r, torch.eye(D, dtype=torch.float64))
    assert float(torch.linalg.det(r)) == pytest.approx(1)


def test_the_objective_falls_in_every_round(problem):
    """Until the determinant is set right, after the last."""
    values = [objective(torch.eye(D, dtype=torch.float64), *problem, 3.0)]
    for rounds in range(1, 25):
        r = OCE(rounds=rounds, erase_scale=3.0).rotation(*problem)
        values.append(objective(r, *problem, 3.0))
    assert all(b <= a + 1e-9 for a, b in pairwise(values))
    assert values[-1] < values[1] < values[0]


def test_without_an_erase_weight_nothing_turns(problem):
    for form in ("iterated", "released"):
        r = OCE(form=form, erase_scale=0.0).rotation(*problem)
        torch.testing.assert_close(r, torch.eye(D, dtype=torch.float64))


def test_the_iteration_reaches_the_anchor_and_the_released_step_turns_round(problem):
    concept, anchor, keep = problem
    strong = 3 * float(torch.linalg.eigvalsh(keep)[-1])
    slow = OCE(erase_scale=strong, rounds=200).rotation(concept, anchor, keep)
    once = OCE(erase_scale=strong, form="released").rotation(concept, anchor, keep)
    assert outside(slow @ concept, anchor) < 0.2
    assert outside(once @ concept, anchor) > 0.7
    assert float((concept * (once @ concept)).sum()) < 0 < float((concept * (slow @ concept)).sum())


def test_nearest_orthogonal_matrices():
    g = torch.Generator().manual_seed(1)
    m = torch.randn(5, 5, generator=g, dtype=torch.float64)
    q = polar(m)
    torch.testing.assert_close(q.T @ q, torch.eye(5, dtype=torch.float64))
    other = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64))[0]
    assert (m - q).norm() < (m - other).norm()
    flipped = torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64))
    assert torch.linalg.det(polar(flipped)) < 0
    torch.testing.assert_close(proper(flipped), torch.eye(3, dtype=torch.float64))


def test_a_span_counts_a_direction_once():
    g = torch.Generator().manual_seed(2)
    c = torch.randn(2, 7, generator=g, dtype=torch.float64)
    twice = span(torch.cat([c, 3 * c, torch.zeros(1, 7, dtype=torch.float64)]), "w")
    assert twice.shape == (7, 2)
    torch.testing.assert_close(twice @ (twice.T @ c.T), c.T)
    flat = torch.diag(torch.tensor([1.0, 1, 1, 0], dtype=torch.float64))
    flat[3] = torch.tensor([1.0, 0, 0, 0.01])
    assert [span(flat, "w", e).shape[1] for e in (0.4, 0.9, 0.99)] == [1, 3, 3]
    with pytest.raises(UserError, match=r"fill all 4"):
        span(flat, "w")
    with pytest.raises(UserError, match=r"fill all 7 directions of 'some\.map'"):
        span(torch.eye(7, dtype=torch.float64), "some.map")


def test_too_few_anchors_are_widened_by_their_own_prompts():
    g = torch.Generator().manual_seed(4)
    a, rows = (torch.randn(n, 9, generator=g, dtype=torch.float64) for n in (1, 6))
    anchor = span(a, "w")
    wide = widened(anchor, torch.cat([a, rows]), 4)
    torch.testing.assert_close(wide.T @ wide, torch.eye(4, dtype=torch.float64))
    assert torch.equal(wide[:, :1], anchor)
    unit = rows / rows.norm(dim=1, keepdim=True)
    rest = unit - unit @ anchor @ anchor.T
    best = torch.linalg.eigvalsh(rest.T @ rest)[-3:].sum()
    torch.testing.assert_close((rest @ wide[:, 1:]).square().sum(), best)
    assert widened(wide, rows, 3) is wide


@pytest.mark.parametrize("form", ["iterated", "released"])
def test_norms_and_angles_of_every_word_stay(tiny, words, form):
    method = OCE(form=form, vocabulary=str(words), maps="kv", erase_scale=3.0)
    edit, own = method.erase(tiny, [CHURCH, DOG], QUIET), tiny.parameters()
    for name, w in edit.weights.items():
        torch.testing.assert_close(w.T @ w, own[name].T @ own[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(w, own[name], atol=1e-3)


def test_the_rotation_is_that_of_the_models_states(tiny, words):
    method = OCE(
        vocabulary=str(words), rows="subject", keep=("moon",), keep_weight=2.0, ridge=0.5, rounds=4
    )
    method = dataclasses.replace(method, erase_scale=1.5, preserve_scale=0.7)
    job = job_of(tiny, [Concept("church", "sun"), Concept("dog", "cat")], method)
    made, own = method.make(job), tiny.parameters()

    def last(*some):
        return text_vectors(tiny, some)

    held = 0.5 * torch.eye(16, dtype=torch.float64)
    for p in last(*WORDS):
        held = held + 0.7 * torch.outer(p, p) / len(WORDS)
    for name, new in made.weights.items():
        w = own[name].double()
        q = torch.linalg.qr(w @ last("church", "dog").T)[0]
        star = torch.linalg.qr(w @ last("sun", "cat").T)[0]
        eye = torch.eye(len(w), dtype=torch.float64)
        moon = w @ last("moon")[0]
        keep = w @ held @ w.T + 2.0 * 1.5 * torch.outer(moon, moon) / moon.square().sum()
        r = eye
        for _ in range(4):
            u, _, vh = torch.linalg.svd(keep + 1.5 * (r - (eye - star @ star.T) @ r @ q @ q.T))
            r = u @ vh
        torch.testing.assert_close(new.double(), r @ w, rtol=1e-3, atol=1e-4)
    assert len(job.notes["outside_the_anchor"]) == len(made.weights)
    assert all(0 <= x <= 1 for x in job.notes["outside_the_anchor"])


def test_directions_that_nothing_holds_are_refused(tiny, words):
    for form in ("iterated", "released"):
        method = OCE(form=form, ridge=0.0, rows="subject", vocabulary="words: castle, moon")
        with pytest.raises(UserError, match=r"2 text states and a ridge of 0 .*raise ridge"):
            method.erase(tiny, [CHURCH], QUIET)


def test_an_unknown_form_is_refused():
    with pytest.raises(UserError, match="unknown form 'iterate'; did you mean 'iterated'"):
        OCE(form="iterate")
