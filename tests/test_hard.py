"""A sample of the campaign that ``make hard`` runs whole, and what it has found before."""

import importlib
import json
import os
import shutil
from xml.etree import ElementTree

import pytest
import torch
import yaml
from conftest import CHURCH, shaken
from hard import names
from hard.__main__ import DOCS, OUT, written
from hard.places import SETTINGS, clothes

from efface.cli import runfolder
from efface.cli.main import main
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.sensitivity import Moved
from efface.methods import METHODS
from efface.reporting.card import card
from efface.reporting.figures import sensitivity
from efface.reporting.tables import read as read_cells
from efface.training.runs import CHECKPOINT

SCORE = {"value": 95.0, "low": 90.0, "high": 98.0, "n": 20}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["kills", "inputs", "names"])
def test_nothing_is_lost_accepted_or_left(part, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    for name, found in importlib.import_module(f"hard.{part}").campaign(tmp_path, 1, short=True):
        assert found.tried, name
        assert not found.wrong, name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_campaign_makes_every_method_run(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = clothes(tmp_path / "model")
    asked = ("erase", method, "coat", "--model", str(model), "--device", "cpu", "--out", "run")
    assert main([*asked, "--no-picture", "--dry-run", *SETTINGS[method]]) == 0


def test_the_docs_show_the_last_campaign():
    text = DOCS.read_text(encoding="utf8")
    assert written(text, json.loads(OUT.read_text())) == text


def test_a_formula_in_a_name_is_no_formula_in_a_figure():
    words = ("$x^$ and $\\no$", "<b>&amp;", "a" * 900)
    found = Moved("prediction", "%", words, torch.rand(4, 3))
    text = sensitivity(found, [0.1, 0.2, 0.3], "$\\frac{$ -->", 3)
    shown = "".join(ElementTree.fromstring(text).itertext())
    assert words[0] in shown
    assert "$\\frac{$ -->" in shown


@pytest.mark.parametrize("name", names.HOSTILE)
def test_a_hostile_name_is_no_markup_in_a_card(tiny, name):
    meta = {"base": "x", "model": f"/a: b # {name}", "method": "esd"}

    def of(said):
        concepts = [{**CHURCH.to_json(), "name": said}]
        found = {"judge": said, "edited": {"ESR-1": SCORE}, "unedited": {}}
        model = meta["model"] if said == name else "/a"
        edit = Edit(shaken(tiny, "kv"), {**meta, "model": model, "concepts": concepts})
        return card(edit, found, {f"unet/{said}": "edited"})

    told = yaml.safe_load(of(name).split("\n---\n")[0])
    shown = "/a: b # \\u202egnp.exe" if "gnp" in name else meta["model"]
    assert not list(names.in_card(of(name), of("plain"), shown))
    assert told["base_model"] == shown


def test_what_a_kill_left_beside_a_finished_edit_is_swept(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    args = ["erase", "uce", "church", "--model", str(tiny_folder), "--out", str(out)]
    args += ["--no-picture", "--device", "cpu"]
    assert main(args) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for name in (".lock", ".run.json.999999999.part", CHECKPOINT):
        (out / name).write_text("")
    capsys.readouterr()
    assert main(args) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    runfolder.sit(out, "cpu")  # and is killed
    capsys.readouterr()
    assert main(args) == 0
    assert "not counted: a sitting was killed" in capsys.readouterr().out
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["seconds"] is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "an object"),
        ('{"protocol": 3}', "protocol is 3; a text is needed"),
        ('{"protocol": "x", "edited": {"ESR-1": {"value": "y"}}}', "edited.ESR-1"),
        ('{"protocol": "x", "edited": [1]}', "edited is"),
    ],
)
def test_damaged_scores_are_one_line_that_names_the_field(tmp_path, text, told):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(UserError, match=rf"scores\.json'.*{told}"):
        runfolder.scores_of(tmp_path, Edit({}))


@pytest.mark.parametrize("text", ["{", "[]", '{"protocol": 1}', '{"protocol": ""}'])
def test_a_damaged_cell_of_the_benchmark_is_one_line(tmp_path, text):
    (tmp_path / "emoji-objects-1-uce-0.json").write_text(text)
    with pytest.raises(UserError, match=r"emoji-objects-1-uce-0\.json'") as e:
        read_cells(tmp_path, "emoji-objects")
    assert "\n" not in str(e.value)


def test_a_clip_that_nothing_reads_is_refused(capsys):
    assert main(["score", "--model", "emoji", "--clip", "x"]) == 2
    assert "no metric of the protocol 'emoji-objects' needs a CLIP" in capsys.readouterr().err
    assert main(["sensitivity", "--concept", "church", "--clip", "x"]) == 2
    assert "--clip is for --instrument picture" in capsys.readouterr().err


def test_a_vocabulary_that_cannot_be_a_file_leaves_no_run(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["erase", "speed", "church", "--model", str(tiny_folder), "--vocabulary", "a" * 300]
    assert main([*args, "--out", "run", "--no-picture", "--device", "cpu"]) == 2
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_the_same_merge_again_is_finished_already(tiny_folder, tmp_path, capsys):
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    erase = ["erase", "uce", "church", "--model", str(tiny_folder), "--out", run, "--no-picture"]
    assert main([*erase, "--device", "cpu"]) == main(["merge", run, out]) == 0
    assert main(["merge", run, out]) == 0
    shutil.rmtree(run)
    erase[2] = "dog"
    assert main([*erase, "--device", "cpu"]) == 0
    assert main(["merge", run, out]) == 2
    assert "exists already" in capsys.readouterr().err
