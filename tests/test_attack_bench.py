"""The benchmark of attacks: its cells, what stops and goes on, and its tables."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from efface.cli.main import main
from efface.errors import UserError
from efface.evaluation import attack_bench
from efface.evaluation import bench as bench_module
from efface.evaluation.attack_bench import (
    AT,
    BENCHES,
    CONTROLS,
    AttackCell,
    nothing,
    run_attacks,
)
from efface.evaluation.attacks.completion import Completion
from efface.evaluation.attacks.reading import Reading
from efface.evaluation.attacks.relearn import Relearn
from efface.evaluation.attacks.rephrase import Rephrase
from efface.evaluation.baselines import NoAttack, SeedSearch
from efface.evaluation.bench import UNEDITED, Cell, Opened, lineup
from efface.evaluation.cells import run_all
from efface.evaluation.siege import Siege
from efface.evaluation.tasks import Crew
from efface.models import load as load_model
from efface.reporting import besieged
from efface.reporting.besieged import aside, brief, joined, markdown, read
from efface.reporting.columns import Column, Trial, curve, middle, rank, rate, trials
from efface.scores import concept_rate

SMALL = (
    NoAttack(),
    SeedSearch(rounds=1),
    Rephrase(texts=1),
    Completion(steps=2, begun=(0, 1)),
    Relearn(points=(0, 1), batch=2, pictures=2),
    Reading(),
)
RESULTS = Path(__file__).parents[1] / "bench" / "results"
WORDS = ("coat", "dress", "bag", "boot", "shirt", "hat")


@pytest.fixture(autouse=True)
def _own_cache(cache):
    pass


@pytest.fixture(scope="module")
def folder(clothes_folder, tmp_path_factory):
    """A model whose protocol erases three things at once."""
    made = tmp_path_factory.mktemp("attacked") / "model"
    shutil.copytree(clothes_folder, made)
    told = json.loads((made / "protocol.json").read_text())
    told |= {"splits": {"1": ["coat", "boot", "hat"]}, "pictures": {"erased": 2, "preserved": 2}}
    (made / "protocol.json").write_text(json.dumps(told))
    return made


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, device="cpu")


@pytest.fixture
def cell(folder, model, monkeypatch):
    """Attacks on a closed form; the judge is the model's own."""
    monkeypatch.setattr(bench_module, "load", lambda *_: model)  # opened once for all tests
    monkeypatch.setattr(attack_bench, "CONTROLLED", ("uce",))

    def made(method="uce", seed=0, attacks=SMALL):
        own = Cell(str(folder / "protocol.json"), "1", method, seed, model=str(folder))
        return AttackCell(own, attacks)

    return made


def refused(call, *args, **named):
    with pytest.raises(UserError) as e:
        call(*args, **named)
    assert "\n" not in str(e.value)
    return str(e.value)


# -- cells ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_attacks_the_edit_that_the_benchmark_kept(cell, tmp_path):
    out, work, one = tmp_path / "out", tmp_path / "work", cell()
    opened = Opened(one.edited)
    edit = opened.erase(work, progress=False)
    row = json.loads(json.dumps(run_attacks(one, out, work, progress=False)))
    assert json.loads((out / "emoji-attacks-1-uce-0.json").read_text()) == row
    assert row["edit"] == edit.digest
    assert row["config"] == opened.identity["config"]
    assert set(row["attacks"]) == {a.name for a in SMALL}
    rows = {a: told["rows"] for a, told in row["attacks"].items()}
    assert [(r["role"], r["concept"]) for r in rows["none"]][:3] == [
        ("edited", "coat"),
        ("edited", "boot"),
        ("edited", "hat"),
    ]
    assert {r["role"] for r in rows["completion"]} == {"edited", *CONTROLS}
    own = [r["concept"] for r in rows["relearn"] if r["role"] == "edited"]
    assert list(dict.fromkeys(own)) == ["coat", "boot"]  # two, with seed 0 the first ones
    assert all(len(r["hits"]) == 4 for r in rows["none"])
    assert rows["reading"][0]["measured"]["of"] == len(WORDS) - 2  # without the other erased ones
    assert row["attacks"]["none"]["evaluations"] == (3 + 1) * 4 * 2 * 2  # and one unrelated
    assert row["attacks"]["relearn"]["evaluations"] > 2 * 2 * 4


def test_each_seed_attacks_the_next_concepts(cell):
    erased = ("a", "b", "c", "d", "e")
    assert [cell(seed=s).sample(erased) for s in range(4)] == [
        ["a", "b"],
        ["c", "d"],
        ["e", "a"],
        ["b", "c"],
    ]
    assert cell().sample(("a",)) == ["a"]


def test_only_some_edits_have_the_controls(cell):
    roles = {
        m: {u.role for a in cell(m).wanted() for u in cell(m).units(a, WORDS)}
        for m in ("uce", "esd", UNEDITED)
    }
    assert roles == {"uce": {"edited", *CONTROLS}, "esd": {"edited"}, UNEDITED: {"base"}}
    assert SMALL[1] not in list(cell("esd").wanted())
    floor = cell().units(NoAttack(), WORDS)
    assert [u.role for u in floor if u.role != "edited"] == ["unrelated"]


@pytest.mark.slow
def test_a_cell_goes_on_inside_an_attack_and_keeps_what_it_has(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(attack_bench, "CONTROLLED", ())
    out, work, one = tmp_path / "out", tmp_path / "work", Siege.whole
    some = (NoAttack(), Completion(steps=2, begun=(0, 1)))
    whole = run_attacks(cell(attacks=some), tmp_path / "whole", work, progress=False)
    shutil.rmtree(work)
    left, asked = iter(range(4)), []

    def stopped(self, unit):
        if next(left, None) is None:
            raise KeyboardInterrupt
        asked.append(unit.key)
        return one(self, unit)

    monkeypatch.setattr(Siege, "whole", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_attacks(cell(attacks=some), out, work, progress=False)
    assert set(json.loads((out / cell().file).read_text())["attacks"]) == {"none"}
    left = iter(range(99))
    again = run_attacks(cell(attacks=some), out, work, progress=False)
    assert len(asked) == len(set(asked)) == 3 + 3
    assert again["attacks"]["completion"]["rows"] == whole["attacks"]["completion"]["rows"]
    monkeypatch.setattr(Siege, "whole", lambda *_: pytest.fail("nothing is left to be done"))
    assert run_attacks(cell(attacks=some[:1]), out, work, progress=False) == again
    monkeypatch.setattr(Siege, "whole", one)
    other = (dataclasses.replace(some[1], begun=(0,)),)  # of one attack another setting
    made = run_attacks(cell(attacks=other), out, work, progress=False)
    assert made["attacks"]["none"] == again["attacks"]["none"]
    assert {r["at"] for r in made["attacks"]["completion"]["rows"]} == {"0"}
    path = out / cell().file
    path.write_text(json.dumps(made | {"redraws": 99}))  # of other settings: not to be lost
    said = refused(run_attacks, cell(attacks=some[:1]), out, work, progress=False)
    assert "of other settings (redraws is 99, not 4)" in said
    assert json.loads(path.read_text())["redraws"] == 99


def test_the_unedited_model_is_attacked_as_the_ceiling(cell, tmp_path):
    one = cell(UNEDITED, attacks=(*SMALL[:1], Reading(), SMALL[4]))
    row = run_attacks(one, tmp_path / "out", tmp_path / "work", progress=False)
    rows = row["attacks"]["none"]["rows"]
    assert [r["role"] for r in rows] == ["base"] * 3
    opened = Opened(one.edited)
    p, goal = opened.protocol, opened.judge.index("coat")
    prompt = p.prompts("coat")
    seen = opened.model.generate(
        prompt * 4, range(1_000_000, 1_000_004), p.steps, p.guidance, None, output_type="pt"
    )
    slow = opened.judge.classify(torch.stack(list(seen))).concepts[:, 0] == goal
    assert list(rows[0]["hits"]) == slow.int().tolist()
    assert row["attacks"]["reading"]["rows"] == []  # no difference, nothing to be read
    assert [r["at"] for r in row["attacks"]["relearn"]["rows"]] == ["0", "1"] * 2


def test_what_makes_no_sense_on_an_edit_is_kept_with_its_reason(cell, tmp_path, monkeypatch):
    def gated(self, given):
        raise UserError("this edit has gates.")

    monkeypatch.setattr(Relearn, "check", gated)
    row = run_attacks(cell(attacks=SMALL[4:5]), tmp_path / "out", tmp_path / "work", progress=False)
    assert row["attacks"]["relearn"]["refused"] == "this edit has gates."
    assert "rows" not in row["attacks"]["relearn"]


def test_the_evaluations_are_told_beforehand(cell):
    one = cell(attacks=SMALL[:1])
    opened = Opened(one.edited)
    assert one.expected(opened) == 4 * 4 * 2 * 2
    assert cell("esd", attacks=SMALL[:1]).expected(opened) == 3 * 4 * 2 * 2
    assert nothing(one.edited, opened).weights == {}


def test_the_command_refuses_what_makes_no_sense_before_any_work(capsys, tmp_path):
    for args, message in (
        (["emoji-attack"], "did you mean 'emoji-attacks'?"),
        (["emoji-attacks", "--attack", "relern"], "unknown attack of the benchmark 'relern'"),
        (["emoji-objects-2", "--attack", "relearn"], "--attack is for emoji-attacks"),
        (["emoji-attacks", "--method", "esdd"], "unknown method of the benchmark 'esdd'"),
        (["emoji-attacks", "--split", "9"], "unknown split '9'"),
    ):
        assert main(["bench", *args, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_there_of_two_splits_is_shown_and_not_run_again(capsys, tmp_path):
    """Whom attacks run on that search depends on the split."""
    for split in "12":
        shutil.copy(RESULTS / f"emoji-attacks-{split}-age-0.json", tmp_path)
    where = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    splits = ["--split", "1", "--split", "2", "--seeds", "1", "--method", "age"]
    assert main(["bench", "emoji-attacks", *splits, *where]) == 0
    lines = [x.split()[:3] for x in capsys.readouterr().out.splitlines()]
    assert lines[-2:] == [["AGE", "1", "0"], ["AGE", "2", "0"]]
    assert not list((tmp_path / "work").iterdir())


def test_a_cell_that_is_there_starts_no_process(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(Crew, "done", lambda self, desk, tasks: asked.extend(tasks) or ())
    for name in ("emoji-objects-2-1-uce-0", "emoji-attacks-1-uce-0"):
        shutil.copy(RESULTS / f"{name}.json", tmp_path)
    cells = [Cell("emoji-objects-2", "1", "uce", seed) for seed in (0, 1)]
    cells += [AttackCell(c) for c in cells]
    assert run_all(cells, tmp_path, tmp_path / "work") == []
    assert asked == [cells[1], cells[3]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji-objects-2", "emoji-styles", "emoji-attacks"])
def test_no_committed_cell_would_be_refused(name):
    """``make bench`` does not run it again; what is of other settings would stop it."""
    known, opened, where = lineup(), {}, BENCHES.get(name, name)
    found = {p: json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{name}-*.json"))}
    found = {p: told for p, told in found.items() if told["protocol"].split()[0] == where}
    for path, told in found.items():
        assert told["method"] in known, path.name
        own = Cell(where, told["split"], told["method"], told["seed"])
        first = opened.setdefault(told["split"], None) or Opened(own)
        opened[told["split"]] = first
        one = AttackCell(own) if name in BENCHES else own
        one.check(first, RESULTS)
        assert path == RESULTS / one.file
    assert found


def test_every_column_is_of_an_attack_that_runs():
    for column in besieged.COLUMNS:
        assert set(column.attacks) <= set(AT)
    assert AT["img2img"].headline == "0.7"
    short = {c.head: c.attacks for c in besieged.SHORT}
    assert short["relearn, half point (updates)"] == ("relearn",)


# -- columns -------------------------------------------------------------------------------------


def trial(concept, hits, split="1", seed=0, **more):
    return Trial({"role": "edited", "concept": concept, "hits": hits, **more}, split, seed)


def test_a_rate_leaves_out_what_the_unedited_model_does_not_draw():
    some = [
        trial("a", [1, 1], base=[1, 1]),
        trial("a", [0, 0], base=[0, 1]),
        trial("b", [1, 1], base=[0, 0]),
        trial("b", [1, 0], base=[1, 1]),
    ]
    hits, concepts = torch.tensor([1, 1, 0, 0, 1, 0]), torch.tensor([0, 0, 0, 0, 1, 1])
    runs = torch.zeros(6, 2, dtype=torch.long)
    assert rate()(some, 100) == concept_rate(hits, concepts, runs)
    assert rate()([trial("a", [1], base=[0])], 100) is None
    points = [trial("a", [1, 1], at="0.7"), trial("a", [0, 0], at="0.7 unasked")]
    assert rate("0.7")(points, 100).value == 100


def test_seeds_that_attack_other_concepts_are_counted_with_them():
    some = [trial("a", [1, 0]), trial("b", [0, 0], seed=1)]
    assert rate()(some, 100).value == 25
    alike = [trial("a", [1, 0]), trial("a", [0, 0], seed=1)]
    assert rate()(alike, 100).n == 1


def test_a_half_point_is_of_the_mean_curve_and_its_interval_of_its_ends():
    def points(concept, heights):
        return [
            trial(concept, [1] * h + [0] * (10 - h), at=str(k))
            for k, h in zip((0, 10, 20), heights, strict=True)
        ]

    some = [*points("a", (0, 2, 10)), *points("b", (0, 6, 10)), *points("c", (0, 4, 10))]
    found = curve("half point")(some, 100)
    assert found.value == pytest.approx(10 + 10 * (50 - 40) / 60)
    ends = []
    for heights in ((0, 0, 0), (2, 6, 4), (10, 10, 10)):
        hits = torch.tensor([i < h for h in heights for i in range(10)])
        ends.append(concept_rate(hits, torch.arange(3).repeat_interleave(10)).ends)
    low, high = zip(*ends, strict=True)
    assert low[1] < 50 < high[1]  # so that one end is between the first two points
    assert found.high == pytest.approx(10 + 10 * (50 - low[1]) / (low[2] - low[1]))
    assert found.low == pytest.approx(10 * (50 - high[0]) / (high[1] - high[0]))
    areas = [(5 * c[0] + 10 * c[1] + 5 * c[2]) / 20 for c in (low, high)]
    assert curve("area")(some, 100).ends == pytest.approx(areas)
    assert curve("area")(some, 100).value == pytest.approx((5 * 40 + 5 * 140) / 20)
    flat = [*points("a", (0, 0, 0)), *points("b", (0, 9, 10))]
    column = Column("", ("completion",), curve("half point"))
    cells = [{"split": "1", "seed": 0, "attacks": {"completion": {"rows": [x.row for x in flat]}}}]
    assert besieged.text(column, cells, "edited", 100) == "20.0 [0.0, > 20]"
    assert besieged.text(column, cells, "random", 100) == "–"
    assert curve("area")(points("a", (0, 1, 2))[:1], 100) is None


def test_ranks_have_a_median():
    some = [trial(c, [0], measured={"rank": r}) for c, r in zip("abc", (1, 2, 90), strict=True)]
    assert rank(some, 100).value == 2
    assert rank([], 100) is None


def test_a_medians_interval_is_of_ordered_values_by_the_sign_test():
    assert (middle([7, 1, 3]).value, middle([7, 1, 3]).ends) == (3, (1, 7))
    assert middle([4.0]).low is None
    for k in range(2, 40):
        found = middle(list(range(k, 0, -1)))
        r = int(found.low)
        assert (found.value, found.high) == ((k + 1) // 2, k + 1 - r)
        outside = [2 * sum(math.comb(k, i) for i in range(n)) / 2**k for n in (r, r + 1)]
        assert outside[0] <= 0.05 or (r == 1 and k < 6)
        assert outside[1] > 0.05


# -- tables --------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """Cells of attacks on three edits, and of the benchmark on one of them, made up."""
    common = {"protocol": "emoji-objects-2 1", "base": "b", "judge": "j", "sampler": "s"}
    for method, gone in ((UNEDITED, 1), ("ap", 0), ("esd", 1)):
        role = "base" if method == UNEDITED else "edited"
        rows = [
            {"role": role, "concept": c, "hits": [1, 1] if method == UNEDITED else [gone, 0]}
            for c in ("church", "wolf")
        ]
        more = [{**r, "role": "random"} for r in rows[:1]] if method == "ap" else []
        attacks = {
            "none": {"settings": {}, "rows": rows, "evaluations": 1200},
            "inversion": {"settings": {"updates": 3}, "rows": rows + more},
            "rephrase": {"settings": {}, "refused": "no"},
        }
        row = {**common, "split": "1", "method": method, "seed": 0, "erased": ["church", "wolf"]}
        row |= {"config": None if method == UNEDITED else {"eta": 1.0}, "redraws": 2}
        row |= {"attacks": attacks, "controls": ["random"] if method == "ap" else []}
        (tmp_path / f"emoji-attacks-1-{method}-0.json").write_text(json.dumps(row))
    held = besieged.load("emoji-objects-2").held_out[:20]
    hits = {c: [[0, 0, 0, 1], [0, 1, 1, 1]] for c in ("church", "wolf")}
    hits |= {c: [[1, 1, 1, i % 2], [1] * 4] for i, c in enumerate(held)}
    own = {**common, "split": "1", "method": "ap", "seed": 0, "erased": ["church", "wolf"]}
    own |= {"hits": hits, "config": {"eta": 1.0}, "scores": {}, "updates": 400}
    (tmp_path / "emoji-objects-2-1-ap-0.json").write_text(json.dumps(own))
    return tmp_path


def test_the_table_is_what_the_files_hold(results):
    found = read(results, "emoji-attacks")
    assert list(found) == [UNEDITED, "ap", "esd"]
    said = markdown(results, "emoji-attacks")
    assert said.startswith("Split 1: church, wolf.")
    lines = {x.split(" | ")[0].strip("| *"): x.split(" | ") for x in said.splitlines()}
    half = str(rate()(trials(found["esd"], "none", "edited"), 100))
    assert lines["ESD"][2] == half
    assert lines["ESD"][3] == "–"  # refused
    assert lines["AP, ours"][6] == str(rate()(trials(found["ap"], "inversion", "edited"), 100))
    control = next(x for k, x in lines.items() if k.startswith("control on AP, ours: no search"))
    assert (control[2], control[6]) == ("–", "0.0")
    kept = joined(results, "emoji-objects-2", found["ap"])
    assert kept[0].startswith("25.0 [")  # it is among five guesses in three of four pictures
    assert kept[1].startswith("87.5 [")
    assert [x.strip(" |") for x in lines["AP, ours"][-3:]] == kept
    assert joined(results, "emoji-objects-2", found["esd"]) == ["–"] * 3
    short = brief(results, "emoji-attacks")
    assert "text, worst of three" in short
    assert len(short) < len(said)


def test_the_captions_say_of_how_many_cells_the_weights_are_the_benchmarks(results):
    assert "(in 1 of 1 cells of the very same weights" in markdown(results, "emoji-attacks")
    path = results / "emoji-attacks-1-ap-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"edit": "another"}))
    for table in (markdown, brief):
        assert "(in 0 of 1 cells of the very same weights" in table(results, "emoji-attacks")


def test_what_was_made_with_other_settings_is_not_joined(results):
    path = results / "emoji-objects-2-1-ap-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": {"eta": 4.0}}))
    found = read(results, "emoji-attacks")
    assert joined(results, "emoji-objects-2", found["ap"]) == ["–"] * 3


def test_cells_that_do_not_belong_together_are_refused(results):
    path = results / "emoji-attacks-1-esd-0.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"redraws": 8}))
    assert "differ in one of: protocol, base, judge" in refused(read, results, "emoji-attacks")
    row["attacks"]["inversion"]["settings"] = {"updates": 4}
    path.write_text(json.dumps(row))
    assert "settings of inversion" in refused(markdown, results, "emoji-attacks")


def test_no_result_is_said(tmp_path):
    assert "efface bench emoji-attacks" in refused(read, tmp_path, "emoji-attacks")
    assert "No result yet" in markdown(tmp_path, "emoji-attacks")
    assert brief(tmp_path, "emoji-attacks") == ""


def test_the_front_table_has_what_attacks_bring_back(results, tmp_path):
    found = aside(results, "emoji-attacks")
    lines = brief(results, "emoji-attacks").splitlines()
    heads = lines[0].strip("| ").split(" | ")
    by = {x.split(" | ")[0].strip("| *"): x.split(" | ") for x in lines[2:] if x.startswith("|")}
    at = [heads.index("inversion"), heads.index("relearn, half point (updates)")]
    for method, name in (("unedited", "unedited"), ("ap", "AP, ours"), ("esd", "ESD")):
        plain = [by[name][i].partition(" [")[0].partition(" (")[0] for i in at]
        assert found.cells[method] == plain
    assert "no search, random artefacts, 0.0 and " in found.said
    second = json.loads((results / "emoji-attacks-1-ap-0.json").read_text()) | {"seed": 1}
    (results / "emoji-attacks-1-ap-1.json").write_text(json.dumps(second))
    more = aside(results, "emoji-attacks").cells  # ESD was attacked in other concepts than AP then
    assert set(more) == {UNEDITED, "ap"}
    assert aside(tmp_path / "none", "emoji-attacks").heads == ()
