"""Every draw has numbers of its own."""

from __future__ import annotations

import itertools

import pytest
import torch

from efface.seeds import generator


def first(g, n=4):
    return tuple(torch.randn(n, generator=g).tolist())


def test_the_same_name_gives_the_same_numbers():
    assert first(generator(3, "update", 1)) == first(generator(3, "update", 1))


def test_no_two_names_share_their_numbers_nor_do_pictures():
    names = [
        (seed, what, i, "batch", j)
        for seed, what, i, j in itertools.product(range(3), ("bank", "update"), range(20), range(5))
    ]
    names += [(0, "update", 11), (0, "update", 1, 1), (0, "update", "1", 1), (10, "update", 1)]
    seen = [first(generator(*n)) for n in names]
    seen += [first(torch.Generator().manual_seed(s)) for s in range(500)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("draw", ["across", "along"])
def test_the_numbers_are_normal_across_names_and_along_one(draw):
    if draw == "across":
        x = torch.tensor([first(generator(0, "update", i), 1)[0] for i in range(4000)])
    else:
        x = torch.randn(4000, generator=generator(0, "update", 1))
    ranks = torch.arange(1, len(x) + 1) / len(x)
    far = (torch.special.ndtr(x.sort().values) - ranks).abs().max()
    assert far < 1.95 / len(x) ** 0.5  # Kolmogorov and Smirnov, 99.9 %
    assert abs(float((x[1:] * x[:-1]).mean())) < 0.06
