"""Questions and answers: what is scored, by whom, and where the answer is kept."""

import dataclasses
import json
import re

import pytest
import torch
from conftest import CLOTHES as NAMES
from conftest import TOLD, shaken

import efface
from efface.cli.main import main
from efface.cli.score import print_scores
from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.evaluate import samples_folder
from efface.evaluation.judges.emoji import EmojiJudge
from efface.evaluation.measure import measure
from efface.evaluation.metrics import METRICS, Given, Metric, esr, psr, see
from efface.evaluation.protocols import Protocol, load
from efface.evaluation.samples import Samples, Wanted
from efface.evaluation.scoring import Question, ask, asked_of, keep, scored, scores_file
from efface.evaluation.sensitivity import INSTRUMENTS, Look
from efface.models import load as load_model
from efface.scores import Score


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(clothes_folder):
    return clothes_folder


@pytest.fixture(scope="module")
def clothes(folder):
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def edit(clothes):
    concepts = [{**Concept("coat", synonyms=("shirt",)).to_json()}]
    meta = {"base": clothes.base, "model": clothes.name, "concepts": concepts, "method": "mine"}
    return Edit(shaken(clothes, by=3.0), meta, base=clothes)


def refused(call, *args, **named):
    with pytest.raises(UserError) as e:
        call(*args, **named)
    assert "\n" not in str(e.value)
    return str(e.value)


# -- efface.score --------------------------------------------------------------------------------


def test_scores_are_those_of_the_pictures(clothes, folder, edit, tmp_path):
    found = efface.score(clothes, edit, pictures=3, keep_in=tmp_path / "run")
    samples = Samples.open(tmp_path / "run" / "samples")
    assert (samples.settings.steps, samples.settings.guidance) == (2, 2.0)
    assert {w.prompt for w in samples.rows} == {f"a photo of a {n}" for n in NAMES if n != "shirt"}
    base = Samples.open(next((tmp_path / "cache" / "unedited").iterdir()))
    judge = EmojiJudge.load(folder / "judge")
    now, was = (see(dataclasses.replace(s, rows=samples.rows), judge) for s in (samples, base))
    others = ["dress", "bag", "boot", "hat"]
    assert found.esr1 == found.table["ESR-1"] == esr(now, ["coat"], 1)
    assert (found.psr1, found.psr5) == (psr(now, others, 1), psr(now, others, 5))
    assert found.neighbours1 == psr(now, ["dress", "hat"], 1)
    assert found.unedited["PSR-1"] == psr(was, others, 1)
    assert found.psr1.low < found.psr1.value + 1e-9
    assert found.table["drift, retained"].value > 0
    assert "drift" not in " ".join(found.unedited)
    fall = found.psr1.value - found.unedited["PSR-1"].value
    assert found.difference["PSR-1"].value == pytest.approx(fall)
    slow = {n: int((was.of([n]).top1.int() - now.of([n]).top1.int()).sum()) for n in others}
    worst = sorted((n for n in others if slow[n] > 0), key=lambda n: (-slow[n], n))
    assert found.worst == worst
    (kept,) = (tmp_path / "run").glob("scores-protocol-*.json")
    told = json.loads(kept.read_text())
    assert told == json.loads(json.dumps(found.to_json()))
    assert told["judge"] == f"clothes-1 {judge.sha256}"
    assert told["protocol"].startswith("protocol ")
    assert (told["pictures"], told["erased"]) == (3, ["coat"])
    assert told["edited"]["PSR-1"] == found.psr1.to_json()
    assert set(told["concepts"]) == {"coat", *others}


@pytest.mark.slow
def test_a_pipeline_is_scored_as_it_is(folder, clothes):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    before = {k: w.clone() for k, w in pipe.unet.state_dict().items()}
    found = efface.score(pipe, concepts=["bag", "hat"], pictures=1)
    assert found == efface.score(clothes, concepts=["bag", "hat"], pictures=1)
    assert (found.esr1, found.difference, found.worst) == (None, {}, [])
    assert found.psr1.n == 2
    assert found.table is found.unedited
    assert list(found.to_json())[-2:] == ["only", "unedited"]
    assert all(torch.equal(w, before[k]) for k, w in pipe.unet.state_dict().items())


def test_only_what_is_erased_can_be_scored(clothes, edit):
    told = Protocol(**{**TOLD, "name": "few", "preserved": ["coat"]})
    found = efface.score(clothes, edit, told, pictures=1)
    assert found.esr1.n == 1
    assert (found.psr1, found.difference) == (None, {})


def test_what_cannot_be_scored_is_said_before_a_picture_is_made(tiny, clothes, edit, tmp_path):
    assert "holds no protocol.json" in refused(efface.score, tiny)
    assert "did you mean 'hat'" in refused(efface.score, clothes, edit, concepts="hatt")
    assert "'shirt' is erased by this edit" in refused(
        efface.score, clothes, edit, concepts="shirt"
    )
    for n in (0, -1, 10**9):
        assert f"got {n} for pictures" in refused(efface.score, clothes, edit, pictures=n)
    assert "give --prompts FILE" in refused(efface.score, clothes, edit, "coco")
    assert "it takes no file" in refused(efface.score, clothes, edit, prompts=tmp_path / "a.csv")
    wrong = Edit({"nothing": torch.zeros(1)}, edit.meta)
    assert "another architecture" in refused(efface.score, clothes, wrong)
    assert "no edit at" in refused(efface.score, clothes, tmp_path / "nothing")
    bad = Protocol(**{**TOLD, "name": "bad", "judge": "clothes-2"})
    assert "The model's folder brings 'clothes-1'" in refused(efface.score, clothes, edit, bad)
    assert not (tmp_path / "cache").exists()


# -- files of answers ----------------------------------------------------------------------------


def test_an_edit_of_styles_of_the_shipped_model_is_scored_by_styles(emoji, clothes):
    def question(model, *kinds):
        concepts = [Concept(f"a {k}", kind=k).to_json() for k in kinds]
        return ask(model, edit=Edit({}, {"concepts": concepts}))

    assert question(emoji, "style", "style").protocol.name == "emoji-styles"
    assert question(emoji, "style").own
    for kinds in (("object",), ("style", "object"), ()):
        assert question(emoji, *kinds).protocol == ask(emoji).protocol
    assert question(clothes, "style").protocol == ask(clothes).protocol


def test_every_question_has_its_own_file(clothes, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,evaluation_seed\na,1\n")
    (tmp_path / "q.csv").write_text("prompt,evaluation_seed\nb,1\n")
    mine = Protocol(**{**TOLD, "name": "../my own"})
    renamed = {**TOLD, "metrics": ["esr", "psr"]}
    questions = [
        ask(clothes),
        ask(clothes, pictures=8),
        ask(clothes, steps=3),
        ask(clothes, concepts=("hat",)),
        ask(clothes, concepts=("hat", "bag")),
        ask(clothes, Protocol(**{**renamed, "name": "other"})),
        ask(clothes, Protocol(**{**renamed, "steps": 3, "name": "other"})),
        ask(clothes, "emoji-objects"),
        ask(clothes, "emoji-objects", pictures=2),
        ask(clothes, Protocol(**{**renamed, "name": "emoji-objects"})),
        ask(clothes, "coco", prompts=tmp_path / "p.csv"),
        ask(clothes, "coco", prompts=tmp_path / "q.csv"),
        ask(clothes, "coco", prompts=tmp_path / "p.csv", limit=1),
        ask(clothes, "coco", prompts=tmp_path / "p.csv", clip="emoji"),
    ]
    names = [scores_file(q) for q in questions]
    assert len(set(names)) == len(names)
    assert names[0] == scores_file(ask(clothes, mine)) == "scores.json"
    assert names[7] == "scores-emoji-objects.json"
    long = scores_file(ask(clothes, Protocol(**{**renamed, "name": "a" * 99})))
    assert re.fullmatch(r"scores-a{60}-[0-9a-f]{8}\.json", long)
    assert scores_file(ask(clothes, concepts=("bag", "hat"))) == names[4]
    for name in names:
        assert "/" not in name
        assert name.startswith("scores")
        assert name.endswith(".json")


def test_a_part_does_not_replace_the_whole(clothes, edit, tmp_path):
    whole, part = ask(clothes, pictures=4), ask(clothes, concepts=("hat",), pictures=4)
    first = keep(scored(clothes, edit, whole, tmp_path, progress=False), whole, tmp_path)
    told = first.read_text()
    second = keep(scored(clothes, edit, part, tmp_path, progress=False), part, tmp_path)
    assert first.name == "scores.json"
    assert first.read_text() == told
    assert json.loads(second.read_text())["only"] == ["hat"]


def test_pictures_of_other_settings_have_another_folder(clothes, edit, tmp_path):
    scored(clothes, edit, ask(clothes, pictures=1), tmp_path, progress=False)
    found = scored(clothes, edit, ask(clothes, pictures=1, steps=3), tmp_path, progress=False)
    assert "3 steps" in found.about["sampler"]
    folders = sorted(p.name for p in tmp_path.glob("samples*"))
    assert folders == ["samples", "samples-DDIMScheduler-3-2-8x8-float32"]
    own = load(str(clothes.folder / "protocol.json"))
    assert samples_folder(tmp_path, clothes, own, 2) == tmp_path / "samples"


@pytest.mark.slow
def test_the_commands_use_the_models_own_and_keep_every_answer(folder, tmp_path, capsys):
    run, mine, prompts = tmp_path / "run", tmp_path / "mine.json", tmp_path / "p.csv"
    prompts.write_text("prompt,seed\na coat,1\na hat,2\n")
    source = {"file": "p.csv", "prompt": "prompt", "seed": "seed"}
    told = {"source": source, "metrics": ["clip", "drift"], "steps": 2}
    mine.write_text(json.dumps({**told, "pictures": {"erased": 1, "preserved": 1}}))
    erase = ["erase", "uce", "--concept", "coat", "--model", str(folder), "--no-picture"]
    assert main([*erase, "--out", str(run)]) == 0
    assert main(["score", str(run)]) == 0
    whole = (run / "scores.json").read_text()
    assert main(["score", str(run), "--concept", "hat"]) == 0
    by_file = ["--protocol", str(mine), "--prompts", str(prompts), "--clip", "emoji"]
    assert main(["score", str(run), *by_file]) == 0
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "scores.json").read_text() == whole
    assert len(list(run.glob("scores-*.json"))) == 2
    page = (run / "report.html").read_text()
    assert page.count("By strength") == 1
    half = json.loads((run / "strength-0.5" / "scores.json").read_text())
    for s, side in (("0", "unedited"), ("1", "edited")):
        esr1 = Score(**json.loads(whole)[side]["ESR-1"])
        assert f"<tr><td>{s}</td><td>{esr1}</td>" in page
    assert f"<tr><td>0.5</td><td>{Score(**half['edited']['ESR-1'])}</td>" in page
    made = {p: p.stat().st_mtime_ns for p in run.rglob("*.png")}
    assert {p.parts[-3] for p in made} == {"run", "strength-0.5"}
    assert main(["report", str(run), "--strength", "0.25"]) == 0  # the others' are there
    assert made.items() <= {p: p.stat().st_mtime_ns for p in run.rglob("*.png")}.items()
    assert "<tr><td>0.25</td>" in (run / "report.html").read_text()
    elsewhere = run.parent / "new" / "deep" / "page.html"
    assert main(["report", str(run), "--no-curve", "--out", str(elsewhere)]) == 0
    assert "By strength" not in elsewhere.read_text()
    capsys.readouterr()
    assert main(["score", str(run), "--strength", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["edited"] == half["edited"]
    assert "clothes-1" in page
    assert "CLIP score (tiny CLIP of emoji" in page
    assert main(["score", str(run), "--protocol", str(mine), "--prompts", str(prompts)]) == 2
    assert "the shipped CLIP knows emoji drawings only" in capsys.readouterr().err


# -- metrics -------------------------------------------------------------------------------------


class Brightness(Metric):
    """How light the pictures are: a metric of somebody else's."""

    name, better, unit = "brightness", "neither", "% of the range"

    def measure(self, given: Given):
        x = given.samples.images()
        return {"brightness": Score(100 * float(x.mean()), 0, 100, len(x))}


@pytest.fixture
def brightness(monkeypatch):
    monkeypatch.setattr(METRICS, "_found", {**METRICS.known, "brightness": Brightness})


def test_a_metric_of_ones_own_is_asked_wherever_a_protocol_names_it(clothes, edit, brightness):
    told = Protocol(**{**TOLD, "name": "light", "metrics": ["brightness"]})
    found = efface.score(clothes, edit, told, pictures=1)
    assert list(found.table) == list(found.unedited) == ["brightness"]
    assert found.table["brightness"].value != found.unedited["brightness"].value
    assert found.hits == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["esr"], "judge": ""}, "'esr' needs a judge; the protocol 'few' names none"),
        ({"metrics": ["clip"]}, "the shipped CLIP knows emoji drawings only"),
        ({"metrics": ["lpips"]}, r"'lpips' needs the package 'lpips', which is not installed: pip"),
        ({"metrics": ["nudity"]}, "'nudity' needs the package 'nudenet', which is not installed"),
    ],
)
def test_what_a_metric_lacks_is_said_before_a_picture_is_made(tiny, tmp_path, change, message):
    told = Protocol(**{**TOLD, "name": "few", **change})
    assert message in refused(measure, tiny, None, None, told, [Wanted("a", 0, "coat")])
    assert not (tmp_path / "cache").exists()


def test_too_few_pictures_for_a_distance_and_prompts_without_concepts(tiny, clothes):
    few = Protocol("few", metrics=("fid",))
    wanted = [Wanted("a", s, "") for s in range(19)]
    said = refused(measure, tiny, None, None, few, wanted, {"clip": "emoji"})
    assert "'fid' takes at least 20 pictures; here are 19" in said
    asks = Protocol("few", metrics=("psr",), judge="clothes-1")
    assert "the prompts say none" in refused(measure, clothes, None, None, asks, wanted)
    assert "asks for no picture" in refused(measure, clothes, None, None, asks, [])


# -- sensitivity ---------------------------------------------------------------------------------


def test_the_picture_instrument_uses_the_models_own_protocol(clothes, edit, tmp_path):
    look = Look(clothes, edit, NAMES, pictures=2, home=tmp_path, clip="emoji")
    found = INSTRUMENTS["picture"](look)
    assert found.words == NAMES
    samples = Samples.open(tmp_path / "samples")
    assert {w.prompt for w in samples.rows} == {f"a photo of a {n}" for n in NAMES}
    assert samples.settings.steps == 2
    said = refused(INSTRUMENTS["picture"], dataclasses.replace(look, clip=""))
    assert "the shipped CLIP knows emoji drawings only" in said


def test_the_picture_instrument_of_a_model_without_a_protocol_asks_for_the_word(tiny, tmp_path):
    own = Edit(shaken(tiny), {"base": tiny.base, "model": tiny.name, "concepts": []})
    INSTRUMENTS["picture"](Look(tiny, own, NAMES[:2], pictures=1, home=tmp_path, clip="emoji"))
    samples = Samples.open(tmp_path / "samples")
    assert {w.prompt for w in samples.rows} == {"coat", "dress"}
    assert samples.settings.steps == tiny.steps


def test_one_picture_of_a_concept_is_too_few_for_the_worst_tenth():
    one = Question(load("emoji-objects-2"), False, pictures=1)
    with pytest.raises(UserError, match="2 or more"):
        asked_of(one, None, None)


def test_scores_of_a_part_of_an_edit_or_of_half_precision_are_not_taken_for_the_runs(
    clothes, folder, edit, tmp_path
):
    from efface.cli.runfolder import scores_of

    run = tmp_path / "run"
    edit.save(run)
    whole = {"protocol": folder / "protocol.json", "pictures": 4, "keep_in": run}
    half = efface.score(clothes, edit.scaled(0.5, clothes), **whole)
    assert scores_of(run, edit) is None
    assert scores_of(run, edit, 0.5)["edited"] == half.to_json()["edited"]
    efface.score(clothes, **whole)
    assert scores_of(run, edit) is None
    full = efface.score(clothes, edit, **whole)
    rounded = efface.score(load_model(folder, "bf16", device="cpu"), edit, **whole)
    assert {p.name for p in run.glob("*.json")} == {"scores.json", "scores-bf16.json"}
    assert scores_of(run, edit)["edited"] == full.to_json()["edited"]
    assert rounded.unedited != full.unedited or rounded.edited != full.edited
    own = tmp_path / "own"
    edit.scaled(0.5, clothes).save(own)  # a run whose edit is that
    efface.score(clothes, Edit.load(own), **{**whole, "keep_in": own})
    assert (own / "scores.json").exists()


def test_scores_of_the_unedited_model_have_one_column(capsys):
    score = {"value": 90.0, "low": 80.0, "high": 95.0, "n": 4, "counts": "concepts"}
    print_scores({"unedited": {"PSR-1": score}})
    head, _, row = capsys.readouterr().out.splitlines()[:3]
    assert head.split("  ")[-1].strip() == "n"
    assert head.count("unedited") == 1
    assert "difference" not in head
    assert row.split() == ["PSR-1", "90.0", "[80.0,", "95.0]", "4", "concepts"]
    print_scores({"unedited": {"PSR-1": score}, "edited": {"PSR-1": score}, "difference": {}})
    assert capsys.readouterr().out.splitlines()[0].split()[-4:] == [
        *("edited", "unedited", "difference", "n"),
    ]
