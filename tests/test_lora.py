"""An edit as a LoRA, loaded by stock diffusers."""

import dataclasses
import json
import re

import families
import pytest
import torch
from conftest import CHURCH, QUIET, quick, shaken
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from efface.cli.main import main
from efface.edits.edit import Edit
from efface.edits.lora import factorise, kohya, save
from efface.errors import UserError
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import load


def moved(tiny, words):
    """An edit of rank 4 that shows in pictures."""
    method = quick(ESD.presets()["lora"], words, updates=3)
    return dataclasses.replace(method, lr=0.05).erase(tiny, [CHURCH], QUIET)


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_low_rank_edit_loads_exactly_in_a_stock_pipeline_and_unloads(
    tiny, tiny_folder, words, tmp_path, form
):
    pytest.importorskip("peft")
    edit = moved(tiny, words)
    lora = factorise(tiny, edit, 4)
    assert lora.error < 1e-5
    save(tiny, lora, tmp_path / "church.safetensors", form)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def picture():
        g = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 3, "generator": g, "output_type": "pt"}
        return pipe("church", height=8, width=8, **options).images

    before = picture()
    pipe.load_lora_weights(tmp_path, weight_name="church.safetensors")
    with_lora = picture()
    pipe.unload_lora_weights()
    assert torch.equal(picture(), before)
    own = dict(pipe.unet.named_parameters())
    for k, w in edit.weights.items():
        own[k].data.copy_(w)
    merged = picture()
    assert (merged - before).abs().max() > 1e-3
    torch.testing.assert_close(with_lora, merged, rtol=1e-3, atol=1e-4)


def test_kohyas_names_carry_alpha_equal_to_the_rank(tiny, words):
    tensors = factorise(tiny, moved(tiny, words), 4).tensors
    found = kohya(tiny, tensors)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"} <= set(found)
    assert len(found) == len(tensors) * 3 // 2
    for k in found:
        if k.endswith(".alpha"):
            assert found[k].item() == len(found[k.replace(".alpha", ".lora_down.weight")])


def test_the_error_of_a_rank_is_what_the_singular_values_leave(tiny, words):
    edit = quick(UCE(), words).erase(tiny, [CHURCH], QUIET)
    own = tiny.parameters()
    values = [torch.linalg.svdvals((w - own[k]).double()) for k, w in edit.weights.items()]
    whole = sum(float(s.square().sum()) for s in values)
    lost = sum(float(s[1:].square().sum()) for s in values)
    assert factorise(tiny, edit, 1).error == pytest.approx((lost / whole) ** 0.5, abs=1e-6)
    assert factorise(tiny, edit, 16).error < 1e-5


def test_what_a_lora_cannot_hold_counts_as_lost(tiny):
    biases = {k: w for k, w in shaken(tiny, by=1.0).items() if w.ndim == 1}
    assert biases
    lora = factorise(tiny, Edit(biases, {"base": tiny.base}), 4)
    assert (lora.error, lora.never) == (1, 1)
    both = factorise(tiny, Edit(shaken(tiny), {"base": tiny.base}), 1)
    assert 0 < both.never < both.error < 1


def test_a_learned_token_is_no_layer_and_counts_as_lost():
    """Z-Image has two, matrices of one row: every loader drops them."""
    pipe = families.build("z-image")
    model = load(pipe)
    edit = Edit(shaken(model, "full"), {"base": model.base})
    own, lora = model.parameters(), factorise(model, edit, 1000)
    sizes = {k: float((w - own[k]).double().square().sum()) for k, w in edit.weights.items()}
    lost = sum(v for k, v in sizes.items() if own[k].ndim == 1 or "pad_token" in k)
    assert lora.error == pytest.approx((lost / sum(sizes.values())) ** 0.5, abs=1e-6)
    layers = {n for n, m in pipe.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    named = {k.removeprefix("transformer.").rpartition(".lora_")[0] for k in lora.tensors}
    assert named == layers


def test_an_edit_of_which_a_lora_holds_nothing_is_not_written(tiny, tmp_path):
    biases = {k: w for k, w in shaken(tiny, by=1.0).items() if w.ndim == 1}
    lora = factorise(tiny, Edit(biases, {"base": tiny.base}), 4)
    with pytest.raises(UserError, match="a LoRA can hold nothing of this edit"):
        save(tiny, lora, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_a_poor_approximation(tiny_folder, words, tmp_path, capsys):
    run = tmp_path / "run"
    erase = ["erase", "esd", "--concept", "church", "--model", str(tiny_folder), "--out", str(run)]
    small = ["--updates", "2", "--batch", "1", "--latents.ddim-steps", "2"]
    assert main([*erase, *small, "--latents.trajectories", "1", "--no-picture"]) == 0
    capsys.readouterr()
    out = tmp_path / "a.safetensors"
    assert main(["lora", str(run), str(out), "--rank", "1", "--allow-error", "0.2"]) == 2
    assert re.search(r"leaves out .*: give a higher --rank, or --al", capsys.readouterr().err)
    assert main(["lora", str(run), str(out), "--rank", "1000", "--allow-error", "0.001"]) == 2
    assert re.search(r"no rank holds its biases.*; use efface merge", capsys.readouterr().err)
    assert not out.exists()
    assert main(["lora", str(run), str(out), "--rank", "1", "--allow-error", "1"]) == 0
    assert out.exists()
    assert main(["lora", str(run), str(out), "--rank", "1", "--allow-error", "1"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["lora", str(run), str(tmp_path / "b.safetensors"), "--form", "koya"]) == 2
    assert "did you mean 'kohya'" in capsys.readouterr().err


def test_factors_have_one_rank_whatever_the_changes_have(tiny):
    names = tiny.group("kv")[:2]
    own, g = tiny.parameters(), torch.Generator().manual_seed(0)
    weights = {}
    for rank, n in enumerate(names, 1):
        out, inner = own[n].shape
        weights[n] = own[n] + torch.randn(out, rank, generator=g) @ torch.randn(
            rank, inner, generator=g
        )
    found = factorise(tiny, Edit(weights, {"base": tiny.base}), 16)
    assert found.error < 1e-5
    assert {len(w) for k, w in found.tensors.items() if "lora_A" in k} == {2}
    for n in names:
        a, b = (found.tensors[f"unet.{n[:-7]}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(b @ a, weights[n] - own[n], rtol=1e-4, atol=1e-4)


def test_the_rounding_of_a_half_precision_base_is_no_part_of_the_change(tiny_folder, words):
    method = quick(ESD.presets()["lora"], words, updates=3)
    half, whole = (load(tiny_folder, dtype=d, device="cpu") for d in ("bf16", "fp32"))
    edit = method.erase(half, [CHURCH], QUIET)
    assert edit.meta["dtype"] == "bfloat16"
    assert factorise(whole, edit, method.rank).error < 1e-4
    name = next(iter(edit.weights))
    plain = edit.weights[name] - whole.parameters()[name]
    assert (plain - edit.change(name, whole.parameters()[name])).abs().max() > 1e-5


def test_a_lora_file_says_what_it_erases(tiny, words, tmp_path):
    save(tiny, factorise(tiny, moved(tiny, words), 4), tmp_path / "church.safetensors")
    with safe_open(tmp_path / "church.safetensors", "pt") as f:
        about = json.loads(f.metadata()["efface"])
    assert about["base"] == tiny.base
    assert [c["name"] for c in about["concepts"]] == ["church"]


def test_a_rank_below_one_is_refused(tiny, words):
    with pytest.raises(UserError, match="got 0 for rank; 1 to 10,000 is needed"):
        factorise(tiny, moved(tiny, words), 0)
