"""Intervals end at the quantiles that they say, and pictures are compared place by place."""

import math

import pytest
import torch

from efface.evaluation.metrics.perceived import perceived
from efface.evaluation.metrics.perceptual import lpips_distance
from efface.evaluation.metrics.worst import by_concept, worst_tenth, worst_tenth_score
from efface.intervals import likelihood, student, tail_limits, tails
from efface.scores import jackknifed, rank_correlation


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def quantile(values, share):
    """By its definition, on a line between the two neighbours in order."""
    x = sorted(values)
    at = share * (len(x) - 1)
    low = math.floor(at)
    return x[low] + (at - low) * (x[min(low + 1, len(x) - 1)] - x[low])


def spearman(x, y):
    """Pearson's correlation of mean ranks, by counting."""
    a, b = (
        [sum(w < v for w in s) + (sum(w == v for w in s) - 1) / 2 for v in s]
        for s in (x.tolist(), y.tolist())
    )
    return float(torch.corrcoef(torch.tensor([a, b], dtype=torch.float64))[0, 1])


def test_a_rank_correlations_interval_ends_at_the_quantiles_of_its_bootstrap():
    x = torch.randn(12, generator=seeded())
    y = x + torch.randn(12, generator=seeded(1))
    found, g = rank_correlation(x, y, draws=200, seed=5), seeded(5)
    picks = [torch.randint(0, 12, (12,), generator=g) for _ in range(200)]
    slow = [spearman(x[p], y[p]) for p in picks]
    assert found.value == pytest.approx(spearman(x, y))
    assert found.low == pytest.approx(quantile(slow, 0.025))
    assert found.high == pytest.approx(quantile(slow, 0.975))


def test_a_jackknifes_interval_is_students_over_its_groups():
    x = torch.randn(60, 1, generator=seeded(5)).double()
    found = jackknifed(lambda a, _: float(a.mean()), x, x, groups=5)
    means = torch.stack([x[i::5].mean() for i in range(5)])  # of equal groups, dealt out
    half = student(4) * float(means.std()) / 5**0.5
    assert found.high - found.value == pytest.approx(half)
    assert found.value - found.low == pytest.approx(half)


def slow_tail(found, scored, n):
    """The mean over the lowest ``n``; those that tie for the last places count by their mean."""
    last = sorted(found)[n - 1]
    sure = [s for f, s in zip(found, scored, strict=True) if f < last]
    tied = [s for f, s in zip(found, scored, strict=True) if f == last]
    return (sum(sure) + (n - len(sure)) * sum(tied) / len(tied)) / n


def slow_worst(values, n):
    """Found on one half of the seeds, scored on the other, both ways."""
    one, other = ([sum(r[i::2]) / len(r[i::2]) for r in values] for i in (0, 1))
    return (slow_tail(one, other, n) + slow_tail(other, one, n)) / 2


def test_the_worst_tenth_is_found_on_one_half_and_scored_on_the_other():
    values = (torch.rand(24, 5, generator=seeded(2)) < 0.6).double()
    assert worst_tenth(values, 0.1) == pytest.approx(slow_worst(values.tolist(), 2))
    assert worst_tenth(values, 0.25) == pytest.approx(slow_worst(values.tolist(), 6))
    found, g = worst_tenth_score(values, 0.25, draws=150), seeded(0)
    drawn = [[torch.randint(0, k, (k,), generator=g) for k in (24, 1)] for _ in range(150)]
    rows = [concepts for concepts, _ in drawn]
    slow = [slow_worst(values[r].tolist(), 6) for r in rows]
    assert found.low == pytest.approx(quantile(slow, 0.025))
    assert found.high == pytest.approx(quantile(slow, 0.975))
    assert (found.n, found.counts) == (24, "concepts")


def test_the_interval_of_the_worst_tenth_knows_of_concepts_that_were_not_drawn():
    values = torch.full((150, 4), 100.0)
    whole = worst_tenth_score(values)
    assert whole.value == whole.high == 100
    assert 80 < whole.low < 97  # 600 pictures without a miss do not show that there is none
    values[:3, 0] = 0
    few = worst_tenth_score(values)
    low, high = tail_limits((values > 0).sum(1)[None], 4, 0.1)
    assert few.low == pytest.approx(100 * low)
    assert few.low < whole.low
    assert few.high >= max(100 * high, few.value)
    apart = worst_tenth_score(values / 50)  # a distance is no rate: concepts are drawn alone
    assert apart.low * 50 > few.low


def test_the_ends_of_a_tail_are_quantiles_of_what_one_cell_leaves_possible():
    hits = torch.tensor([[4, 4, 3, 2, 4, 0], [4, 3, 4, 2, 4, 1]])
    log = sum(likelihood(int(h), 4) for h in hits.flatten()) / 2  # two cells of the same concepts
    mass = (log - log.max()).exp().flatten()
    rates = tails(2, 0.1).flatten()
    low, high = tail_limits(hits, 4, 0.1)
    assert float(mass[rates < low].sum() / mass.sum()) == pytest.approx(0.025, abs=2e-3)
    assert float(mass[rates > high].sum() / mass.sum()) == pytest.approx(0.025, abs=2e-3)


def test_the_tail_of_a_population_is_that_of_many_concepts_of_it():
    share = torch.arange(400) + 0.5, torch.arange(24) + 0.5
    mean, spread = ((x / n * math.pi / 2).sin() ** 2 for x, n in zip(share, (400, 24), strict=True))
    for i, j in ((390, 5), (300, 12), (200, 3)):
        size = float(1 / spread[j] - 1)
        m = float(mean[i])
        rates = torch.distributions.Beta(m * size, (1 - m) * size).sample((200_000,)).double()
        hits = (torch.rand(200_000, 4, generator=seeded(1)) < rates[:, None]).double()
        assert float(tails(2, 0.1)[i, j]) == pytest.approx(worst_tenth(hits, 0.1), abs=0.01)


def test_hits_are_a_row_a_concept_of_equal_length():
    hits = torch.tensor([1, 0, 1, 1, 0, 0, 1])
    assert by_concept(hits, tuple("abaabba")).tolist() == [[1, 1, 1], [0, 0, 0]]


class Network:
    """Two depths: the picture itself, and its quarters' means."""

    def features(self, images):
        return [images, torch.nn.functional.avg_pool2d(images, 4)]


def test_what_a_network_perceives_is_compared_place_by_place():
    x, y = (torch.rand(3, 3, 8, 8, generator=seeded(n)) for n in (0, 1))
    for i in range(3):
        slow = []
        for a, b in zip(Network().features(x[i]), Network().features(y[i]), strict=True):
            places = [(j, k) for j in range(a.shape[1]) for k in range(a.shape[2])]
            far = [
                (a[:, j, k] / a[:, j, k].norm() - b[:, j, k] / b[:, j, k].norm()).square().sum()
                for j, k in places
            ]
            slow.append(sum(far) / len(far))
        expected = 100 * sum(slow) / len(slow)
        torch.testing.assert_close(perceived(x, y, Network())[i], expected)
    assert perceived(x, x, Network()).abs().max() == 0
    many = x[[0]].expand(300, -1, -1, -1)
    assert perceived(many, y[[0]].expand_as(many), Network()).shape == (300,)


def test_many_pictures_are_compared_as_few():
    x, y = (torch.rand(70, 3, 64, 64, generator=seeded(n)) for n in (0, 1))

    def net(a, b):
        return (a - b).abs().mean((1, 2, 3))

    found = lpips_distance(x, y, [str(i) for i in range(70)], net)
    assert found.value == pytest.approx(float(2 * (x - y).abs().mean()), rel=1e-5)
    assert found.n == 70
