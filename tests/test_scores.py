import pytest
import torch

from efface.scores import paired_difference, rate, resampled


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (8, 10, 49.0162, 94.3318),
        (0, 5, 0.0, 43.4482),
        (5, 5, 56.5518, 100.0),
        (50, 100, 40.3832, 59.6168),
    ],
)
def test_wilson_interval_has_the_known_values(hits, n, low, high):
    found = rate([True] * hits + [False] * (n - hits))
    assert (found.value, found.n) == (pytest.approx(100 * hits / n), n)
    assert (found.low, found.high) == (
        pytest.approx(low, abs=1e-3),
        pytest.approx(high, abs=1e-3),
    )


def test_a_rate_reads_tensors_and_lists_alike():
    assert rate(torch.tensor([True, False])) == rate([True, False])


def test_zero_samples_raise():
    with pytest.raises(ValueError, match="zero samples"):
        rate([])
    with pytest.raises(ValueError, match="zero samples"):
        resampled(torch.tensor([]), torch.tensor([], dtype=torch.long))
    with pytest.raises(ValueError, match="zero samples"):
        paired_difference(torch.tensor([]), torch.tensor([]), torch.tensor([], dtype=torch.long))


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    g = torch.Generator().manual_seed(0)
    groups, truth, covered = torch.arange(40).repeat_interleave(4), 0.3, 0
    for i in range(200):
        of_group = torch.randn(40, generator=g)[groups]
        values = truth + of_group + 0.2 * torch.randn(160, generator=g)
        found = resampled(values, groups, draws=400, seed=i)
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 200 <= 0.985


def test_bootstrap_draws_whole_groups():
    g = torch.Generator().manual_seed(1)
    values = torch.randn(20, generator=g).repeat_interleave(10)
    clustered = resampled(values, torch.arange(20).repeat_interleave(10))
    naive = resampled(values, torch.arange(200))
    assert (clustered.n, naive.n) == (20, 200)
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


def test_bootstrap_is_reproducible_and_labels_of_groups_do_not_matter():
    values = torch.rand(30, generator=torch.Generator().manual_seed(2))
    groups = torch.arange(30) // 3
    assert resampled(values, groups) == resampled(values, groups)
    assert resampled(values, groups) == resampled(values, 7 * groups + 100)
    assert resampled(values, groups, seed=1) != resampled(values, groups, seed=2)


def test_paired_difference_of_equals_is_exactly_nothing():
    a = torch.tensor([True, False, True, True])
    found = paired_difference(a, a, torch.tensor([0, 0, 1, 1]))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_paired_difference_is_in_points_and_narrower_than_an_unpaired_one():
    g = torch.Generator().manual_seed(3)
    level = torch.rand(300, generator=g)  # how hard each draw is, on both sides
    a, b = level > 0.3, level > 0.4
    found = paired_difference(a, b, torch.arange(300))
    assert found.value == pytest.approx(100 * float(a.double().mean() - b.double().mean()))
    assert found.low <= found.value <= found.high
    assert found.high - found.low < (rate(a).high - rate(a).low)
    assert paired_difference(b, a, torch.arange(300)).value == pytest.approx(-found.value)


def test_paired_difference_refuses_other_draws():
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_difference(torch.ones(3), torch.ones(2), torch.arange(3))


def test_a_score_prints_and_stores_its_interval():
    found = rate([True] * 8 + [False] * 2)
    assert str(found) == "80.0 [49.0, 94.3]"
    assert found.to_json() == {"value": 80.0, "low": 49.0162, "high": 94.3318, "n": 10}
