"""The studies: their arithmetic, the committed results in the docs, and a small run of each."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import WORDS, shaken

from efface.cli import main
from efface.concepts import Concept
from efface.latents import Latents
from efface.models import watched
from efface.runs import Run
from efface.studies import (
    STUDIES,
    Lab,
    anchors,
    grid,
    order,
    relatives,
    search,
    similarity,
    tradeoff,
    vocabulary_kind,
    vocabulary_size,
)
from efface.training import Tuning, finetune

DOCS = Path(__file__).parents[1] / "docs"
DONE = sorted((DOCS / "studies").glob("*.json"))


@pytest.mark.parametrize("path", DONE, ids=lambda p: p.stem)
def test_the_docs_say_what_the_committed_result_says(path):
    found, page = json.loads(path.read_text()), (DOCS / "studies.md").read_text()
    assert STUDIES[path.stem].words(found) in page
    assert f"studies/{path.stem}.svg" in page
    assert "</svg>" in STUDIES[path.stem].figure(found)
    assert path.with_suffix(".svg").exists()


def test_the_command_lists_the_studies_and_refuses_others(capsys):
    assert main(["study"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in STUDIES)
    assert main(["study", "relativs"]) == 2
    assert "did you mean 'relatives'" in capsys.readouterr().err


def test_groups_of_relatives_are_means_over_their_pictures():
    def row(group, clip, before, after):
        return {"group": group, "word": "w", "clip": clip, "before": before, "after": after}

    rows = [
        row("related", [2.0, 4.0], [1, 1], [0, 1]),
        row("related", [6.0, 8.0], [1, 0], [0, 0]),
        row("unrelated", [1.0], [1], [1]),
        row("random", [0.0], [1], [0]),
    ]
    told = relatives.groups({"rows": rows})
    assert told["related"]["clip"].value == pytest.approx(5)
    assert told["related"]["judge"].value == pytest.approx(50)
    assert told["random"]["judge"].value == 100


def test_correlations_are_of_ranks_within_each_erased_concept():
    g = torch.Generator().manual_seed(0)
    harm = torch.randn(2, 30, generator=g)
    scaled = harm * torch.tensor([[1.0], [100.0]]) + torch.tensor([[0.0], [50.0]])
    tables = {
        n: {"words": [], "harm: picture": harm[i].tolist(), "same": scaled[i].exp().tolist()}
        for i, n in enumerate("ab")
    }
    tables["b"]["same"] = harm[1].tolist()
    assert similarity.correlations({"erased": tables}, "harm: picture")["same"].value == (
        pytest.approx(1)
    )


def test_scores_of_a_grid_are_those_of_its_rows():
    def row(label, seed, gone, kept):
        return {"label": label, "seed": seed, "gone": [gone, gone], "kept": [kept, kept]}

    found = {
        "erased": ["church"],
        "others": ["castle", "wolf"],
        "near": ["castle"],
        "rows": [
            row("a", 0, [0, 0], [1, 1, 1, 0]),
            row("a", 1, [1, 0], [1, 1, 1, 1]),
            row("b", 0, [0, 0], [0, 0, 1, 0]),
            row("b", 1, [0, 0], [1, 0, 1, 1]),
        ],
    }
    assert grid.labels(found) == ["a", "b"]
    assert grid.score(found, "a", "gone").value == 75
    assert grid.score(found, "a", "kept").value == 87.5
    assert grid.score(found, "b", "near").value == 25
    assert grid.difference(found, "a", "b").value == pytest.approx(100 * (7 - 4) / 8)
    assert grid.difference(found, "a", "b", "near").value == pytest.approx(75)
    assert grid.difference(found, "a", "b", "gone").value == pytest.approx(-25)


def test_an_edited_copy_is_another_model_and_counts_with_it(tiny):
    weights = shaken(tiny)
    other = order.edited(tiny, weights)
    z, t, cond = (
        tiny.noise(1, torch.Generator().manual_seed(0)),
        torch.tensor([9]),
        tiny.embed(["a"]),
    )
    before = tiny.counter.copy()
    with torch.no_grad():
        a, b = other.predict(z, t, cond), tiny.predict(z, t, cond, weights)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert tiny.counter.since(before).forward == 2
    assert other.base.startswith(f"{tiny.base}+")
    assert order.edited(tiny, {}) is tiny


def test_shared_tokens_is_the_jaccard_index(tiny):
    found = similarity.shared(tiny, "red cow", ["red house", "red cow", "sun"])
    assert found.tolist() == pytest.approx([1 / 3, 1, 0])


def test_cosines_are_of_the_last_words_states(tiny):
    found = similarity.cosines(tiny, ["church", "cow"], WORDS)
    assert found.shape == (2, len(WORDS))
    assert similarity.cosines(tiny, ["church"], ["church"]).item() == pytest.approx(1)


def test_attention_overlap_is_that_of_one_word_at_a_time(tiny):
    words = ["red cow", "sun"]
    found = similarity.overlap(tiny, "church", ["church", *words], latents=1)
    assert float(found[0]) == pytest.approx(1, abs=1e-5)
    z = tiny.noise(1, torch.Generator().manual_seed(0))
    t = torch.tensor([int(0.3 * len(tiny.process.alphas))])
    maps = {}
    for word, at in (("church", 1), ("red cow", 2), ("sun", 1)):
        with torch.no_grad(), watched(tiny) as seen:
            tiny.predict(z, t, tiny.embed([word]))
        each = [a[0, :, :, at].mean(0) for a in seen]
        maps[word] = torch.cat([x / x.norm() for x in each])
    for i, word in enumerate(words, 1):
        slow = torch.cosine_similarity(maps["church"], maps[word], dim=0)
        assert float(found[i]) == pytest.approx(float(slow), abs=1e-5)


def test_a_watcher_compares_the_favourite_with_the_worst(tiny, words):
    from efface.methods import AP
    from efface.search import Exact, Search

    tuning = Tuning(updates=4, batch=2, lr=1e-2)
    method = AP(
        vocabulary=str(words),
        search=search.SETTINGS["tuned"],
        latents=Latents(ddim_steps=3, trajectories=2),
        tuning=tuning,
    )
    built = method.build(tiny, [Concept("church")], progress=False)
    exact = Exact(built.candidates, Search(probes=3), tiny, built.source, 1)
    watcher = search.Watcher(built.search, exact, every=2)
    finetune(tiny, built.loss, tuning, Run(progress=False), {}, [built.search, watcher])
    assert [r["update"] for r in watcher.rows] == [2, 4]
    for r in watcher.rows:
        assert 0 <= r["regret"] <= 100
        assert 0 < r["regret_of_random"] < 100
        assert r["right"] == (r["favourite"] == r["true"]) == (r["regret"] == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("relatives", {"erased": ("church",), "updates": 2, "n": 1}),
        ("similarity", {"erased": ("church",), "updates": 2, "n": 1}),
        ("search", {"sizes": (5, 8), "updates": 4, "every": 2, "probes": 2}),
        ("anchors", {"seeds": 1, "updates": 1}),
        ("vocabulary-size", {"sizes": (4, 8), "updates": 1}),
        ("vocabulary-kind", {"size": 5, "updates": 1}),
        ("abstract", {"abstract": ("love",), "concrete": ("church",), "updates": 2, "latents": 2}),
        ("order", {"erased": ("church", "wolf"), "updates": 1, "gone": 2}),
        ("tradeoff", {"weights": (1,), "updates": (2,), "groups": ()}),
    ],
)
def test_a_small_run_of_each(name, options, tmp_path, monkeypatch):
    lab, study = Lab(tmp_path, progress=False), STUDIES[name]
    near = lab.protocol.near(["church", "wolf", "beer mug"])
    lab.names = tuple(dict.fromkeys((*near, *lab.names[:4])))
    monkeypatch.setattr(grid.run, "__defaults__", (("church", "wolf"), 2, 1))
    for module in (anchors, order, vocabulary_size, vocabulary_kind, tradeoff):
        small = dataclasses.replace(
            module.BASE,
            latents=Latents(ddim_steps=3, trajectories=2),
            tuning=dataclasses.replace(module.BASE.tuning, updates=1),
        )
        monkeypatch.setattr(module, "BASE", small)
    found = json.loads(json.dumps(study.run(lab, **options)))
    assert len(study.words(found)) > 200
    assert "</svg>" in study.figure(found)
    counted = lab.model.counter.copy()
    again = study.run(lab, **options)
    if name not in ("similarity", "abstract", "order"):  # these look through the model again
        assert lab.model.counter == counted
        assert json.loads(json.dumps(again)) == found


@pytest.mark.slow
def test_pictures_of_relatives_are_more_alike(tmp_path):
    lab = Lab(tmp_path, progress=False)
    found = similarity.seen_alike(lab, "church", ["mosque", "wolf"], 2)
    assert 1 > float(found[0]) > float(found[1])
