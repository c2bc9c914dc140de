"""Very many concepts: turns of the bank, and nothing that is made anew for each of them."""

import dataclasses
import json

import pytest
import torch
from conftest import QUIET, WORDS, job_of, quick, same_weights
from desks import elsewhere

from efface.cli.main import main
from efface.concepts import Concept, few, merged
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation import tasks
from efface.methods.ap import AP
from efface.methods.esd import ESD
from efface.methods.stereo import STEREO
from efface.names import normal
from efface.seeds import generator
from efface.studies import Lab, several
from efface.training import Run, Student, anchors, latents, recall, turns
from efface.training.forecast import forecast
from efface.vocabulary import Vocabulary, distances

SOME = [Concept(w) for w in ("church", "dog", "hat", "coat", "boot", "bag", "fox")]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(turns, "HELD", 3)


def job_for(tiny, words, updates=6, some=SOME):
    method = quick(ESD(), words, updates=updates)
    return job_of(tiny, some, method)


def test_every_concept_has_its_turn_and_only_its_group_is_held(tiny, words):
    job = job_for(tiny, words)
    bank = job.method.latents.open(job)
    groups = bank.turns.groups
    assert [len(g) for g in groups] == [3, 3, 1]
    assert sorted(i for g in groups for i in g) == list(range(7))
    n = job.method.latents.trajectories
    for update in range(6):
        job.now = update
        b = bank.draw(generator(update), 16)
        assert set(b.which.tolist()) <= set(groups[update // 2])
        assert len(bank.z) == n * len(groups[update // 2])
    drawn = {int(i) for i in b.which}
    assert drawn == set(groups[2])


def test_latents_that_were_found_in_a_turn_go_with_it(tiny, words):
    job = job_for(tiny, words)
    bank = job.method.latents.open(job)
    channel = recall.Latents(bank, recall.Recall(batch=4, steps=1))
    job.now = 0
    channel.search(Student(tiny, {}), generator(0))
    first = channel.draw(8, generator(1))
    assert any(torch.equal(first.z[0], z) for z in channel.found["z"])
    again = recall.Latents(bank, channel.config)
    again.restore(channel.state())
    assert torch.equal(again.draw(8, generator(1)).z, first.z)
    job.now = 5  # one concept, and fewer trajectories than were there
    for held in (channel, again):
        found, own = held.draw(8, generator(1)), bank.draw(generator(1), 8)
        assert torch.equal(found.z, own.z)
        assert torch.equal(found.cond.states, own.concept.states)


def test_stereo_refuses_more_than_it_can_hold_latents_of(tiny, words):
    with pytest.raises(UserError, match=r"of 3 at most, and there are 7: .*efface combine"):
        quick(STEREO(), words).erase(tiny, SOME, QUIET)


def test_latents_of_a_turn_are_those_of_its_concepts(tiny, words):
    job = job_for(tiny, words)
    bank = job.method.latents.open(job)
    job.now = 3
    b = bank.draw(generator(0), 5)
    for i in range(5):
        alone = tiny.predict(b.z[[i]], b.t[[i]], tiny.embed([SOME[int(b.which[i])].name]))
        torch.testing.assert_close(b.e_concept[[i]], alone, rtol=1e-3, atol=1e-4)
    job.now = 0  # a killed training begins anywhere
    first = bank.draw(generator(0), 5)
    job.now = 3
    assert torch.equal(bank.draw(generator(0), 5).z, b.z)
    assert not torch.equal(first.z, b.z)


def test_few_concepts_are_held_as_ever(tiny, words, monkeypatch):
    job = job_for(tiny, words, some=SOME[:3])
    assert job.method.latents.open(job).turns is None
    names = dataclasses.replace(SOME[0], synonyms=("chapel", "kirk", "abbey"))
    assert turns.turns_of(job_for(tiny, words, some=[names]), 0).groups == ((0,),)


def test_too_few_updates_are_said(tiny, words):
    with pytest.warns(UserWarning, match=r"2 latents .* for 7 prompts.*--updates 4 or"):
        turns.turns_of(job_for(tiny, words, updates=1), 0)


@pytest.mark.parametrize("kind", [ESD, pytest.param(AP, marks=pytest.mark.slow)])
def test_killed_in_a_later_turn_it_ends_the_same(tiny, words, tmp_path, kind):
    method = dataclasses.replace(quick(kind(), words, updates=6), anchor="")
    whole = method.erase(tiny, SOME, QUIET)

    def stop(update, *_):
        if update == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.erase(tiny, SOME, Run(tmp_path, stop, progress=False))
    again = method.erase(tiny, SOME, Run(tmp_path, progress=False))
    assert same_weights(again.weights, whole.weights)


def test_the_evaluations_of_all_turns_are_told_beforehand(tiny, words):
    method = dataclasses.replace(quick(AP(), words, updates=6), anchor="")
    cost = method.erase(tiny, SOME, QUIET).meta["cost"]
    told = forecast(method, tiny, SOME)
    assert (told.forward, told.backward) == (cost["forward"], cost["backward"])


def test_distances_of_many_names_are_those_of_one(tiny):
    found = distances(tiny, WORDS, [*WORDS[:4], "church"])
    for name, row in zip(WORDS, found, strict=True):
        own, others = tiny.embed([name]).states, tiny.embed([*WORDS[:4], "church"]).states
        slow = (others - own).flatten(1).norm(dim=1)
        torch.testing.assert_close(row, slow, rtol=1e-3, atol=1e-2)  # 0 to itself, but for that
    alone = distances(tiny, ["church"], WORDS[:4])[0]
    slow = (tiny.embed(WORDS[:4]).states - tiny.embed(["church"]).states).flatten(1).norm(dim=1)
    torch.testing.assert_close(alone, slow)


def test_distances_are_measured_once_for_all_names(tiny, monkeypatch):
    asked = []
    slow = Vocabulary(tuple(WORDS), "list")
    found = dataclasses.replace(slow, beside=("church", "dog"), seen={})
    real = distances
    monkeypatch.setattr("efface.vocabulary.distances", lambda *a: asked.append(a[1:]) or real(*a))
    dog = found.far(tiny, "dog")
    torch.testing.assert_close(dog, slow.far(tiny, "dog"), rtol=1e-4, atol=1e-4)
    found.far(tiny, "church")
    dataclasses.replace(found, words=found.words[:3]).far(tiny, "church")
    assert len(asked) == 2
    found.far(tiny, "fox")  # a name that is none of them
    assert asked[2][0] == ["fox"]


def test_what_may_be_preserved_is_listed_once_for_a_kind(tiny, words, monkeypatch):
    asked = []
    real = Vocabulary.without
    monkeypatch.setattr(Vocabulary, "without", lambda *a: asked.append(a) or real(*a))
    job = job_of(tiny, SOME, quick(AP(), words))
    pools = job.method.candidates(job)
    assert len(asked) == 1
    assert [len(p) for p in pools.of] == [len(WORDS)] * 7
    job.alone(0).words(str(words), SOME[0])
    assert len(asked) == 2


@pytest.mark.slow
def test_anchors_of_many_are_searched_among_words_that_are_chosen_once(tiny, words, monkeypatch):
    asked = []
    real = anchors.candidates
    monkeypatch.setattr(anchors, "candidates", lambda *a: asked.append(a) or real(*a))
    some = [*SOME, Concept("Van Gogh", kind="style")]
    found = anchors.steered(tiny, some, "auto", str(words), 0)
    assert len(asked) == 2  # objects, and a style
    (alone,) = anchors.steered(tiny, some[:1], "auto", str(words), 0)
    assert found[0] == alone


def test_a_line_of_many_names_says_how_many():
    assert few(["a", "b"]) == "a, b"
    assert few([str(i) for i in range(1000)], 3) == "0, 1, 2, … (1,000 in all)"


def test_a_concept_that_is_there_once_is_compared_with_nothing(tokenizer, monkeypatch):
    asked = []
    real = tokenizer.__class__.__call__
    monkeypatch.setattr(
        tokenizer.__class__, "__call__", lambda *a, **k: asked.append(a) or real(*a, **k)
    )
    assert merged(SOME, tokenizer) == SOME
    assert len(asked) == len(SOME)


@pytest.mark.parametrize(
    "method", ["uce", *(pytest.param(m, marks=pytest.mark.slow) for m in ("speed", "ap"))]
)
def test_a_file_of_many_concepts(clothes_folder, tmp_path, capsys, method):
    nouns = [f"thing {i}" for i in range(60)]
    (tmp_path / "many.txt").write_text("\n".join(nouns))
    args = ["--model", str(clothes_folder), "--concepts-file", str(tmp_path / "many.txt")]
    args += ["--out", str(tmp_path / "run")]
    if method == "ap":
        args += ["--updates", "60", "--batch", "1", "--latents.ddim-steps", "2"]
    if method == "uce":
        args.append("--no-picture")
    assert main(["erase", method, *args]) == 0
    said = capsys.readouterr()
    assert "thing 19, … (60 in all)" in said.out
    assert "thing 20" not in said.out + said.err
    assert len(Edit.load(tmp_path / "run").meta["concepts"]) == 60


@pytest.mark.slow
def test_the_study_of_many_names_on_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "HELD", 100)
    monkeypatch.setattr(several, "EACH", 1)
    monkeypatch.setattr(tasks, "_in_processes", elsewhere)
    bank = latents.Bank(ddim_steps=2, trajectories=1)
    methods = {n: several.TRIED[n] for n in ("uce", "speed")}
    methods["ap"] = AP(latents=bank, anchor="", batch=1, preserve_batch=1)
    lab = Lab(tmp_path, progress=False)
    lab.names = lab.names[::12]
    found = several.run(lab, (1, 5), methods, 1, 2, many=150, updates=2)
    assert [r["concepts"] for r in found["nouns"]] == [150] * 3
    assert not [r for r in (*found["rows"], *found["nouns"]) if "refused" in r]
    names = {normal(n) for n in lab.names}
    assert not names & {normal(n) for n in several.some_nouns(lab, 150)}
    assert "| ap | 150 |" in several.words(json.loads(json.dumps(found)))
