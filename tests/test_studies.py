"""The studies: their arithmetic, the committed results in the docs, and a small run of each."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import WORDS, job_of, quick, shaken
from desks import elsewhere

from efface.cli.main import main
from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation import tasks
from efface.evaluation.attacks.completion import Completion
from efface.evaluation.attacks.inversion import Inversion
from efface.evaluation.attacks.states import TextStates
from efface.evaluation.judges.emoji import EmojiJudge, JudgeConfig
from efface.methods.ap import AP
from efface.methods.dp import DP
from efface.methods.twofold import Twofold
from efface.methods.uce import UCE
from efface.models import load as load_model
from efface.models import watched
from efface.seeds import generator
from efface.studies import (
    STUDIES,
    Lab,
    anchors,
    cost,
    coverage,
    covered,
    grid,
    order,
    other_data,
    relatives,
    search,
    several,
    similarity,
    tradeoff,
    transfer,
    vocabulary_kind,
    vocabulary_size,
)
from efface.training import Bank
from efface.training.search import Exact
from efface.vocabularies import load as load_vocabulary

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
    z = tiny.noise(1, generator(0, "similarity"))
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
    from efface.methods.ap import AP
    from efface.training.search import Exact, Setting

    method = AP(
        vocabulary=str(words),
        search=search.SETTINGS["tuned"],
        latents=Bank(ddim_steps=3, trajectories=2),
        updates=4,
        batch=2,
        lr=1e-2,
    )
    job = job_of(tiny, [Concept("church")], method)
    built = method.build(job)
    exact = Exact(probes=3).start(Setting(job, built.candidates, built.source, None))
    watcher = search.Watcher(built.search, exact, every=2)
    job.train(built.loss, [built.search, watcher])
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
        ("shortlist", {"size": 12, "sizes": (3,), "updates": 4, "every": 2, "probes": 1}),
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
    few = {"erased": ("church", "wolf"), "gone": 2, "kept": 1}
    given = inspect.signature(grid.run).parameters.items()
    plain = tuple(few.get(n, p.default) for n, p in given if p.default is not p.empty)
    monkeypatch.setattr(grid.run, "__defaults__", plain)
    for module in (anchors, order, vocabulary_size, vocabulary_kind, tradeoff):
        small = dataclasses.replace(
            module.BASE,
            latents=Bank(ddim_steps=3, trajectories=2),
            updates=1,
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


@pytest.fixture
def clothes(tiny_folder, tmp_path):
    """A folder of a tiny model that brings its words, its protocol and its judge."""
    folder = tmp_path / "clothes"
    shutil.copytree(tiny_folder, folder)
    names = ("coat", "dress", "bag", "boot", "shirt", "hat")
    rows = [{"name": n, "tags": [f"a kind of {n}"]} for n in names]
    (folder / "concepts.json").write_text(json.dumps({"concepts": rows}))
    protocol = {
        "about": "Clothes.",
        "splits": {"1": ["coat"], "2": ["bag", "hat"]},
        "neighbours": {"coat": ["dress"]},
        "template": "a photo of a {}",
        "steps": 2,
        "guidance": 2.0,
        "judge": "clothes-1",
    }
    (folder / "protocol.json").write_text(json.dumps(protocol))
    EmojiJudge(JudgeConfig(names, ("photo",), (4, 4), (1, 1), "clothes-1")).save(folder / "judge")
    return folder


@pytest.mark.slow
def test_a_model_that_brings_its_words_judge_and_protocol_is_studied(
    clothes, words, tmp_path, cache, monkeypatch
):
    lab = Lab(tmp_path / "lab", str(clothes), progress=False)
    assert lab.names == ("coat", "dress", "bag", "boot", "shirt", "hat")
    assert load_vocabulary("auto", lab.model).words == lab.names
    assert load_vocabulary("tags", lab.model).words[0] == "a kind of coat"
    small = {k: m and quick(m, words) for k, m in other_data.CHOICES.items()}
    small = {
        k: dataclasses.replace(m, vocabulary="names") if hasattr(m, "vocabulary") else m
        for k, m in small.items()
    }
    monkeypatch.setattr(other_data, "CHOICES", small)
    found = json.loads(json.dumps(other_data.run(lab, seeds=1, updates=2, gone=2, kept=1)))
    assert set(found["splits"]) == {"1", "2"}
    one = found["splits"]["1"]
    assert grid.labels(one) == list(other_data.CHOICES)
    assert one["others"] == ["dress", "bag", "boot", "shirt", "hat"]
    assert one["near"] == ["dress"]
    settings = json.loads(next(tmp_path.glob("lab/pictures/*/samples.json")).read_text())
    assert (settings["steps"], settings["guidance"]) == (2, 2.0)
    assert "Split 2: bag, hat erased" in other_data.words(found)
    assert "</svg>" in other_data.figure(found)


@pytest.mark.slow
def test_quality_is_told_beside_what_it_took(clothes_folder, tmp_path, cache):
    folder = shutil.copytree(clothes_folder, tmp_path / "model")
    told = json.loads((folder / "protocol.json").read_text())
    with pytest.raises(UserError, match="holds no name out"):
        cost.run(Lab(tmp_path / "lab", str(folder), progress=False))
    (folder / "protocol.json").write_text(json.dumps({**told, "held_out": ["bag", "hat", "boot"]}))
    lab = Lab(tmp_path / "lab", str(folder), progress=False)
    trained = {"esd": (1, 2), "ap": (1,)}
    found = json.loads(json.dumps(cost.run(lab, trained, seeds=2, gone=1)))
    assert (found["erased"], found["others"]) == (["coat"], ["bag", "hat", "boot"])
    rows = ["", "esd: 1", "esd: 2", "ap: 1"]
    assert [(r["label"], r["seed"]) for r in found["rows"]] == [
        (n, s) for s in (0, 1) for n in rows
    ]
    for r in found["rows"]:
        assert (len(r["gone"][0]), len(r["kept"][0])) == (1, 3 * 2)
    words_of = [e["config"].get("vocabulary", "") for e in found["edits"]]
    assert any(words_of)
    assert not any("bag" in w or "hat" in w or "boot" in w for w in words_of)
    assert [e["config"]["updates"] for e in found["edits"]] == [1, 2, 1] * 2
    assert cost.lines(found) == {"esd": rows[1:3], "ap": rows[3:]}
    assert cost.spent(found, "esd: 1") < cost.spent(found, "esd: 2")
    kept = torch.tensor([r["kept"][0] for r in found["rows"] if r["label"] == "esd: 2"])
    own = cost.scores(found, "esd: 2")
    assert own["PSR-1"].value == pytest.approx(100 * kept.double().mean().item())
    each = kept.view(2, 3, 2).double()  # seeds, names, pictures
    worst = [[100 * c[c[:, i].argmin(), 1 - i] for i in (0, 1)] for c in each]
    if all(c[:, i].unique().numel() > 1 for c in each for i in (0, 1)):
        assert own["worst tenth"].value == pytest.approx(torch.tensor(worst).mean().item())
    assert own["worst tenth"].n == 3
    said = cost.words(found)
    assert f"| ESD | 2 | {cost.spent(found, 'esd: 2'):,.0f} | {own['ESR-1']} |" in said
    assert "coat erased at once, 2 seeds" in said
    assert "</svg>" in cost.figure(found)
    counted = lab.model.counter.copy()
    assert json.loads(json.dumps(cost.run(lab, trained, seeds=2, gone=1))) == found
    assert lab.model.counter == counted


@pytest.mark.slow
def test_several_concepts_at_once_are_judged_on_names_that_no_method_saw(
    clothes, tmp_path, cache, monkeypatch
):
    lab = Lab(tmp_path / "lab", str(clothes), progress=False)
    methods = {"uce": UCE(vocabulary="names"), "dp": DP(leverage=1.0), "free": DP(leverage=0.0)}
    small = {"latents": Bank(ddim_steps=2, trajectories=1), "save_every": 1}
    methods["ap"] = methods["ap, longer"] = AP(**small)
    monkeypatch.setattr(several, "EACH", 1)
    monkeypatch.setitem(several.LONGER, "ap, longer", 2)
    monkeypatch.setattr(tasks, "_in_processes", elsewhere)
    options = {"counts": (2, 1), "methods": methods, "gone": 1, "kept": 2, "many": 4, "updates": 2}
    found = json.loads(json.dumps(several.run(lab, **options)))
    assert found["held_out"] == ["dress", "boot", "hat"]
    assert [(r["concepts"], r["method"]) for r in found["rows"]] == [
        *((1, m) for m in methods if m != "ap, longer"),  # as long as AP is anyway
        *((2, m) for m in methods),
    ]
    rows = {(r["method"], r["concepts"]): r for r in found["rows"]}
    assert set(found["erased"]) <= {"coat", "bag", "shirt"}
    assert "% is needed" in rows["dp", 2]["refused"]
    for name, n in (("uce", 1), ("free", 2)):
        scores = rows[name, n]["scores"]
        assert (scores["ESR-1"]["n"], scores["PSR-1"]["n"]) == (n, 3)
        assert set(scores) == set(several.SCORES)
        assert rows[name, n]["seconds"] > 0
        assert rows[name, n]["peak_memory_mb"] > 100
    (edit,) = [e for e in found["edits"] if e["config"].get("erase_scale")][:1]
    shown = edit["config"]["vocabulary"].removeprefix("words: ").split(", ")
    assert set(shown) == {"coat", "bag", "shirt"} - set(found["erased"][:1])
    trained = {e["cost"]["backward"] // (2 + 6) for e in found["edits"] if e["cost"]["backward"]}
    assert trained == {2, 4}
    nouns = {r["method"]: r for r in found["nouns"]}
    assert list(nouns) == ["uce", "ap"]
    assert (nouns["uce"]["concepts"], nouns["ap"]["concepts"]) == (4, 4)
    assert nouns["ap"]["backward"] == 4 * (2 + 6)
    said = several.words(found)
    assert f"| uce | 4 | {nouns['uce']['seconds']:.1f} |" in said
    assert "a process of its own" in said
    assert "| dp | 1 | refused |" in said
    assert "Refused: dp with 1: " in said
    assert "</svg>" in several.figure(found)
    counted = lab.model.counter.copy()
    assert json.loads(json.dumps(several.run(lab, **options))) == found  # seconds are kept as well
    assert lab.model.counter == counted
    with pytest.raises(UserError, match="3 concepts are to be erased, and 3 names are not held"):
        several.run(lab, counts=(1, 3), methods=methods, many=0)


def test_words_are_drawn_as_often_as_is_said_and_from_nearly_all_of_them():
    words = [str(i) for i in range(150)]
    for draws in (1.0, 3.0, 10.0):
        pool, n = coverage.sized(words, draws, 100)
        assert 100 * n / len(pool) == pytest.approx(draws, rel=0.01)
        assert len(pool) >= 75
        assert list(pool) == sorted(dict.fromkeys(pool), key=int)
    assert coverage.sized(words, 0.3, 100) == ((), 0)  # less than a word an update
    assert coverage.sized(words, 100.0, 100) == ((), 0)  # more than fit into one
    pool, n = coverage.sized([str(i) for i in range(1900)], 3.0, 100)
    assert (n, len(pool)) == (coverage.MOST, 1600)


def test_a_gain_over_random_words_is_told_in_one_sentence():
    def row(search, draws, value, low, high):
        s = {"value": value, "low": low, "high": high, "n": 9}
        return {"search": search, "draws": draws, "worst tenth": s}

    some = [row("exact", 0.1, 9.0, 2.0, 15.0), row("exact", 1.0, 4.0, 1.0, 7.0)]
    some += [row("online", 1.0, 2.0, 0.5, 3.0), row("exact", 3.0, 5.0, -1.0, 9.0)]
    said = covered.answer({"differences": some})
    assert said.startswith("Search pays up to 1 draws per word, where exact gains 4.0 [1.0, 7.0]")
    assert said.endswith("above, at 3, random words do as well.")
    assert "not tried" in covered.answer({"differences": some[:3]})
    none = covered.answer({"differences": [*some[3:], row("online", 1.0, 2.0, -1.0, 3.0)]})
    assert none.startswith("Search pays nowhere that was tried")
    assert "5.0 [-1.0, 9.0]" in none


def test_differences_are_of_the_same_names_and_trainings():
    def row(search, draws, kind, hits):
        told = {"search": search, "draws": draws, "vocabulary": kind, "seed": 0}
        return {**told, "kept": hits, "cost": {"forward": 3, "backward": 1}}

    rows = [
        row("random", 1.0, "names", [1, 1, 0, 0]),
        row("exact", 1.0, "names", [1, 1, 1, 0]),
        row("exact", 1.0, "pairs", [0, 0, 0, 0]),  # no random words to compare with
        row("exact", 3.0, "names", [1, 1, 1, 1]),
    ]
    (apart,) = coverage.summed(rows, kept=2, paired=True)
    assert (apart["search"], apart["draws"], apart["cells"]) == ("exact", 1.0, 1)
    assert apart["PSR-1"]["value"] == 25
    assert apart["worst tenth"]["value"] == 75  # in one half of the pictures both are as good
    assert apart["evaluations"] == 4
    levels = {(x["search"], x["draws"]): x for x in coverage.summed(rows, kept=2, paired=False)}
    assert levels["exact", 1.0]["cells"] == 2
    assert levels["exact", 1.0]["PSR-1"]["value"] == 37.5
    assert set(levels) == {("random", 1.0), ("exact", 1.0), ("exact", 3.0)}


@pytest.mark.slow
def test_searches_are_compared_on_names_that_no_vocabulary_holds(
    clothes, tmp_path, cache, monkeypatch
):
    lab = Lab(tmp_path / "lab", str(clothes), progress=False)
    small = dataclasses.replace(
        coverage.BASE, updates=2, latents=Bank(ddim_steps=3, trajectories=1)
    )
    monkeypatch.setattr(coverage, "BASE", small)
    few = {k: coverage.SEARCHES[k] for k in ("random", "nearest words", "forecast", "exact")}
    monkeypatch.setattr(coverage, "SEARCHES", few)
    options = {"kinds": ("names", "pairs"), "draws": (1.0,), "seeds": 1, "erased": ("coat",)}
    options |= {"gone": 1, "kept": 2}
    found = json.loads(json.dumps(coverage.run(lab, **options)))
    assert len(found["rows"]) == 2 * len(few)
    assert found["judged"] == 3
    assert found["erased"]["coat"] in ("bag", "shirt")
    held = {"dress", "boot", "hat"}
    for path in tmp_path.glob("lab/ap-*/edit.safetensors"):
        pools = [c["pool"] for c in Edit.load(path).meta["concepts"]]
        assert pools
        assert not any(held & set(w.split()) for pool in pools for w in pool)
    row = found["rows"][0]
    assert (row["words"], row["preserved"], len(row["kept"])) == (2, 1, 6)
    assert row["words"] * row["draws"] == small.updates * row["preserved"]
    said = coverage.words(found)
    assert said.startswith("Search pays ")
    assert "pairs (2)" in said
    assert "</svg>" in coverage.figure(found)
    counted = lab.model.counter.copy()
    assert json.loads(json.dumps(coverage.run(lab, **options))) == found
    assert lab.model.counter == counted
    with pytest.raises(UserError, match="drawn so often"):
        coverage.run(lab, **{**options, "draws": (0.001,)})


@pytest.mark.slow
def test_a_training_takes_about_as_many_evaluations_as_is_said(
    clothes, tmp_path, cache, monkeypatch
):
    lab = Lab(tmp_path / "lab", str(clothes), progress=False)
    monkeypatch.setattr(coverage, "BASE", dataclasses.replace(coverage.BASE, updates=12))
    for name in ("random", "exact", "Gumbel"):
        point = coverage.Point("names", name, 1.0, 0, ("bag", "shirt", "dress", "boot"), 3)
        said = coverage.evaluations(point, 0)
        method = dataclasses.replace(
            coverage.method_of(point), latents=Bank(ddim_steps=3, trajectories=1)
        )
        cost = lab.edit(method, [Concept("coat", "hat", pool=point.pool)]).meta["cost"]
        assert sum(cost.values()) == pytest.approx(
            said, rel=0.3
        )  # without the latents that it begins with


def test_seeds_and_a_smaller_run_are_refused_where_there_are_none(capsys, tmp_path):
    for args, message in (
        (["relatives", "--quick"], "has no smaller run"),
        (["relatives", "--seeds", "2"], "has no setting --seeds"),
        (["coverage", "--seeds", "0"], "got 0 for seeds"),
    ):
        assert main(["study", *args, "--work", str(tmp_path / "w"), "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_cross_table_of_recalls_and_attacks_is_made_cell_by_cell(clothes, tmp_path, cache):
    lab = Lab(tmp_path / "lab", str(clothes), progress=False)
    bank, search = Bank(ddim_steps=2, trajectories=1), Exact(refresh=2, probes=1)
    method = Twofold(latents=bank, search=search, batch=2, vocabulary="names", anchor="")
    attacks = (
        Inversion(updates=1, batch=2, pictures=2, templates=1),
        TextStates(ridges=(1e-3,)),
        Completion(steps=4, begun=(1, 2)),
    )
    options = {"updates": 2, "seeds": 2, "split": "2", "redraws": 2, "gone": 2}
    options |= {"method": method, "attacks": attacks}
    found = json.loads(json.dumps(transfer.run(lab, **options)))
    trained = list(transfer.TRAINED)
    assert [(r["train"], r["seed"]) for r in found["rows"]] == [
        (transfer.UNEDITED, 0),
        *((name, seed) for name in trained for seed in (0, 1)),
    ]
    configs = [e["config"]["recall"] for e in found["edits"]]
    switches = [[c[k] for k in ("states", "tokens", "latents")] for c in configs[::2]]
    assert switches == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    for row in found["rows"]:
        assert [len(row["cells"][a.name]) for a in attacks] == [2, 2, 4]  # bag and hat
        assert [len(row["plain"][k]) for k in (transfer.DRAWN, transfer.KEPT)] == [4, 4]
    said = transfer.words(found)
    assert "bag, hat (split 2) erased at once, 2 updates, 2 seeds" in said
    assert "completion@2" in said
    assert "</svg>" in transfer.figure(found)
    counted = lab.model.counter.copy()
    assert json.loads(json.dumps(transfer.run(lab, **options))) == found
    assert lab.model.counter == counted
    some = sorted(lab.folder.glob("attack-states-*/cell.json"))
    assert len(some) > len(trained)
    some[0].unlink()  # as if killed there
    assert json.loads(json.dumps(transfer.run(lab, **options))) == found


def test_cells_of_the_cross_table_are_rates_at_the_headline_and_pool_the_seeds():
    def row(at, concept, hits):
        plain = {"judged": concept, "prompt": "", "why": "", "seed": 0, "seeds": [1, 2]}
        return {"concept": concept, "at": at, "hits": hits, **plain}

    def trained(train, seed, hits, drawn, kept):
        rows = [row("1", "bag", [1, 1]), row("2", "bag", hits), row("2", "hat", [0, 0])]
        own = {"plain": {transfer.DRAWN: drawn, transfer.KEPT: kept}, "cells": {"a": rows}}
        return {"train": train, "seed": seed, **own}

    found = {
        "erased": ["bag", "hat"],
        "tests": {"a": {"channel": "latent", "at": "2"}},
        "rows": [
            trained(transfer.NOTHING, 0, [1, 1], [1, 0, 0, 0], [1, 1, 0]),
            trained("latent", 0, [1, 0], [0, 0, 0, 0], [1, 1, 1]),
            trained("latent", 1, [0, 0], [0, 0, 1, 1], [1, 0, 1]),
        ],
    }
    cells = {k: v and v.value for k, v in transfer.values(found).items()}
    assert cells["latent", "a"] == 12.5
    assert cells[transfer.NOTHING, "a"] == 50
    assert cells["latent", transfer.DRAWN] == 25
    assert cells["latent", transfer.KEPT] == pytest.approx(100 * 5 / 6)
    scores = transfer.values(found)
    everything = {(t, b): scores["latent", b] for t in transfer.TRAINED for b in ("a",)}
    everything[transfer.NOTHING, "a"] = scores[transfer.NOTHING, "a"]
    said = transfer.compared(found, everything)
    assert "latent: -37.5 points in its own channel" in said
    assert "text states: -37.5 in the mean of all" in said


def test_a_setting_that_a_study_does_not_have_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for args in (["relatives", "--split", "1"], ["tradeoff", "--updates", "5"]):
        assert main(["study", *args]) == 2
        assert f"the study {args[0]!r} has no setting {args[1]}: leave it out" in (
            capsys.readouterr().err
        )
    assert main(["study", "transfer", "--split", "9"]) == 2
    assert "'9'" in capsys.readouterr().err


def test_how_a_study_is_run_is_refused_where_none_is_named(capsys):
    assert main(["study"]) == main(["study", "--json"]) == 0
    assert "coverage" in capsys.readouterr().out
    assert main(["study", "--quick", "--device", "cpu"]) == 2
    told = capsys.readouterr()
    assert told.err == (
        "efface: error: --quick, --device: of which study? efface study lists them.\n"
    )
    assert not told.out


@pytest.mark.slow
def test_the_judge_in_a_models_folder_is_the_protocols(clothes, cache, capsys):
    assert main(["score", "unedited", "--model", str(clothes), "--pictures", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"].startswith("clothes-1 ")
    assert found["protocol"].startswith("protocol ")
    assert found["unedited"]["PSR-1"]["n"] == 6
    protocol = json.loads((clothes / "protocol.json").read_text())
    (clothes / "protocol.json").write_text(json.dumps({**protocol, "judge": "clothes-2"}))
    assert main(["score", "unedited", "--model", str(clothes)]) == 2
    assert "asks for the judge 'clothes-2'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"concepts": [{"nam": "x"}]}', '{"concepts": []}'])
def test_a_broken_list_of_concepts_is_refused(clothes, text):
    (clothes / "concepts.json").write_text(text)
    with pytest.raises(UserError, match=r"concepts\.json"):
        load_vocabulary("auto", load_model(clothes))


def test_other_data_are_not_the_shipped_models(tmp_path):
    lab = object.__new__(Lab)
    lab.model = load_model("emoji")
    with pytest.raises(UserError, match="--model FOLDER"):
        other_data.run(lab)
