"""How far words moved, against one word at a time; and the command about it."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CHURCH, QUIET, WORDS, quick, shaken
from desks import elsewhere

from efface.cli.main import main
from efface.cli.opening import Opening
from efface.cli.report import sensed
from efface.cli.sensitivity import Options, asked, keep
from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation import tasks
from efface.evaluation.clip import OWN
from efface.evaluation.parts import Predicted, here, kept
from efface.evaluation.samples import Wanted, generate
from efface.evaluation.sensitivity import (
    Moved,
    _size,
    agreement,
    closed_form,
    picture,
    prediction,
    suggested,
    text_states,
)
from efface.methods.spm import SPM
from efface.methods.uce import UCE
from efface.models import DiffusionModel, load
from efface.models.families import family as family_module
from efface.scores import rank_correlation, ranks
from efface.seeds import generator
from efface.training.closed_form import text_vectors
from efface.vocabulary import Vocabulary


def edit_of(model, weights):
    return Edit(weights, {"base": model.base, "model": model.name, "concepts": []})


@pytest.fixture
def edit(tiny):
    return edit_of(tiny, shaken(tiny, by=1.0))


def moved(draws, words="abcd", name="one"):
    return Moved(name, "unit", tuple(words), torch.tensor(draws))


def test_ranks_share_the_mean_of_ties():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 9.0, 3.0])).tolist() == [2, 0, 2, 4, 2]


def test_rank_correlation_is_the_textbooks():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=g)
    y = x + torch.randn(60, generator=g)
    d = (ranks(x) - ranks(y)).square().sum()
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(float(1 - 6 * d / (60 * (60**2 - 1))))
    assert found.low < found.value < found.high
    assert rank_correlation(x, x.exp()).value == pytest.approx(1)
    assert rank_correlation(x, -x).value == pytest.approx(-1)
    assert rank_correlation(x, torch.zeros(60)).value == 0
    with pytest.raises(ValueError, match="three pairs"):
        rank_correlation(x[:2], y[:2])


@pytest.mark.slow
def test_prediction_is_that_of_one_word_at_a_time(tiny, edit):
    found = prediction(tiny, edit, WORDS, latents=3, batch=8, progress=False)
    some = WORDS[:5]
    alone = [prediction(tiny, edit, [w], latents=3, progress=False).draws for w in some]
    torch.testing.assert_close(found.draws[:, :5], torch.cat(alone, 1), rtol=1e-3, atol=1e-6)
    assert found.harm.min() > 0
    own = {k: tiny.parameters()[k].clone() for k in edit.weights}
    assert torch.equal(
        prediction(tiny, edit_of(tiny, own), WORDS, progress=False).harm, torch.zeros(len(WORDS))
    )


def test_prediction_by_hand(tiny, edit):
    path = []
    g = generator(5, "sensitivity")
    start, null = tiny.noise(2, g), tiny.embed(["", ""])
    tiny.rollout(
        start, null, tiny.schedule(20), range(20), 1.0, visit=lambda i, z, e0, e1: path.append(z)
    )
    found = prediction(tiny, edit, ["red cow"], latents=2, seed=5, progress=False)
    cond = tiny.embed(["red cow"])
    for k, step in enumerate((5, 15)):
        z, t = path[step][[k]], tiny.schedule(20).timesteps[[step]]
        before, after = tiny.predict(z, t, cond), tiny.predict(z, t, cond, edit.weights)
        far = 100 * (after - before).square().sum() / before.square().sum()
        assert float(found.draws[k]) == pytest.approx(float(far), rel=1e-3)


def test_text_states_are_those_of_the_last_word_without_the_padding(tiny):
    words = ["cow", "a very long red house", "sun", "extraterrestrial", "cow house"]
    whole, at = tiny.embed(words).states, tiny.last_word(words)
    slow = whole[torch.arange(len(words))[:, None], at]
    torch.testing.assert_close(text_states(tiny, words, progress=False), slow, rtol=1e-4, atol=1e-5)


def test_words_that_share_a_row_do_not_see_each_other(tiny, monkeypatch):
    words = ["dog", "", "a red house", "dog", "tree", "small cow", "church"]
    together = text_states(tiny, words, progress=False)
    monkeypatch.setattr(family_module, "PACKED", False)
    alone = text_states(tiny, words, progress=False)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together[0], together[3])


@pytest.mark.slow
def test_text_states_of_long_lists_are_kept(tiny, tmp_path, monkeypatch):
    words = [f"{a} {b}" for a in range(64) for b in range(64)]
    first = text_states(tiny, words, tmp_path, progress=False)
    (kept,) = (tmp_path / "text").iterdir()
    monkeypatch.setattr(tiny.parts["text_encoder"], "forward", None)  # is not asked again
    assert torch.equal(text_states(tiny, words, tmp_path, progress=False), first)
    monkeypatch.undo()
    kept.write_bytes(kept.read_bytes()[:100])
    assert torch.equal(text_states(tiny, words, tmp_path, progress=False), first)


def test_closed_form_is_that_of_one_word_and_layer_at_a_time(tiny, edit):
    found, own = closed_form(tiny, edit, WORDS, progress=False), tiny.parameters()
    maps = tiny.text_maps()
    layers = list(dict.fromkeys(n.rsplit(".", 2)[0] for n in maps))
    assert len(found.draws) == len(layers) > 1
    for i, word in enumerate(WORDS[:5]):
        e = text_vectors(tiny, [word])[0].float()
        for k, layer in enumerate(layers):
            both = [n for n in maps if n.startswith(f"{layer}.")]
            assert len(both) == 2
            far = sum(((edit.weights[n] - own[n]) @ e).square().sum() for n in both)
            size = sum((own[n] @ e).square().sum() for n in both)
            slow = 100 * float((far / size).sqrt())
            assert float(found.draws[k, i]) == pytest.approx(slow, rel=1e-3)


@pytest.mark.parametrize("rows", [5, 40])
def test_the_size_of_a_product_either_way(rows):
    g = torch.Generator().manual_seed(0)
    w, e = torch.randn(rows, 12, generator=g), torch.randn(30, 12, generator=g)
    torch.testing.assert_close(_size(w, e), (e @ w.T).norm(dim=1))


def test_closed_form_needs_weights_that_read_text(tiny):
    edit = edit_of(tiny, shaken(tiny, "selfattn"))
    with pytest.raises(UserError, match="changes no weight that reads the text"):
        closed_form(tiny, edit, WORDS)


@pytest.mark.slow
def test_gates_are_opened_word_by_word(tiny, words):
    edit = quick(SPM(), words).erase(tiny, [CHURCH], QUIET)
    assert edit.gates
    some = ["church", *WORDS[:2]]
    found = prediction(tiny, edit, some, latents=2, progress=False)
    for i, word in enumerate(some):
        open_for_it = edit_of(tiny, edit.on(tiny, word))
        alone = prediction(tiny, open_for_it, [word], latents=2, progress=False)
        torch.testing.assert_close(found.draws[:, [i]], alone.draws, rtol=1e-3, atol=1e-9)
    with pytest.raises(UserError, match="has gates"):
        closed_form(tiny, edit, WORDS)


def test_what_is_erased_in_closed_form_moves_more_than_the_rest(tiny):
    edit = UCE(keep=tuple(WORDS[1:])).erase(tiny, [CHURCH])
    found = closed_form(tiny, edit, ["church", *WORDS], progress=False)
    assert found.words[found.order()[0]] == "church"


def test_pictures_of_the_same_weights_lose_nothing_and_others_do(tiny, edit, tmp_path):
    wanted = [Wanted(w, s, w) for w in WORDS[:4] for s in (0, 1)]
    before = generate(tiny, wanted, tmp_path / "before", progress=False)
    after = generate(tiny, wanted, tmp_path / "after", edit, progress=False)
    assert not picture(before, before).draws.any()
    found = picture(before, after)
    assert found.draws.shape == (2, 4)
    assert found.words == tuple(WORDS[:4])
    alone = generate(tiny, wanted[2:3], tmp_path / "one", progress=False)
    changed = generate(tiny, wanted[2:3], tmp_path / "other", edit, progress=False)
    assert float(picture(alone, changed).draws) == pytest.approx(float(found.draws[0, 1]), abs=1e-3)
    with pytest.raises(ValueError, match="not of the same"):
        picture(before, alone)


def test_halves_of_the_draws_say_how_stable_the_ranks_are():
    same = moved([[1.0, 2, 3, 4]] * 4)
    assert same.stability().value == pytest.approx(1)
    assert moved([[1.0, 2, 3, 4], [4.0, 3, 2, 1]]).stability().value == pytest.approx(-1)
    assert moved([[1.0, 2, 3, 4]]).stability() is None
    assert same.order() == [3, 2, 1, 0]
    assert same.score(2).value == 3


def test_agreement_looks_at_the_words_of_both():
    one, two = moved([[1.0, 2, 3, 4]]), moved([[9.0, 8, 7, 1]], "dcbx")
    assert agreement(one, two).value == pytest.approx(1)
    assert agreement(one, two).n == 3


def test_what_to_keep_is_what_all_instruments_find_harmed():
    one, two = moved([[1.0, 2, 3, 4]]), moved([[3.0, 1, 2, 0]])
    assert suggested([one]) == ["d", "c", "b", "a"]
    assert suggested([one, two]) == ["c", "a"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name a run, or what you mean to erase"),
        (["run", "--concept", "church"], "not both"),
        (["--concept", "church", "--latents", "0"], "got 0 for latents"),
        (["--concept", "church", "--instrument", "predicton"], "did you mean 'prediction'"),
        (["--concept", "church", "--proxy", "closed"], "unknown proxy 'closed'"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(args, message, capsys):
    assert main(["sensitivity", *args]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not said.out


@pytest.mark.parametrize("command", ["sensitivity", "attack"])
def test_an_edit_that_erased_nothing_is_a_line_before_a_model_is_opened(
    command, edit, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "diff.safetensors"
    Edit(edit.weights, {**edit.meta, "concepts": []}).save(path)
    monkeypatch.setattr(f"efface.cli.{command}.opened", lambda *_: 1 / 0)
    assert main([command, str(path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "does not say what it erased" in line


@pytest.mark.parametrize("proxy", ["closed-form", pytest.param("steps", marks=pytest.mark.slow)])
def test_looking_ahead_and_looking_back(proxy, tiny_folder, words, tmp_path, capsys):
    out = tmp_path / "ahead"
    args = ["--vocabulary", str(words), "--latents", "2", "--top", "3"]
    ahead = ["sensitivity", "--concept", "church", "--model", str(tiny_folder), *args]
    assert main([*ahead, "--proxy", proxy, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    (kept,) = out.glob("sensitivity-prediction-closed-form-*.json")  # other words and latents
    told = json.loads(kept.read_text())
    assert told["before_the_edit"]
    assert told["method"] == f"proxy {proxy}"
    worst = next(iter(told["instruments"][0]["words"]))
    assert f"1     {worst}" in said.splitlines()[2]
    assert "Harmed most will be" in said
    assert "No linear edit of the text maps can erase church fully" in said
    assert told["forecast"]["word"] in WORDS
    assert "</svg>" in kept.with_suffix(".svg").read_text()
    run = tmp_path / "run"
    erase = ["erase", "uce", "--concept", "church", "--model", str(tiny_folder), "--no-picture"]
    assert main([*erase, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["sensitivity", str(run), *args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["before_the_edit"]
    assert set(found["instruments"][0]["words"]) == set(WORDS)
    assert list(found["agreement"]) == ["prediction (2 latents) / closed form (4 layers)"]
    assert (run / kept.name).exists()


def test_a_concept_in_two_spellings_is_foreseen_once(tiny_folder, words, capsys):
    args = ["--instrument", "closed-form", "--proxy", "closed-form", "--vocabulary", str(words)]
    told = []
    for names in (["church"], ["church", "Church"]):
        flags = [x for n in names for x in ("--concept", n)]
        assert main(["sensitivity", *flags, "--model", str(tiny_folder), *args, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[1]["erased"] == ["church"]
    assert told[1] == told[0]


def test_results_of_other_questions_and_edits_stand_beside_each_other(edit, tiny, tmp_path):
    one, two = Vocabulary(tuple("abcd"), "one"), Vocabulary(tuple("abc"), "two")
    own, both = Options(vocabulary="x.txt"), ("prediction", "closed-form")
    questions = [
        asked(Options(), both, one),
        asked(own, both, one),
        asked(own, both, two),
        asked(replace(own, latents=2), both, one),
        asked(own, ("closed-form",), one),
        asked(replace(own, opening=Opening(dtype="bf16")), both, one),
    ]
    assert asked(replace(own, latents=2), ("closed-form",), one) == questions[4]  # not for these
    made = {"instruments": [moved([[1.0, 2, 3, 4]]).to_json()]}

    def put(question, about):
        told = {**made, "edit": about.digest, "question": question}
        return keep(tmp_path, told, "<svg/>", plain=question == questions[0])

    files = [put(q, edit) for q in questions]
    assert len(set(files)) == len(questions)
    assert files[0].name == "sensitivity.svg"
    assert [put(q, edit) for q in questions] == files
    told = sensed(tmp_path, edit)
    assert told[0][0]["question"] == questions[0]
    assert {path for _, path in told} == set(files)
    other = edit_of(tiny, shaken(tiny, by=0.5, seed=9))
    assert sensed(tmp_path, other) == []
    (drawn,) = {put(questions[0], other), put(questions[0], other)}
    assert [path for _, path in sensed(tmp_path, other)] == [drawn]
    assert {path for _, path in sensed(tmp_path, edit)} == set(files)


# -- elsewhere, and later -------------------------------------------------------------------------


@pytest.fixture
def look(clothes_folder, tmp_path, monkeypatch):
    """Looks at an edit by every instrument; what it says, and the pictures that it drew."""
    monkeypatch.setattr(DiffusionModel, "at_once", 8)
    model = load(clothes_folder, device="cpu")
    path = tmp_path / "words.txt"
    path.write_text("\n".join(["dress", "bag", "boot", "shirt", "hat", *WORDS]))
    concepts = [Concept("coat").to_json()]
    meta = {"base": model.base, "model": str(clothes_folder), "concepts": concepts, "method": "x"}
    edit = Edit(shaken(model, by=1.0), meta)

    def look(name, *more):
        run, args = (
            tmp_path / name,
            ["--vocabulary", str(path), "--latents", "2", "--pictures", "1"],
        )
        monkeypatch.setenv("EFFACE_CACHE", str(run / "cache"))
        edit.save(run)
        for i in ("prediction", "closed-form", "picture"):
            args += ["--instrument", i]
        code = main(["sensitivity", str(run), *args, "--clip", OWN, *more])
        if code:
            return code
        pictures = {p.relative_to(run): p.read_bytes() for p in run.glob("**/*.png")}
        (kept,) = run.glob("sensitivity*.json")
        return json.loads(kept.read_text()), pictures

    return look


@pytest.mark.slow
def test_what_is_looked_at_elsewhere_comes_to_the_same(look, monkeypatch):
    alone = look("one")
    assert len(alone[1]) == 50
    monkeypatch.setattr(tasks, "_in_processes", elsewhere)
    assert look("two", "--jobs", "2") == alone


@pytest.mark.slow
@pytest.mark.parametrize("crew", ["--jobs 2", "--ray local"])
def test_several_processes_see_what_one_does(look, crew):
    if "ray" in crew:
        pytest.importorskip("ray")
    alone = look("one")
    try:
        assert look("two", *crew.split()) == alone
    finally:
        if "ray" in crew:
            sys.modules["ray"].shutdown()


@pytest.mark.slow
def test_killed_it_goes_on(look, monkeypatch):
    whole = look("whole")
    left, done = iter(range(2)), Predicted.done

    def stopped(part, at):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return done(part, at)

    monkeypatch.setattr(Predicted, "done", stopped)
    assert look("again") == 130
    had = []
    monkeypatch.setattr(Predicted, "done", lambda *a: had.append(a) or done(*a))
    assert look("again") == whole
    assert len(had) == 2  # of four
    assert not list(Path(os.environ["EFFACE_CACHE"]).glob("parts/*/*"))


@pytest.mark.slow
def test_what_was_kept_of_a_part_and_is_damaged_is_done_again(tiny, edit, tmp_path):
    some = [Predicted((w,), 2, 0) for w in WORDS[:3]]

    found = dict(kept(here(tiny, edit), lambda: tmp_path)(some))
    begun = kept(here(tiny, edit), lambda: tmp_path)(some)
    next(begun), next(begun)
    begun.close()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    again = dict(kept(here(tiny, edit), lambda: tmp_path)(some))
    assert all(torch.equal(again[p], found[p]) for p in some)
