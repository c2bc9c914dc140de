"""Models that are read as they say they are, and refused where their parts make no sense."""

import json
import os
import shutil
import warnings
from collections import Counter
from dataclasses import replace

import diffusers as D
import pytest
import torch
from conftest import CHURCH, QUIET, quick
from families import SIZES, build, clip, kl, projected, t5, unet
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import one_hot

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.edits.merge import check_guess, merge_single
from efface.errors import UserError
from efface.methods import METHODS
from efface.methods.ap import AP
from efface.methods.esd import ESD
from efface.methods.speed import SPEED
from efface.methods.spm import random_like
from efface.models import Conditioning, load, mix
from efface.models.diffusion import DiffusionModel
from efface.models.files.single_file import MARK_OF_V, OPEN_CLIP, lay, place_of
from efface.models.files.standard import STANDARD
from efface.models.files.stored import stored_dtype
from efface.training.batches import encode
from efface.training.search import Gumbel


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model to be broken."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def opened(pipe, name=""):
    return load(pipe, size=SIZES.get(name, 0))


# -- what a single file says of its predictions ------------------------------------------------


def unmoved(model):
    """An edit whose one weight is what it was."""
    name = model.text_maps()[0]
    return Edit({name: model.parameters()[name].detach().float().cpu()}, {"base": model.base})


def single(model, path, meta=(), without=("configs",), **keys):
    """A single file as others write it: no configs inside, and some keys and metadata besides."""
    own = merge_single(model, unmoved(model), path.with_name("plain.safetensors"))
    tensors = load_file(own)
    with safe_open(own, "pt") as f:
        said = {k: v for k, v in f.metadata().items() if k not in without}
    save_file({**tensors, **keys}, path, {**said, **dict(meta)})
    return path


def beside(model, path):
    """Its configs in a folder beside the file."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(model.folder, path.with_suffix(""), ignore=ignore)


NONE = torch.zeros(0)


def sdxl_folder(tmp_path, prediction="epsilon"):
    pipe = build("sdxl")
    kept = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    pipe.scheduler = D.EulerDiscreteScheduler.from_config({**kept, "prediction_type": prediction})
    pipe.save_pretrained(tmp_path / "sdxl")
    return load(tmp_path / "sdxl", device="cpu")


@pytest.fixture(scope="module")
def sdxl_model(tmp_path_factory):
    """To be looked at alone."""
    return sdxl_folder(tmp_path_factory.mktemp("sdxl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("meta", "keys"),
    [
        ((), {"v_pred": NONE}),
        ((("modelspec.prediction_type", "v"),), {}),
        ((("modelspec.prediction_type", "v_prediction"),), {"v_pred": NONE}),
    ],
)
def test_a_file_that_says_v_is_read_with_v(tmp_path, cache, meta, keys):
    model = sdxl_folder(tmp_path, "v_prediction")
    path = single(model, tmp_path / "x.safetensors", meta, **keys)
    beside(model, path)
    again = load(path, device="cpu")
    assert again.process.kind == "v_prediction"
    one, two = (next(m.generate("a cat", steps=2, output_type="pt")) for m in (model, again))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_our_own_single_file_of_a_v_model_has_the_key_that_others_look_for(tmp_path, cache):
    for prediction in ("epsilon", "v_prediction"):
        model = sdxl_folder(tmp_path / prediction, prediction)
        path = tmp_path / f"{prediction}.safetensors"
        merge_single(model, unmoved(model), path)
        assert ("v_pred" in load_file(path)) == (prediction == "v_prediction")


@pytest.mark.parametrize(
    ("kind", "v", "size"), [("sd1", 64, 64), ("sd2", 96, 64), ("sdxl", 128, 128)]
)
def test_published_architectures_take_what_the_file_says(tmp_path, kind, v, size):
    for says, told, wide in ((True, "v_prediction", v), (False, "epsilon", size)):
        out = tmp_path / told
        out.mkdir()
        lay(out, STANDARD[kind], says)
        config = json.loads((out / "scheduler/scheduler_config.json").read_text())
        assert config["prediction_type"] == told
        assert json.loads((out / "unet/config.json").read_text())["sample_size"] == wide


def alphas(end=0.012):
    betas = torch.linspace(0.00085**0.5, end**0.5, 1000).square()
    return (1 - betas).cumprod(0)


@pytest.mark.parametrize(
    ("meta", "keys", "said"),
    [
        ((), {"v_pred": NONE, "ztsnr": NONE}, "ends in pure noise"),
        ((("ss_zero_terminal_snr", "True"),), {}, "ends in pure noise"),
        ((), {"alphas_cumprod": alphas() - alphas()[-1]}, "ends in pure noise"),
        ((), {"alphas_cumprod": alphas(0.02)}, "another noise schedule.*ends in 0.00"),
        ((), {"edm_mean": NONE}, "marker 'edm_mean', which efface does not know"),
        ((), {"edm_vpred.sigma_max": NONE}, "marker 'edm_vpred.sigma_max', which efface does"),
        ((), {"x0_pred": NONE}, "marker 'x0_pred', which efface does not know"),
        ((("modelspec.prediction_type", "x0"),), {}, r"predicts 'x0' \(modelspec"),
        ((("modelspec.prediction_type", "epsilon"),), {"v_pred": NONE}, "contradicts itself"),
        ((), {"v_pred": NONE}, "says that it predicts v_prediction, its scheduler_config.json eps"),
    ],
)
def test_a_file_that_says_something_else_is_refused(sdxl_model, tmp_path, cache, meta, keys, said):
    path = single(sdxl_model, tmp_path / "x.safetensors", meta, **keys)
    beside(sdxl_model, path)
    with pytest.raises(UserError, match=said) as e:
        load(path, device="cpu")
    assert "\n" not in str(e.value)


def test_keys_that_a_training_leaves_say_nothing(sdxl_model, tmp_path, cache):
    left = {"alphas_cumprod": alphas(), "betas": torch.ones(3), "global_step": torch.ones(1)}
    path = single(sdxl_model, tmp_path / "x.safetensors", **left)
    beside(sdxl_model, path)
    assert load(path, device="cpu").process.kind == "epsilon"


def test_a_flow_model_that_says_v_is_refused(tmp_path, cache):
    build("sd3").save_pretrained(tmp_path / "sd3")
    model = load(tmp_path / "sd3", device="cpu")
    path = single(model, tmp_path / "x.safetensors", v_pred=NONE)
    beside(model, path)
    with pytest.raises(UserError, match="marker 'v_pred', which efface does not know"):
        load(path, device="cpu")


# -- components that do not fit each other -----------------------------------------------------


MISFITS = {
    "inpainting": ("sd2", lambda p: {"unet": unet(in_channels=9)}, "in_channels 9, latents.* 4"),
    "instructions": ("sdxl", lambda p: {"vae": kl(8, 1.0)}, "in_channels 4, latents of the vae 8"),
    "sd2 text": ("sd2", lambda p: {"text_encoder": clip(16)}, "text width 32, text.* 16"),
    "sdxl text": ("sdxl", lambda p: {"text_encoder": clip(48)}, "text width 80, text.* 96"),
    "sdxl pooled": (
        "sdxl",
        lambda p: {"text_encoder": clip(48), "text_encoder_2": projected(32)},
        "unet pooled width 48, text_encoder_2 projection_dim 32",
    ),
    "sd3 vae": ("sd3", lambda p: {"vae": kl(4, 1.0)}, "in_channels 16, latents of the vae 4"),
    "sd3 text": ("sd3", lambda p: {"text_encoder_3": t5(32)}, "text width 96, text.* 32"),
    "sd3 pooled": (
        "sd3",
        lambda p: {"text_encoder": projected(16)},
        "pooled_projection_dim 80, both CLIPs' projection_dim 64",
    ),
    "flux vae": ("flux dev", lambda p: {"vae": kl(4, 1.0)}, "in_channels 64, latents.* 16"),
    "flux text": ("flux dev", lambda p: {"text_encoder_2": t5(64)}, "text width 32, text.* 64"),
    "flux pooled": (
        "flux dev",
        lambda p: {"text_encoder": clip(64)},
        "pooled_projection_dim 32, text_encoder hidden_size 64",
    ),
    "z-image vae": ("z-image", lambda p: {"vae": kl(4, 1.0)}, "in_channels 16, latents.* 4"),
    "no scale": ("sd2", lambda p: {"vae": kl(4, 0.0)}, "scaling_factor is 0.0; a positive"),
    "grey": ("sd2", lambda p: {"vae": grey()}, "vae out_channels 1, colours of a picture 3"),
}


def grey():
    return D.AutoencoderKL(
        out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=4
    )


@pytest.mark.parametrize("what", MISFITS)
def test_components_that_do_not_fit_are_refused(what):
    name, change, said = MISFITS[what]
    pipe = build(name)
    for k, part in change(pipe).items():
        setattr(pipe, k, part)
    with pytest.raises(UserError, match=said) as e:
        opened(pipe, name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("name", "width"), [("flux.2 klein", 48), ("z-image", 16)])
def test_a_language_model_of_another_width_is_refused(name, width):
    pipe = build(name)
    config = pipe.text_encoder.config
    config.hidden_size = 8  # what the denoiser of another size would have beside it
    with pytest.raises(UserError, match=f"text width {width}, text encoders' states"):
        opened(pipe, name)


def test_klein_with_another_autoencoder_is_refused():
    pipe = build("flux.2 klein")
    pipe.vae.register_to_config(latent_channels=16)
    with pytest.raises(UserError, match="in_channels 16, latents of the vae 64"):
        opened(pipe, "flux.2 klein")


def test_an_inpainting_model_is_named_as_one_from_a_folder_too(tmp_path):
    pipe = build("sd2")
    pipe.unet = unet(in_channels=9, use_linear_projection=True)
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"in_channels 9.* 4 \(an inpainting or editing model"):
        load(tmp_path / "model", device="cpu")


def test_a_tokenizer_of_more_or_longer_than_its_encoder_knows_is_refused(folder):
    pipe = build("sd2")
    pipe.tokenizer.add_tokens(["<one>", "<two>"])
    with pytest.raises(UserError, match="tokenizer tokens 516, text_encoder embeddings 514"):
        opened(pipe)
    pipe.text_encoder.resize_token_embeddings(516)
    assert opened(pipe).embed(["<two>"]).states.isfinite().all()
    pipe.tokenizer.model_max_length = 100
    with pytest.raises(UserError, match="tokenizer length 100, text_encoder positions 77"):
        opened(pipe)


# -- the null prompt ---------------------------------------------------------------------------


def test_sdxl_draws_an_empty_prompt_as_diffusers_does():
    for name in ("sdxl", "sdxl, no zeros"):
        pipe = build(name)
        model = load(pipe)
        z = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
        pipe.scheduler.set_timesteps(2)
        options = {"num_inference_steps": 2, "height": 8, "width": 8, "output_type": "pt"}
        theirs = pipe("", latents=z, guidance_scale=4.0, **options).images
        drawn = next(model.generate("", 0, 2, 4.0, output_type="pt"))
        torch.testing.assert_close(drawn[None], theirs, rtol=0, atol=2e-4)


def test_sdxls_null_prompt_is_zeros_and_its_empty_prompt_is_not():
    model, other = load(build("sdxl")), load(build("sdxl, no zeros"))
    assert not model.null(2).states.any()
    assert not model.null(1).pooled.any()
    assert model.embed([""]).states.any()
    assert torch.equal(model.embed([""]).states, other.null(1).states)
    both = model.embed(["a cat", ""], null=True)
    assert not both.states[1].any()
    assert not both.pooled[1].any()
    assert torch.equal(both.states[0], model.embed(["a cat", ""]).states[0])


@pytest.mark.parametrize("name", ["sd2", "sd3", "flux dev", "flux.2 klein", "z-image"])
def test_elsewhere_the_null_prompt_is_the_empty_one(name):
    model = opened(build(name), name)
    plain, null = model.embed(["a cat", ""]), model.embed(["a cat", ""], null=True)
    assert torch.equal(plain.states, null.states)
    assert torch.equal(model.null(1).states, model.embed([""], batch=1).states)


def test_an_anchor_that_is_none_and_a_kept_one_are_the_null_prompt_of_the_guidance():
    model = load(build("sdxl"))
    assert not encode(model, [CHURCH]).anchor.states.any()
    assert encode(model, [Concept("church", anchor="house")]).anchor.states.any()
    kept = {}

    class Spy(ESD):
        def make(self, job):
            kept["cond"] = job.keeping().rows
            raise UserError("seen")

    with pytest.raises(UserError, match="seen"):
        Spy(keep=("", "house")).erase(model, [CHURCH], QUIET)
    assert not kept["cond"].states[0].any()
    assert kept["cond"].states[1].any()


# -- masks, and maps that are not there --------------------------------------------------------


def test_random_states_have_the_mask_of_the_concept():
    model = opened(build("z-image"), "z-image")
    one = model.embed(["a cat"])
    drawn = random_like(one, 3, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.mask, one.mask.expand(3, -1))
    inside = drawn.states[:, one.mask[0] > 0]
    norm = one.states[:, one.mask[0] > 0].norm()
    assert ((inside.flatten(1).norm(dim=1) / norm - 1).abs() < 0.21).all()
    assert not drawn.states[:, one.mask[0] == 0].any()


def test_a_mixture_has_the_mask_of_its_likeliest_word():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    rows = Conditioning(torch.randn(3, 3, 2), mask=mask)
    mixed = mix(torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]), rows)
    assert torch.equal(mixed.mask, mask[[1, 2]])
    assert mixed.mask.dtype == mask.dtype
    hard = mix(one_hot(torch.tensor([2]), 3).float(), rows)
    assert torch.equal(hard.states[0], rows.states[2])


@pytest.mark.parametrize("name", ["sd3", "flux dev", "flux.2 klein", "z-image"])
def test_value_maps_are_refused_where_there_are_none(name, words):
    model = opened(build(name), name)
    with pytest.raises(UserError, match=r"no maps 'v'.*choose maps 'all'"):
        quick(SPEED(), words).erase(model, [CHURCH], QUIET)
    edit = quick(SPEED(maps="all"), words).erase(model, [CHURCH], QUIET)
    assert list(edit.weights) == model.text_maps()


# -- rows that a gradient goes through ---------------------------------------------------------


def measured(model, method, monkeypatch):
    """The most rows through the denoiser that wait for a gradient at once, in two updates."""
    seen, predict = Counter(), DiffusionModel.predict

    def back(_):
        seen["most"] = max(seen["most"], seen["now"])
        seen["now"] = 0

    def counted(self, z, *args, **kwargs):
        out = predict(self, z, *args, **kwargs)
        if out.requires_grad:
            seen["now"] += len(z)
            out.register_hook(back)
        return out

    with monkeypatch.context() as m:
        m.setattr(DiffusionModel, "predict", counted)
        method.erase(model, [CHURCH], QUIET)
    return seen["most"] or seen["now"] // 2  # MACE looks at the attention, not at what comes out


TRAINED = {n: cls() for n, cls in METHODS.items() if not cls.closed_form}
SET = {
    **TRAINED,
    **{f"ap {k}": m for k, m in AP.presets().items() if k != "ours"},
    "ap gumbel": AP(search=Gumbel(), batch=4, preserve_batch=1),
    "ap few": AP(preserve_batch=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("keep", [(), ("house", "tree")])
@pytest.mark.parametrize("name", SET)
def test_a_method_says_how_many_rows_a_gradient_goes_through(tiny, words, name, keep, monkeypatch):
    own = replace(SET[name], keep=keep)
    small = replace(quick(own, words), batch=own.batch, updates=2)
    if name == "stereo":  # a step of a vector's, which is made small as well
        small = replace(small, inversion_batch=own.inversion_batch, rounds=1)
    assert measured(tiny, small, monkeypatch) == own.rows


def test_the_rows_of_the_defaults():
    rows = {n: (m.rows, replace(m, keep=("a",)).rows) for n, m in TRAINED.items()}
    assert rows == {
        "ap": (8, 10),
        "esd": (8, 16),
        "ca": (8, 16),
        "age": (16, 24),
        "spm": (12, 20),
        "mace": (4, 4),
        "race": (8, 16),
        "stereo": (16, 16),  # a vector is searched for on twice as many as are erased
        "twofold": (10, 12),
        "advunlearn": (13, 21),  # five retained words beside its eight latents
    }


# -- damaged files -----------------------------------------------------------------------------


def reconfigure(path, **changes):
    own = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in own.items() if v != "gone"}))


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("model_index.json", "[1, 2]", r"model_index\.json' holds a list; an object"),
        ("model_index.json", '"x"', r"model_index\.json' holds a string; an object"),
        ("model_index.json", "null", r"model_index\.json' holds null; an object"),
        ("model_index.json", "{", r"model_index\.json' is broken JSON"),
        ("unet/config.json", "[]", r"unet/config\.json' holds a list; an object"),
        ("unet/config.json", "\ufffe", r"unet/config\.json' is broken JSON"),
        ("vae/config.json", "3", r"vae/config\.json' holds a number; an object"),
        ("text_encoder/config.json", "[]", r"text_encoder/config\.json' holds a list"),
        ("scheduler/scheduler_config.json", "[]", r"scheduler_config\.json' holds a list"),
        ("tokenizer/tokenizer_config.json", "[]", r"tokenizer_config\.json' holds a list"),
        ("tokenizer/tokenizer.json", "{", r"tokenizer\.json' is broken JSON"),
        ("tokenizer/tokenizer.json", "{}", r"cannot open .*tokenizer': damaged"),
        ("tokenizer/vocab.json", '{"a": 0}', r"cannot open .*tokenizer': damaged"),
        ("tokenizer/merges.txt", "no pair\nof it", r"cannot open .*tokenizer': damaged"),
    ],
)
def test_a_file_that_holds_something_else_is_named(folder, path, text, said):
    (folder / path).write_text(text)
    with pytest.raises(UserError, match=said) as e:
        load(folder, device="cpu")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("path", "changes", "said"),
    [
        ("model_index.json", {"unet": "UNet"}, "'unet' is \"UNet\"; a pair of library and class"),
        ("model_index.json", {"vae": ["diffusers"]}, "'vae' is .*; a pair of library and class"),
        ("model_index.json", {"vae": [1, 2]}, "'vae' is .*; a pair of library and class"),
        ("model_index.json", {"_class_name": ["x"]}, "efface reads StableDiffusionPipeline"),
        ("unet/config.json", {"in_channels": "4"}, "'in_channels' is \"4\"; a number"),
        ("unet/config.json", {"in_channels": [4]}, r"'in_channels' is \[4\]; a number"),
        ("unet/config.json", {"sample_size": {"a": 1}}, "'sample_size' is .*a number"),
        ("unet/config.json", {"sample_size": "4"}, "'sample_size' is .*a number"),
        ("unet/config.json", {"attention_head_dim": ["2"]}, "'attention_head_dim' is .*a number"),
        ("unet/config.json", {"block_out_channels": 8}, "'block_out_channels' is 8; a list"),
        ("unet/config.json", {"block_out_channels": ["8", "16"]}, "'block_out_channels' .*numbers"),
        ("unet/config.json", {"down_block_types": ["Nothing", "DownBlock2D"]}, "unet"),
        ("unet/config.json", {"norm_num_groups": 0}, "unet"),
        ("vae/config.json", {"scaling_factor": "1"}, "'scaling_factor' is \"1\"; a number"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor is 0; a positive"),
        ("text_encoder/config.json", {"hidden_size": "16"}, "'hidden_size' is \"16\"; a number"),
        ("text_encoder/config.json", {"hidden_act": 3}, "'hidden_act' is 3; a string"),
        ("text_encoder/config.json", {"num_attention_heads": 0}, "text_encoder"),
        (SCHEDULER := "scheduler/scheduler_config.json", {"beta_end": "0.01"}, "'beta_end' is"),
        (SCHEDULER, {"beta_start": "gone"}, r"scheduler_config\.json' lacks 'beta_start'"),
        (SCHEDULER, {"beta_schedule": "gone"}, r"scheduler_config\.json' lacks 'beta_schedule'"),
        (SCHEDULER, {"beta_schedule": "round"}, "round"),
        (SCHEDULER, {"_class_name": "gone"}, "scheduler '' is unknown to diffusers"),
        (SCHEDULER, {"_class_name": 3}, "scheduler 3 is unknown to diffusers"),
        (SCHEDULER, {"prediction_type": "sample"}, "predict 'sample' are not supported"),
        (SCHEDULER, {"num_train_timesteps": 0}, "num_train_timesteps"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(folder, path, changes, said):
    reconfigure(folder / path, **changes)
    with pytest.raises(UserError, match=said) as e:
        load(folder, device="cpu")
    assert "\n" not in str(e.value)


def test_a_flow_schedule_without_its_shift_is_refused(tmp_path):
    build("sd3").save_pretrained(tmp_path / "model")
    reconfigure(tmp_path / "model/scheduler/scheduler_config.json", shift="gone")
    with pytest.raises(UserError, match=r"scheduler_config\.json' lacks 'shift'"):
        load(tmp_path / "model", device="cpu")


def ours(without=(), **changes):
    """The configs in a single file of ours, spoilt."""
    plain = {"model_index.json": dict(STANDARD["sd1"]["model_index.json"])}
    plain |= {k: dict(v) for k, v in STANDARD["sd1"].items() if k not in plain}
    found = {k: v for k, v in {**plain, **changes}.items() if k not in without}
    return json.dumps(found)


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        ("{", "broken JSON"),
        ("[1]", "not an object for each component"),
        ("3", "not an object for each component"),
        ("{}", "lack 'model_index.json'"),
        (ours(**{"model_index.json": [1]}), "not an object for each component"),
        (ours(**{"text_encoder/config.json": 3}), "not an object for each component"),
        (ours(without=["text_encoder/config.json"]), "lack 'text_encoder/config.json'"),
        (ours(**{"text_encoder/config.json": {}}), "does not have CLIP's vocabulary"),
        (ours(**{"model_index.json": {"unet": ["os", "system"]}}), "is a None"),
    ],
)
def test_spoilt_configs_in_a_single_file_are_one_line(tmp_path, cache, configs, said):
    path = tmp_path / "x.safetensors"
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    save_file({name: torch.zeros(1)}, path, {"configs": configs})
    with pytest.raises(UserError, match=said):
        load(path, device="cpu")
    assert not list((tmp_path / "cache" / "single").iterdir())


@pytest.mark.slow
def test_a_denoiser_in_half_precision_beside_full_parts_is_the_same_model_as_in_a_folder(
    tiny_folder, tmp_path, cache
):
    folder = shutil.copytree(tiny_folder, tmp_path / "half")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: w.half() for k, w in load_file(unet).items()}, unet, {"format": "pt"})
    model = load(folder, device="cpu")
    path = merge_single(load(tiny_folder, device="cpu"), unmoved(load(tiny_folder)), tmp_path / "x")
    with safe_open(path, "pt") as f:
        said = f.metadata()
    mixed = {
        k: w.half() if k.startswith("model.diffusion_model.") else w
        for k, w in load_file(path).items()
    }
    save_file(mixed, tmp_path / "mixed.safetensors", said)
    again = load(tmp_path / "mixed.safetensors", device="cpu")
    assert again.base == model.base
    assert stored_dtype(again.folder / "unet") == torch.float16
    assert stored_dtype(again.folder / "vae") == torch.float32


@pytest.mark.slow
def test_a_single_file_holds_each_part_in_its_own_precision(folder, tmp_path, cache):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: w.bfloat16() for k, w in load_file(path).items()}, path, {"format": "pt"})
    model = load(folder, device="cpu")
    out = merge_single(model, unmoved(model), tmp_path / "x.safetensors")
    kinds = {(k.split(".")[0], w.dtype) for k, w in load_file(out).items()}
    assert kinds == {
        ("model", torch.bfloat16),
        ("first_stage_model", torch.float32),
        ("cond_stage_model", torch.float32),
    }
    again = load(out, device="cpu")
    assert again.base == model.base
    one, two = (next(m.generate("a cat", steps=2, output_type="pt")) for m in (model, again))
    assert torch.equal(one, two)


def test_words_that_were_added_stay_behind_and_are_named(folder, tmp_path, cache):
    pipe = D.StableDiffusionPipeline.from_pretrained(folder)
    pipe.tokenizer.add_tokens(["<sks>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    pipe.save_pretrained(tmp_path / "more")
    model = load(tmp_path / "more", device="cpu")
    with pytest.warns(UserWarning, match="so 1 added words stay behind: <sks>; keep them as emb"):
        out = merge_single(model, unmoved(model), tmp_path / "x.safetensors")
    table = next(w for k, w in load_file(out).items() if "token_embedding" in k)
    assert len(table) == 49408
    again = load(out, device="cpu")
    for m in (model, again):
        m.generate("a cat", steps=2, output_type="pt")
    states = [m.embed(["a cat"]).states for m in (model, again)]
    assert torch.equal(*states)


def test_a_file_that_others_would_guess_wrong_is_told(tmp_path):
    pipe = build("sd2")
    pipe.save_pretrained(tmp_path / "sd2")
    model = load(tmp_path / "sd2", device="cpu")
    text = {f"{OPEN_CLIP}x": torch.zeros(1)}
    v, epsilon = (torch.linspace(-1, 1, 9) * x for x in (1.0, 0.01))
    with pytest.warns(UserWarning, match="predicts v_prediction, and by the weight that ComfyUI"):
        check_guess(model, {MARK_OF_V: epsilon, **text}, tmp_path / "x.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_guess(model, {MARK_OF_V: v, **text}, tmp_path / "x.safetensors")
        check_guess(model, {MARK_OF_V: epsilon}, tmp_path / "x.safetensors")  # no 2.x


@pytest.mark.parametrize("end", [".sft", ".SAFETENSORS"])
def test_a_single_file_may_have_another_ending(tiny_folder, tmp_path, cache, end):
    model = load(tiny_folder, device="cpu")
    path = merge_single(model, unmoved(model), tmp_path / "x.safetensors")
    again = load(path.rename(tmp_path / f"x{end}"), device="cpu")
    assert again.base == model.base
    assert not list(again.folder.glob("*.safetensors"))


def test_what_a_killed_conversion_left_is_no_hindrance(tiny_folder, tmp_path, cache):
    model = load(tiny_folder, device="cpu")
    path = merge_single(model, unmoved(model), tmp_path / "x.safetensors")
    place = place_of(path)
    own = place.with_name(f".{place.name}.{os.getpid()}.part")  # our number, by chance
    dead = place.with_name(f".{place.name}.999999999.part")
    for left in (own, dead):
        left.mkdir(parents=True)
    again = load(path, device="cpu")
    assert [p.name for p in place.parent.iterdir()] == [place.name]
    (again.folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert load(path, device="cpu").base == model.base


@pytest.mark.parametrize("told", [{"quant_method": "bitsandbytes"}, {"quant_method": "gguf"}])
def test_a_quantised_folder_is_named(folder, told):
    reconfigure(folder / "unet" / "config.json", quantization_config=told)
    said = rf"unet' is quantised \({told['quant_method']}\): such weights cannot be edited"
    with pytest.raises(UserError, match=said):
        load(folder, device="cpu")


@pytest.mark.slow
def test_a_single_file_of_a_long_name_is_opened(tiny_folder, tmp_path, cache):
    model = load(tiny_folder, device="cpu")
    path = merge_single(model, unmoved(model), tmp_path / "x.safetensors")
    path = path.rename(tmp_path / f"{'ü' * 118}.safetensors")
    assert load(path, device="cpu").base == model.base


def test_gguf_is_named(tmp_path):
    path = tmp_path / "flux.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" * 9)
    with pytest.raises(UserError, match="in GGUF, quantised for ComfyUI"):
        load(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_weights_beside_a_single_file_are_not_taken_for_its_own(name, tmp_path, cache):
    """Whatever they lie in: an index of shards is opened before the usual file."""
    folder = tmp_path / "x"
    build(name).save_pretrained(folder, max_shard_size="60KB")
    model = load(folder, device="cpu")
    part = folder / model.family.denoiser
    shutil.copy(next(part.glob("*00001-of*")), part / "diffusion_pytorch_model.fp16.safetensors")
    (part / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02}")
    k = model.text_maps()[0]
    edit = Edit({k: model.parameters()[k].float() + 1}, {"base": model.base})
    again = load(merge_single(model, edit, tmp_path / "x.safetensors"), device="cpu")
    assert torch.equal(again.parameters()[k], edit.weights[k])
    found = sorted(p.name for p in (again.folder / model.family.denoiser).iterdir())
    assert found == ["config.json", "diffusion_pytorch_model.safetensors"]
