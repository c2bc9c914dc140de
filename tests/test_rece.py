"""RECE against its formulas, one map and one row at a time."""

from dataclasses import replace

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, job_of

from efface.errors import UserError
from efface.methods.rece import RECE
from efface.methods.uce import UCE
from efface.training.inverse import inverse


def rows_of(model, prompt, rows):
    states = model.embed([prompt]).states[0].double()
    return states if rows == "all" else states[model.last_word([prompt])[0]]


def slow(model, method, pairs, keep):
    """Every round as the paper has it: sums over maps and rows, plain inverses."""
    base = [model.parameters()[n].double() for n in model.text_maps()]
    maps, eye = base, torch.eye(16).double()
    own = [(s**0.5 * x, s**0.5 * y) for c, a, s in pairs for x, y in zip(c, a, strict=True)]
    erased = own
    for i in range(method.rounds + 1):
        if i:
            left = sum(w.T @ w for w in maps)
            size = method.reach * left.trace() / 16
            reach = torch.linalg.inv(left + size * eye)
            across = sum(w.T @ v for w, v in zip(maps, base, strict=True))
            back = [(reach @ across @ x, y) for x, y in own]
            erased = [*erased, *back] if method.cumulative else back
        below = method.ridge * eye
        below = below + sum(method.erase_scale * torch.outer(x, x) for x, _ in erased)
        below = below + sum(method.preserve_scale * s * torch.outer(p, p) for p, s in keep)
        after = []
        for w in maps:
            above = method.ridge * w
            above = above + sum(method.erase_scale * torch.outer(w @ y, x) for x, y in erased)
            above = above + sum(method.preserve_scale * s * torch.outer(w @ p, p) for p, s in keep)
            after.append(above @ torch.linalg.inv(below))
        maps = after
    return maps


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("rows", ["subject", "all"])
def test_every_round_erases_what_the_one_before_still_reads_as_the_concept(tiny, rows, cumulative):
    method = RECE(
        rounds=2,
        reach=1e-3,
        rows=rows,
        cumulative=cumulative,
        erase_scale=2.0,
        preserve_scale=0.3,
        ridge=0.5,
        keep=("moon",),
        keep_weight=3.0,
    )
    made = method.make(job_of(tiny, [CHURCH, DOG], method))
    said = [("church", "", 1.0), ("dog", "cat", 0.5), ("hound", "cat", 0.5)]
    pairs = [(rows_of(tiny, c, rows), rows_of(tiny, a, rows), s) for c, a, s in said]
    want = slow(tiny, method, pairs, [(p, 3.0) for p in rows_of(tiny, "moon", rows)])
    assert set(made.weights) == set(tiny.text_maps())
    for name, w in zip(tiny.text_maps(), want, strict=True):
        torch.testing.assert_close(made.weights[name], w.float(), rtol=1e-3, atol=1e-5)


def test_without_rounds_it_is_uce(tiny):
    same = {"ridge": 0.2, "erase_scale": 3.0, "preserve_scale": 0.4, "keep": ("moon",)}
    plain = UCE(rows="all", **same).erase(tiny, [CHURCH, DOG], QUIET)
    rece = RECE(rounds=0, **same).erase(tiny, [CHURCH, DOG], QUIET)
    for k, w in plain.weights.items():
        torch.testing.assert_close(rece.weights[k], w, rtol=1e-5, atol=1e-6)


def test_after_a_round_the_concept_is_harder_to_reach(tiny):
    method = RECE(rows="subject", rounds=4, reach=1e-4)
    edit = method.erase(tiny, [CHURCH], QUIET)
    first, *_, last = edit.meta["residual"]
    assert len(edit.meta["residual"]) == 5
    assert last > 1.5 * first
    assert f"{100 * last:.1f} %" in edit.meta["said"]
    names, own = tiny.text_maps(), tiny.parameters()
    base = [own[n].double() for n in names]
    maps = [edit.weights[n].double() for n in names]
    c = rows_of(tiny, "church", "subject")
    assert inverse(base, maps, c, 1e-4).residual == pytest.approx(last, abs=1e-3)
    one = replace(method, rounds=0).erase(tiny, [CHURCH], QUIET)
    maps = [one.weights[n].double() for n in names]
    back = inverse(base, maps, c, 1e-12).states  # the edit of one solve can be undone
    for w, v in zip(maps, base, strict=True):
        torch.testing.assert_close(back @ w.T, c @ v.T, rtol=1e-3, atol=1e-3)


def test_an_unknown_choice_of_rows_is_refused():
    with pytest.raises(UserError, match="unknown choice of rows 'al'; did you mean 'all'"):
        RECE(rows="al")
