"""Protocols whose prompts come from a file, on a tiny model."""

import json
import zipfile

import pytest
import torch
from conftest import shaken

from efface.cli.main import main
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.judges.imagenet import ImageNetJudge
from efface.evaluation.measure import measure, wanted_of
from efface.evaluation.metrics import drift
from efface.evaluation.metrics.nudity import LABELS
from efface.evaluation.protocols import Protocol, load
from efface.evaluation.samples import Samples

CSV = "prompt,evaluation_seed,artist\n" + "".join(
    f'"a {w}, drawn",{100 + i},{a}\n'
    for i, (w, a) in enumerate(
        (w, a) for a in ("Anna", "Ben") for w in ("dog", "church", "red house", "moon", "cow")
    )
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "artists.csv").write_text(CSV)
    return tmp_path / "artists.csv"


def protocol(**changes):
    told = {**load("artists").__dict__, "steps": 2, "guidance": 2.0}
    told |= {"pictures": {"erased": 1, "preserved": 1}}
    return Protocol(**{**told, **changes})


def test_prompts_come_from_a_csv_or_from_one_inside_a_wheel(prompts, tmp_path):
    p = protocol()
    rows = p.listed(prompts)
    assert len(rows) == 10
    assert rows[0] == ("a dog, drawn", 100, "Anna")
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as z:
        z.writestr("data/prompts/artists.csv", CSV)
    assert p.listed(tmp_path / "some.whl") == rows
    several = protocol(pictures={"erased": 3, "preserved": 3})
    wanted = wanted_of(several, prompts, limit=2)
    assert [w.seed for w in wanted] == [100, 101, 102, 101, 102, 103]


def test_files_that_do_not_fit_are_refused(prompts, tmp_path):
    p = protocol()
    with pytest.raises(UserError, match="cannot read the prompt file"):
        p.listed(tmp_path / "nothing.csv")
    (tmp_path / "a.csv").write_text("prompt,seed\na,1\n")
    with pytest.raises(UserError, match="has no column 'evaluation_seed'"):
        p.listed(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("prompt,evaluation_seed,artist\na,x,b\n")
    with pytest.raises(UserError, match="has the seed 'x' in line 2"):
        p.listed(tmp_path / "b.csv")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as z:
        z.writestr("other.csv", CSV)
    with pytest.raises(UserError, match=r"holds no file 'artists\.csv'"):
        p.listed(tmp_path / "c.zip")


def test_every_metric_of_a_protocol_is_answered_by_its_full_name(tiny, prompts, tmp_path):
    edit = Edit(shaken(tiny, by=1.0), {"base": tiny.base, "concepts": [{"name": "Anna"}]})
    p = protocol(metrics=["clip", "drift", "lpips", "kid", "cmmd", "fid", "nudity"])
    p = Protocol(**{**p.__dict__, "pictures": {"erased": 2, "preserved": 2}})
    wanted = wanted_of(p, prompts)

    class Detector:
        def detect(self, path):
            return [{"class": LABELS[0], "score": 0.55}]

    def net(a, b):
        return (a - b).abs().mean((1, 2, 3))

    tools = {"clip": "emoji", "nudenet": (Detector(), None), "lpips": net}
    scores = measure(tiny, edit, tmp_path / "s", p, wanted, tools)
    names = " ".join(scores)
    assert "CLIP score, erased (tiny CLIP" in names
    assert "CLIP score, retained (tiny CLIP" in names
    assert "KID to the unedited (tiny CLIP" in names
    assert "CMMD to the unedited (tiny CLIP" in names
    assert "FID to the unedited" in names
    taus = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    assert [n for n in scores if n.startswith("NER")] == [f"NER-{t}" for t in taus]
    assert scores["NER-0.5"].value == 100
    assert scores["NER-0.6"].value == 0
    assert scores["LPIPS, retained"].n == 5
    base = Samples.open(next((tmp_path / "cache" / "unedited").iterdir()))
    own = Samples.open(tmp_path / "s")
    retained = [i for i, w in enumerate(own.rows) if w.concept == "Ben"]
    x, y = (s.images()[retained] for s in (own, base))
    slow = drift(x, y, [own.rows[i].prompt for i in retained])
    assert scores["drift, retained"] == slow
    assert slow.value > 0
    plain = measure(tiny, None, None, p, wanted, tools)
    assert not any("drift" in n or "KID" in n for n in plain)


@pytest.mark.slow
def test_the_command_scores_by_a_prompt_file(tiny_folder, prompts, tmp_path, capsys):
    path = tmp_path / "mine.json"
    told = {"source": dict(load("coco").source), "metrics": ["clip"], "steps": 2}
    path.write_text(json.dumps(told))
    clip = ["--clip", "emoji"]
    args = ["score", "unedited", "--model", str(tiny_folder), "--protocol", str(path)]
    assert main(args) == 2
    assert "give --prompts FILE" in capsys.readouterr().err
    assert main([*args, *clip, "--prompts", str(prompts), "--limit", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == 3 * 20
    assert next(iter(found["scores"])).startswith("CLIP score (tiny CLIP")
    assert main(["bench", str(path)]) == 2
    assert "reads its prompts from a file" in capsys.readouterr().err


def test_an_imagenet_judge_says_what_is_missing():
    with pytest.raises(UserError, match="unknown ImageNet judge"):
        ImageNetJudge("vgg")


@pytest.mark.parametrize("index", ["1000", "-1", "church", ""])
def test_a_class_that_there_is_not_is_never_seen_and_refused(index):
    with pytest.raises(UserError, match="'church' no ImageNet class: add its index, 0 to 999"):
        ImageNetJudge.label(None, "church", labels={"church": index})
    assert ImageNetJudge.label(None, "church", labels={"church": "999"}) == 999


def test_resnet_sees_pictures_in_the_range_that_it_learnt():
    judge = object.__new__(ImageNetJudge)
    judge.version, judge.side, judge.crop = "imagenet-resnet50-v2", 224, 232
    seen = judge.prepared(torch.full((1, 3, 300, 400), 0.5))
    assert seen.shape == (1, 3, 224, 224)
    want = [(0.5 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert seen.mean((0, 2, 3)).tolist() == pytest.approx(want, abs=1e-4)


def test_efficientnet_judges_photographs_and_reads_labels_by_index():
    pytest.importorskip("efficientnet_lite_pytorch")
    judge = ImageNetJudge("effnet-lite0")
    labels = load("imagenette").labels
    assert judge.label("church", labels=labels) == 497
    with pytest.raises(UserError, match="no ImageNet class"):
        judge.label("wolf", labels=labels)
    found = judge.classify(torch.rand(2, 3, 300, 400, generator=torch.Generator().manual_seed(0)))
    assert found.concepts.shape == (2, 5)
    assert (found.concept_logprobs.exp().sum(1) <= 1 + 1e-4).all()
    assert judge.prepared(torch.rand(1, 3, 300, 400)).shape == (1, 3, 224, 224)
    framed = torch.zeros(1, 3, 512, 768)
    framed[..., 32:480, 160:608] = 1  # the middle 7/8 of the shorter side
    inside = judge.prepared(framed)[..., 3:-3, 3:-3]
    assert torch.allclose(inside, torch.ones(()), atol=0.01)
    assert judge.prepared(framed)[..., 0, :].min() < 0.9  # and no less of it
    grey = judge.prepared(torch.full((1, 3, 300, 400), 127 / 255))
    assert torch.allclose(grey, torch.zeros(()), atol=1e-5)
