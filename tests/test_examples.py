"""What `examples/` shows is so."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import ImageChops

import efface
from efface import api
from efface.training import anchors

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def church(tmp_path_factory):
    """The names that the notebook leaves behind, after a run with two small updates."""
    small = {"latents": efface.Bank(ddim_steps=3, trajectories=1), "search": efface.Random()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "erase", partial(api.erase, **small))
        patch.setattr(anchors, "MOST", 8)
        patch.setenv("EFFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("EFFACE_UPDATES", "2")
        patch.setenv("EFFACE_STEPS", "2")
        patch.setenv("EFFACE_PICTURES", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.chdir(tmp_path_factory.mktemp("church"))
        names = runpy.run_path(str(EXAMPLES / "church.py"))
        names["home"] = Path.cwd()
    return names


def differ(one, other):
    return ImageChops.difference(one, other).getbbox() is not None


@pytest.mark.slow
def test_the_pipeline_draws_as_before_behind_the_block(church):
    assert not differ(church["before"], church["again"])
    assert differ(church["before"], church["after"])
    assert differ(church["half"], church["after"])


@pytest.mark.slow
def test_the_merged_pipeline_draws_what_the_edit_drew(church):
    assert not differ(church["merged"], church["after"])


@pytest.mark.slow
def test_the_notebook_leaves_an_edit_and_a_lora(church):
    edit = efface.Edit.load(church["home"] / "runs" / "church")
    assert edit.digest == church["edit"].digest
    assert [c["name"] for c in edit.meta["concepts"]] == ["church", "wolf"]
    assert edit.meta["config"]["updates"] == 2
    pipe = StableDiffusionPipeline.from_pretrained(church["folder"])
    before = {k: w.clone() for k, w in pipe.unet.named_parameters()}
    pipe.load_lora_weights(church["home"] / "runs" / "church" / "lora.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert any(not torch.equal(w, before[k]) for k, w in pipe.unet.named_parameters())
    assert 0 <= church["left_out"] < 1


@pytest.mark.slow
def test_the_notebook_says_scores_with_their_intervals(church):
    scores = church["scores"]
    assert scores.psr1.low <= scores.psr1.value <= scores.psr1.high
    assert scores.psr1.n == 6
