"""Pipelines of diffusers that are open already, of every family."""

import copy

import diffusers as D
import pytest
import torch
from conftest import CHURCH, QUIET, mostly_slow, shaken
from families import SIZES, TINY, build, ours, stock
from PIL import Image
from torch import nn

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import load
from efface.testing import tiny_pipeline
from efface.training import Bank

FAST = ("sdxl", "flux dev", "flux.2 klein", "z-image")
"""The others are slow tests: each differs little from one of these, in what a pipeline is."""


@pytest.fixture(scope="module", params=mostly_slow(TINY, FAST))
def family(request):
    """(name, pipeline) of one family; whatever a test does with it, it stays as it is."""
    return request.param, build(request.param)


@pytest.fixture
def pipe():
    """A small pipeline to be changed."""
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser_of(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def modules_of(pipe):
    return {n: p for n, p in pipe.components.items() if isinstance(p, nn.Module)}


def state_of(pipe):
    """All that must stay: weights, where they lie, flags, modes, hooks, settings."""
    found = {}
    for name, part in modules_of(pipe).items():
        for k, w in part.state_dict(keep_vars=True).items():
            found[name, k] = (w.data_ptr(), w.requires_grad, w.dtype, w.detach().clone())
        for k, m in part.named_modules():
            found[name, k, "mode"] = (m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        found[name, "config"] = str(part.config)
    found["scheduler"] = copy.deepcopy(vars(pipe.scheduler))
    found["config"] = dict(pipe.config)
    return found


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool((a == b) if not hasattr(a, "shape") else (a == b).all())


def random_edit(model, by=0.5):
    return Edit(shaken(model, by=by), {"base": model.base})


# -- every family ------------------------------------------------------------------------------


def test_a_pipeline_is_taken_without_a_copy_and_left_as_it_is(family):
    name, pipe = family
    part = denoiser_of(pipe)
    part.train()
    next(part.parameters()).requires_grad_(False)
    before = state_of(pipe)
    model = load(pipe, size=SIZES.get(name, 0))
    for k, module in modules_of(pipe).items():
        lie = {n: p.data_ptr() for n, p in module.named_parameters()}
        assert {n: p.data_ptr() for n, p in model.parts[k].named_parameters()} == lie
        assert not any(m.training for m in model.parts[k].modules())
    assert not any(p.requires_grad for p in model.parameters().values())
    ours(model)
    UCE().erase(model, [CHURCH], QUIET)
    assert same(state_of(pipe), before)
    part.eval().requires_grad_(True)


@pytest.mark.slow
def test_pictures_of_a_pipeline_with_an_edit_applied_are_those_of_the_model(family):
    name, pipe = family
    model = load(pipe, size=SIZES.get(name, 0))
    plain, before = stock(pipe), state_of(pipe)
    torch.testing.assert_close(ours(model), plain, rtol=0, atol=2e-4)
    edit = random_edit(model)
    erased = ours(model, edit.on(pipe))
    assert not torch.allclose(erased, plain, atol=1e-3)
    with edit.applied(pipe) as inside:
        assert inside is pipe
        torch.testing.assert_close(stock(pipe), erased, rtol=0, atol=2e-4)
        torch.testing.assert_close(ours(model), plain, rtol=0, atol=2e-4)
        assert load(pipe).base != model.base
    after = state_of(pipe)
    after["scheduler"] = before["scheduler"]  # the pipeline's own steps
    assert same(after, before)
    assert load(pipe).base == model.base
    assert torch.equal(stock(pipe), plain)


def test_a_merged_pipeline_draws_what_the_model_draws_with_the_edit(family):
    name, _ = family
    pipe = build(name)
    model = load(pipe, size=SIZES.get(name, 0))
    edit = random_edit(model)
    erased, half = ours(model, edit.on(model)), ours(model, edit.on(model, strength=0.5))
    with edit.applied(pipe, strength=0.5):
        torch.testing.assert_close(stock(pipe), half, rtol=0, atol=2e-4)
    assert edit.merged_into(pipe) is pipe
    torch.testing.assert_close(stock(pipe), erased, rtol=0, atol=2e-4)


def test_a_method_erases_from_a_pipeline_what_it_erases_from_its_folder(family, tmp_path):
    name, pipe = family
    pipe.save_pretrained(tmp_path / "model")
    size = SIZES.get(name, 0)
    folder = load(tmp_path / "model", device="cpu", size=size)
    one, two = (UCE().erase(m, [CHURCH], QUIET) for m in (folder, load(pipe, size=size)))
    for k, w in one.weights.items():
        torch.testing.assert_close(two.weights[k], w, rtol=1e-3, atol=1e-5)
    missing = {} if "no T5" not in name else {"text_encoder_3": None, "tokenizer_3": None}
    again = type(pipe).from_pretrained(tmp_path / "model", **missing)
    known = load(again)
    assert known.folder == tmp_path / "model"
    assert known.base == folder.base
    one.check(known)
    with one.applied(again):
        assert load(again).base != folder.base


# -- siblings, and what else a pipeline may be -------------------------------------------------


class Mine(D.StableDiffusionPipeline):
    """Somebody's own."""


SIBLINGS = {
    "sd2": (Mine, D.StableDiffusionImg2ImgPipeline, D.StableDiffusionInpaintPipeline),
    "sdxl": (D.StableDiffusionXLImg2ImgPipeline, D.StableDiffusionXLInpaintPipeline),
    "sd3": (D.StableDiffusion3Img2ImgPipeline, D.StableDiffusion3InpaintPipeline),
    "flux dev": (D.FluxImg2ImgPipeline, D.FluxInpaintPipeline, D.FluxKontextPipeline),
    "flux.2 klein": (D.Flux2KleinInpaintPipeline,),
    "z-image": (D.ZImageImg2ImgPipeline,),
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings_of_the_same_components_are_the_same_model(name):
    pipe = build(name)
    parts = {k: p for k, p in pipe.components.items() if p is not None}
    known = load(pipe)
    for sibling in SIBLINGS[name]:
        extra = {"requires_safety_checker": False} if name == "sd2" else {}
        if name == "sd2":
            extra |= {"safety_checker": None, "feature_extractor": None}
        model = load(sibling(**parts, **extra))
        assert type(model.family) is type(known.family)
        assert model.base == known.base
        edit = random_edit(model)
        edit.check(known)


def test_other_pipelines_are_refused_by_name():
    for kind in ("Flux2Pipeline", "KandinskyPipeline", "StableDiffusionXLControlNetXSPipeline"):
        other = type(kind, (D.DiffusionPipeline,), {})
        with pytest.raises(UserError, match=f"this pipeline is a {kind}; efface takes"):
            load(other())


def test_a_pipeline_without_its_text_encoder_is_refused(pipe):
    pipe.text_encoder = None
    with pytest.raises(UserError, match="this pipeline has no text_encoder, which Stable Diff"):
        load(pipe)


def test_components_of_several_precisions_work_together(pipe):
    pipe.unet.to(torch.bfloat16)
    model = load(pipe)
    assert model.dtype == torch.bfloat16
    assert next(model.vae.parameters()).dtype == torch.float32
    picture = next(model.generate("church", 0, steps=2, output_type="pt"))
    assert torch.isfinite(picture).all()
    edit = random_edit(model)
    with edit.applied(pipe):
        assert {p.dtype for p in pipe.unet.parameters()} == {torch.bfloat16}


def test_an_autoencoder_that_overflows_in_half_precision_decodes_in_full(pipe):
    pipe.vae.register_to_config(force_upcast=True)
    pipe.to(torch.float16)
    model = load(pipe)
    z = model.noise(2, torch.Generator().manual_seed(0))
    found = model.decode(z)
    assert next(pipe.vae.parameters()).dtype == torch.float16
    pipe.vae.float()
    torch.testing.assert_close(found, load(pipe).decode(z), rtol=0, atol=1e-6)


def test_a_pipeline_with_a_lora_is_refused_until_it_is_gone(pipe, tmp_path):
    pytest.importorskip("peft")
    model = load(pipe)
    random_edit(model).save_lora(tmp_path / "a.safetensors", rank=2, model=model)
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    with pytest.raises(UserError, match=r"unet has adapters loaded: call pipe\.fuse_lora"):
        load(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = load(pipe)
    assert fused.base != model.base
    with pytest.raises(UserError, match="load the model it was made for"):
        random_edit(fused).check(model)


def test_a_pipeline_with_fused_projections_is_refused_and_they_can_be_fused_later(pipe):
    """Its forward pass reads copies, and an erasure would change nothing of what it draws."""
    edit = random_edit(load(pipe))
    x, t, states = (
        torch.randn(1, 4, 8, 8),
        torch.tensor([500]),
        torch.randn(1, 77, pipe.text_encoder.config.hidden_size),
    )
    edit.merged_into(pipe)
    with torch.no_grad():
        expected = pipe.unet(x, t, states).sample
        pipe.fuse_qkv_projections()
        torch.testing.assert_close(pipe.unet(x, t, states).sample, expected)
    for call in (load, edit.merged_into, lambda p: edit.applied(p).__enter__()):
        with pytest.raises(UserError, match=r"fused projections.* after edit\.merged_into\(pipe"):
            call(pipe)


def test_a_pipeline_that_is_moved_within_the_block_stays_in_one_precision(pipe):
    edit = random_edit(load(pipe))
    own = {k: p.clone() for k, p in pipe.unet.named_parameters()}
    with edit.applied(pipe):
        pipe.to(torch.float16)
    for k, p in pipe.unet.named_parameters():
        assert torch.equal(p, own[k].half()), k


def test_a_pipeline_with_gradient_checkpointing_gives_the_same_edit(pipe):
    method = ESD(updates=2, batch=2, group="full", lr=1e-3, latents=Bank(ddim_steps=3))
    plain = method.erase(pipe, [CHURCH], QUIET)
    pipe.unet.enable_gradient_checkpointing()
    assert method.erase(pipe, [CHURCH], QUIET).digest == plain.digest
    assert pipe.unet.is_gradient_checkpointing
    pipe.unet.disable_gradient_checkpointing()


def test_a_word_of_several_vectors_is_asked_for_whole(pipe):
    g = torch.Generator().manual_seed(0)
    width = pipe.text_encoder.config.hidden_size
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)  # the other tests' as well
    pipe.load_textual_inversion(torch.randn(3, width, generator=g), token="<cat>")
    model = load(pipe)
    with pytest.raises(UserError, match="'<cat>' in 'a <cat>' was learned as 3 vectors: write"):
        model.embed(["a fox", "a <cat>"])
    own = model.embed(["a <cat> <cat>_1 <cat>_2"]).states
    theirs, _ = pipe.encode_prompt("a <cat>", "cpu", 1, False)
    torch.testing.assert_close(own, theirs)


def test_a_lora_in_a_text_encoder_is_seen(pipe):
    peft = pytest.importorskip("peft")
    try:
        pipe.text_encoder.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    except ValueError as e:
        if "version of PEFT" not in str(e):
            raise
        pytest.skip(str(e))  # the newest transformers may ask for one that is not out yet
    with pytest.raises(UserError, match="text_encoder has adapters loaded"):
        load(pipe)


def test_an_ip_adapter_is_seen(pipe):
    pipe.unet.encoder_hid_proj = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"IP-Adapter loaded: call pipe\.unload_ip_adapter"):
        load(pipe)


def test_an_offloaded_pipeline_is_refused_until_it_is_back(pipe):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    with pytest.raises(UserError, match=r"unet is offloaded.* pipe\.remove_all_hooks"):
        load(pipe)
    accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
    assert load(pipe).parameters()


def test_group_offloading_and_caches_are_seen(pipe):
    pipe.unet.enable_layerwise_casting(torch.bfloat16, torch.float32)
    with pytest.raises(UserError, match="unet is offloaded, or cached by hooks of diffusers"):
        load(pipe)


@pytest.mark.slow  # the import of the compiler alone takes seconds
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_pipeline_is_taken(pipe, how):
    plain = load(pipe)
    if how == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.compile(backend="eager")
    model = load(pipe)
    assert model.base == plain.base
    assert list(model.parameters()) == list(plain.parameters())
    edit, before = random_edit(model), stock_sd(pipe)
    with edit.applied(pipe):
        erased = stock_sd(pipe)
    wanted = torch.stack(
        list(model.generate(["church"], [0], 2, 4.0, edit.on(pipe), output_type="pt"))
    )
    torch.testing.assert_close(erased, wanted, rtol=0, atol=2e-4)
    assert torch.equal(stock_sd(pipe), before)
    assert not torch.allclose(before, erased, atol=1e-3)


def stock_sd(pipe):
    z = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt"}
    return pipe("church", latents=z, **options).images


@pytest.mark.slow
def test_a_part_that_is_compiled_is_refused_where_its_names_changed(pipe):
    pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")
    with pytest.raises(UserError, match=r"compiled in parts.*pipe\.unet\.compile\(\)"):
        load(pipe)


def packed(module):
    """Its linear layers in four bits, as bitsandbytes leaves them."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    for name, old in list(module.named_modules()):
        if type(old) is nn.Linear:
            sizes = old.in_features, old.out_features, old.bias is not None
            new = Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4", device="meta")
            new.weight = Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
            new.bias = old.bias
            new.support_avx512bf16_for_cpu = False
            holder, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(holder), leaf, new)
    module.to("cpu")


def test_quantised_denoisers_are_refused_and_quantised_text_encoders_are_taken(pipe):
    pytest.importorskip("bitsandbytes")
    before = load(pipe).embed(["church"]).states
    packed(pipe.text_encoder)
    found = load(pipe).embed(["church"]).states
    assert torch.equal(found, pipe.encode_prompt("church", "cpu", 1, False)[0])
    assert not torch.equal(found, before)
    packed(pipe.unet)
    with pytest.raises(UserError, match=r"unet is quantised.*quantise='nf4'"):
        load(pipe)


# -- whose model it is -------------------------------------------------------------------------


def opened(folder, **options):
    return D.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **options)


def test_an_unchanged_pipeline_is_its_folders_model(tiny_folder, tiny):
    edit = random_edit(tiny)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = load(opened(tiny_folder, torch_dtype=dtype))
        assert (model.base, model.folder, model.name) == (tiny.base, tiny_folder, tiny.name)
        edit.check(model)


def test_a_changed_pipeline_is_another_model(tiny_folder, tiny):
    pipe = opened(tiny_folder)
    with torch.no_grad():
        next(pipe.unet.parameters()).view(-1)[0] += 1
    model = load(pipe)
    assert model.folder is None
    assert model.base != tiny.base
    with pytest.raises(UserError, match="load the model it was made for"):
        random_edit(tiny).check(model)
    with torch.no_grad():
        next(pipe.unet.parameters()).view(-1)[0] -= 1


def test_what_is_known_of_a_pipeline_is_looked_at_again_when_its_weights_change(tiny_folder, tiny):
    pipe = opened(tiny_folder)
    assert load(pipe).base == tiny.base
    random_edit(tiny).merged_into(pipe)
    assert load(pipe).base != tiny.base
    again = opened(tiny_folder)
    pipe.unet.load_state_dict(again.unet.state_dict())
    assert load(pipe).base == tiny.base


def test_files_are_compared_once(tiny_folder, monkeypatch):
    from efface.models import pipelines

    calls, compare = [], pipelines.holds
    monkeypatch.setattr(pipelines, "holds", lambda *a: calls.append(1) or compare(*a))
    pipe = opened(tiny_folder)
    assert load(pipe).base == load(pipe).base
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        pytest.param("variant", marks=pytest.mark.slow),
        pytest.param("shards", marks=pytest.mark.slow),
        "variant shards",
        "fp16 variant beside",
    ],
)
def test_a_pipeline_of_variants_and_shards_is_its_folders_model(form, tmp_path):
    pipe, folder = tiny_pipeline(), tmp_path / "model"
    shards = {"max_shard_size": "20KB"} if "shards" in form else {}
    if form == "fp16 variant beside":
        pipe.save_pretrained(folder)
        copy.deepcopy(pipe.unet).half().save_pretrained(folder / "unet", variant="fp16")
        again = opened(folder)
        again.unet = D.UNet2DConditionModel.from_pretrained(
            folder / "unet", variant="fp16", torch_dtype=torch.float16
        )
    else:
        variant = "fp16" if "variant" in form else None
        pipe.save_pretrained(folder, variant=variant, **shards)
        again = opened(folder, variant=variant)
    if shards:
        assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    model = load(again)
    assert model.folder == folder
    assert model.base == load(folder, device="cpu").base


def test_the_shipped_models_pipeline_is_the_shipped_model(emoji):
    model = load(opened(emoji.folder))
    assert (model.name, model.base, model.steps) == ("emoji", emoji.base, emoji.steps)
    assert (model.guidance, model.lr) == (emoji.guidance, emoji.lr)


# -- arguments ---------------------------------------------------------------------------------


def test_a_pipeline_is_not_opened_in_another_precision_or_place(pipe):
    assert load(pipe, dtype="fp32", device="cpu").dtype == torch.float32
    with pytest.raises(UserError, match=r"got dtype torch\.float16 for a model that is open"):
        load(pipe, torch_dtype=torch.float16)
    with pytest.raises(UserError, match="got device meta for a model that is open already"):
        load(pipe, device="meta")
    with pytest.raises(UserError, match="got quantise nf4 for a model that is open already"):
        load(pipe, quantise="nf4")
    assert load(pipe, size=16).picture_size == (16, 16)


def test_diffusers_name_of_a_precision_is_taken(tiny_folder):
    for dtype in ("fp16", torch.float16):
        assert load(tiny_folder, torch_dtype=dtype, device="cpu").dtype == torch.float16
    with pytest.raises(UserError, match="unknown dtype"):
        load(tiny_folder, torch_dtype=torch.float64)


def test_a_model_moves_and_a_pipelines_does_not(tiny_folder, pipe):
    model = load(tiny_folder, device="cpu")
    assert model.to("cpu") is model
    assert next(model.generate("dog", steps=1)).size == (8, 8)
    moved = model.to("meta")
    assert (moved.device.type, moved.process.alphas.device.type) == ("meta", "meta")
    assert {p.device.type for p in moved.vae.parameters()} == {"meta"}
    with pytest.raises(UserError, match="device 'toaster' cannot be used here"):
        model.to("toaster")
    with pytest.raises(UserError, match=r"weights are a pipeline's: call pipe\.to\(device\)"):
        load(pipe).to("cpu")


def test_pictures_are_pil_or_tensors(tiny):
    one = list(tiny.generate("church", 3, steps=2))
    assert [type(p) for p in one] == [Image.Image]
    assert one[0].size == (8, 8)
    pt = next(tiny.generate("church", 3, steps=2, output_type="pt"))
    assert (pt.shape, pt.dtype) == ((3, 8, 8), torch.float32)
    told = torch.tensor(list(one[0].tobytes())).view(8, 8, 3).permute(2, 0, 1)
    assert torch.equal(told, (pt * 255).round())
    many = list(tiny.generate(["church", "dog"], 3, steps=2, output_type="pt"))
    assert len(many) == 2
    torch.testing.assert_close(many[0], pt, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="unknown output type 'np'"):
        next(tiny.generate("church", output_type="np"))
    with pytest.raises(ValueError, match="got 2 prompts and 1 seeds"):
        next(tiny.generate(["church", "dog"], [1]))
