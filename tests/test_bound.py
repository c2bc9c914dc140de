"""What no linear edit can do: no edit of ours does it, and it is said everywhere."""

import json

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, WORDS, quick

from efface.cli import report
from efface.cli.main import main
from efface.concepts import Concept
from efface.errors import UserError
from efface.evaluation.answers import Sensitivity, read
from efface.evaluation.bound import Forecast, forecast
from efface.methods.dp import DP
from efface.methods.minimax import Minimax
from efface.methods.uce import UCE
from efface.reporting.page import sensed
from efface.settings import to_json
from efface.training.closed_form import text_vectors
from efface.vocabulary import Vocabulary

BOTH = [CHURCH, DOG]


def worst(model, changes):
    """The largest share of change over the words, in percent."""
    own, found = model.parameters(), []
    for word in WORDS:
        e = text_vectors(model, [word])[0]
        up = sum(float((d @ e).square().sum()) for d in changes.values())
        found.append(
            (up / sum(float((own[k].double() @ e).square().sum()) for k in changes)) ** 0.5
        )
    return 100 * max(found)


@pytest.mark.parametrize("concepts", [[CHURCH], BOTH], ids=["one", "two"])
@pytest.mark.parametrize(
    "method",
    [
        DP(),
        DP(keep_anchors=False),
        UCE(ridge=1e-6, erase_scale=1e6),
        Minimax(rows="subject", ridge=1e-6),
    ],
    ids=["dp", "dp-loose", "uce", "minimax"],
)
def test_no_closed_form_harms_its_worst_word_less(tiny, words, method, concepts):
    method = quick(method, words)
    told, own = forecast(tiny, concepts, WORDS), tiny.parameters()
    edit = method.erase(tiny, concepts, QUIET)
    changes = {k: (w - own[k]).double() for k, w in edit.weights.items()}
    assert set(changes) == set(tiny.text_maps())
    assert worst(tiny, changes) >= told.bound * 0.999


def test_nor_does_a_change_of_each_map_by_itself(tiny):
    told, own = forecast(tiny, [CHURCH], WORDS), tiny.parameters()
    c, a = (text_vectors(tiny, [x])[0] for x in ("church", ""))
    g = torch.Generator().manual_seed(0)
    for size in (0.0, 0.01, 0.3):
        changes = {}
        for name in tiny.text_maps():
            w = own[name].double()
            free = size * torch.randn(w.shape, generator=g, dtype=torch.float64)
            away = (w @ (a - c))[:, None] * c / c.square().sum()
            changes[name] = away + free - (free @ c)[:, None] * c / c.square().sum()
            torch.testing.assert_close((w + changes[name]) @ c, w @ a)
        assert worst(tiny, changes) >= told.bound


def test_it_is_nearly_reached(tiny, words):
    told, own = forecast(tiny, [CHURCH], WORDS), tiny.parameters()
    method = quick(Minimax(rows="subject", ridge=0.0, keep_anchors=False), words)
    edit = method.erase(tiny, [CHURCH], QUIET)
    found = worst(tiny, {k: (w - own[k]).double() for k, w in edit.weights.items()})
    assert found == pytest.approx(told.bound, rel=0.02)


def test_what_it_says():
    told = Forecast(("church", "fox\u202e"), 12.345, "castle", 1300)
    assert told.said == (
        "No linear edit of the text maps can erase church, fox\\u202e fully and move its worst "
        "word by less than 12.35 % of what they read (of 1,300 words, castle stands most in the "
        "way)."
    )
    assert "move none of 1,300 other words" in Forecast(("church",), 1e-6, "castle", 1300).said


def test_more_concepts_than_there_are_directions(tiny):
    told = forecast(tiny, [Concept(w) for w in WORDS], ["moon", "castle", "fox"])
    assert not told.possible
    assert told.said.startswith("No linear edit of the text maps can erase all of red house, ")
    assert len(Forecast(tuple(map(str, range(400))), 12.0, "castle", 1300).said) < 400
    some = [Concept(w) for w in WORDS[:10]]
    assert forecast(tiny, some, ["moon"]).possible


def test_where_nothing_reads_the_text_alone_nothing_is_said(tiny, monkeypatch):
    assert forecast(tiny, [CHURCH], ()) is None
    monkeypatch.setattr(type(tiny.family), "reads", "no such weight")
    assert forecast(tiny, [CHURCH], WORDS) is None


def test_few_words_leave_room(tiny):
    assert forecast(tiny, [Concept("church")], WORDS[:3]).bound < 0.005


def test_the_report_has_it_from_the_file(tmp_path):
    told = Forecast(("church",), 20.0, "castle", 50)
    first = {"instrument": "one", "unit": "%", "words": {"a": 1.0}, "intervals": {}}
    path = tmp_path / "sensitivity.json"
    for ahead in (to_json(told), None):
        path.write_text(json.dumps({"instruments": [first], "forecast": ahead}))
        found = read(Sensitivity, path, "sensitivity")
        assert (told.said in sensed(found)) == (ahead is not None)
    path.write_text(json.dumps({"instruments": [first]}))  # of an earlier version
    assert "No linear edit" not in sensed(read(Sensitivity, path, "sensitivity"))


def test_a_report_without_the_file_reckons_it(tiny, monkeypatch):
    monkeypatch.setattr(report, "load_vocabulary", lambda *a: Vocabulary((*WORDS, "church"), "w"))
    edit = UCE(vocabulary="").erase(tiny, CHURCH)
    said = report.foretold(tiny, edit)
    assert said == forecast(tiny, [CHURCH], WORDS).said  # not the erased one
    assert "linear edit" in said

    def none(*_):
        raise UserError("no list")

    monkeypatch.setattr(report, "load_vocabulary", none)
    assert report.foretold(tiny, edit) == ""


def test_an_erasure_says_what_is_known_of_it(tiny_folder, words, tmp_path, capsys):
    args = ["church", "--model", str(tiny_folder), "--no-picture", "--vocabulary", str(words)]
    assert main(["erase", "minimax", *args, "--out", str(tmp_path / "a")]) == 0
    assert "its worst word, " in capsys.readouterr().out
    assert main(["erase", "dp", *args[:-2], "--out", str(tmp_path / "b")]) == 0
    assert "15 of 16 directions are free" in capsys.readouterr().out
