import dataclasses
import json
import shutil
import warnings

import huggingface_hub
import pytest
import torch
from conftest import CHURCH, QUIET, SD14, quick, shaken
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from efface.edits.edit import Edit
from efface.edits.merge import merge
from efface.errors import UserError
from efface.methods.esd import ESD
from efface.models import Conditioning, hash_stored, load, mix, stack
from efface.models.families.stable_diffusion import StableDiffusion
from efface.testing import tiny_pipeline

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model to be broken."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def rewrite(path, change):
    """Change a safetensors file's tensors in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def reconfigure(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- loading -----------------------------------------------------------------------------------


def test_a_folder_is_opened_as_it_is(tiny_folder):
    model = load(tiny_folder, device="cpu")
    assert (model.name, model.folder) == (str(tiny_folder), tiny_folder)
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    stored = load_file(tiny_folder / "unet" / WEIGHTS["unet"])
    assert stored.keys() == model.parameters().keys()
    assert all(torch.equal(p, stored[k]) for k, p in model.parameters().items())
    assert not any(p.requires_grad for p in model.parameters().values())
    assert len(model.base) == 16


def test_the_hash_is_of_the_denoiser_alone(folder, tiny):
    rewrite(folder / "vae" / WEIGHTS["vae"], lambda t: t[min(t)].add_(1))
    assert load(folder, device="cpu").base == tiny.base
    rewrite(folder / "unet" / WEIGHTS["unet"], lambda t: t[min(t)].add_(1))
    assert load(folder, device="cpu").base != tiny.base


@pytest.mark.parametrize(("dtype", "is_"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_is_chosen_at_load_and_what_is_trained_stays_fp32(tiny_folder, words, dtype, is_):
    model = load(tiny_folder, dtype=dtype, device="cpu")
    assert model.dtype == is_
    z, t = torch.randn(1, 4, 4, 4), torch.tensor([500])
    assert model.predict(z, t, model.embed(["dog"])).dtype == torch.float32
    picture = next(model.generate(["dog"], [0], steps=2, output_type="pt"))
    assert picture.dtype == torch.float32
    assert torch.isfinite(picture).all()
    edit = quick(ESD(), words).erase(model, [CHURCH], QUIET)
    assert {w.dtype for w in edit.weights.values()} == {torch.float32}
    assert all(torch.isfinite(w).all() for w in edit.weights.values())


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_pickle_only_model_is_refused(folder, part):
    path = folder / part / WEIGHTS[part]
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"\.bin' is a pickle, which can run any code"):
        load(folder, device="cpu")


@pytest.mark.parametrize("part", WEIGHTS)
def test_missing_weights_are_named(folder, part):
    (folder / part / WEIGHTS[part]).unlink()
    with pytest.raises(UserError, match=rf"no \*\.safetensors in .*{part}"):
        load(folder, device="cpu")


@pytest.mark.parametrize("part", WEIGHTS)
def test_truncated_weights_are_refused(folder, part):
    path = folder / part / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"cannot open .*{part}.*truncated, damaged"):
        load(folder, device="cpu")


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_tensor_too_few_is_refused(folder, part):
    def drop(tensors):
        del tensors[next(k for k in sorted(tensors) if k.endswith("weight"))]

    rewrite(folder / part / WEIGHTS[part], drop)
    with pytest.raises(UserError, match="another architecture"):
        load(folder, device="cpu")


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_tensor_too_many_is_refused(folder, part):
    rewrite(folder / part / WEIGHTS[part], lambda t: t.update(more=torch.zeros(3)))
    with pytest.raises(UserError, match="another architecture"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"block_out_channels": [16, 32]}),
        ("unet", {"cross_attention_dim": 32}),
        ("vae", {"block_out_channels": [8, 16]}),
        ("text_encoder", {"hidden_size": 32}),
    ],
)
def test_weights_of_another_architecture_are_refused(folder, part, changes):
    reconfigure(folder / part / "config.json", **changes)
    with pytest.raises(UserError, match="another architecture"):
        load(folder, device="cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_are_not_finite_are_refused(folder, part, bad):
    rewrite(folder / part / WEIGHTS[part], lambda t: t[min(t)].view(-1)[:1].fill_(bad))
    with pytest.raises(UserError, match=rf"weights in .*{part}.*holds NaN or infinity"):
        load(folder, device="cpu")


def test_other_pipelines_are_refused(folder):
    reconfigure(folder / "model_index.json", _class_name="KandinskyPipeline")
    with pytest.raises(UserError, match="is a KandinskyPipeline; efface reads StableDiffusionPip"):
        load(folder, device="cpu")


def test_folders_that_are_no_model_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no diffusers model folder: no model_index\.json"):
        load(tmp_path / "empty", device="cpu")
    (folder / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="is broken JSON"):
        load(folder, device="cpu")


def test_a_missing_scheduler_is_named(folder):
    reconfigure(folder / "scheduler" / "scheduler_config.json", _class_name="NoScheduler")
    with pytest.raises(UserError, match="scheduler 'NoScheduler' is unknown to diffusers"):
        load(folder, device="cpu")
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(UserError, match="the model has no scheduler"):
        load(folder, device="cpu")


def test_a_missing_tokenizer_is_named(folder):
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match="tokenizer"):
        load(folder, device="cpu")


def test_an_unknown_name_gets_a_guess():
    with pytest.raises(UserError, match=r"unknown model .*'emojy'; did you mean 'emoji'"):
        load("emojy")
    with pytest.raises(UserError, match="unknown model"):
        load("no/such/folder/anywhere")


def test_an_unknown_dtype_gets_a_guess(tiny_folder):
    with pytest.raises(UserError, match=r"unknown dtype 'fp23'; did you mean 'fp32'.*bf16"):
        load(tiny_folder, dtype="fp23")


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(tiny_folder, device):
    with pytest.raises(UserError, match=f"device '{device}' cannot be used here"):
        load(tiny_folder, device=device)


def test_a_single_file_of_something_else_is_refused(tiny_folder, tmp_path):
    with pytest.raises(UserError, match="no checkpoint that efface knows"):
        load(tiny_folder / "unet" / WEIGHTS["unet"])
    (tmp_path / "sd-v1-4.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="is a pickle"):
        load(tmp_path / "sd-v1-4.ckpt")


def test_a_hub_model_that_cannot_be_fetched_is_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot fetch 'nobody/nothing-at-all' from the hub") as e:
        load("nobody/nothing-at-all")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("lean", [("unet",), ("unet", "vae", "text_encoder"), ()])
def test_of_a_hub_model_in_half_precision_alone_that_is_fetched(
    folder, tmp_path, monkeypatch, lean
):
    """Where a component has the usual weights, its half precision stays where it is."""
    for part in ("unet", "vae", "text_encoder"):
        path = next((folder / part).glob("*.safetensors"))
        half = path.with_suffix(".fp16.safetensors")
        half.write_bytes(path.read_bytes())
        half.with_suffix("").with_suffix(".bin").write_bytes(b"\x80\x02}")
        if part in lean:
            path.unlink()

    def fetched(hub_id, allow_patterns, ignore_patterns):
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        for name in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, tmp_path / "hub" / name)
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    model = load("somebody/finetune", device="cpu")
    found = {p.parent.name for p in model.folder.glob("*/*.fp16.safetensors")}
    assert found == set(lean)
    assert not list(model.folder.rglob("*.bin"))


# -- weight groups -----------------------------------------------------------------------------


def test_weight_groups_of_a_small_unet(tiny):
    named = list(tiny.parameters())
    groups = {g: set(tiny.group(g)) for g in StableDiffusion.groups}
    assert groups["full"] == set(named)
    assert groups["xattn"] == {n for n in named if ".attn2." in n}
    assert groups["selfattn"] == {n for n in named if ".attn1." in n}
    assert groups["kv"] == {n for n in groups["xattn"] if ".to_k." in n or ".to_v." in n}
    left = groups["full"] - groups["xattn"] - groups["noxattn"]
    assert not groups["xattn"] & groups["noxattn"]
    assert {n.partition(".")[0] for n in left} == {"conv_norm_out", "conv_out", "time_embedding"}
    assert any("time_emb_proj" in n for n in groups["noxattn"])
    assert all(groups.values())
    assert set(tiny.text_maps()) == groups["kv"]
    own = tiny.parameters()
    assert all(own[n].shape[1] == 16 for n in groups["kv"])


def test_weight_groups_of_stable_diffusion_14_have_the_known_sizes():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD14)
    own = dict(unet.named_parameters())
    size = {
        g: sum(own[n].numel() for n in StableDiffusion.group(unet, g))
        for g in StableDiffusion.groups
    }
    assert size["full"] == 859_520_964
    assert size["xattn"] == 43_962_560
    assert size["noxattn"] == 813_495_680
    assert len(StableDiffusion.text_maps(unet)) == 32


def test_an_unknown_group_gets_a_guess(tiny):
    with pytest.raises(UserError, match="unknown weight group 'noxatn'; did you mean 'noxattn'"):
        tiny.group("noxatn")


# -- embed -------------------------------------------------------------------------------------


def test_prompts_are_encoded_as_one_at_a_time(tiny):
    prompts = ["", "church", "a big red dog", "Church"]
    together = tiny.embed(prompts, batch=3).states
    assert together.shape == (4, 16, 16)
    alone = torch.cat([tiny.embed([p]).states for p in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together[1], together[3]) or torch.allclose(together[1], together[3])


def halved(name):
    """Store one tensor in fp16."""

    def change(tensors):
        tensors[name] = tensors[name].half()

    return change


def test_a_denoiser_of_mixed_precisions_is_refused(folder):
    rewrite(folder / "unet" / WEIGHTS["unet"], halved("conv_in.weight"))
    with pytest.raises(UserError, match="stored in F16 and F32; efface reads"):
        load(folder, device="cpu")


def test_fp8_is_refused(folder):
    def change(tensors):
        tensors |= {k: w.to(torch.float8_e4m3fn) for k, w in tensors.items()}

    rewrite(folder / "unet" / WEIGHTS["unet"], change)
    with pytest.raises(UserError, match="stored in F8_E4M3; efface reads"):
        load(folder, device="cpu")


def test_a_half_precision_variant_beside_the_weights_is_not_looked_at(tiny, folder):
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert load(folder, device="cpu").base == tiny.base


def test_a_folder_that_changed_since_it_was_opened_is_not_taken_for_what_was_opened(folder):
    path = folder / "unet" / WEIGHTS["unet"]
    model, known = load(folder, device="cpu"), load(folder, device="cpu")
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    taken, before = load(pipe), known.base
    save_file({k: w + 1 for k, w in load_file(path).items()}, path, {"format": "pt"})
    for one in (model, taken):
        with pytest.raises(UserError, match="were changed since the model was opened: open it ag"):
            _ = one.base
    assert known.base == before  # what its weights are
    assert load(folder, device="cpu").base not in (before, None)


def test_a_folder_that_holds_the_variant_alone_is_opened_and_merged(folder, tmp_path):
    for part, name in WEIGHTS.items():
        path = folder / part / name
        path.rename(path.with_suffix(".fp16.safetensors"))
    model = load(folder, device="cpu")
    assert model.base == hash_stored(folder / "unet")
    merge(model, Edit(shaken(model), {"base": model.base}), tmp_path / "merged")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "merged", variant="fp16")
    name = model.group("kv")[0]
    assert not torch.equal(dict(stock.unet.named_parameters())[name], model.parameters()[name])


def test_a_schedule_that_ends_in_pure_noise_is_refused(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    with pytest.raises(UserError, match="ends in pure noise"):
        load(folder, device="cpu")


def test_a_character_may_be_several_tokens(tiny):
    with pytest.warns(UserWarning, match="longer than 16 tokens"):
        tiny.embed(["猫狗鳥魚馬"])


def test_latents_go_through_together_by_their_size(tiny):
    small, large = tiny.at_once, dataclasses.replace(tiny, size=2048)
    assert small == 128
    assert large.at_once == 1


def test_a_prompt_that_is_too_long_warns_and_says_what_is_cut(tiny):
    fits = "dog " * 14
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = tiny.embed([fits]).states
    with pytest.warns(UserWarning, match="longer than 16 tokens; cut off: 'church house"):
        long = tiny.embed([fits + "church house"]).states
    assert torch.equal(short, long)


def test_conditionings_stack_mix_repeat_and_index():
    a = Conditioning(torch.arange(12.0).view(2, 3, 2))
    both = stack([a, a[[1]]])
    assert torch.equal(both.states[2], a.states[1])
    assert torch.equal(a.repeat(2).states, a.states[[0, 0, 1, 1]])
    weights = torch.tensor([[0.25, 0.75]], requires_grad=True)
    mixed = mix(weights, a)
    torch.testing.assert_close(mixed.states[0], 0.25 * a.states[0] + 0.75 * a.states[1])
    mixed.states.sum().backward()
    torch.testing.assert_close(weights.grad, a.states.sum((1, 2))[None])


# -- generate ----------------------------------------------------------------------------------


def pictures(model, prompts, seeds, **options):
    return torch.stack(list(model.generate(prompts, seeds, **options, output_type="pt")))


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pictures_are_those_of_the_stock_pipeline(tmp_path, prediction):
    tiny_pipeline(prediction).save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", device="cpu")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(s)) for s in (3, 4)]
    theirs = pipe(
        ["church", "a red dog"],
        num_inference_steps=5,
        guidance_scale=7.5,
        latents=torch.cat(noise),
        output_type="pt",
    ).images
    ours = pictures(model, ["church", "a red dog"], [3, 4], steps=5, guidance=7.5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_prediction_other_than_noise_or_v_is_refused(tmp_path):
    tiny_pipeline("sample").save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="predict 'sample' are not supported"):
        pictures(load(tmp_path / "model", device="cpu"), ["dog"], [0], steps=1)


def test_a_picture_does_not_depend_on_those_beside_it(tiny):
    prompts, seeds = ["church", "dog", "", "red house", "dog"], [0, 1, 2, 3, 4]
    together = pictures(tiny, prompts, seeds)
    for batch in (1, 2, 4):
        torch.testing.assert_close(
            pictures(tiny, prompts, seeds, batch=batch), together, rtol=0, atol=1e-4
        )
    backwards = pictures(tiny, prompts[::-1], seeds[::-1]).flip(0)
    torch.testing.assert_close(backwards, together, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler,
        PNDMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
    ],
)
def test_the_same_seed_gives_the_same_picture_under_every_scheduler(tiny, monkeypatch, scheduler):
    monkeypatch.setitem(tiny.parts, "scheduler", scheduler.from_config(tiny.scheduler.config))
    torch.manual_seed(0)
    first = pictures(tiny, ["dog", "dog"], [5, 6])
    torch.manual_seed(1)
    assert torch.equal(first, pictures(tiny, ["dog", "dog"], [5, 6]))
    assert not torch.allclose(first[0], first[1], atol=1e-3)


def test_pictures_have_the_size_and_range_they_should(tiny):
    made = pictures(tiny, ["dog"] * 3, [0, 1, 2])
    assert made.shape == (3, 3, 8, 8)
    assert made.dtype == torch.float32
    assert made.min() >= 0
    assert made.max() <= 1


def test_evaluations_are_counted(tiny):
    for guidance, a_step in ((7.5, 2), (1.0, 1)):
        with tiny.counting() as spent:
            pictures(tiny, ["dog"] * 3, [0, 1, 2], steps=5, guidance=guidance, batch=2)
        assert (spent.forward, spent.backward) == (a_step * 5 * 3, 0)


def test_weights_laid_over_change_the_picture_and_not_the_model(tiny):
    plain = pictures(tiny, ["dog"], [0])
    assert not torch.allclose(pictures(tiny, ["dog"], [0], weights=shaken(tiny, by=1.0)), plain)
    own = {k: p.clone() for k, p in tiny.parameters().items()}
    torch.testing.assert_close(pictures(tiny, ["dog"], [0], weights=own), plain, rtol=0, atol=1e-6)
    assert torch.equal(pictures(tiny, ["dog"], [0]), plain)


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_below_one_are_refused(tiny, steps):
    with pytest.raises(UserError, match=f"got {steps} sampling steps; 1 to 1000 are possible"):
        pictures(tiny, ["dog"], [0], steps=steps)
