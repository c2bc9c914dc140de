"""The protocol where it is hard: held-out words, the worst tenth, perceived drift, two judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from efface.evaluation.bench import Cell, lineup
from efface.evaluation.judges.emoji import EmojiJudge
from efface.evaluation.metrics import perceived, worst_tenth, worst_tenth_score
from efface.evaluation.protocols import load
from efface.reporting.figures import hard_marks, pareto
from efface.reporting.held_out import FRONT, cellwise, rate, short
from efface.reporting.tables import read
from efface.scores import concept_rate
from efface.vocabularies import INLINE

PROTOCOL = "emoji-objects-2"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def slow(values, share=0.1):
    """The obvious way, where no two concepts are found equally bad."""
    means = []
    for found, scored in ((values[:, ::2], values[:, 1::2]), (values[:, 1::2], values[:, ::2])):
        order = found.mean(1).argsort()[: max(1, round(share * len(values)))]
        means.append(float(scored[order].mean()))
    return sum(means) / 2


def test_the_worst_tenth_is_the_obvious_one_where_nothing_ties():
    values = torch.rand(60, 8, generator=seeded(), dtype=torch.float64)
    values -= torch.linspace(0, 2, 60, dtype=torch.float64)[:, None]
    assert worst_tenth(values) == pytest.approx(slow(values), abs=1e-12)
    assert worst_tenth(values) < float(values.mean(1).sort().values[:12].mean())


def test_concepts_found_equally_bad_share_the_place():
    """One concept at 0; nine more places among those at 1, whatever their order."""
    values = torch.ones(100, 4)
    values[17] = 0
    values[3, 1] = 0  # one picture of one concept, by bad luck
    assert worst_tenth(values) == worst_tenth(values.flip(0))
    assert 0.85 < worst_tenth(values) < 0.95


def test_bad_luck_is_not_punished():
    """Where every concept is as good as every other, the worst tenth is the mean."""
    drawn = [(torch.rand(150, 4, generator=seeded(s)) < 0.9).float() for s in range(200)]
    found = torch.tensor([worst_tenth(x) for x in drawn])
    assert float(found.mean()) == pytest.approx(0.9, abs=0.01)
    naive = torch.tensor([float(x.mean(1).sort().values[:15].mean()) for x in drawn])
    assert float(naive.mean()) < 0.7


def test_a_collapse_of_a_tenth_is_seen():
    values = torch.ones(150, 4)
    values[:15] = 0
    assert worst_tenth(values) == 0
    s = worst_tenth_score(100 * values)
    assert (s.value, s.n) == (0, 150)
    assert s.high > 0  # another draw of concepts may hold fewer of them


def test_two_pictures_a_concept_are_needed():
    for shape in ((0, 4), (5, 1)):
        with pytest.raises(ValueError, match="two pictures"):
            worst_tenth(torch.zeros(shape))


def test_perceived_is_nothing_for_the_same_and_grows_with_noise():
    judge, g = EmojiJudge.load(), seeded()
    images = torch.rand(3, 3, 64, 64, generator=g)
    noise = torch.randn(images.shape, generator=g)
    far = [perceived(images, (images + s * noise).clamp(0, 1), judge) for s in (0, 0.05, 0.3)]
    assert torch.equal(far[0], torch.zeros(3))
    assert (far[0] < far[1]).all()
    assert (far[1] < far[2]).all()


def test_perceived_against_the_formula():
    judge, g = EmojiJudge.load(), seeded()
    a, b = torch.rand(2, 1, 3, 64, 64, generator=g)
    depths = []
    for x, y in zip(judge.features(a), judge.features(b), strict=True):
        total, (height, width) = 0.0, x.shape[2:]
        for i in range(height):
            for j in range(width):
                u, v = x[0, :, i, j], y[0, :, i, j]
                total += float((u / u.norm() - v / v.norm()).square().sum())
        depths.append(total / (height * width))
    expected = 100 * sum(depths) / len(depths)
    assert float(perceived(a, b, judge)) == pytest.approx(expected, rel=1e-4)


def test_the_picture_has_the_worst_tenth_of_the_methods_with_the_same_cells(tmp_path):
    kept = Path(__file__).parents[1] / "bench" / "results"
    for name in ("unedited-0", "ap-0", "ap-1", "esd-0", "esd-1", "uce-0"):
        shutil.copy(kept / f"{PROTOCOL}-1-{name}.json", tmp_path)
    drawn = pareto(tmp_path, PROTOCOL)
    assert "PSR-1 of the worst tenth, held out, %" in drawn
    assert [x in drawn for x in ("AP, ours", ">ESD<", "UCE")] == [True, True, False]
    rows = read(tmp_path, PROTOCOL)["ap"]
    mark = hard_marks({"unedited": rows, "ap": rows}, PROTOCOL)[0]
    told = [r["scores"]["worst tenth held out"]["value"] for r in rows]
    assert mark.kept.value == pytest.approx(sum(told) / 2, abs=1e-3)
    assert mark.ours


def test_half_of_the_names_is_held_out_once_for_all_splits():
    protocol, judge = load(PROTOCOL), EmojiJudge.load()
    known, held = set(judge.concept_names), set(protocol.held_out)
    assert held < known
    for erased in protocol.splits.values():
        usable = set(protocol.usable(erased, judge.concept_names))
        assert not usable & (held | set(erased))
        assert usable | held | set(erased) == known
        assert abs(len(usable) - len(held)) < 10
    assert protocol.pictures["preserved"] >= 4


@pytest.mark.parametrize("name", [n for n, entry in lineup().items() if entry])
@pytest.mark.parametrize("split", ["1", "2"])
def test_no_method_is_shown_a_held_out_name(name, split):
    protocol = load(PROTOCOL)
    method = Cell(PROTOCOL, split, name, 0).config()
    source = getattr(method, "vocabulary", "")
    if source:
        assert source.startswith(INLINE)
        shown = {w.strip() for w in source.removeprefix(INLINE).split(",")}
        assert len(shown) > 100
        assert not shown & set(protocol.held_out)
    assert not set(method.keep) & set(protocol.held_out)


def test_the_short_table_is_of_the_cells_of_all_splits(tmp_path):
    """Of what is committed, the long way; a method that lacks a split is left out."""
    kept = Path(__file__).parents[1] / "bench" / "results"
    for method in ("unedited", "esd", "uce"):
        for split in (1, 2):
            shutil.copy(kept / f"{PROTOCOL}-{split}-{method}-0.json", tmp_path)
    shutil.copy(kept / f"{PROTOCOL}-1-age-0.json", tmp_path)
    lines = short(tmp_path, PROTOCOL).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == [
        "| unedited",
        "| ESD",
        "| UCE, with a keep list",
    ]
    assert lines[5] == ""
    held = set(load(PROTOCOL).held_out)
    gone, psr, forward, seconds = [], [], [], ([], [])
    for split in (1, 2):
        row = json.loads((kept / f"{PROTOCOL}-{split}-esd-0.json").read_text())
        five = [h for c in row["erased"] for h in row["hits"][c][1]]
        first = [h for c, (one, _) in row["hits"].items() if c in held for h in one]
        gone.append(100 - 100 * sum(five) / len(five))
        psr.append(100 * sum(first) / len(first))
        forward.append(row["cost"]["forward"] / 1000)
        five = [h for c in row["erased"] for h in row["witness"][c][1]]
        first = [h for c, (one, _) in row["witness"].items() if c in held for h in one]
        seconds[0].append(100 - 100 * sum(five) / len(five))
        seconds[1].append(100 * sum(first) / len(first))
    said = lines[3].split(" | ")
    for shown, cells in zip(said[2:4], (gone, psr), strict=True):
        value, _, ends = shown.partition(" [")
        assert value == f"{sum(cells) / 2:.1f}"
        low, high = map(float, ends.partition("]")[0].split(", "))
        assert low < float(value) < high
    for shown, cells in zip(said[2:4], seconds, strict=True):
        other = sum(cells) / 2
        assert abs(other - float(shown.partition(" [")[0])) > 2  # of ESD, where both are shown
        assert shown.endswith(f"({other:.1f})")
    base = lines[2].split(" | ")[3]  # near by the second judge, and told as those below are
    assert base.startswith("100.0 [")
    assert base.endswith(")")
    uce = lines[4].split(" | ")  # whose second judge is near for one of them
    assert "(" in uce[3]
    assert "(" not in uce[4]
    assert said[1] == "1 + 1"
    assert f" | {sum(forward) / 2:.1f} + " in lines[3]
    assert len(FRONT) <= 8


def test_cells_of_two_splits_are_no_training_seeds_of_each_other():
    names = [f"name {i}" for i in range(20)]
    rows = [
        {"split": split, "seed": 0, "hits": {n: [[i % 10 < bad, 1]] for i, n in enumerate(names)}}
        for split, bad in (("1", 8), ("2", 2))
    ]
    values = cellwise(rows, names)
    concepts = torch.arange(20).view(1, -1, 1).expand(values.shape).flatten()
    alone = concept_rate(values.bool().flatten(), concepts)
    assert rate(values, rows) == alone
    assert rate(values).low < alone.low < alone.high < rate(values).high  # as two seeds of one
    assert "seeds" in rate(values).over
