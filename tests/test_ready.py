"""What a benchmark could not score is refused before it trains anything."""

import dataclasses
import functools
import json

import pytest
from conftest import TOLD

from efface.cli.main import main
from efface.errors import UserError
from efface.evaluation import bench as bench_module
from efface.evaluation.attack_bench import AttackCell
from efface.evaluation.baselines import NoAttack
from efface.evaluation.bench import Cell, Opened, finished
from efface.evaluation.cells import ready
from efface.models import load

OPENED = functools.cache(load)
"""A model is opened once for all of these tests."""


@pytest.fixture(autouse=True)
def _once(monkeypatch):
    monkeypatch.setattr(bench_module, "load", OPENED)


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


def test_a_result_of_other_settings_is_kept_and_refused_before_any_work(
    clothes_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path, model = str(clothes_folder / "protocol.json"), str(clothes_folder)
    had = Cell(path, "1", "esd", 0, updates=3, model=model)
    row = {**Opened(had).identity, "hits": {}}
    file = tmp_path / "out" / had.file
    file.parent.mkdir()
    file.write_text(json.dumps(row))
    ready([had], file.parent, tmp_path / "work")  # the same cell: resumption
    assert finished(had, file.parent, Opened(had).identity) == row
    older = {k: v for k, v in row["config"]["latents"].items() if k != "anchored"}
    file.write_text(json.dumps({**row, "config": {**row["config"], "latents": older}}))
    assert finished(had, file.parent, Opened(had).identity) == row  # was made before that setting
    bench = ["bench", path, "--method", "esd", "--seeds", "1", "--model", model, "--out", "out"]
    assert main([*bench, "--updates", "7"]) == 2
    (told,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("efface")]
    said = "is a result of other settings"
    assert f"'out/{had.file}' {said} (updates is 3, not 7): name another folder by --out" in told
    half = dataclasses.replace(had, dtype="bf16")
    with pytest.raises(UserError, match=rf"{said} \(dtype is None, not 'bf16'; "):
        ready([half], file.parent, tmp_path / "work")
    assert json.loads(file.read_text())["config"]["updates"] == 3
    file.write_text(json.dumps({**Opened(half).identity, "hits": {}}))
    with pytest.raises(UserError, match=rf"{said} \(dtype is 'bf16', not None; "):
        ready([had], file.parent, tmp_path / "work")
    assert not [*tmp_path.glob("runs/bench/*")]


def test_attacks_on_a_cell_of_other_settings_are_refused_before_any_work(clothes_folder, tmp_path):
    path, model = str(clothes_folder / "protocol.json"), str(clothes_folder)
    mine, other = (
        AttackCell(Cell(path, "1", "esd", 0, updates=n, model=model), (NoAttack(),)) for n in (3, 7)
    )
    row = {**other.identity(Opened(other.edited)), "attacks": {}}
    (tmp_path / mine.file).write_text(json.dumps(row))
    (tmp_path / mine.edited.file).write_text(json.dumps({**row, "hits": {}}))  # not written by it
    ready([other], tmp_path, tmp_path / "work")
    with pytest.raises(UserError, match=r"emoji-attacks-1-esd-0.*updates is 7, not 3"):
        ready([mine], tmp_path, tmp_path / "work")


def test_names_are_held_out_of_what_the_models_own_judge_knows(prepared, clothes_folder, tmp_path):
    prepared(held_out=["bag"])
    cell = Cell(str(tmp_path / "mine.json"), "1", "ap", 0, model=str(clothes_folder))
    opened = Opened(cell)
    seen = opened.identity["config"]["vocabulary"]
    assert seen == "words: dress, boot, shirt, hat"  # no coat, which is erased, and no bag
    assert cell.config(opened.judge.concept_names).vocabulary == seen


def test_nothing_is_held_out_of_what_a_judge_does_not_list(prepared):
    pytest.importorskip("efficientnet_lite_pytorch")
    with pytest.raises(UserError, match="list in preserved what is measured"):
        prepared(judge="imagenet-effnet-lite0", labels={"coat": "1"}, held_out=["hat"])
