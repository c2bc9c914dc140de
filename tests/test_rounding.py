"""Edits in weights that are stored in half precision: what rounding takes, and that it is told."""

import gc
import shutil
import warnings
import weakref

import pytest
import torch
from conftest import CHURCH, same_weights, shaken
from safetensors.torch import load_file, save_file

from efface.edits import edit as edit_module
from efface.edits.edit import Edit
from efface.edits.in_place import apply
from efface.edits.merge import merge, merge_single
from efface.edits.rounding import MEASURED, Stored, lost, tell
from efface.models import load

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def half(tiny_folder, tmp_path):
    """The tiny model with its denoiser stored in bf16."""
    folder = shutil.copytree(tiny_folder, tmp_path / "half")
    weights = load_file(folder / UNET)
    save_file({k: w.bfloat16() for k, w in weights.items()}, folder / UNET, {"format": "pt"})
    return folder


def of(model, by):
    meta = {"base": model.base, "model": model.name, "method": "esd", "dtype": model.precision}
    return Edit(shaken(model, "kv", by=by), meta | {"concepts": [CHURCH.to_json()]})


def into_folder(edit, model, folder, out):
    merge(model, edit, out)


def into_file(edit, model, folder, out):
    merge_single(model, edit, out.with_suffix(".safetensors"))


def in_place(edit, model, folder, out):
    apply(folder, edit)


def in_memory(edit, model, folder, out):
    edit.merged_into(load(folder, device="cpu", dtype="bf16"))


WAYS = [into_folder, into_file, in_place, in_memory]


@pytest.mark.parametrize("way", WAYS)
def test_what_rounding_takes_of_a_small_edit_is_told(half, tmp_path, way):
    model = load(half, device="cpu")
    edit, own = of(model, by=0.002), model.parameters()
    gone = sum(float((w.bfloat16().double() - w).square().sum()) for w in edit.weights.values())
    whole = sum(float((w - own[k]).double().square().sum()) for k, w in edit.weights.items())
    share = (gone / whole) ** 0.5
    assert 0.2 < share < 1
    with pytest.warns(UserWarning, match=rf"stored in bfloat16, .* takes {share:.0%} of this"):
        way(edit, model, half, tmp_path / "out")


@pytest.mark.parametrize("way", WAYS)
def test_of_a_large_edit_nothing_is_told(half, tmp_path, way):
    model = load(half, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        way(of(model, by=1.0), model, half, tmp_path / "out")


def test_nothing_is_lost_of_no_change_and_all_of_one_below_the_steps():
    one, none = torch.ones(4, dtype=torch.bfloat16), torch.zeros(4)
    assert lost([Stored(none, one, one)]) == 0
    assert lost([Stored(none + 1e-4, one, one)]) == pytest.approx(1)
    assert lost([Stored(none + 1, one, one + 1), Stored(none, one, one)]) == 0


def test_an_edit_made_in_half_precision_leaves_the_base_as_exact_as_it_is(
    tiny_folder, tiny, tmp_path
):
    """Its own values are the base's rounded: merged as they are, all of its weights lose digits."""
    edit = of(load(tiny_folder, device="cpu", dtype="bf16"), by=0.002)
    own = tiny.parameters()
    meant = {k: own[k] + edit.change(k, own[k]) for k in edit.weights}
    assert not same_weights(meant, edit.weights)
    assert same_weights(edit.on(tiny), meant)
    merged = load_file(merge(tiny, edit, tmp_path / "out") / UNET)
    assert same_weights({k: merged[k] for k in meant}, meant)
    folder = shutil.copytree(tiny_folder, tmp_path / "in place")
    apply(folder, edit)
    assert same_weights(load_file(folder / UNET), merged)
    rounded = load(tiny_folder, device="cpu", dtype="bf16")
    assert same_weights(edit.on(rounded), edit.weights)


def test_rounding_is_measured_once_where_the_weights_are_and_holds_on_to_no_model(
    tiny_folder, monkeypatch
):
    model = load(tiny_folder, device="cpu", dtype="bf16")
    edit, seen = of(model, by=0.002), []

    def watched(weights):
        seen.append([(w.change.device, w.own.dtype) for w in weights])
        return 0.0

    monkeypatch.setattr(edit_module, "lost", watched)
    for strength in (1.0, 1.0, 0.5, 1.0):
        with edit.applied(model, strength):
            pass
    k = len(edit.weights)
    assert [len(s) for s in seen] == [k, 0, k, 0]
    edit.scaled(0.5, model).merged_into(model)  # another edit
    assert len(seen[-1]) == k
    denoiser = weakref.ref(model.denoiser)
    assert denoiser() in MEASURED
    n = len(MEASURED)
    del model, edit
    gc.collect()
    assert denoiser() is None
    assert len(MEASURED) < n


@pytest.mark.parametrize(("kind", "wider"), [("bfloat16", "fp32 or fp16"), ("float16", "fp32")])
def test_no_precision_is_recommended_that_the_weights_have_already(kind, wider):
    with pytest.warns(UserWarning, match=rf"stored in {kind}, .* in {wider}, or use it as a LoRA"):
        tell(0.5, "it", getattr(torch, kind))
