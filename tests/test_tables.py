"""What the benchmark's tables claim: for which question, and beside whom."""

import json

import pytest
import torch

from efface.evaluation.bench import UNEDITED
from efface.reporting.figures import marks, pareto
from efface.reporting.tables import (
    CAPTION,
    alike,
    difference,
    drawn,
    fastest,
    markdown,
    pooled,
    ranking,
    read,
    score,
    settings,
)

ERASED = ("church", "bomb", "wolf", "bikini", "syringe")
OTHERS = ("castle", "fox", "dog", "cat")


def cell(method, seed, chance, gone=0.1, split="1", erased=ERASED):
    """A made-up cell; ``chance`` that a preserved concept is seen."""
    g = torch.Generator().manual_seed(seed)

    def hits(n, p):
        return [(torch.rand(n, generator=g) < p).int().tolist(), [1] * n]

    row = {"protocol": "emoji-objects 1", "split": split, "method": method, "seed": seed}
    found = {c: hits(10, 0.95 if method == UNEDITED else gone) for c in erased}
    found |= {c: hits(30, chance) for c in OTHERS}
    return row | {"erased": list(erased), "hits": found, "updates": 400}


def write(folder, *cells):
    """Cells as files."""
    for row in cells:
        name = f"emoji-objects-{row['split']}-{row['method']}-{row['seed']}.json"
        (folder / name).write_text(json.dumps(row))
    return folder


@pytest.fixture
def results(tmp_path):
    """Three methods with two seeds, one with one."""
    lines = ((UNEDITED, 0.95), ("esd", 0.4), ("ap", 0.8), ("uce", 0.6))
    cells = [cell(m, seed, p) for m, p in lines for seed in (0, 1)]
    return write(tmp_path, *cells, cell("mace", 0, 0.9))


def test_headlines_are_over_concepts_and_seeds(results):
    found = read(results, "emoji-objects")
    kept, alone = (score(found[m], "preserved", 1, "emoji-objects") for m in ("ap", "mace"))
    assert (kept.n, kept.counts, kept.over) == (4, "concepts", "new concepts and training seeds")
    assert alone.over == "new concepts"
    gone = score(found["ap"], "erased", 1, "emoji-objects")
    assert gone.n == 5
    assert gone.value == pytest.approx(
        100 * sum(1 - h for r in found["ap"] for c in ERASED for h in r["hits"][c][0]) / 100
    )
    apart = difference(found["ap"], found["esd"], 1, "emoji-objects")
    assert (apart.n, apart.over) == (4, "new concepts and training seeds")
    assert CAPTION in markdown(results, "emoji-objects")


def test_one_erased_concept_gives_no_interval(tmp_path):
    lines = ((UNEDITED, 0.95), ("esd", 0.4), ("ap", 0.8))
    write(tmp_path, *(cell(m, s, p, erased=ERASED[:1]) for m, p in lines for s in (0, 1)))
    text = markdown(tmp_path, "emoji-objects")
    assert text.count("(n = 1 concept)") >= 4
    found = read(tmp_path, "emoji-objects")
    assert all(s.low is None for s in ranking(found).values())
    assert "</svg>" in pareto(tmp_path, "emoji-objects")
    for mark in marks(found, "emoji-objects"):
        assert mark.erased.low is None
        assert mark.kept.low < mark.kept.value < mark.kept.high


def test_a_method_with_fewer_cells_has_no_place_and_moves_nobody_elses(results):
    found = read(results, "emoji-objects")
    place = ranking(found)
    assert {m: s.value for m, s in place.items()} == {"ap": 1, "uce": 2, "esd": 3}
    row = next(x for x in markdown(results, "emoji-objects").splitlines() if "MACE" in x)
    assert row.split(" | ")[8] == "–"
    without = {m: rows for m, rows in found.items() if m != "mace"}
    assert ranking(without) == place


def test_only_the_same_cells_are_ranked():
    def rows(*seeds):
        return [{"split": "1", "seed": s} for s in seeds]

    found = {UNEDITED: rows(0, 1, 2), "a": rows(0, 1), "b": rows(1, 2), "c": rows(1, 0)}
    assert list(alike(found)) == ["a", "c"]  # of those with most cells, the most common ones
    assert list(alike(found | {"d": rows(0, 1, 2)})) == ["d"]
    assert ranking({UNEDITED: found[UNEDITED]}) == {}


def test_a_draw_is_of_one_thing_fewer_than_there_are():
    g = torch.Generator().manual_seed(0)
    some = drawn(5, 4000, g)
    assert torch.equal(some * 4, (some * 4).round())
    assert torch.allclose(some.sum(1), torch.ones(4000).double())
    spread = (some * torch.arange(5)).sum(1).var()
    assert float(spread) == pytest.approx(2.5 / 5, rel=0.06)  # the variance of a mean of five
    assert drawn(1, 3, g).tolist() == [[1.0]] * 3


def test_places_vary_with_concepts_and_with_training_seeds(tmp_path):
    def fixed(method, seed, kept):
        row = cell(method, seed, 1.0, gone=0.0)
        row["hits"] |= {
            c: [[1] * k + [0] * (20 - k), [1] * 20] for c, k in zip(OTHERS, kept, strict=True)
        }
        return row

    every = [fixed("esd", s, [2] * 4) for s in (0, 1, 2)]
    better = [fixed("ap", s, [19] * 4) for s in (0, 1, 2)]
    sure = ranking(read(write(tmp_path, *every, *better), "emoji-objects"))
    assert (sure["ap"].low, sure["ap"].high) == (1, 1)  # in every concept and with every seed
    uneven = [fixed("ap", s, [k] * 4) for s, k in enumerate((20, 1, 1))]
    seeds = ranking(read(write(tmp_path, *uneven), "emoji-objects"))
    assert (seeds["ap"].value, seeds["ap"].low, seeds["ap"].high) == (1, 1, 2)
    assert seeds["ap"].over == "new concepts and training seeds"
    split = [fixed("ap", s, [20, 20, 0, 0]) for s in (0, 1, 2)]
    concepts = ranking(read(write(tmp_path, *split), "emoji-objects"))
    assert (concepts["ap"].value, concepts["ap"].low, concepts["ap"].high) == (1, 1, 2)


def test_five_concepts_without_a_miss_are_no_sure_first_place(tmp_path):
    """A bootstrap of them draws the same rate again and again."""
    clean = [cell("ap", s, 0.95, gone=0.0) for s in (0, 1, 2)]
    nearly = [cell("esd", s, 0.95, gone=0.0) for s in (0, 1, 2)]
    for row in nearly:
        row["hits"][ERASED[0]] = [[1] + [0] * 19, [1] * 20]
    place = ranking(read(write(tmp_path, *clean, *nearly), "emoji-objects"))
    assert (place["ap"].value, place["esd"].value) == (1, 2)
    assert (place["ap"].low, place["ap"].high) == (1, 2)


def test_a_concept_preserved_in_both_splits_is_one_concept(tmp_path):
    other = ("kettle", "piano", "rocket", "shoe", "sword")
    cells = [cell("ap", 0, 0.8), cell("ap", 0, 0.8, split="2", erased=other)]
    found = read(write(tmp_path, *cells), "emoji-objects")["ap"]
    assert score(found, "preserved", 1, "emoji-objects").n == len(OTHERS)
    assert score(found, "erased", 1, "emoji-objects").n == 10


def test_minutes_are_those_of_the_fastest_cell_on_a_cpu():
    def cell(seconds, kind):
        return {"machine": f"x86_64, 1 threads, {kind}", "cost": {"seconds": seconds}}

    cells = [cell(240.0, "cpu"), cell(90.0, "cpu"), cell(30.0, "a card")]
    assert fastest(cells) == "1.5"
    assert fastest(cells[2:]) == "0.5 (a card)"
    assert fastest([cell(0.2, "cpu")]) == "< 0.1"
    assert fastest([{"machine": "x86_64, 1 threads, cpu"}]) == "–"


def test_a_setting_that_came_later_is_what_older_cells_were_made_with():
    bank = {"kind": "bank", "trajectories": 2}
    older, newer = (
        {"latents": bank},
        {"latents": {**bank, "anchored": 0}, "average": 0.0, "seed": 1},
    )
    same = [settings({"config": c}) for c in (older, newer)]
    assert same[0] == same[1]
    other = {"latents": {**bank, "anchored": 2}}
    assert settings({"config": other}) not in same
    assert settings({"config": {"latents": {**bank, "trajectories": 3}}}) not in same


def test_a_table_over_all_splits_has_a_line_a_method(results, tmp_path):
    write(results, cell("ap", 0, 0.9, split="2", erased=("fox", "cat")))
    found = read(results, "emoji-objects")
    lines = pooled(results, "emoji-objects").splitlines()
    by = {x.split(" | ")[0].strip("| *"): x.split(" | ") for x in lines[2:] if x.startswith("|")}
    assert list(by) == ["unedited", "AP, ours", "ESD", "UCE, with a keep list", "MACE"]
    assert by["AP, ours"][1:4] == [
        "3",
        str(score(found["ap"], "erased", 1, "emoji-objects")),
        str(score(found["ap"], "preserved", 1, "emoji-objects")),
    ]
    far = difference(found["ap"], found["esd"], 1, "emoji-objects")
    assert by["ESD"][4] == str(far)
    assert by["AP, ours"][4] == by["unedited"][4] == "–"
    assert "efface bench emoji-styles" in pooled(tmp_path / "none", "emoji-styles")
