"""How preserved words are chosen while erasing: random, forecast, online, exact, gumbel."""

from __future__ import annotations

from efface.training.search.exact import Exact
from efface.training.search.forecast import Forecast
from efface.training.search.gumbel import Gumbel
from efface.training.search.online import Online
from efface.training.search.pools import Drawn, Objective, Pools, Searching, Setting, pools
from efface.training.search.random import Random

__all__ = [
    "Drawn",
    "Exact",
    "Forecast",
    "Gumbel",
    "Objective",
    "Online",
    "Pools",
    "Random",
    "Search",
    "Searching",
    "Setting",
    "pools",
]

Search = Exact | Forecast | Gumbel | Online | Random
"""How preserved words are chosen: each kind has its own settings."""
