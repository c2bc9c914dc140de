"""What is said of the mutants is what was found, and every fault by hand is one of the code."""

import json
from pathlib import Path

import pytest
from conftest import script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutants():
    """The run of ``bench/mutants.py``."""
    return script(ROOT / "bench" / "mutants.py")


def test_the_docs_show_the_committed_mutants_of_which_nine_tenths_are_killed(mutants):
    page = mutants.DOCS.read_text()
    assert mutants.written(page) == page
    found = json.loads(mutants.OUT.read_text())["mutants"]
    counted = [m for name, m in found.items() if name not in mutants.EQUIVALENT]
    dead = [m for m in counted if m["outcome"] != "survived"]
    assert len(counted) >= 60
    assert len(dead) >= 0.9 * len(counted)
    assert all(m["outcome"] != "survived" for m in counted if m["kind"] == "ours")
    for name in mutants.EQUIVALENT:  # none is of code that is gone
        module, _, change = name.partition(": ")
        assert change.split(" => ")[0] in mutants.code_of(module)


def test_every_fault_by_hand_is_one_of_the_code_and_has_tests(mutants):
    for module, faults in mutants.OURS.items():
        assert mutants.tests_of(module)
        for i in range(len(faults)):
            assert mutants.described(module, "ours", i)
    for name in {
        n for names in [*mutants.BY_ROOM.values(), *mutants.BY_MODULE.values()] for n in names
    }:
        assert (mutants.TESTS / f"test_{name}.py").exists()
