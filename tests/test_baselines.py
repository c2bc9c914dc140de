"""What sets each of the other methods apart, against the slow obvious way."""

import dataclasses

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, job_of, quick, same_weights

import efface.methods.speed as speed_module
from efface.edits.edit import Edit
from efface.edits.lowrank import LowRank
from efface.errors import UserError
from efface.evaluation.samples import Wanted, draw
from efface.methods.age import AGE
from efface.methods.ca import CA
from efface.methods.esd import ESD
from efface.methods.mace import MACE, refinement_rows, span_of
from efface.methods.speed import SPEED, change, fixed_vectors, null_space
from efface.methods.spm import SPM
from efface.models import watched
from efface.training import Bank, Pictures
from efface.training.latents import Banked
from efface.training.pictures import Noised
from efface.training.search import Exact, Gumbel, Random, Setting


def seeded(n=0):
    return torch.Generator().manual_seed(n)


# -- low rank ------------------------------------------------------------------------------------


def test_adapters_change_nothing_at_first_and_have_their_rank_afterwards():
    base = {
        "a": torch.randn(6, 9, generator=seeded()),
        "conv": torch.randn(5, 4, 3, 3, generator=seeded()),
        "bias": torch.zeros(6),
    }
    adapters = LowRank(base, 2, seeded(0))
    assert set(adapters.factors) == {"a/up", "a/down", "conv/up", "conv/down"}
    assert all(torch.equal(w, base[k]) for k, w in adapters.weights(adapters.factors).items())
    for k, w in adapters.factors.items():
        if k.endswith("/up"):
            w.data.normal_(generator=seeded(1))
    for k, w in adapters.weights(adapters.factors).items():
        assert torch.linalg.matrix_rank((w - base[k]).flatten(1)) == 2


def test_esd_on_lora_changes_every_matrix_by_its_rank(tiny, words):
    method = quick(ESD.presets()["lora"], words, updates=3)
    edit = method.erase(tiny, [CHURCH], QUIET)
    own = tiny.parameters()
    for k, w in edit.weights.items():
        values = torch.linalg.svdvals((w - own[k]).flatten(1))
        assert values[0] > 0
        assert (values[4:] <= 1e-4 * values[0]).all()


# -- CA ------------------------------------------------------------------------------------------


def test_the_first_update_of_ca_is_the_same_for_the_live_and_the_frozen_goal(tiny, words):
    def after(updates):
        live, frozen = (
            quick(CA(live=live), words, updates).erase(tiny, [CHURCH, DOG], QUIET)
            for live in (True, False)
        )
        return same_weights(dict(live.weights), dict(frozen.weights))

    assert after(1)  # the student is still the frozen model
    assert not after(3)


def test_pictures_are_noised_to_their_timestep(tiny):
    pictures = Noised(tiny, ["church", "dog"], Pictures(n=3, ddim_steps=2), seeded(), False)
    assert pictures.z0.shape == (6, *tiny.latent_shape)
    assert pictures.prompt.tolist() == [0, 0, 0, 1, 1, 1]
    only = torch.zeros(len(tiny.process.alphas))
    only[500] = 1
    z, t, row = pictures.draw(seeded(), 2000, only)
    assert (t == 500).all()
    a = tiny.process.alphas[500]
    noise = (z - a.sqrt() * pictures.z0[row]) / (1 - a).sqrt()
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)


# -- AGE -----------------------------------------------------------------------------------------


def test_an_anchor_of_the_users_is_taken_without_a_search(tiny, words):
    method = quick(AGE(), words)
    found = method.candidates(job_of(tiny, [CHURCH, DOG], method))
    assert [found.words[i] for i in found.of[1]] == ["cat"]
    assert len(found.of[0]) > 1


def test_age_does_not_search_exactly():
    with pytest.raises(UserError, match=r"got .exact. for search; .*random"):
        AGE(search=Exact())


@pytest.mark.parametrize("search", [Random(), Gumbel(mixture=2)])
def test_age_takes_random_anchors_and_mixtures(tiny, words, search):
    base = quick(AGE(), words)
    other = dataclasses.replace(base, search=search)
    assert base.erase(tiny, [CHURCH], QUIET).digest != other.erase(tiny, [CHURCH], QUIET).digest


def test_a_mixture_keeps_the_largest_shares(tiny, words):
    candidates = quick(AGE(), words).candidates(job_of(tiny, [CHURCH]))
    source = Banked(tiny, [CHURCH], Bank(ddim_steps=2, trajectories=1), seeded(0), progress=False)

    def none(*_):
        raise AssertionError

    whole, few = (
        Gumbel(mixture=m)
        .start(Setting(job_of(tiny, [CHURCH]), candidates, source, none))
        .sample(0, seeded(3))
        for m in (0, 3)
    )
    kept = few.nonzero()[:, 0]
    assert set(kept.tolist()) == set(whole.topk(3).indices.tolist())
    torch.testing.assert_close(few[kept], whole[kept] / whole[kept].sum())


# -- SPEED ---------------------------------------------------------------------------------------


def test_the_edit_does_not_reach_what_is_preserved_or_fixed():
    g = seeded()
    c, a, kept, fixed = (torch.randn(n, 24, generator=g, dtype=torch.float64) for n in (2, 2, 9, 3))
    free = null_space(kept, 1e-9)
    assert free.shape == (24, 15)
    torch.testing.assert_close(free.T @ free, torch.eye(15, dtype=torch.float64))
    m = change(c, a, free, fixed, rho=0.1, slack=0.0)
    assert (m @ kept.T).abs().max() < 1e-9
    assert (m @ fixed.T).abs().max() < 1e-9
    before, after = (a - c).norm(dim=1), (a - c - c @ m.T).norm(dim=1)
    assert (after < before).all()
    loose = change(c, a, free, fixed, rho=0.1, slack=1.0)
    assert (loose @ fixed.T).abs().max() > 1e-3


def test_the_change_minimises_what_the_paper_says():
    """|(W + D P) C - W A|^2 / n + rho |D P|^2, with no vector fixed, against gradient zero."""
    g = seeded(1)
    c, a, kept = (torch.randn(n, 12, generator=g, dtype=torch.float64) for n in (2, 2, 5))
    free, none = null_space(kept, 1e-9), torch.zeros(0, 12, dtype=torch.float64)
    w = torch.randn(7, 12, generator=g, dtype=torch.float64)
    p = free @ free.T
    d = (w @ change(c, a, free, none, rho=0.3, slack=0.0)).requires_grad_()
    moved = (w + d @ p) @ c.T - w @ a.T
    (moved.square().sum() / len(c) + 0.3 * (d @ p).square().sum()).backward()
    assert d.grad.abs().max() < 1e-9


def test_nothing_free_is_said_so(tiny, words, monkeypatch):
    full = torch.randn(40, 16, generator=seeded(), dtype=torch.float64)
    assert null_space(full, 1e-6).shape == (16, 0)
    monkeypatch.setattr(speed_module, "null_space", lambda *_: null_space(full, 1e-6))
    method = quick(SPEED(), words)
    with pytest.raises(UserError, match="no direction is free"):
        method.erase(tiny, [CHURCH], QUIET)


def test_the_fixed_vectors_begin_with_the_start_tokens(tiny):
    start = tiny.embed([""]).states[0, 0].double()
    assert torch.equal(fixed_vectors(tiny)[0], start)
    assert fixed_vectors(tiny).shape == (4, len(start))


def test_the_fixed_vectors_are_the_centres_of_the_null_prompts_others(emoji):
    rest = [x.double() for x in emoji.embed([""]).states[0, 1:]]
    centres = [rest[0], rest[(len(rest) - 1) // 2], rest[-1]]
    for _ in range(20):
        near = [min(range(3), key=lambda i, x=x: float((x - centres[i]).norm())) for x in rest]
        groups = [[x for x, k in zip(rest, near, strict=True) if k == i] for i in range(3)]
        centres = [sum(group) / len(group) for group in groups]
    torch.testing.assert_close(fixed_vectors(emoji)[1:], torch.stack(centres), rtol=1e-4, atol=1e-5)


# -- MACE ----------------------------------------------------------------------------------------


def test_what_is_watched_is_the_attention_that_the_layer_computes(tiny):
    z, t = tiny.noise(2, seeded()), torch.tensor([400, 10])
    cond = tiny.embed(["church", "dog"])
    layers = [m for n, m in tiny.denoiser.named_modules() if n.endswith(".attn2")]
    done, values = [], []
    hooks = [m.register_forward_hook(lambda m, _, out: done.append((m, out))) for m in layers]
    hooks += [m.to_v.register_forward_hook(lambda _, __, out: values.append(out)) for m in layers]
    with watched(tiny) as seen:
        tiny.predict(z, t, cond)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(layers) > 1
    for (layer, out), attention, v in zip(done, seen, values, strict=True):
        torch.testing.assert_close(attention.sum(3), torch.ones(attention.shape[:3]))
        heads = v.unflatten(2, (layer.heads, -1)).transpose(1, 2)
        again = (attention @ heads).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.to_out[0](again), out, rtol=1e-4, atol=1e-5)
    with watched(tiny) as seen:
        pass
    tiny.predict(z, t, cond)
    assert not seen  # nothing is left behind


def test_the_concepts_words_are_found_in_a_prompt(tiny):
    ids = tiny.tokenizer("a picture of a beer mug, flat").input_ids
    where = span_of(tiny, "a picture of {}, flat", "a beer mug")
    assert tiny.tokenizer.decode(ids[where]).split() == ["a", "beer", "mug"]
    assert span_of(tiny, "{}", "").start == span_of(tiny, "{}", "").stop == 1


def test_refinement_pairs_the_words_behind_the_concept(tiny):
    erased, instead = refinement_rows(tiny, [DOG])
    assert erased.shape == instead.shape
    assert not torch.equal(erased, instead)


def test_fusion_is_the_least_squares_solution(tiny, words):
    method = quick(MACE(), words)
    maps = tiny.text_maps()
    own = {n: tiny.parameters()[n].double() for n in maps}
    g = seeded(2)
    refined, one, two = (
        {n: w + 0.1 * torch.randn(w.shape, generator=g, dtype=w.dtype) for n, w in own.items()}
        for _ in range(3)
    )
    prior = method.prior_rows(job_of(tiny, [CHURCH, DOG], method))
    found = method.fuse(tiny, [CHURCH, DOG], own, refined, [one, two], prior)
    from efface.concepts import TEMPLATES
    from efface.training.closed_form import text_vectors

    rows = [
        text_vectors(tiny, [t.format(n) for n in c.names for t in TEMPLATES[c.kind]], "all")
        * len(c.names) ** -0.5  # names of a concept weigh as one
        for c in (CHURCH, DOG)
    ]
    name = maps[0]
    x = torch.cat([*rows, method.prior**0.5 * prior, method.ridge**0.5 * torch.eye(16).double()])
    y = torch.cat(
        [
            rows[0] @ one[name].T,
            rows[1] @ two[name].T,
            method.prior**0.5 * prior @ own[name].T,
            method.ridge**0.5 * refined[name].T,
        ]
    )
    slow = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(found[name].double(), slow, rtol=1e-4, atol=1e-5)


def test_the_concept_is_looked_at_less(tiny, words):
    method = quick(MACE(focal=False), words, updates=30)
    method = dataclasses.replace(method, lr=3e-2)
    edit = method.erase(tiny, [CHURCH], QUIET)
    where = span_of(tiny, "{}", "church")
    z, t, cond = tiny.noise(8, seeded()), torch.full((8,), 300), tiny.embed(["church"] * 8)

    def looked(weights):
        with watched(tiny) as seen, torch.no_grad():
            tiny.predict(z, t, cond, weights)
        return float(torch.stack([a[..., where].mean() for a in seen]).mean())

    assert looked(edit.on(tiny)) < looked(None)


class NowhereSeen(MACE):
    """MACE on pictures in which the frozen model sees the concept nowhere."""

    def masks(self, model, pictures, cond, where, g):
        return torch.zeros_like(super().masks(model, pictures, cond, where, g))


def test_a_picture_whose_mask_is_empty_teaches_nothing(tiny, words):
    edit = quick(NowhereSeen(), words, updates=2).erase(tiny, [CHURCH], QUIET)
    assert all(w.isfinite().all() for w in edit.weights.values())


def test_mace_trains_keys_and_values_only():
    with pytest.raises(UserError, match="on the group 'kv' only"):
        MACE(rank=0)


# -- SPM -----------------------------------------------------------------------------------------


@pytest.fixture
def gated(tiny, words):
    """An edit with a gate for each of two concepts."""
    method = quick(SPM(), words, updates=3)
    method = dataclasses.replace(method, lr=1e-2)
    return method.erase(tiny, [CHURCH, DOG], QUIET)


def test_gates_open_for_their_concept_and_add_up_to_the_weights(tiny, gated):
    assert [g.names for g in gated.gates] == [("church",), ("dog", "hound")]
    assert gated.gates[0].opening(tiny, "church") == pytest.approx(1)
    assert gated.gates[1].opening(tiny, "a hound") == 1  # all of its tokens
    shut = gated.gates[0].opening(tiny, "small red river")
    assert 0 <= shut < 1
    own = tiny.parameters()
    for k, w in gated.weights.items():
        whole = own[k] + sum(g.change(k).view_as(w) for g in gated.gates)
        torch.testing.assert_close(w, whole, rtol=1e-5, atol=1e-6)


def test_a_prompt_gets_as_much_of_the_edit_as_it_asks_for(tiny, gated):
    one, other = gated.gates
    prompt = "small red river"
    weights, own = gated.on(tiny, prompt), tiny.parameters()
    for k, w in weights.items():
        expected = own[k] + sum(
            g.opening(tiny, prompt) * g.change(k).view_as(w) for g in (one, other)
        )
        torch.testing.assert_close(w, expected, rtol=1e-4, atol=1e-5)
    wanted = [Wanted(p, 0, p) for p in ("church", prompt)]
    shown = torch.stack(list(draw(tiny, gated, wanted, progress=False)))
    slow = [
        next(iter(tiny.generate([p], [0], weights=gated.on(tiny, p), output_type="pt")))
        for p in ("church", prompt)
    ]
    torch.testing.assert_close(shown, torch.stack(slow), rtol=0, atol=1e-5)


def test_gates_survive_a_file_and_belong_to_the_digest(tiny, gated, tmp_path):
    gated.save(tmp_path / "edit.safetensors")
    back = Edit.load(tmp_path / "edit.safetensors")
    assert back.digest == gated.digest != Edit(gated.weights, gated.meta).digest
    assert [g.names for g in back.gates] == [g.names for g in gated.gates]
    assert same_weights(dict(back.gates[1].factors), dict(gated.gates[1].factors))
    assert "gates" not in back.meta
