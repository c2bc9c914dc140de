"""Names in other spellings: whatever is erased or held out is that however a list writes it."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import CLOTHES, TOLD

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.bench import scores_of
from efface.evaluation.measure import erased_in
from efface.evaluation.metrics import Seen, table
from efface.evaluation.protocols import Protocol, load
from efface.evaluation.samples import Wanted
from efface.evaluation.scoring import Question, asked_of

WITHOUT_JUDGE = {**TOLD, "name": "drift", "judge": "", "metrics": ["drift"], "neighbours": {}}


def erased(name, *synonyms):
    return Edit({}, {"concepts": [Concept(name, synonyms=synonyms).to_json()]})


def drawn(protocol, edit, **narrower):
    asked = asked_of(Question(protocol, False, **narrower), edit, None)
    return list(dict.fromkeys(w.concept for w in asked))


def test_no_spelling_of_what_is_erased_is_drawn_as_a_preserved_concept():
    p = Protocol(**{**WITHOUT_JUDGE, "preserved": ["Café", "T-shirt", "hat", "Coat"]})
    assert drawn(p, erased("coat", "t shirt")) == ["coat", "Café", "hat"]
    assert drawn(p, erased("cafe\u0301")) == [Concept("cafe\u0301").name, "T-shirt", "hat", "Coat"]
    with pytest.raises(UserError, match="'T-SHIRT' is erased by this edit"):
        drawn(p, erased("coat", "t-shirt"), concepts=("T-SHIRT",))
    assert drawn(p, erased("coat", "COAT")) == ["coat", "Café", "T-shirt", "hat"]


def test_a_prompt_file_asks_for_what_is_erased_by_any_of_its_names():
    rows = [
        Wanted(f"a {c}", i, c) for i, c in enumerate(("Church", "Chapel", "dog", "", "chapels"))
    ]
    assert erased_in(erased("church", "chapel"), rows) == ["Church", "Chapel"]
    assert erased_in(None, rows) == []
    assert erased_in(Edit({}, {}), rows) == []


def test_a_method_is_shown_no_spelling_of_a_held_out_name():
    names = ["hat", "Ice-Skate", "boot", "Boots"]
    p = Protocol(**{**TOLD, "name": "mine", "preserved": names, "held_out": ["ice skate", "HAT"]})
    assert p.usable(["coat"], CLOTHES) == ("boot", "Boots")
    assert p.others(["BOOT"], CLOTHES) == ("hat", "Ice-Skate", "Boots")
    near = Protocol(**{**TOLD, "name": "mine", "neighbours": {"Coat": ["Hat", "COAT", "bag"]}})
    assert near.near(["coat"]) == ("Hat", "bag")


def test_groups_are_those_of_the_same_names():
    hits = torch.tensor([True, False, True, True])
    seen = Seen(("coat", "hat", "bag", "boot"), hits, hits)
    found = table(seen, ["coat"], ["Hat", "BAG"])
    assert found["PSR-1 neighbours"].value == 50
    assert found["PSR-1"].n == 3
    p = Protocol(**{**TOLD, "name": "mine", "metrics": ["esr", "psr"], "held_out": ["HAT"]})
    halves = scores_of(seen, None, ["coat"], p)
    assert halves["PSR-1 held out"].value == 0
    assert halves["PSR-1 shown"].value == 100


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"splits": {"1": ["coat", "Coat"]}}, "split '1' holds 'Coat' twice"),
        ({"preserved": ["hat", "bag", "HAT"]}, "preserved holds 'HAT' twice"),
        ({"preserved": ["hat", " "]}, "preserved holds an empty name"),
        ({"held_out": ["hat", "hat"]}, "held_out holds 'hat' twice"),
        ({"neighbours": {"coat": ["hat", "hat"]}}, "neighbours of 'coat' holds 'hat' twice"),
        ({"preserved": ["hat", "bag"], "held_out": ["hatt"]}, "did you mean 'hat'"),
        ({"preserved": ["hat", "a, hat", "x"], "held_out": ["x"]}, "'a, hat' has a comma"),
    ],
)
def test_a_protocol_whose_lists_would_count_or_show_what_they_must_not_is_refused(
    told, said, tmp_path
):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**TOLD, **told}))
    with pytest.raises(UserError, match=said):
        load(str(path))


def test_an_erased_name_may_be_held_out_of_other_splits():
    p = Protocol(
        **{**TOLD, "name": "mine", "preserved": ["hat", "bag"], "held_out": ["coat", "hat"]}
    )
    assert replace(p, held_out=()).usable(["coat"], ()) == ("hat", "bag")
    assert p.usable(["coat"], ()) == ("bag",)
