"""How preserved words are chosen while erasing: random, exact, gumbel; one file each."""

from __future__ import annotations

from efface.training.search.exact import Exact
from efface.training.search.gumbel import Gumbel
from efface.training.search.pools import Drawn, Objective, Pools, Searching, Setting, pools
from efface.training.search.random import Random

__all__ = [
    "Drawn",
    "Exact",
    "Gumbel",
    "Objective",
    "Pools",
    "Random",
    "Search",
    "Searching",
    "Setting",
    "pools",
]

Search = Exact | Gumbel | Random
"""How preserved words are chosen: each kind has its own settings."""
