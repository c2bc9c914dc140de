"""Settings do not change by accident: those of papers and docs, and those of the results in bench.

``EFFACE_RECORD=1 pytest tests/test_defaults.py`` records them anew, for a change that should.
"""

import json
import os
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

from efface.evaluation import answers
from efface.evaluation.attack_bench import AT
from efface.evaluation.attacks import ATTACKS
from efface.evaluation.judges.emoji import JudgeConfig
from efface.methods import METHODS
from efface.settings import ranges, to_json
from efface.training import Bank, Pictures, Rollout
from efface.training.recall import Recall
from efface.training.search import Exact, Forecast, Gumbel, Online, Random

PATH = Path(__file__).parent / "defaults.json"
OWN = [n for n, m in METHODS.items() if m.__module__.startswith("efface.")]
PARTS = {c.__name__: c for c in (Bank, Rollout, Pictures, Recall)}
PARTS |= {c.__name__: c for c in (Exact, Forecast, Gumbel, Online, Random)}
PARTS |= {f"attack {n}": a for n, a in ATTACKS.items() if a.__module__.startswith("efface.")}


def said(cls):
    """Defaults and ranges of a class."""
    found = {k: list(r) for k, r in ranges(cls).items()}
    return {"defaults": to_json(cls()), "ranges": found}


def of_method(cls):
    presets = {k: to_json(p) for k, p in cls.presets().items()}
    lineup = {k: [e.label, to_json(e.method)] for k, e in cls.lineup().items()}
    kinds = [cls.name, cls.label, cls.closed_form, cls.apart]
    return {**said(cls), "presets": presets, "lineup": lineup, "is": kinds}


def of_file(cls):
    """What a result says that leaves a field out."""
    return {f.name: f.default for f in fields(cls) if f.default not in (MISSING, ())}


FILES = {
    f"file {c.__name__}": c
    for c in vars(answers).values()
    if isinstance(c, type) and is_dataclass(c) and c.__module__ == answers.__name__
}
FILES["file of the judge"] = JudgeConfig
BENCH = "attacks of the benchmark"


@pytest.mark.parametrize("name", [*OWN, *PARTS, *FILES, BENCH])
def test_defaults_ranges_and_presets_are_what_they_were(name):
    found = {a.name: to_json(a) for a in AT.values()}
    if name != BENCH:
        kind, told = next(
            (k[name], x)
            for k, x in ((PARTS, said), (FILES, of_file), (METHODS, of_method))
            if name in k
        )
        found = told(kind)
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    if os.environ.get("EFFACE_RECORD"):
        PATH.write_text(json.dumps({**known, name: found}, indent=1, sort_keys=True) + "\n")
        return
    assert json.loads(json.dumps(found)) == known[name]


def test_the_papers_settings_are_the_defaults_where_they_can_be():
    esd, uce, age, spm, speed, mace = (
        METHODS[n]() for n in ("esd", "uce", "age", "spm", "speed", "mace")
    )
    assert esd.eta == 1  # arXiv:2303.07345
    assert (uce.erase_scale, uce.preserve_scale, uce.ridge, uce.rows) == (1, 1, 0.5, "subject")
    assert (age.eta, age.preserve, age.nearest) == (1, 1, 100)  # arXiv:2501.18950
    assert (age.search.tau, age.search.hard, age.search.lr) == (0.1, True, 1e-2)
    assert (spm.eta, spm.rank, spm.anchors) == (1, 1, 4)  # arXiv:2312.16145
    assert (speed.maps, speed.retain_scale, speed.slack, speed.draws) == ("v", 1, 0, 10)
    assert (mace.rank, mace.updates, mace.focal) == (1, 50, True)  # arXiv:2403.06135
