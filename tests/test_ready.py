"""What a benchmark could not score is refused before it trains anything."""

import json

import pytest
from conftest import TOLD

from efface.errors import UserError
from efface.evaluation.bench import Cell
from efface.evaluation.cells import ready


@pytest.fixture
def prepared(clothes_folder, tmp_path):
    def prepare(**told):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({**TOLD, **told}))
        splits = told.get("splits", TOLD["splits"])
        cells = [Cell(str(path), s, "uce", 0, model=str(clothes_folder)) for s in splits]
        ready(cells, tmp_path / "out", tmp_path / "work")

    return prepare


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"splits": {"1": ["coat"], "2": ["coatt"]}}, "did you mean 'coat'"),
        ({"splits": {"1": []}}, "no concept of split '1' of 'mine' is erased"),
        ({"preserved": ["hat", "bagg"]}, "did you mean 'bag'"),
        ({"preserved": ["coat"], "metrics": ["worst-tenth"]}, "is preserved"),
        ({"preserved": ["hat", "bag"], "held_out": ["coat"]}, "is preserved and held out"),
        ({"preserved": ["hat"], "held_out": ["hat"]}, "is preserved and shown"),
        (
            {"metrics": ["esr", "perceived"], "pictures": {"erased": 2, "preserved": 1}},
            "'perceived' of 'mine' needs 2 pictures",
        ),
        (
            {"metrics": ["worst-tenth"], "pictures": {"erased": 2, "preserved": 1}},
            "'worst-tenth' of 'mine' needs 2 pictures",
        ),
    ],
)
def test_what_could_not_be_scored_is_refused_before_any_work(prepared, told, said, tmp_path):
    with pytest.raises(UserError, match=said) as e:
        prepared(**told)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "work").exists()


def test_one_picture_a_concept_is_enough_for_rates_and_several_prompts_for_a_worst_tenth(prepared):
    prepared(pictures={"erased": 1, "preserved": 1})
    one = {"erased": 1, "preserved": 1}
    two = {"template": "{subject} {}", "subjects": ["a", "the"]}
    prepared(metrics=["worst-tenth"], pictures=one, **two)


def test_a_held_out_name_that_the_judge_does_not_know_hides_nothing_and_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"splits": {"1": ["church"]}, "held_out": ["castel", "dog"]}))
    with pytest.raises(UserError, match="held_out: 'castel'; did you mean 'castle'"):
        ready([Cell(str(path), "1", "uce", 0)], tmp_path / "out", tmp_path / "work")
