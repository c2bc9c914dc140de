"""Intervals have their textbook values, and cover what they promise to cover."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import mostly_slow, script

from efface.intervals import limits, of_seeds, student
from efface.scores import (
    Score,
    concept_rate,
    grouped_mean,
    jackknifed,
    paired_difference,
    rank_correlation,
    rate,
)

ROOT = Path(__file__).parents[1]


def flat_hits(hits, pictures):
    """Flat hits and concepts of so many hits of each concept."""
    flat = torch.cat([torch.arange(pictures) < h for h in hits])
    return flat, torch.arange(len(hits)).repeat_interleave(pictures)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(8, 10, 49.0162, 94.3318), (0, 20, 0.0, 16.1125), (50, 100, 40.3832, 59.6168)],
)
def test_wilson_interval_has_the_known_values(hits, n, low, high):
    found = rate([True] * hits + [False] * (n - hits))
    assert (found.value, found.n) == (100 * hits / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert (found.counts, found.over) == ("pictures", "new pictures")


def test_no_samples_is_an_error():
    none, groups = torch.tensor([]), torch.tensor([], dtype=torch.long)
    for ask in (
        lambda: rate([]),
        lambda: grouped_mean(none, groups),
        lambda: concept_rate(none, groups),
        lambda: paired_difference(none, none, groups),
    ):
        with pytest.raises(ValueError, match="zero samples"):
            ask()


# -- what an interval says ------------------------------------------------------------------------


def test_a_score_prints_and_stores_its_interval_and_what_it_is_about():
    found = rate([True] * 8 + [False] * 2)
    assert str(found) == "80.0 [49.0, 94.3]"
    stored = found.to_json()
    assert stored == {
        "value": 80.0,
        "low": 49.0162,
        "high": 94.3318,
        "n": 10,
        "counts": "pictures",
        "over": "new pictures",
    }
    old = {k: stored[k] for k in ("value", "low", "high", "n")}
    assert str(Score(**old)) == str(found)  # a file of an earlier version


def test_one_group_gives_no_interval():
    hits, one = flat_hits([15], 20)
    runs = torch.tensor([[0, 0], [0, 1]]).repeat(10, 1)
    scores = [
        concept_rate(hits, one),
        concept_rate(hits, one, runs),
        paired_difference(hits, ~hits, one),
        grouped_mean(torch.rand(20), one, "concepts"),
    ]
    for s in scores:
        assert (s.low, s.high, s.n) == (None, None, 1)
        assert str(s) == f"{s.value:.1f} (n = 1 concept)"
        assert s.ends == (s.value, s.value)
        assert Score(**json.loads(json.dumps(s.to_json()))).low is None


def test_what_does_not_vary_has_no_interval_of_no_width():
    same, groups = torch.ones(6), torch.arange(6)
    for s in (
        grouped_mean(same, groups, "prompts"),
        rank_correlation(torch.arange(6), same),
        jackknifed(lambda *_: 1.0, torch.rand(20, 2), torch.rand(20, 2)),
    ):
        assert s.low is None
        assert s.n > 1
    assert str(grouped_mean(same, groups, "prompts")) == "1.0 (n = 6 prompts)"


def test_the_interval_names_the_training_seeds_where_there_are_several():
    hits, c = flat_hits([18, 12, 20], 20)
    one, several = torch.zeros(60, 2).long(), torch.zeros(60, 2).long()
    several[:, 1] = torch.arange(60) % 2
    assert concept_rate(hits, c).over == concept_rate(hits, c, one).over == "new concepts"
    assert concept_rate(hits, c, several).over == "new concepts and training seeds"
    assert paired_difference(hits, ~hits, c, several).over == "new concepts and training seeds"


# -- the pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (306, 1.9677)]
)
def test_students_t_has_the_values_of_the_tables(df, t):
    assert student(df) == pytest.approx(t, abs=1e-4)


def test_limits_are_those_of_the_slow_sum_over_all_means_and_spreads():
    def chance(h, n, mean, spread):
        a, b = mean * (1 / spread - 1), (1 - mean) * (1 / spread - 1)
        up = math.prod((a + i) for i in range(h)) * math.prod((b + i) for i in range(n - h))
        return math.comb(n, h) * up / math.prod((a + b + i) for i in range(n))

    hits, n = [4, 1, 6, 5], [6, 6, 6, 5]
    steps = [math.sin((i + 0.5) / 300 * math.pi / 2) ** 2 for i in range(300)]
    spreads = [math.sin((i + 0.5) / 60 * math.pi / 2) ** 2 for i in range(60)]
    mass = [
        sum(math.prod(chance(h, m, x, s) for h, m in zip(hits, n, strict=True)) for s in spreads)
        for x in steps
    ]
    below = [sum(mass[: i + 1]) / sum(mass) for i in range(300)]
    expected = [next(x for x, b in zip(steps, below, strict=True) if b > q) for q in (0.025, 0.975)]
    assert limits(torch.tensor(hits), torch.tensor(n)) == pytest.approx(expected, abs=0.01)


def test_hits_in_all_pictures_give_a_one_sided_interval_that_concepts_narrow():
    five, ten, many = (concept_rate(*flat_hits([20] * k, 20)) for k in (5, 10, 300))
    assert five.high == ten.high == many.high == 100
    assert 60 < five.low < 80 < ten.low < 90 < 99 < many.low
    more = concept_rate(*flat_hits([60] * 5, 60))
    assert more.low - five.low < 2  # pictures of the same concepts say little about a sixth


def test_pictures_of_one_concept_do_not_count_as_many_concepts():
    apart = concept_rate(*flat_hits([20, 0] * 10, 20))
    alike = concept_rate(*flat_hits([10] * 20, 20))
    assert apart.value == alike.value == 50
    assert apart.high - apart.low > 3 * (alike.high - alike.low)


def test_seeds_that_differ_widen_the_interval_and_seeds_that_do_not_leave_it():
    c = torch.arange(40).repeat_interleave(3)
    runs = torch.stack([torch.zeros(120), torch.arange(120) % 3], 1).long()
    noise = torch.rand(120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert of_seeds(noise, c, None) is None
    assert of_seeds(noise, c, runs[:, [1, 0]]) is None  # three splits with one seed each
    far = noise + torch.tensor([0.0, 3.0, 6.0]).double()[runs[:, 1]]
    assert of_seeds(far, c, runs) == pytest.approx(student(2) * 3 / math.sqrt(3), rel=0.1)
    assert of_seeds(noise, c, runs) < 0.2
    level = torch.arange(40.0).double()[c]  # what only concepts differ in is not the seeds'
    assert of_seeds(far + level, c, runs) == pytest.approx(of_seeds(far, c, runs))
    hits = torch.arange(120) % 3 < 2  # the third seed has none
    without = concept_rate(hits, c)
    assert concept_rate(hits, c, runs).low < without.low - 10


def test_what_pictures_explain_of_the_seeds_is_not_counted_twice():
    c = torch.arange(40).repeat_interleave(3)
    runs = torch.stack([torch.zeros(120), torch.arange(120) % 3], 1).long()
    g = torch.Generator().manual_seed(0)
    found = [of_seeds(torch.rand(120, generator=g), c, runs) for _ in range(40)]
    assert 15 <= found.count(0.0) <= 32  # no seed differs: as often less than expected as more


def test_runs_of_different_concepts_are_refused():
    runs = torch.tensor([[0, 0], [0, 1], [0, 0]])
    with pytest.raises(ValueError, match="pictures of different concepts"):
        concept_rate(torch.ones(3).bool(), torch.tensor([0, 0, 1]), runs)


# -- means and differences ------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_students():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    found = grouped_mean(values, torch.arange(4))
    half = 3.18245 * float(values.std()) / 2
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half), abs=1e-3)
    assert (found.n, found.over) == (4, "new groups")
    twice = grouped_mean(
        values.repeat_interleave(2), 7 * torch.arange(4).repeat_interleave(2) + 100
    )
    assert (twice.low, twice.high) == pytest.approx((found.low, found.high))


def test_the_mean_of_few_groups_is_covered_as_often_as_it_says():
    g = torch.Generator().manual_seed(0)
    groups, covered = torch.arange(5).repeat_interleave(8), 0
    for _ in range(400):
        level = torch.randn(5, generator=g).repeat_interleave(8)
        found = grouped_mean(level + torch.randn(40, generator=g), groups)
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / 400 <= 0.97


def test_paired_difference_of_equals_is_nothing_but_not_for_certain():
    hits, c = flat_hits([20, 12, 3, 20, 7], 20)
    found = paired_difference(hits, hits, c)
    assert found.value == 0
    assert found.low == pytest.approx(-found.high)
    assert -40 < found.low < -10
    many = paired_difference(hits.repeat(60), hits.repeat(60), torch.arange(6000) // 20)
    assert -2 < many.low < 0 < many.high < 2


def test_paired_difference_is_in_points_and_narrower_than_an_unpaired_one():
    g = torch.Generator().manual_seed(3)
    level = torch.rand(300, generator=g)  # how hard each draw is, on both sides
    a, b = level > 0.3, level > 0.4
    found, back = (paired_difference(*sides, torch.arange(300)) for sides in ((a, b), (b, a)))
    assert found.value == pytest.approx(100 * float(a.double().mean() - b.double().mean()))
    assert 0 < found.low <= found.value <= found.high
    assert found.high - found.low < (rate(a).high - rate(a).low)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_concepts_that_are_won_or_lost_as_a_whole_widen_a_difference():
    won, c = flat_hits([20, 0] * 5, 20)
    found = paired_difference(won, ~won, c)
    assert found.value == 0
    assert found.low == pytest.approx(-found.high)
    assert 50 < found.high < 75  # Student's t of ten values, 1 and -1, is 75


def test_paired_difference_refuses_other_draws_and_numbers():
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_difference(torch.ones(3), torch.ones(2), torch.arange(3))
    with pytest.raises(ValueError, match="truth values"):
        paired_difference(torch.rand(3), torch.ones(3), torch.arange(3))


# -- coverage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coverage():
    """The simulation of ``bench/coverage.py``."""
    return script(ROOT / "bench" / "coverage.py", "coverage_of")


def held(found, name):
    """Percent of all tries in which the interval held the truth."""
    return sum(t[name].coverage for _, t in found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ESR, one seed",
        "ESR, three seeds",
        "PSR, one seed",
        "PSR, three seeds",
        "PSR, three seeds, both splits",
        "PSR of half the names, three seeds",
    ],
)
def test_intervals_cover_concepts_with_the_spread_of_the_results(coverage, name):
    design = next(d for d in coverage.DESIGNS if d.name == name)
    asks = {k: coverage.RATES[k] for k in ("ours", "Wilson")}
    some = list(coverage.of_rates(design, 240 // len(coverage.populations(design)), asks))
    assert held(some, "ours") >= 93
    assert held(some, "Wilson") < held(some, "ours")  # the simulation tells them apart


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1])
def test_the_worst_tenths_interval_covers_and_a_bootstrap_does_not(coverage, monkeypatch, i):
    monkeypatch.setattr(coverage, "MEANS", 400)
    found = list(coverage.of_tails(coverage.TAILS[i], 10))
    assert held(found, "ours") >= 93
    assert held(found, "bootstrap") < held(found, "ours") - 4


@pytest.mark.slow
def test_intervals_of_attacks_cover_and_those_of_one_concepts_pictures_do_not(coverage):
    for q in coverage.QUESTIONS:
        for layout in coverage.LAYOUTS:
            found = coverage.tallied(coverage.of_attacks(q, layout, 40))
            assert len(found) >= 4
            assert held(found, "ours") >= 92, (q.name, layout)
    inversion = next(q for q in coverage.QUESTIONS if q.attack == "inversion")
    alone = inversion._replace(
        ask=lambda some, _: rate(torch.tensor([h for x in some for h in x.row["hits"]]))
    )
    found = coverage.tallied(coverage.of_attacks(alone, "both splits", 20))
    assert held(found, "ours") < 80


@pytest.mark.slow
def test_a_bootstrap_of_five_concepts_is_found_out(coverage):
    design = coverage.DESIGNS[0]
    asks = {"bootstrap": coverage.bootstrap}
    found = list(coverage.of_rates(design, 20, asks))
    assert held(found, "bootstrap") < 85


@pytest.mark.parametrize("kind", mostly_slow(["ESR", "PSR"], ["PSR"]))
def test_differences_cover(coverage, kind):
    name = f"{kind}, three seeds, both splits"
    design = next(d for d in coverage.DESIGNS if d.name == name)
    some = list(coverage.of_differences(design, 25))
    assert held(some, "ours") >= 93
    assert held(some, "bootstrap") < held(some, "ours")


def test_the_docs_show_the_committed_coverage_which_is_no_less_than_93(coverage):
    found = json.loads(coverage.OUT.read_text())
    page = coverage.DOCS.read_text()
    assert coverage.written(page, found) == page
    assert found["tries"] >= 1000
    assert {d.name for d in (*coverage.DESIGNS, *coverage.TAILS)} < set(found["designs"])
    attacked = {f"{q.name}; {layout}" for q in coverage.QUESTIONS for layout in coverage.LAYOUTS}
    assert attacked < set(found["designs"])
    for name, rows in found["designs"].items():
        # 1000 tries know it to within a point or so, the fifth of them for attacks to within two;
        # two attacked concepts know too little of how much others differ; and five ranks of which
        # two or three are the same know too little of the median (docs/intervals.md says so)
        few = 72 if name.startswith("reading") else 86
        assert round(rows["ours"]["least"]) >= (few if name in attacked else 93)
        assert rows["ours"]["mean"] >= 94
