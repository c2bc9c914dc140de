"""What an erased concept becomes where nobody says."""

import copy
import dataclasses
import json
import math
from itertools import pairwise

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, WORDS, quick, same_weights

from efface.concepts import Concept
from efface.errors import UserError
from efface.evaluation.judges import named
from efface.methods import METHODS
from efface.methods.ap import AP
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.page import ahead
from efface.seeds import generator
from efface.training import Run, Tuning, anchors
from efface.training.runs import ANCHORS
from efface.wordlists import held


@pytest.fixture(scope="module")
def word_list(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n".join(WORDS))
    return path


def test_candidates_are_compared_by_what_is_predicted_one_at_a_time(tiny):
    words, g = ("red house", "moon", "dog"), generator(0, "test")
    found = anchors.compare(
        tiny, "church", words, anchors.half_made(tiny, tiny.embed(["church"]).repeat(2), g)
    )
    schedule, g = tiny.schedule(anchors.STEPS), generator(0, "test")
    cond = tiny.embed(["church"] * 2)
    z = tiny.rollout(tiny.noise(2, g), cond, schedule, range(15), 3.0)
    t = schedule.timesteps[15]

    def eps(word):
        rows = tiny.null(1) if word is None else tiny.embed([word])
        with torch.no_grad():
            return torch.cat([tiny.predict(one[None], t[None], rows) for one in z]).flatten()

    own = eps("church") - eps(None)
    for i, w in enumerate(words):
        more = eps(w) - eps(None)
        far = (eps(w) - eps("church")).square().sum() / own.square().sum()
        assert float(found.far[i]) == pytest.approx(float(far), rel=1e-3)
        cosine = float(torch.dot(more, own) / more.norm() / own.norm())
        assert float(found.cosine[i]) == pytest.approx(cosine, abs=1e-3)
        assert float(found.strength[i]) == pytest.approx(float(more.norm() / own.norm()), rel=1e-3)


def test_the_nearest_by_prediction_is_the_anchor_where_any_will_do(tiny, word_list):
    words = anchors.candidates(tiny, CHURCH, [CHURCH], str(word_list))
    found = anchors.searched(tiny, CHURCH, words, 0, 0)
    z = anchors.half_made(
        tiny, tiny.embed(["church"]).repeat(anchors.LATENTS), generator(0, "anchor", "church")
    )
    far = anchors.compare(tiny, "church", WORDS, z).far
    first = anchors.compare(tiny, "church", WORDS, z[:1]).far.argsort()[: anchors.BEST].tolist()
    assert len(first) < len(WORDS)  # what is best on one latent, and of these the best on all
    assert found == dataclasses.replace(
        CHURCH, anchor=WORDS[min(first, key=far.tolist().__getitem__)]
    )
    other = anchors.half_made(tiny, tiny.embed(["church"]), generator(1, "anchor", "church"))
    assert not torch.equal(z[:1], other)


def test_the_candidates_of_several_concepts_are_encoded_once(tiny, word_list, monkeypatch):
    embed, seen = tiny.embed, []

    def noting(words, *args, **options):
        seen.append(tuple(words))
        return embed(words, *args, **options)

    concepts = [CHURCH, Concept("bell"), Concept("lamp")]
    words = anchors.candidates(tiny, CHURCH, concepts, str(word_list))
    monkeypatch.setattr(tiny, "embed", noting)
    found = anchors.steered(tiny, concepts, anchors.AUTO, str(word_list), 0)
    assert len(words) > anchors.BEST
    assert seen.count(words.words) == 1
    alone = [anchors.searched(tiny, c, words, 0) for c in concepts]
    assert seen.count(words.words) == 1 + len(concepts)
    assert list(found) == alone


def slow_cosine(model, word, other):
    """Of what two words add, on the first one's own half-made pictures."""
    schedule, g, n = model.schedule(10), generator(0, "anchor", word), anchors.LATENTS
    z = model.rollout(model.noise(n, g), model.embed([word] * n), schedule, range(6), 3.0)
    product, squares = 0.0, [0.0, 0.0]
    with torch.no_grad():
        for one in z:
            rows = [model.null(1), model.embed([word]), model.embed([other])]
            null, *both = (model.predict(one[None], schedule.timesteps[6][None], r) for r in rows)
            a, b = (e - null for e in both)
            product += float((a * b).sum())
            squares = [s + float(e.square().sum()) for s, e in zip(squares, (a, b), strict=True)]
    return product / math.sqrt(squares[0] * squares[1])


def test_other_words_resemble_a_word_more_than_the_concept_does(tiny, monkeypatch):
    slow = {w: slow_cosine(tiny, "moon", w) for w in WORDS if w != "moon"}
    order = sorted(slow, key=slow.__getitem__)
    monkeypatch.setattr(anchors, "OTHERS", 50)
    for name in (order[0], order[3], order[-1]):
        found = anchors.likelier(tiny, "moon", name, WORDS, 0)
        assert found == len(order) - 1 - order.index(name)
    monkeypatch.setattr(anchors, "OTHERS", 4)
    assert anchors.likelier(tiny, "moon", order[0], WORDS, 0) == 4


def test_the_anchor_is_the_nearest_whose_pictures_are_not_the_concepts(tiny, word_list):
    concept = Concept("river")
    words = anchors.candidates(tiny, concept, [concept], str(word_list))
    near, left = [], words
    while len(near) < 5:  # the nearest, then the nearest without it, …
        near.append(anchors.searched(tiny, concept, left, 0, 0).anchor)
        left = dataclasses.replace(left, words=tuple(w for w in left.words if w not in near))
    some = dataclasses.replace(words, words=tuple(near))
    apart = [anchors.likelier(tiny, w, "river", near, 0) for w in near]
    assert apart[0] < max(apart)  # else nothing is tried
    for least in range(1, 5):
        fit = [w for w, n in zip(near, apart, strict=True) if n >= least]
        expected = fit[0] if fit else near[apart.index(max(apart))]
        assert anchors.searched(tiny, concept, some, 0, least).anchor == expected


@pytest.mark.slow
def test_no_anchors_own_pictures_are_taken_for_the_concept(emoji):
    judge, seeds = named("emoji-2"), list(range(8))

    def taken(anchor, name):
        shown = torch.stack(list(emoji.generate([anchor] * 8, seeds, output_type="pt")))
        return float((judge.classify(shown).concepts == judge.label(name)).any(1).float().mean())

    nearest, apart = [], []
    for name in ("dog", "cucumber", "guitar", "cooking"):
        concept = Concept(name)
        words = anchors.candidates(emoji, concept, [concept], "auto")
        for least, rates in ((0, nearest), (anchors.LIKELIER, apart)):
            rates.append(taken(anchors.searched(emoji, concept, words, 0, least).anchor, name))
    assert sum(nearest) > 2, nearest
    assert max(apart) < 0.2, apart


def test_no_anchor_is_erased_or_shares_a_word_with_a_name(tiny, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Dog\ndogs\nhound\nred dog\nhounds of war\ncow\nold churches\nmug\nmoon\n")
    erased = [Concept("beer mug"), DOG, CHURCH]
    left = anchors.candidates(tiny, DOG, erased, str(path)).words
    assert left == ("cow", "moon")
    path.write_text("dogs\nred dog\n")
    with pytest.raises(UserError, match="no word that 'dog' could become"):
        anchors.steered(tiny, [Concept("dog")], "auto", str(path), 0)


def styled(tiny, folder, **more):
    """The tiny model with a folder that says what it draws."""
    rows = [{"name": n} for n in ("dog", "cat", "moon")]
    (folder / "concepts.json").write_text(json.dumps({"concepts": rows, **more}))
    model = copy.copy(tiny)
    model.folder = folder
    return model


def test_a_style_becomes_another_style_and_never_a_thing_or_an_artist(tiny, tmp_path):
    noto = Concept("noto style", kind="style")
    model = styled(tiny, tmp_path, style_names=["flat style", "noto style", "fluent style"])
    assert anchors.candidates(model, noto, [noto], "auto").words == ("flat style", "fluent style")
    assert anchors.candidates(model, DOG, [DOG, noto], "auto").words == ("cat", "moon")
    erased = [noto, Concept("flat style", kind="style")]
    (found, _) = anchors.steered(model, erased, "auto", "auto", 0)
    assert found.anchor == "fluent style"  # the only one left
    for name in ("Monet", "pixel art"):
        words = set(anchors.candidates(tiny, Concept(name), [Concept(name)], "auto").words)
        assert {"watercolor", "folk art", "oil painting"} <= words <= set(held()["styles"])
        assert "pixel art" in words or name == "pixel art"


def test_a_style_goes_to_the_null_prompt_where_no_other_is_known(tiny, word_list, tmp_path):
    noto = Concept("noto style", kind="style")
    with pytest.raises(UserError, match="No other style is known that 'noto style' could become"):
        ahead.anchors(styled(tiny, tmp_path), [noto])
    for model, source in ((tiny, str(word_list)), (styled(tiny, tmp_path), "auto")):
        found = anchors.steered(model, [noto, CHURCH], "auto", source, 0)
        assert found[0].anchor == ""
        assert found[1].anchor


def test_no_anchor_is_a_kind_of_what_is_erased_or_the_other_way_round(tiny, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("beagle\npoodle\nmammal\nchapel\nmoon\n")
    assert anchors.candidates(tiny, DOG, [DOG], str(path)).words == ("chapel", "moon")


def test_a_large_vocabulary_is_narrowed_first(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(anchors, "MOST", 5)
    monkeypatch.setattr(anchors, "AMONG", 10)
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS))
    words = anchors.candidates(tiny, CHURCH, [CHURCH], str(path))
    assert len(anchors.narrowed(tiny, CHURCH, words)) == 5


def test_what_is_said_comes_before_what_is_searched_for(tiny, word_list):
    said = [CHURCH, DOG]
    auto = anchors.steered(tiny, said, "auto", str(word_list), 0)
    assert auto[0].anchor in WORDS
    assert auto[1] == DOG
    assert [c.anchor for c in anchors.steered(tiny, said, "moon", "", 0)] == ["moon", "cat"]
    assert [c.anchor for c in anchors.steered(tiny, said, "", "", 0)] == ["", "cat"]
    with pytest.raises(UserError, match="erased itself"):
        anchors.steered(tiny, said, "hound", "", 0)


def test_an_anchor_counts_as_evaluations_and_is_on_record(tiny, word_list):
    method = quick(AP(), word_list)
    edit = method.erase(tiny, [CHURCH], QUIET)
    anchor = edit.meta["concepts"][0]["anchor"]
    told = dataclasses.replace(CHURCH, anchor=anchor)
    same = method.erase(tiny, [told], QUIET)
    assert same.digest == edit.digest
    k, n, best = len(WORDS) + 2, anchors.LATENTS, anchors.BEST + 2
    more = edit.meta["cost"]["forward"] - same.meta["cost"]["forward"]
    looks, left = divmod(more - (k + n * best + 2 * n * 15), n * (anchors.OTHERS + 3) + 2 * n * 6)
    assert left == 0
    assert 1 <= looks <= anchors.BEST


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_an_anchor_for_all(tiny, word_list, name):
    method = dataclasses.replace(quick(METHODS[name](), word_list), anchor="moon")
    edit = method.erase(tiny, [CHURCH], QUIET)
    assert edit.meta["concepts"][0]["anchor"] == "moon"
    told = dataclasses.replace(CHURCH, anchor="moon")
    same = dataclasses.replace(method, anchor="").erase(tiny, [told], QUIET)
    assert same.digest == edit.digest


def test_the_anchors_are_told_before_the_first_update(tiny, word_list):
    seen = []

    def on_anchors(model, concepts):
        seen.append([c.anchor for c in concepts])

    def on_update(update, losses, edit):
        seen.append(update)

    run = Run(progress=False, on_update=on_update, on_anchors=on_anchors)
    quick(AP(), word_list).erase(tiny, [CHURCH, DOG], run)
    assert seen[0][0] in WORDS
    assert seen[0][1] == "cat"
    assert seen[1:] == [1, 2]


def test_a_search_needs_a_vocabulary_only_where_it_has_none_of_its_own(tiny):
    found = dataclasses.replace(UCE(), anchor="auto").erase(tiny, ["church"], QUIET)
    assert found.meta["concepts"][0]["anchor"]


def test_an_anchor_is_a_name_like_any_other():
    with pytest.raises(UserError, match="anchor: the control character"):
        AP(anchor="moon\x1b")
    with pytest.raises(UserError, match="anchor: text is needed"):
        ESD(anchor=3)


def test_the_rate_falls_in_a_straight_line_over_the_last_updates():
    assert [Tuning(updates=4).pace(u) for u in range(4)] == [1, 1, 1, 1]
    assert [Tuning(updates=4, decay=1.0).pace(u) for u in range(4)] == [1, 0.75, 0.5, 0.25]
    half = Tuning(updates=4, decay=0.5)
    assert [half.pace(u) for u in range(4)] == [1, 1, 1, 0.5]


def test_a_decaying_rate_is_what_adam_is_given(tiny):
    lr = 1e-3
    whole = quick(ESD(lr=lr), "", 1).erase(tiny, [CHURCH], QUIET)
    two = quick(ESD(lr=lr, decay=1.0), "", 2)
    k = next(iter(whole.weights))
    steps = [tiny.parameters()[k].clone()]

    def on_update(update, losses, edit):
        steps.append(edit.weights[k].clone())

    two.erase(tiny, [CHURCH], Run(progress=False, on_update=on_update))
    torch.testing.assert_close(steps[1], whole.weights[k])
    moved = [float((b - a).abs().max()) for a, b in pairwise(steps)]
    assert moved[0] == pytest.approx(lr, rel=0.05)
    assert moved[1] == pytest.approx(lr / 2, rel=0.2)


def test_anchors_that_were_found_outlive_a_kill(tiny, tmp_path, monkeypatch):
    word_list = tmp_path / "words.txt"
    word_list.write_text("\n".join(WORDS))
    real, asked = anchors.searched, []
    method = quick(ESD(lr=1e-3, anchor="auto"), "", 2)
    some = [CHURCH, Concept("dog"), Concept("hat", anchor="coat"), Concept("fox")]

    def ran(folder, method=method, words=None, until=9):
        def counted(model, concept, *more, **kw):
            asked.append(concept.name)
            if len(asked) == until:
                raise KeyboardInterrupt
            return real(model, concept, *more, **kw)

        asked.clear()
        monkeypatch.setattr(anchors, "searched", counted)
        return method.erase(tiny, some, Run(folder, progress=False, words=words or str(word_list)))

    whole = ran(tmp_path / "whole")
    assert asked == ["church", "dog", "fox"]
    assert not (tmp_path / "whole" / ANCHORS).exists()
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path / "run", until=3)
    kept = (tmp_path / "run" / ANCHORS).read_text()
    assert set(json.loads(kept)["anchors"]) == {"church", "dog"}
    again = ran(tmp_path / "run")
    assert asked == ["fox"]
    assert same_weights(dict(again.weights), dict(whole.weights))
    assert again.meta == whole.meta  # the cost is the whole one
    assert not (tmp_path / "run" / ANCHORS).exists()

    seeded, words = dataclasses.replace(method, seed=1), "words: sky, box, car"
    for name, other in (("seed", {"method": seeded}), ("words", {"words": words})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / ANCHORS).write_text(kept)
        ran(folder, **other)
        assert asked == ["church", "dog", "fox"]
    word_list.write_text("\n".join(WORDS[:-1]))  # the same file, but not what it was
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / ANCHORS).write_text(kept)
    ran(tmp_path / "list")
    assert asked == ["church", "dog", "fox"]
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / ANCHORS).write_text(kept[:-9])
    with pytest.raises(UserError, match="delete it to start afresh"):
        ran(tmp_path / "spoilt")


@pytest.mark.slow
def test_candidates_do_not_depend_on_the_order_of_the_concepts(tiny, monkeypatch):
    some = [Concept("church"), Concept("nudity"), Concept("Van Gogh", kind="style")]
    seen = []

    def taken(model, concept, words, seed, encoded):
        seen.append((concept.name, words.words))
        return dataclasses.replace(concept, anchor=words.words[len(seen)])

    monkeypatch.setattr(anchors, "searched", taken)
    for order in (some, some[::-1]):
        anchors.steered(tiny, order, "auto", "auto", 0)
    assert sorted(seen[:3]) == sorted(seen[3:])
    assert len({words for _, words in seen}) == 3


@pytest.mark.parametrize("rank", [0, 2])
def test_the_last_weights_are_averaged(tiny, rank):
    method = dataclasses.replace(quick(ESD(lr=1e-3, rank=rank), "", 4), average=0.5)
    steps, k = [], next(iter(quick(ESD(), "", 1).erase(tiny, [CHURCH], QUIET).weights))

    def on_update(update, losses, edit):
        steps.append(edit.weights[k].clone())

    plain = dataclasses.replace(method, average=0.0)
    plain.erase(tiny, [CHURCH], Run(progress=False, on_update=on_update))
    found = method.erase(tiny, [CHURCH], QUIET).weights[k]
    assert not torch.equal(steps[2], steps[3])
    if not rank:  # the mean of products is not the product of means
        torch.testing.assert_close(found, (steps[2] + steps[3]) / 2)
    assert not torch.equal(found, steps[3])


def test_a_mean_goes_on_after_a_kill(tiny, tmp_path):
    method = dataclasses.replace(quick(ESD(lr=1e-3, save_every=1), "", 4), average=0.75)
    whole = method.erase(tiny, [CHURCH], QUIET)

    def killed(update, losses, edit):
        if update == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.erase(tiny, [CHURCH], Run(tmp_path, progress=False, on_update=killed))
    again = method.erase(tiny, [CHURCH], Run(tmp_path, progress=False))
    assert all(torch.equal(w, again.weights[k]) for k, w in whole.weights.items())


def test_how_many_updates_are_averaged():
    def n(share):
        return Tuning(updates=400, average=share).averaged

    assert [n(0), n(0.25), n(1), n(1e-9)] == [0, 100, 400, 1]


def test_a_run_says_among_which_words_anchors_are_searched(tiny, word_list):
    method = dataclasses.replace(quick(ESD(), word_list), anchor="auto")
    edit = method.erase(tiny, ["church"], dataclasses.replace(QUIET, words="words: big cow, sun"))
    assert edit.meta["concepts"][0]["anchor"] in ("big cow", "sun")


def test_the_anchors_of_styles_do_not_depend_on_their_order(tiny, monkeypatch):
    """ "pixel art" may share its end with its anchor, "oil painting" another one."""
    seen = {}

    def noting(model, concept, words, *args, **options):
        seen.setdefault(concept.name, set()).add(words.words)
        return dataclasses.replace(concept, anchor=words.words[0])

    monkeypatch.setattr(anchors, "searched", noting)
    both = [Concept(n, kind="style") for n in ("pixel art", "oil painting")]
    for order in (both, both[::-1]):
        anchors.steered(tiny, order, anchors.AUTO, "styles", 0)
    assert [len(x) for x in seen.values()] == [1, 1]
    assert seen["pixel art"] != seen["oil painting"]
