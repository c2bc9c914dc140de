"""Each attack against the slow obvious way, on a tiny random model."""

import dataclasses
import json
import random
from dataclasses import replace

import pytest
import torch
from conftest import CLOTHES, shaken
from families import SIZES, TINY, build

from efface.concepts import Concept
from efface.edits.edit import Edit, Gate
from efface.errors import UserError
from efface.evaluation.artefacts import Begun, Latents, Picture, Text, Trained, Vectors, Victim
from efface.evaluation.attacks import ATTACKS, CHANNELS, Attacked
from efface.evaluation.attacks.completion import Completion
from efface.evaluation.attacks.img2img import Img2Img
from efface.evaluation.attacks.inpaint import Inpaint
from efface.evaluation.attacks.inversion import Inversion, nearest
from efface.evaluation.attacks.null_text import NullText, inverted
from efface.evaluation.attacks.reading import Reading, changed, shuffled
from efface.evaluation.attacks.relearn import Relearn
from efface.evaluation.attacks.rephrase import Rephrase, descriptions, splits
from efface.evaluation.attacks.ring_a_bell import RingABell, Task
from efface.evaluation.attacks.states import TextStates
from efface.evaluation.attacks.unlearndiffatk import Hunt, UnlearnDiffAtk, simplex
from efface.evaluation.lessons import Lessons
from efface.models import FAMILIES, counting_texts, encoded_with, load, mark_for, token_table
from efface.models.process import Euler
from efface.training.inverse import inverse

COAT = Concept("coat")
MUG = Concept("beer mug", synonyms=("stein", "Tankard"))
SEEDS = (5, 6, 7)


def refused(call, *args, **named):
    with pytest.raises(UserError) as e:
        call(*args, **named)
    assert "\n" not in str(e.value)
    return str(e.value)


def edit_of(model, weights):
    meta = {"base": model.base, "model": model.name, "method": "mine"}
    return Edit(weights, {**meta, "concepts": [COAT.to_json()]}, base=model)


@pytest.fixture
def edit(tiny):
    return edit_of(tiny, shaken(tiny, by=1.0))


@pytest.fixture
def pictures(tiny):
    width, height = tiny.picture_size
    return torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def given(tiny, edit, pictures):
    return Attacked(tiny, edit, COAT, prompts=("a coat",), pictures=pictures, words=CLOTHES)


# -- the model's part ----------------------------------------------------------------------------


def test_encoding_is_decoding_the_other_way_round(tiny, pictures):
    z = tiny.encode(pictures)
    assert z.shape == (4, *tiny.latent_shape)
    with torch.no_grad():
        mean = tiny.vae.encode(2 * pictures - 1).latent_dist.mean
    assert torch.allclose(z, mean * tiny.vae.config.scaling_factor)


@pytest.mark.parametrize("name", FAMILIES)
def test_scaled_latents_are_unscaled_again(name, tiny):
    class Config:
        scaling_factor, shift_factor, batch_norm_eps = 0.5, 0.25, 1e-4

    class Statistics:
        running_mean, running_var = torch.randn(8), torch.rand(8) + 0.5

    class Vae:
        config, bn = Config(), Statistics()

    family = FAMILIES[name]()
    z = torch.randn(2, 8, 4, 4)
    assert torch.allclose(family.scaled(Vae(), family.unscaled(Vae(), z)), z, atol=1e-5)


def test_a_mark_reads_as_the_vectors_that_are_given(tiny):
    mark = mark_for(tiny, ["a coat"])
    word = tiny.tokenizer("coat", add_special_tokens=False).input_ids
    assert len(word) == 1
    own = token_table(tiny, "text_encoder")
    rows = {"text_encoder": own[word].clone().requires_grad_()}
    found = encoded_with(tiny, [f"a {mark}"], mark, rows)
    assert torch.allclose(found.states, tiny.embed(["a coat"]).states, atol=1e-6)
    found.states.sum().backward()
    assert rows["text_encoder"].grad.abs().sum() > 0
    two = tiny.tokenizer("red coat", add_special_tokens=False).input_ids
    found = encoded_with(tiny, [f"{mark} {mark}"], mark, {"text_encoder": own[two]})
    assert torch.allclose(found.states, tiny.embed(["red coat"]).states, atol=1e-6)
    assert torch.allclose(tiny.embed(["a coat"]).states, tiny.embed(["a coat"]).states)
    assert mark_for(tiny, ["a * coat"]) != "*"
    assert "is free" in refused(mark_for, tiny, ["* # @ % & = + ~"])


def test_texts_are_counted_there_and_back(tiny):
    tiny.null(1)  # which is encoded once
    with counting_texts(tiny) as count:
        tiny.embed(["a", "b", "c"])
        row = {"text_encoder": torch.zeros(1, 16, requires_grad=True)}
        encoded_with(tiny, ["*"], "*", row).states.sum().backward()
    tiny.embed(["d"])
    assert (count.forward, count.backward) == (4, 1)


# -- artefacts -----------------------------------------------------------------------------------


def by_hand(model, z, cond, weights, steps, guidance, start=0):
    """Deterministic steps, one at a time."""
    schedule = model.schedule(steps)
    for i in range(start, steps):
        t = schedule.timesteps[i].expand(len(z))
        e0 = model.predict(z, t, model.null(len(z)), weights)
        e1 = model.predict(z, t, cond, weights)
        z = schedule.step(z, e0 + guidance * (e1 - e0), i)
    return z


def noise(model, seeds=SEEDS):
    return torch.cat(
        [
            torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(s))
            for s in seeds
        ]
    )


@torch.no_grad()
def test_pictures_of_a_text_are_those_that_the_model_draws(tiny, edit):
    victim = Victim(tiny, edit, 3, 2.0)
    slow = tiny.generate(["a hat"] * 3, SEEDS, 3, 2.0, edit.on(tiny), output_type="pt")
    assert torch.allclose(Text(prompt="a hat").drawn(victim, SEEDS), torch.stack(list(slow)))
    laid = Trained(prompt="a hat", weights=edit.weights)
    assert torch.allclose(laid.drawn(victim.bare, SEEDS), Text(prompt="a hat").drawn(victim, SEEDS))


@torch.no_grad()
def test_a_begun_picture_is_the_bases_first_steps_and_the_edits_others(tiny, edit):
    victim = Victim(tiny, edit, guidance=2.0)
    cond, z = tiny.embed(["a hat"]).repeat(3), noise(tiny)
    schedule, own = tiny.schedule(4), edit.on(tiny)
    for i, weights in enumerate((None, None, own, own)):
        t = schedule.timesteps[i].expand(3)
        e0, e1 = (tiny.predict(z, t, c, weights) for c in (tiny.null(3), cond))
        z = schedule.step(z, e0 + 2 * (e1 - e0), i)
    art = Begun(prompt="a hat", by=victim.bare, k=2, steps=4)
    assert torch.allclose(art.drawn(victim, SEEDS), tiny.decode(z), atol=1e-5)
    one, other = art.ends(victim, SEEDS)
    assert torch.allclose(replace(art, k=4).drawn(victim, SEEDS), one, atol=1e-5)
    assert torch.allclose(replace(art, k=0).drawn(victim, SEEDS), other, atol=1e-5)


@torch.no_grad()
def test_a_picture_is_noised_and_drawn_over_from_its_strength_on(tiny, edit, pictures):
    victim, steps = Victim(tiny, edit, guidance=2.0), 4
    clean, cond = tiny.encode(pictures[[0, 1, 0]]), tiny.embed(["a hat"]).repeat(3)
    t = tiny.schedule(steps).timesteps[2].expand(3)
    z = tiny.process.noised(clean, noise(tiny), t)
    slow = tiny.decode(by_hand(tiny, z, cond, edit.on(tiny), steps, 2.0, 2))
    art = Picture(prompt="a hat", pictures=pictures[:2], strength=0.5, steps=steps)
    assert torch.allclose(art.drawn(victim, SEEDS), slow, atol=1e-5)
    whole = replace(art, strength=1.0).drawn(victim, SEEDS)
    assert not torch.allclose(whole, slow)
    outside = replace(art, hole=0.5)._inside(clean)[0, 0]
    assert outside.tolist()[0] == [False] * 4
    assert outside.sum() == 4
    alone = by_hand(tiny, noise(tiny), cond, edit.on(tiny), steps, 2.0, 0)
    full = replace(art, strength=1.0, hole=1.0).drawn(victim, SEEDS)  # nothing of the picture
    assert torch.allclose(full, tiny.decode(alone), atol=1e-5)
    assert not torch.allclose(full, whole, atol=1e-3)
    seen = []
    keep = tiny.decode
    tiny.decode = lambda z: seen.append(z) or keep(z)
    try:
        replace(art, hole=0.5).drawn(victim, SEEDS)
    finally:
        del tiny.decode
    assert torch.equal(seen[0][..., 0, :], clean[..., 0, :])
    assert not torch.allclose(seen[0][..., 1:3, 1:3], clean[..., 1:3, 1:3])


@torch.no_grad()
def test_latents_are_the_start_and_a_share_of_them_is_fresh(tiny, edit):
    victim = Victim(tiny, edit, guidance=2.0)
    z = noise(tiny, (1, 2))
    art = Latents(prompt="", z=z, steps=3)
    slow = tiny.decode(by_hand(tiny, z[[0, 1, 0]], tiny.embed([""] * 3), edit.on(tiny), 3, 2.0))
    assert torch.allclose(art.drawn(victim, SEEDS), slow, atol=1e-5)
    fresh = replace(art, share=1.0).drawn(victim, SEEDS)
    assert torch.allclose(fresh, replace(art, z=noise(tiny)).drawn(victim, SEEDS), atol=1e-5)


# -- text ----------------------------------------------------------------------------------------


def texts(given, attack=Rephrase()):  # noqa: B008
    return [(a.prompt, a.why) for a in attack.artefacts(given)]


def test_rephrase_yields_texts_of_every_family_but_the_name_itself(tiny):
    many = Rephrase(texts=100)
    found = texts(Attacked(tiny, None, MUG, words=("cow", "sun", "Beer Mug", "stein")), many)
    assert {why for _, why in found} == {"synonym", "slip", "nearest", "template"}
    assert {why for _, why in found} < set(many.curve())
    plain = [t.casefold() for t, _ in found]
    assert len(set(plain)) == len(plain)
    assert {"stein", "tankard", "beermug", "a photo of beer mug", "cow"} <= set(plain)
    assert "beer mug" not in plain
    own = Attacked(tiny, None, MUG)
    assert texts(own) == texts(own)
    assert texts(own) != texts(replace(own, seed=1))
    assert texts(own, Rephrase(texts=3)) == texts(own)[:3]
    assert texts(Attacked(tiny, None, Concept("x")))
    assert splits("beer mug") == ["be er mug", "be-er mug", "b e e r m u g", "beermug"]
    assert splits("wolf") == ["wo lf", "wo-lf", "w o l f", "wolf"]
    assert "1 to 10,000 is needed" in refused(Rephrase, texts=0)
    for text, why in found:
        if why == "slip":
            assert set(text) <= set("beer mug-")


def test_a_blind_rephrase_asks_for_other_words_as_often(tiny):
    own = Attacked(tiny, None, MUG, words=("cow", "sun"))
    blind = texts(replace(own, blind=True))
    assert len(blind) == len(texts(own))
    assert {t for t, _ in blind} <= {"cow", "sun"}
    assert texts(replace(own, blind=True, words=()))[0][0].isalpha()


def test_a_style_is_rephrased_in_the_prompt_of_a_thing(tiny):
    ink = Concept("ink style", synonyms=("etching",), kind="style")
    own = Attacked(tiny, None, ink, prompts=("cow, ink style", "sun, ink style"), words=("oil",))
    found = [t for t, _ in texts(own)]
    assert {"cow, etching", "cow, oil"} <= set(found)
    assert all(t.startswith("cow, ") for t in found)
    assert "cow, ink style" not in found
    assert {t for t, _ in texts(replace(own, blind=True))} == {"cow, oil"}
    bare = [t for t, _ in texts(replace(own, prompts=()))]
    assert bare == [t.removeprefix("cow, ") for t in found]


def test_descriptions_are_tags_without_the_name():
    found = descriptions("beer mug", ("beer", "ale", "bar mug", "pub", "drink"))
    assert found == ["ale, pub, drink", "ale", "pub", "drink"]
    assert descriptions("wolf", ()) == []


def test_the_nearest_words_are_those_of_the_text_encoder(tiny):
    own = Attacked(tiny, None, Concept("coat"), words=CLOTHES)
    states = tiny.embed(list(CLOTHES)).states.flatten(1)
    far = (states - states[0]).norm(dim=1)
    slow = sorted(CLOTHES[1:], key=lambda w: float(far[CLOTHES.index(w)]))
    assert Rephrase(nearest=3).near(own) == slow[:3]


# -- latents and pictures ------------------------------------------------------------------------


def test_completion_has_a_point_a_k_and_begins_as_its_role_says(given, tiny):
    attack = Completion(steps=4, begun=(3, 1))
    found = list(attack.artefacts(given))
    assert [(a.at, a.k, a.by.edit, a.shift) for a in found] == [
        ("1", 1, None, 0),
        ("3", 3, None, 0),
    ]
    assert attack.headline in ("1", "3")
    blind = next(attack.artefacts(replace(given, blind=True)))
    assert blind.by.edit is given.edit
    assert blind.shift > 0
    other = next(attack.artefacts(replace(given, negative=True)))
    assert (other.kind, other.strength) == ("picture", 0.75)
    assert "below the 4 steps" in refused(Completion, steps=4, begun=(4,))


def test_img2img_asks_by_name_and_without(given):
    found = list(Img2Img(strengths=(0.5, 0.7)).artefacts(given))
    assert [(a.at, a.prompt) for a in found] == [
        ("0.5", "a coat"),
        ("0.5 unasked", ""),
        ("0.7", "a coat"),
        ("0.7 unasked", ""),
    ]
    assert all(torch.equal(a.pictures, given.pictures) for a in found)
    blind = next(Img2Img().artefacts(replace(given, blind=True)))
    assert blind.pictures.shape == given.pictures.shape
    assert not torch.allclose(blind.pictures, given.pictures)
    assert Img2Img().headline == "0.7"
    assert "from 0 to 1" in refused(Img2Img, strengths=())
    assert "no pictures" in refused(
        lambda: list(Img2Img().artefacts(replace(given, pictures=None)))
    )


# -- text states ---------------------------------------------------------------------------------


def test_states_are_the_least_squares_solution():
    g = torch.Generator().manual_seed(0)
    base = [torch.randn(5, 4, generator=g, dtype=torch.double) for _ in range(3)]
    edited = [w + torch.randn(5, 4, generator=g, dtype=torch.double) for w in base]
    c = torch.randn(6, 4, generator=g, dtype=torch.double)
    found = inverse(base, edited, c, 1e-12)
    want = torch.cat([c @ w.T for w in base], 1)
    slow = torch.linalg.lstsq(torch.cat(edited), want.T).solution.T
    assert torch.allclose(found.states, slow, atol=1e-6)
    residual = (slow @ torch.cat(edited).T - want).norm() / want.norm()
    assert found.residual == pytest.approx(float(residual), abs=1e-6)
    assert found.growth == pytest.approx(float(slow.norm() / c.norm()), rel=1e-6)
    short = inverse(base, edited, c, 10.0)
    assert short.residual > found.residual
    assert short.growth < found.growth


def test_an_invertible_edit_is_reached_and_a_singular_one_is_not():
    g = torch.Generator().manual_seed(0)
    base = [torch.randn(5, 4, generator=g, dtype=torch.double) for _ in range(3)]
    c = torch.randn(1, 4, generator=g, dtype=torch.double)
    eye = torch.eye(4, dtype=torch.double)
    turn = eye + torch.randn(4, 4, generator=g, dtype=torch.double) / 5
    open_ = inverse(base, [w @ turn for w in base], c, 1e-12)
    assert open_.residual < 1e-6
    assert torch.allclose(open_.states, torch.linalg.solve(turn, c.T).T, atol=1e-5)
    wall = eye - c.T @ c / c.square().sum()
    assert inverse(base, [w @ wall for w in base], c, 1e-9).residual > 0.5


def test_states_of_the_unedited_model_are_the_prompts_own(given, tiny):
    (found,) = TextStates(ridges=(1e-7,)).artefacts(replace(given, edit=None))
    assert torch.allclose(found.cond.states, tiny.embed(["a coat"]).states, atol=1e-3)
    assert found.measured["residual"] < 1e-4
    (own,) = TextStates(ridges=(1e-7,)).artefacts(given)
    (blind,) = TextStates(ridges=(1e-7,)).artefacts(replace(given, blind=True))
    clean = tiny.embed(["a coat"]).states
    far = [(a.cond.states - clean).norm(dim=2) for a in (own, blind)]
    assert torch.allclose(far[0], far[1], rtol=1e-3)
    assert not torch.allclose(own.cond.states, blind.cond.states)


def test_states_count_the_maps_that_the_edit_left_alone(given, tiny):
    own, maps = tiny.parameters(), tiny.text_maps()
    values = {n: own[n] * 0.5 for n in maps if ".to_v." in n}
    (found,) = TextStates(ridges=(1e-7,)).artefacts(replace(given, edit=edit_of(tiny, values)))
    two = [[{**own, **w}[n].double() for n in maps] for w in ({}, values)]
    clean = tiny.embed(["a coat"]).states[0]
    want = inverse(*two, clean.double(), 1e-7)
    torch.testing.assert_close(found.cond.states[0], want.states.float())
    assert not torch.allclose(found.cond.states[0], 2 * clean, rtol=1e-2)  # what values alone want


def test_states_need_maps_that_the_edit_changes(given, tiny):
    own = tiny.parameters()
    other = {k: own[k] + 0.1 for k in tiny.group("selfattn")} or {
        "conv_in.weight": own["conv_in.weight"] + 0.1
    }
    far = replace(given, edit=edit_of(tiny, other))
    assert "changes none of them" in refused(TextStates().check, far)
    gated = replace(given.edit, gates=(Gate(("coat",), {}),))
    for attack in (TextStates(), Relearn(), Inversion()):
        assert "gates" in refused(attack.check, replace(given, edit=gated))


# -- weights -------------------------------------------------------------------------------------


def test_the_reading_is_the_change_of_what_the_maps_read(given, tiny):
    found = Reading().scores(tiny, given.edit, CLOTHES)
    own, e = tiny.parameters(), tiny.embed(list(CLOTHES)).states
    at = tiny.last_word(list(CLOTHES))[:, 0]
    for i, row in enumerate(at.tolist()):
        c = e[i, row]
        maps = [n for n in tiny.text_maps() if n in given.edit.weights]
        moved = sum(float(((given.edit.weights[n] - own[n]) @ c).square().sum()) for n in maps)
        read = sum(float((own[n] @ c).square().sum()) for n in maps)
        assert float(found[i]) == pytest.approx(moved / read, rel=1e-3)
    (word,) = Reading(top=2).artefacts(given)
    rank = 1 + int((found > found[0]).sum())
    assert word.measured["rank"] == rank
    assert word.success == (rank <= 2)
    assert word.drawn(given.victim, SEEDS) is None
    assert list(Reading().artefacts(replace(given, edit=None))) == []


def test_other_erased_names_do_not_hide_one(given, tiny):
    scores = Reading().scores(tiny, given.edit, CLOTHES)
    ahead = [CLOTHES[i] for i in scores.argsort(descending=True)][:2]
    name = CLOTHES[int(scores.argmin())]
    concepts = [Concept(name, synonyms=(ahead[0],)).to_json(), Concept(ahead[1]).to_json()]
    edit = Edit(given.edit.weights, {**given.edit.meta, "concepts": concepts}, base=tiny)
    mine = replace(given, edit=edit, concept=Concept(name, synonyms=(ahead[0],)))
    (word,) = Reading().artefacts(mine)
    assert word.measured["rank"] == word.measured["of"] == len(CLOTHES) - 2


def test_an_edit_along_one_word_is_read_from_it(given, tiny):
    c = tiny.embed(["coat"]).states[0, tiny.last_word(["coat"])[0, 0]]
    own = tiny.parameters()
    push = {n: own[n] + torch.outer(torch.ones(len(own[n])), c) for n in tiny.text_maps()}
    edit = edit_of(tiny, push)
    (word,) = Reading().artefacts(replace(given, edit=edit))
    assert word.measured["rank"] == 1
    mixed = shuffled(tiny, edit, torch.Generator().manual_seed(0))
    for k in edit.weights:
        changes = [(e.weights[k] - own[k]).flatten().sort().values for e in (edit, mixed)]
        assert torch.allclose(*changes, atol=1e-5)
    (other,) = Reading().artefacts(replace(given, edit=edit, negative=True))
    assert other.prompt not in CLOTHES


def test_an_edit_of_other_weights_is_read_from_the_predictions(given, tiny):
    own = tiny.parameters()
    edit = edit_of(tiny, {"conv_in.weight": own["conv_in.weight"] + 0.1})
    (word,) = Reading(latents=2).artefacts(replace(given, edit=edit))
    assert 1 <= word.measured["rank"] <= len(CLOTHES)
    assert "holds 0" in refused(Reading().check, replace(given, words=()))
    e = torch.randn(3, 2, 4)
    maps = [torch.randn(5, 4) for _ in range(2)]
    assert torch.allclose(changed(maps, maps, e), torch.ones(3))


def test_relearning_is_adam_on_the_plain_loss(given, tiny):
    attack = Relearn(points=(0, 2), batch=2, pictures=3, lr=1e-2)
    found = {a.at: a for a in attack.artefacts(given)}
    assert set(found) == {"0", "2"}
    start = given.edit.on(tiny)
    assert all(torch.equal(found["0"].weights[k], w) for k, w in start.items())
    w = {k: v.clone().requires_grad_() for k, v in start.items()}
    adam, g = torch.optim.Adam(w.values(), lr=1e-2), given.generator("relearn")
    clean = tiny.encode(given.pictures[:3])
    for _ in range(2):
        row = torch.randint(0, 3, (2,), generator=g)
        t = torch.randint(0, 1000, (2,), generator=g)
        eps = torch.randn(2, *tiny.latent_shape, generator=g)
        a = tiny.process.alphas[t].view(-1, 1, 1, 1)
        z = a.sqrt() * clean[row] + (1 - a).sqrt() * eps
        guess = tiny.predict(z, t, tiny.embed(["a coat"] * 2), w)
        (guess - eps).square().mean().backward()
        adam.step()
        adam.zero_grad()
    for k in w:
        assert torch.allclose(found["2"].weights[k], w[k], atol=1e-5), k


def test_pictures_are_encoded_a_few_at_a_time(tiny, pictures, monkeypatch):
    encode, seen = tiny.encode, []
    monkeypatch.setattr(tiny, "encode", lambda x: (seen.append(len(x)), encode(x))[1])
    many = pictures.repeat(tiny.at_once // 4, 1, 1, 1)
    Lessons(tiny, many)
    assert seen == [tiny.at_once // 4] * 4


def test_relearning_stops_where_the_budget_does(given):
    attack = Relearn(points=(0, 1, 3), batch=2)
    poor = replace(given, budget=attack.least() + 1, start=given.model.counter.copy())
    assert [a.at for a in attack.artefacts(poor)] == ["0", "1"]
    assert attack.evaluations() == 12
    assert "one or more" in refused(Relearn, points=())


def test_a_blind_relearning_sees_other_things_and_is_asked_for_the_concept(given):
    attack = Relearn(points=(0, 1), pictures=3)
    pictures, prompts = attack.taught(replace(given, blind=True))
    assert len(pictures) == len(prompts) == 3
    assert "coat" not in prompts
    assert {a.prompt for a in attack.artefacts(replace(given, blind=True))} == {"a coat"}


# -- token vectors -------------------------------------------------------------------------------


def test_inversion_follows_the_gradient_of_the_plain_loss_at_the_token(given, tiny):
    attack = Inversion(updates=1, batch=2, pictures=2, lr=1e-2, start="hat", templates=2)
    found = list(attack.artefacts(given))
    assert [type(a) for a in found] == [Vectors] * 2
    moved = found[0].rows["text_encoder"]
    own = token_table(tiny, "text_encoder")
    (hat,) = tiny.tokenizer("hat", add_special_tokens=False).input_ids
    g = given.generator("inversion")
    z, t, goal, _ = Lessons(tiny, given.pictures[:2]).draw(2, g)
    which = torch.randint(0, 5, (2,), generator=g).tolist()
    prompts = [
        p.format("hat")
        for p in ("{}", "a picture of {}", "a drawing of {}", "{} emoji", "a photo of {}")
    ]
    kept, slope = own[hat].clone(), torch.zeros(16)
    weights = given.edit.on(tiny)

    def loss():
        cond = tiny.embed([prompts[i] for i in which])
        with torch.no_grad():
            return float((tiny.predict(z, t, cond, weights).double() - goal).square().mean())

    for i in (0, 7):  # by moving the table's own row
        with torch.no_grad():
            own[hat, i] += 1e-2
            up = loss()
            own[hat, i] -= 2e-2
            down = loss()
            own[hat] = kept
        slope[i] = up - down
        # Adam's first step is the sign of the gradient
        assert float(moved[0, i] - kept[i]) == pytest.approx(
            -1e-2 * float(slope[i].sign()), abs=1e-4
        )
    assert found[0].measured["norm"] == pytest.approx(
        float(moved.norm() / own.norm(dim=1).median()), rel=1e-5
    )


def test_inversion_learns_the_pictures_and_the_blind_one_does_not(given, tiny):
    attack = Inversion(updates=30, batch=8, pictures=4, lr=0.05, templates=1)
    weights, lessons = given.victim.weights(""), Lessons(tiny, given.pictures)
    z, t, goal, _ = lessons.draw(64, torch.Generator().manual_seed(0))

    def loss(art):
        with torch.no_grad():
            cond = encoded_with(tiny, [art.prompt], art.mark, art.rows).repeat(64)
            return float(lessons.loss(z, t, goal, cond, weights))

    (found,) = attack.artefacts(given)
    (blind,) = attack.artefacts(replace(given, blind=True))
    assert loss(found) < loss(blind)
    assert found.tensors().keys() == {"text_encoder"}
    poor = replace(given, budget=1, start=tiny.counter.copy())
    (none,) = attack.artefacts(poor)
    assert none.measured["norm"] == pytest.approx(blind.measured["norm"], rel=1e-4)
    assert nearest(replace(given, words=())) == "object"
    assert nearest(given) in CLOTHES[1:]


# -- tokens --------------------------------------------------------------------------------------


def by_kuhn_tucker(row):
    """The nearest probabilities by bisection on the shift."""
    low, high = float(row.min()) - 1, float(row.max())
    for _ in range(80):
        middle = (low + high) / 2
        if float((row - middle).clamp(min=0).sum()) > 1:
            low = middle
        else:
            high = middle
    return (row - high).clamp(min=0)


def test_rows_are_projected_on_the_simplex():
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = simplex(rows)
    assert torch.allclose(found, torch.stack([by_kuhn_tucker(r) for r in rows]), atol=1e-9)
    assert torch.allclose(found.sum(1), torch.ones(6).double())
    assert torch.allclose(simplex(found), found)


def hunt(given, **settings):
    attack = UnlearnDiffAtk(**{"tokens": 2, "levels": 2, "updates": 1, "batch": 2, **settings})
    return Hunt.of(attack, given, "a coat")


def test_the_probabilities_move_by_the_gradient_of_the_one_hot(given, tiny):
    own, g = hunt(given, decay=0.0), torch.Generator().manual_seed(3)
    before, allowed = own.free[0].clone(), own.allowed
    at = own.at(torch.Generator().manual_seed(9))
    hot = torch.nn.functional.one_hot(at, len(allowed)).float().requires_grad_()
    table = token_table(tiny, "text_encoder").detach()[allowed]
    z, t, goal = own.lessons.at(torch.zeros(2, dtype=torch.long), torch.tensor([250, 250]), g)
    cond = encoded_with(
        tiny, [f"{own.mark} {own.mark} a coat"], own.mark, {"text_encoder": hot @ table}
    )
    own.lessons.loss(z, t, goal, cond.repeat(2), given.victim.weights("")).backward()
    rows = {"text_encoder": table[at].clone().requires_grad_()}
    own.lessons.loss(z, t, goal, own.encoded(rows).repeat(2), given.victim.weights("")).backward()
    own.move(rows)
    slow = before.clone().requires_grad_()
    adam = torch.optim.Adam([slow], lr=0.01)
    slow.grad = hot.grad.clamp(-1, 1)
    adam.step()
    assert torch.allclose(own.free[0], simplex(slow.detach()), atol=1e-6)
    assert torch.allclose(own.free[0].sum(1), torch.ones(2), atol=1e-5)


def test_p4d_stays_at_the_nearest_real_tokens(given, tiny):
    own = hunt(given, variant="p4d")
    table = token_table(tiny, "text_encoder").detach()
    for e, i in zip(own.free[0], own.best().tolist(), strict=True):
        near = torch.cosine_similarity(e[None], table[own.allowed])
        assert int(own.allowed[near.argmax()]) == i
    before = [e.clone() for e in own.free]
    own.climb(0, torch.Generator().manual_seed(0))
    assert not torch.equal(own.free[0], before[0])
    assert "a coat" not in own.text()
    (found,) = UnlearnDiffAtk(variant="p4d", tokens=2, levels=1, updates=1).artefacts(given)
    assert len(found.ids) == 2


def test_unlearndiffatk_stops_where_the_judge_sees_it(given, tiny):
    attack = UnlearnDiffAtk(tokens=2, levels=4, updates=1)
    seen = []

    def look(pictures):
        seen.append(pictures)
        return [len(seen) == 2]

    (found,) = attack.artefacts(replace(given, look=look, steps=2))
    assert (len(seen), found.measured["level"]) == (2, 1)
    assert found.prompt.endswith("a coat")
    text = found.prompt.removesuffix("a coat").strip()
    survives = tiny.tokenizer(text, add_special_tokens=False).input_ids == list(found.ids)
    assert found.measured["survives"] == survives
    (whole,) = attack.artefacts(given)
    assert whole.measured["level"] == 3
    before = tiny.counter.copy()
    (blind,) = attack.artefacts(replace(given, blind=True))
    assert tiny.counter.since(before).forward == 0
    words = {i for w in CLOTHES for i in tiny.tokenizer(w, add_special_tokens=False).input_ids}
    assert set(blind.ids) <= words
    assert set(whole.ids) <= words


def test_ring_a_bell_searches_what_comes_near_to_more_of_the_concept(given, tiny):
    attack = RingABell(texts=1, generations=6, population=12, tokens=3, pairs=4)
    goal = attack.goal(given)
    g = given.generator("pairs")
    words = [w for w in CLOTHES if w != "coat"]
    some = [words[i] for i in torch.randint(5, (4,), generator=g).tolist()]
    with torch.no_grad():
        f = lambda texts: tiny.embed(texts).states  # noqa: E731
        slow = sum(f([f"{w} coat"])[0] - f([w])[0] for w in some) / 4
        slow = f(["a coat"])[0] + 3 * slow
    assert torch.allclose(goal, slow, atol=1e-4)
    task = Task.of(given, 3, goal)
    ids = task.random(5, torch.Generator().manual_seed(0))
    (coat,) = tiny.tokenizer("coat", add_special_tokens=False).input_ids
    assert coat not in task.allowed.tolist()
    for i, row in enumerate(ids):
        text = tiny.tokenizer.decode(row.tolist())
        far = (tiny.embed([text]).states[0] - goal).square().sum()
        assert float(task.far(ids)[i]) == pytest.approx(float(far), rel=1e-3)
    first = float(task.far(ids[:1])[0])
    for search in ("gcg", "genetic"):
        own = replace(attack, search=search)
        found = (
            own.greedy(task, given.generator("x"))
            if search == "gcg"
            else own.genetic(task, given.generator("x"))
        )
        start = task.far(task.random(12, given.generator("x")))
        assert (
            float(task.far(found[None])[0])
            <= float(start.min() if search == "genetic" else first) + 1e-4
        )
    before = tiny.counter.copy()
    (art,) = attack.artefacts(given)
    assert tiny.counter.since(before).forward == 0
    assert len(art.ids) == 3
    (blind,) = attack.artefacts(replace(given, blind=True))
    assert blind.measured["distance"] >= art.measured["distance"]


def test_the_slope_of_a_task_is_that_of_the_one_hot(given, tiny):
    task = Task.of(given, 2, RingABell(pairs=2).goal(given))
    ids = task.random(1, torch.Generator().manual_seed(0))[0]
    table = token_table(tiny, "text_encoder").detach()
    hot = torch.nn.functional.one_hot(ids, len(table)).float().requires_grad_()
    states = task.states({"text_encoder": hot @ table}, 1)
    (states[0] - task.goal).square().sum().backward()
    assert torch.allclose(task.slope(ids), hot.grad[:, task.allowed], rtol=1e-3, atol=1e-4)


def test_a_genetic_generation_crosses_and_mutates():
    attack, g = RingABell(crossover=1.0, mutation=1.0), torch.Generator().manual_seed(0)
    parents = torch.arange(12).view(4, 3)
    children = attack.children(parents, g)
    assert len(children) == 8
    for child in children:  # each place holds a token of that place
        assert all(int(v) % 3 == i for i, v in enumerate(child))

    class Ones:
        def random(self, n, g):
            return torch.full((n, 3), 99)

    mutated = attack.mutated(parents, Ones(), g)
    assert (mutated == 99).sum(1).tolist() == [1] * 4
    assert not (parents == 99).any()


# -- null text and holes -------------------------------------------------------------------------


@torch.no_grad()
def test_a_step_back_is_a_step_the_other_way_round(tiny):
    g = torch.Generator().manual_seed(0)
    z, e = (torch.randn(2, *tiny.latent_shape, generator=g) for _ in range(2))
    schedule = tiny.schedule(5)
    for i in range(5):
        assert torch.allclose(schedule.back(schedule.step(z, e, i), e, i), z, atol=1e-4)
    flow = Euler(torch.tensor([1.0, 0.6, 0.2, 0.0]), 1000)
    assert torch.allclose(flow.back(flow.step(z, e, 1), e, 1), z, atol=1e-5)


@torch.no_grad()
def test_null_text_comes_back_to_the_pictures(given, tiny):
    small = {"conv_out.weight": tiny.parameters()["conv_out.weight"] / 10}  # a contraction
    given = replace(given, edit=edit_of(tiny, small))
    attack = NullText(steps=5, rounds=8, pictures=2, share=0.0)
    (found,) = attack.artefacts(given)
    got = found.drawn(replace(given.victim, guidance=7.0), (1, 2))
    want = tiny.decode(tiny.encode(given.pictures[:2]))
    assert torch.allclose(got, want, atol=1e-3)
    d = found.z[0].numel()
    scores = [(float(z.square().sum()) - d) / (2 * d) ** 0.5 for z in found.z]
    assert found.measured["z"] == pytest.approx(sum(scores) / 2, rel=1e-4)
    (once,) = replace(attack, rounds=1).artefacts(given)
    far = [float((a.drawn(given.victim, (1, 2)) - want).square().sum()) for a in (found, once)]
    assert far[0] < far[1]
    (blind,) = attack.artefacts(replace(given, blind=True))
    assert torch.allclose(blind.z.flatten(1).norm(dim=1), found.z.flatten(1).norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize(("budget", "n", "rounds"), [(13, 2, 2), (7, 2, 1), (5, 1, 1)])
def test_a_small_budget_inverts_fewer_pictures_but_every_step(given, tiny, budget, n, rounds):
    poor = replace(given, budget=budget, start=tiny.counter.copy())
    found = inverted(poor, 3, 2, given.pictures[:2])
    assert tiny.counter.since(poor.start).forward == 3 * n * rounds
    torch.testing.assert_close(found, inverted(given, 3, rounds, given.pictures[:n]))
    assert NullText(steps=3).least() == 3


def test_inpaint_has_a_point_a_hole(given):
    found = list(Inpaint(holes=(0.5, 0.75)).artefacts(given))
    assert [(a.at, a.hole, a.strength, a.prompt) for a in found] == [
        ("0.5", 0.5, 1.0, "a coat"),
        ("0.75", 0.75, 1.0, "a coat"),
    ]
    assert Inpaint().headline == "0.5"
    assert "no hole" in refused(Inpaint, holes=())


# -- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_keeps_its_contract(name, tiny, given):
    attack = ATTACKS[name]()
    assert attack.name == name
    assert attack.channel in CHANNELS
    assert attack.needs <= {"base", "weights", "gradients", "encoder", "pictures"}
    assert dataclasses.is_dataclass(attack)
    full = attack.full()
    assert type(full) is type(attack)
    assert full.evaluations() >= attack.evaluations()
    assert attack.count(2) >= attack.count(1) >= (name != "reading")
    assert name != "reading" or attack.count(2) == 0  # nothing is drawn
    assert attack.headline in ("", *(attack.curve() or ()))
    assert json.dumps(dataclasses.asdict(attack))
    random.seed(0)


def test_an_attack_sees_its_budget():
    given = Attacked(None, None, COAT)
    assert (given.budget, given.seed, given.prompts, given.pictures) == (None, 0, (), None)
    assert given.left(10**9)
    assert given.asked == ("coat",)


@pytest.mark.parametrize(
    "name", [n if n in ("sdxl", "sd3") else pytest.param(n, marks=pytest.mark.slow) for n in TINY]
)
def test_families_are_attacked_by_what_makes_sense(name):
    model = load(build(name), device="cpu", size=SIZES.get(name, 0) and 32)
    model.steps = 2
    own = model.parameters()
    maps = {k: own[k].float() + 0.1 for k in model.text_maps()[:2]}
    edit = Edit(maps, {"base": model.base, "concepts": [COAT.to_json()]}, base=model)
    width, height = model.picture_size
    pictures = torch.rand(2, 3, height, width)
    given = Attacked(model, edit, COAT, None, 0, ("a coat",), pictures, CLOTHES, guidance=2.0)
    for attack in (
        Completion(steps=2, begun=(1,)),
        Img2Img(strengths=(0.5,), steps=2),
        Inpaint(holes=(0.5,), steps=2),
        NullText(steps=2, rounds=1, pictures=2),
        Relearn(points=(1,), batch=1, pictures=2, lr=1e-3),
        Reading(),
    ):
        attack.check(given)
        for found in attack.artefacts(given):
            assert found.at in (attack.curve() or [""])
            drawn = found.drawn(given.victim, (5,))
            assert (drawn is None) == (attack.name == "reading")
            assert drawn is None or (
                drawn.shape == (1, 3, height, width) and drawn.isfinite().all()
            )
    for attack in (TextStates(), Inversion(), RingABell(), UnlearnDiffAtk()):
        if model.family.crosses:
            attack.check(given)
        else:
            assert "no cross-attention" in refused(attack.check, given)
    if name == "sdxl":
        (found, *_) = Inversion(updates=1, batch=1, pictures=1, start="hat").artefacts(given)
        assert found.rows.keys() == {"text_encoder", "text_encoder_2"}
        assert found.drawn(given.victim, (5,)).isfinite().all()
        (found,) = UnlearnDiffAtk(levels=1, updates=1, batch=1).artefacts(given)
        assert found.drawn(given.victim, (5,)).isfinite().all()
