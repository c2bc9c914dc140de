"""Every family against diffusers' own pipelines of tiny random networks, and its full size."""

import warnings

import diffusers as D
import pytest
import torch
from conftest import QUIET, WORDS, quick, same_weights
from families import TINY, build

from efface.concepts import Concept
from efface.edit import Edit, merge
from efface.errors import UserError
from efface.latents import Latents
from efface.methods import AGE, AP, CA, ESD, MACE, SPEED, SPM, UCE
from efface.methods.ap import PRESETS
from efface.models import FAMILIES, load, watched
from efface.sensitivity import closed_form, prediction
from efface.training import Tuning

CAT = Concept("cat")
SIZE = 8
"""Pixels of FLUX's pictures here; the others say themselves."""
PROMPTS = ["a cat", "a red house"]


FAST = ("sdxl", "sd3", "flux dev")
"""One of each family; the variants are slow tests."""


@pytest.fixture(
    scope="session",
    params=[n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in TINY],
)
def family(request, tmp_path_factory):
    """(name, stock pipeline, model) of one family."""
    folder = tmp_path_factory.mktemp("family") / "model"
    pipeline = build(request.param)
    pipeline.save_pretrained(folder)
    size = SIZE if "flux" in request.param else 0
    model = load(folder, device="cpu", size=size)
    model.lr = 1e-2
    return request.param, pipeline, model


@pytest.fixture(autouse=True)
def unharmed(request):
    """The models are shared: their weights stay."""
    if "family" not in request.fixturenames:
        yield
        return
    _, _, model = request.getfixturevalue("family")
    before = {k: p.clone() for k, p in model.parameters().items()}
    yield
    assert same_weights(model.parameters(), before)


def stock(pipeline, steps=3, seeds=(3, 4), guidance=4.0):
    """What the stock pipeline draws from our noise."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    channels = denoiser.config.in_channels // (4 if "Flux" in type(pipeline).__name__ else 1)
    draws = [torch.Generator().manual_seed(s) for s in seeds]
    z = torch.cat([torch.randn((1, channels, 4, 4), generator=g) for g in draws])
    if isinstance(pipeline, D.FluxPipeline):
        z = pipeline._pack_latents(z, len(z), channels, 4, 4)
    elif isinstance(pipeline.scheduler, D.EulerDiscreteScheduler):
        pipeline.scheduler.set_timesteps(steps)  # the pipeline scales by sigma itself
    schnell = isinstance(pipeline, D.FluxPipeline) and not denoiser.config.guidance_embeds
    return pipeline(
        **({"max_sequence_length": 256} if schnell else {}),
        prompt=PROMPTS,
        height=8,
        width=8,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=z,
        output_type="pt",
    ).images


def ours(model, weights=None, steps=3, seeds=(3, 4), guidance=4.0):
    drawn = model.generate(PROMPTS, seeds, steps=steps, guidance=guidance, weights=weights)
    return torch.stack(list(drawn))


def tiny_method(method, words):
    """A method made quick, with two latents of its own."""
    return quick(method, words)


def test_pictures_are_those_of_the_stock_pipeline(family):
    _, pipeline, model = family
    pictures = ours(model)
    torch.testing.assert_close(pictures, stock(pipeline), rtol=0, atol=2e-4)
    assert pictures.std() > 0.01
    assert not torch.allclose(pictures[0], pictures[1], atol=1e-2)


def test_the_prompt_matters_and_rows_do_not_mix(family):
    _, _, model = family
    z = model.noise(1, torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    t = torch.full((3,), 400.0 if model.process.predicts == "velocity" else 400)
    cond = model.embed(["a cat", "a red house", "a cat"])
    out = model.predict(z, t, cond)
    torch.testing.assert_close(out[0], out[2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out[0], out[1], atol=1e-4)
    alone = model.predict(z[:1], t[:1], model.embed(["a cat"]))
    torch.testing.assert_close(out[:1], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        ESD(),
        AP(),
        AP(search=PRESETS["paper"].search),
        UCE(vocabulary="file"),
        SPEED(),
        AGE(),
        CA(),
    ],
    ids=["esd", "ap", "ap-gumbel", "uce", "speed", "age", "ca"],
)
def test_methods_erase_in_every_family(family, method, words, tmp_path):
    """Erase, save, load; the pictures of a stock pipeline with the edit in it change."""
    _, pipeline, model = family
    edit = tiny_method(method, words).erase(model, [CAT], QUIET)
    assert all(torch.isfinite(w).all() for w in edit.weights.values())
    own = model.parameters()
    assert any(not torch.equal(w, own[k]) for k, w in edit.weights.items())
    edit.save(tmp_path / "edit.safetensors")
    edit = Edit.load(tmp_path / "edit.safetensors")
    plain, erased = ours(model), ours(model, edit.on(model))
    assert not torch.equal(plain, erased)
    with edit.applied(model):
        torch.testing.assert_close(ours(model), erased, rtol=0, atol=1e-5)
    assert torch.equal(ours(model), plain)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_published_forms_run_in_every_family(family, preset, words):
    _, _, model = family
    edit = tiny_method(PRESETS[preset], words).erase(model, [CAT], QUIET)
    own = model.parameters()
    assert any(not torch.equal(w, own[k]) for k, w in edit.weights.items())


def test_spm_runs_in_every_family(family, words):
    _, _, model = family
    method = SPM(anchors=1, latents=Latents(ddim_steps=2, trajectories=1), tuning=SPM().tuning)
    edit = tiny_method(method, words).erase(model, [CAT], QUIET)
    assert edit.weights


def test_a_merged_folder_opens_in_a_stock_pipeline(family, words, tmp_path):
    name, pipeline, model = family
    edit = tiny_method(ESD(), words).erase(model, [CAT], QUIET)
    out = merge(model, edit, tmp_path / "merged")
    missing = {} if "T5" not in name else {"text_encoder_3": None, "tokenizer_3": None}
    again = type(pipeline).from_pretrained(out, **missing)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(stock(again), ours(model, edit.on(model)), rtol=0, atol=2e-4)
    reopened = load(out, device="cpu", size=model.size)
    assert reopened.base != model.base
    with pytest.raises(UserError, match="load the model it was made for"):
        edit.check(reopened)


def test_sensitivity_looks_into_every_family(family, words):
    _, _, model = family
    edit = tiny_method(UCE(), words).erase(model, [CAT], QUIET)
    moved = closed_form(model, edit, ["cat", *WORDS], progress=False)
    assert moved.draws.shape[1] == 1 + len(WORDS)
    assert moved.order()[0] == 0
    seen = prediction(model, edit, ["cat", *WORDS[:3]], latents=2, progress=False)
    assert (seen.draws > 0).all()


def test_cross_attention_is_looked_at_only_where_there_is_some(family, words):
    name, _, model = family
    if model.family.crosses:
        z = model.noise(1, torch.Generator().manual_seed(0))
        with watched(model) as seen:
            model.predict(z, torch.tensor([400]), model.embed(["a cat"]))
        assert seen
        assert tiny_method(MACE(), words).erase(model, [CAT], QUIET).weights
    else:
        with (
            pytest.raises(UserError, match="has no cross-attention blocks"),
            model.counting() as spent,
        ):
            tiny_method(MACE(), words).erase(model, [CAT], QUIET)
        assert spent.forward == 0


def test_last_words_are_where_the_text_encoders_put_them(family):
    _, _, model = family
    at = model.last_word(["", "cat", "a cat"])
    one, two = model.embed(["a cat"]).states[0], model.embed(["a dog"]).states[0]
    for column in at[2].tolist():
        assert not torch.allclose(one[column], two[column])
    words = model.family.word_states(model.parts, ["a cat", "dog"], model.device)
    slow = model.embed(["a cat", "dog"]).states
    for i, row in enumerate(model.last_word(["a cat", "dog"]).tolist()):
        torch.testing.assert_close(words[i], slow[i, row], rtol=1e-4, atol=1e-5)


def test_a_long_prompt_warns_once(family):
    _, _, model = family
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.embed(["house " * 200])
    assert len([w for w in said if "cut off" in str(w.message)]) == 1


# -- full size ---------------------------------------------------------------------------------

UNET = {"layers_per_block": 2, "norm_num_groups": 32, "in_channels": 4, "out_channels": 4}
MMDIT = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
}
FULL = {
    "StableDiffusionPipeline": (
        D.UNet2DConditionModel,
        {
            **UNET,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        {
            "full": 865_910_724,
            "xattn": 50_352_320,
            "kv": 25_559_040,
            "selfattn": 49_574_080,
            "noxattn": 813_495_680,
        },
        25_559_040,
    ),
    "StableDiffusionXLPipeline": (
        D.UNet2DConditionModel,
        {
            **UNET,
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        {
            "full": 2_567_463_684,
            "xattn": 545_670_400,
            "kv": 340_787_200,
            "selfattn": 409_683_200,
            "noxattn": 2_014_485_120,
        },
        340_787_200,
    ),
    "StableDiffusion3Pipeline": (
        D.SD3Transformer2DModel,
        {
            **MMDIT,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 192,
        },
        {
            "full": 2_028_328_000,
            "kv": 113_319_936,
            "xattn": 224_279_040,
            "selfattn": 226_639_872,
            "text": 989_082_624,
        },
        6_291_456,
    ),
    "StableDiffusion3Pipeline, 3.5 medium": (
        D.SD3Transformer2DModel,
        {
            **MMDIT,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
        {
            "full": 2_243_171_520,
            "kv": 113_319_936,
            "xattn": 224_282_112,
            "selfattn": 226_642_944 + 122_764_928,
            "text": 989_085_696,
        },
        6_291_456,
    ),
    "StableDiffusion3Pipeline, 3.5 large": (
        D.SD3Transformer2DModel,
        {
            **MMDIT,
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
        {
            "full": 8_056_627_520,
            "kv": 449_696_256,
            "xattn": 893_480_320,
            "selfattn": 899_397_376,
            "text": 3_970_079_488,
        },
        9_961_472,
    ),
    "FluxPipeline": (
        D.FluxTransformer2DModel,
        {"guidance_embeds": True},
        {
            "full": 11_901_408_320,
            "kv": 358_729_728,
            "xattn": 717_464_320,
            "selfattn": 717_464_320,
            "text": 3_228_397_312,
            "single": 5_380_488_704,
        },
        12_582_912,
    ),
    "FluxPipeline, schnell": (
        D.FluxTransformer2DModel,
        {"guidance_embeds": False},
        {"full": 11_891_178_560, "xattn": 717_464_320, "single": 5_380_488_704},
        12_582_912,
    ),
}
"""Denoisers at full size: class, settings, parameters of weight groups, and of what reads text."""


@pytest.mark.parametrize("name", FULL)
def test_weight_groups_at_full_size_have_the_known_sizes(name):
    cls, settings, sizes, reads = FULL[name]
    with torch.device("meta"):
        denoiser = cls(**settings)
    own = dict(denoiser.named_parameters())
    family = next(f for f in FAMILIES if name.partition(",")[0] in f.pipelines)
    found = {g: sum(own[n].numel() for n in family.group(denoiser, g)) for g in sizes}
    assert found == sizes
    assert sum(own[n].numel() for n in family.text_maps(denoiser)) == reads


@pytest.mark.parametrize("family_class", FAMILIES)
def test_every_family_has_the_common_groups(family_class):
    common = {"xattn", "kv", "selfattn", "noxattn", "transformer", "full"}
    assert common <= set(family_class.groups)
    assert Tuning().group in family_class.groups
