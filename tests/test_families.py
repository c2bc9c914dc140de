"""Every family against diffusers' own pipelines of tiny random networks, and its full size."""

import shutil
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import replace

import diffusers as D
import pytest
import torch
from conftest import QUIET, WORDS, job_of, quick, same_weights, shaken, unchanged
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from families import SIZES, TINY, build, flux, ours, stock
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.edits.lora import factorise
from efface.edits.lora import save as save_lora
from efface.edits.merge import merge, merge_single
from efface.errors import UserError
from efface.evaluation.sensitivity import closed_form, prediction
from efface.methods.advunlearn import AdvUnlearn, Prefixes
from efface.methods.age import AGE
from efface.methods.ap import AP
from efface.methods.ca import CA
from efface.methods.dp import DP
from efface.methods.esd import ESD
from efface.methods.mace import MACE
from efface.methods.minimax import Minimax
from efface.methods.oce import OCE
from efface.methods.race import RACE
from efface.methods.rece import RECE
from efface.methods.speed import SPEED
from efface.methods.spm import SPM
from efface.methods.stereo import STEREO
from efface.methods.twofold import Twofold
from efface.methods.uce import UCE
from efface.models import FAMILIES, load, memory, plan, watched
from efface.models.files.single_file import lay
from efface.models.files.standard import STANDARD
from efface.models.memory import activations, bytes_of, checkpointed
from efface.models.process import Diffusion
from efface.training import Bank, Student, Tuning
from efface.training.recall import Recall

CAT = Concept("cat")
TOLD = Concept("cat", anchor="dog")
"""The same where no anchor has to be searched for."""
FAST = ("sdxl", "flux dev")
"""A UNet and a transformer; the others are slow tests."""


@pytest.fixture(
    scope="session",
    params=[n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in TINY],
)
def family(request, tmp_path_factory):
    """(name, stock pipeline, model) of one family."""
    folder = tmp_path_factory.mktemp("family") / "model"
    pipeline = build(request.param)
    pipeline.save_pretrained(folder)
    model = load(folder, device="cpu", size=SIZES.get(request.param, 0))
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


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A shorter word list: what is looked at here is the family."""
    path = tmp_path_factory.mktemp("few") / "words.txt"
    path.write_text("\n".join(WORDS[::3]))
    return path


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
    t = torch.full((3,), 400 if isinstance(model.process, Diffusion) else 400.0)
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
        pytest.param(AP(search=AP.presets()["paper"].search), marks=pytest.mark.slow),
        UCE(vocabulary="file"),
        SPEED(maps="all"),
        DP(),
        OCE(maps="all"),
        Minimax(),
        AGE(),
        CA(),
        RECE(),
        RACE(),
        Twofold(recall=Recall(tokens=False)),
    ],
    ids=[
        *("esd", "ap", "ap-gumbel", "uce", "speed", "dp", "oce", "minimax", "age", "ca"),
        *("rece", "race", "twofold"),
    ],
)
def test_methods_erase_in_every_family(family, method, words, tmp_path):
    """Erase, save, load: pictures change, and change back when the edit is taken off."""
    _, _, model = family
    concept = CAT if method == AP() else TOLD  # one search for an anchor is enough
    edit = tiny_method(method, words).erase(model, [concept], QUIET)
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


@pytest.mark.slow
def test_checkpointing_changes_memory_and_nothing_else(family, words):
    _, _, model = family
    method = tiny_method(AP(), words)
    kept = method.erase(model, [TOLD], QUIET)
    again = method.erase(model, [TOLD], replace(QUIET, checkpointing=True))
    assert same_weights(dict(kept.weights), dict(again.weights))
    names = model.group("xattn")
    assert activations(model, names, 2, checkpointing=True) < activations(model, names, 2)


def kept_of(model, names):
    """Bytes of the tensors that a real pass of three latents keeps."""
    own, kept = model.parameters(), {}
    trained = {n: own[n].clone().requires_grad_() for n in names}
    known = {w.untyped_storage().data_ptr() for w in (*own.values(), *trained.values())}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage, storage.nbytes())
        return x

    z = model.noise(3, torch.Generator().manual_seed(0))
    cond = model.embed(["a cat", "a dog", "red"])
    t = torch.full((3,), 400 if isinstance(model.process, Diffusion) else 400.0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.predict(z, t, cond, trained)
    return sum(n for _, n in kept.values())


@pytest.mark.slow
def test_activations_are_planned_as_they_are_kept(family):
    _, _, model = family
    names, own = model.group("kv"), model.parameters()
    assert activations(model, names, 3) == pytest.approx(kept_of(model, names), rel=0.1)
    whole = plan(model, "kv", 3)
    assert whole.trained == 16 * sum(own[n].numel() for n in names)
    assert whole.total == whole.frozen + whole.trained + whole.activations
    assert f"about {whole.total / 1e9:.1f} GB" in str(whole)
    mean = plan(model, "kv", 3, averaged=True)
    assert mean.trained - whole.trained == whole.trained // 4
    half = plan(model, "kv", 3, rank=1)
    assert half.trained != whole.trained


def test_activations_without_sdpa_are_planned_as_they_are_kept(tiny_folder):
    """A pipeline may compute attention otherwise, and then keeps every score of it."""
    model = load(tiny_folder, device="cpu")
    names = model.group("kv")
    usual, sliced = activations(model, names, 3), SlicedAttnProcessor(1)
    for processor in (AttnProcessor(), sliced):
        model.denoiser.set_attn_processor(processor)
        planned = activations(model, names, 3)
        assert planned == pytest.approx(kept_of(model, names), rel=0.1)
        assert planned > usual
        assert str(plan(model, "kv", 3)).endswith("at once, as attention is without SDPA")
    assert "SDPA" not in str(plan(load(tiny_folder, device="cpu"), "kv", 3))


class Peak(TorchDispatchMode):
    """The most bytes that tensors made meanwhile take at a time."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        found = f(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return found

    def gone(self, key, n):
        self.known.discard(key)
        self.live -= n


@pytest.mark.parametrize("again", [False, True])
def test_activations_are_planned_as_a_training_needs_them(tiny_folder, again):
    """With checkpointing the block that is computed again is there as a whole."""
    model = load(tiny_folder, device="cpu", size=64)
    names, own = model.group("xattn"), model.parameters()
    trained = {n: own[n].clone().requires_grad_() for n in names}
    z, t = model.noise(3, torch.Generator().manual_seed(0)), torch.full((3,), 400)
    cond = model.embed(["a cat"] * 3)
    with Peak() as seen, checkpointed(model.denoiser) if again else nullcontext():
        model.predict(z, t, cond, trained).square().sum().backward()
    assert activations(model, names, 3, again) == pytest.approx(seen.peak, rel=0.2)


def test_text_encoders_and_autoencoder_leave_memory_while_training(family, words, monkeypatch):
    _, _, model = family
    method, parts = tiny_method(AP(), words), model.parts
    before, kept = ours(model), method.erase(model, [TOLD], QUIET)
    monkeypatch.setattr(memory, "WORTH", 0)
    there = []
    watch = replace(QUIET, on_update=lambda *_: there.append(set(model.parts)))
    try:
        again = method.erase(model, [TOLD], watch)
        assert there
        gone = {n for n in (*model.family.encoders, "vae") if n in parts}
        assert all(not gone & names for names in there)
        assert same_weights(dict(kept.weights), dict(again.weights))
        model.embed(["a cat"])  # opens some of them
        memory.release(model)
        assert torch.equal(ours(model), before)
        assert gone - set(model.parts) == set()
    finally:
        model.parts = parts


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_the_published_forms_run_in_every_family(family, preset, words):
    _, _, model = family
    edit = tiny_method(AP.presets()[preset], words).erase(model, [CAT], QUIET)
    own = model.parameters()
    assert any(not torch.equal(w, own[k]) for k, w in edit.weights.items())


def test_spm_runs_in_every_family(family, words):
    _, _, model = family
    method = SPM(anchors=1, latents=Bank(ddim_steps=2, trajectories=1))
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
    _, _, model = family
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


@pytest.mark.parametrize("method", [AdvUnlearn(), STEREO()], ids=["advunlearn", "stereo"])
def test_token_vectors_are_searched_for_only_where_cross_attention_reads_clip(
    family, words, method
):
    _, _, model = family
    method = quick(method, words, 4)
    if model.family.crosses:
        own, edit = model.parameters(), method.erase(model, [CAT], QUIET)
        assert all(not torch.equal(w, own[k]) for k, w in edit.weights.items())
    else:
        with (
            pytest.raises(UserError, match=f"the method '{method.name}' works on token vectors"),
            model.counting() as spent,
        ):
            method.erase(model, [CAT], QUIET)
        assert spent.forward == 0


def test_last_words_are_where_the_text_encoders_put_them(family):
    _, _, model = family
    at = model.last_word(["", "cat", "a cat"])
    one, two = model.embed(["a cat"]).states[0], model.embed(["a dog"]).states[0]
    for column in at[2].tolist():
        assert not torch.allclose(one[column], two[column])
    asked = ["a cat", "dog", "", "dog", "the red house on the hill"]
    words, slow = model.words(asked), model.embed(asked).states
    for i, row in enumerate(model.last_word(asked).tolist()):
        torch.testing.assert_close(words[i], slow[i, row], rtol=1e-4, atol=1e-5)


def test_words_are_encoded_no_more_at_once_than_prompts_are(family, monkeypatch):
    _, _, model = family
    encoder, asked = model.parts[next(iter(model.family.encoders))], []
    n = model._texts_at_once
    words = [f"cat {i}" for i in range(n + 3)]
    handle = encoder.register_forward_pre_hook(
        lambda _, args, more: asked.append(len(args[0] if args else more["input_ids"])),
        with_kwargs=True,
    )
    try:
        assert len(model.words(words)) == n + 3
    finally:
        handle.remove()
    assert max(asked) <= n


@pytest.mark.parametrize("words", [False, True])
def test_a_long_prompt_warns_once(family, words):
    _, _, model = family
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (model.words if words else model.embed)(["house " * 200])
    assert len([w for w in said if "cut off" in str(w.message)]) == 1


@pytest.mark.parametrize(("guidance", "tokens"), [(True, 512), (False, 256)])
def test_flux_reads_as_many_tokens_as_it_was_made_for(guidance, tokens):
    model = load(flux(guidance, longest=1000), size=8)
    assert model.embed(["a cat"]).states.shape[1] == tokens


def test_frozen_weights_in_four_bits(family, words):
    """Trained and read weights stay as they are; an edit made so lies on the model itself."""
    pytest.importorskip("bitsandbytes")
    name, _, model = family
    if not name.startswith("flux "):
        pytest.skip("its layers are too narrow here")
    small = load(model.folder, device="cpu", size=model.size, quantise="nf4")
    small.lr = 1e-2
    own, names = small.parameters(), {*small.group("xattn"), *small.text_maps()}
    assert all(torch.equal(own[n], model.parameters()[n]) for n in names)
    packed = [n for n, p in own.items() if p.dtype == torch.uint8]
    assert packed
    assert bytes_of(small.denoiser) < bytes_of(model.denoiser)
    assert small.dtype == torch.float32
    edit = tiny_method(ESD(), words).erase(small, [CAT], QUIET)
    assert edit.meta["quantised"] == "nf4"
    assert all(torch.isfinite(w).all() for w in edit.weights.values())
    edit.check(model)
    assert not torch.equal(ours(model), ours(model, edit.on(model)))
    solved = UCE().erase(small, [CAT], QUIET)
    assert same_weights(dict(solved.weights), dict(UCE().erase(model, [CAT], QUIET).weights))


def test_prefixes_stand_before_the_name_in_both_text_encoders_of_sdxl(family):
    name, _, model = family
    if name != "sdxl":
        pytest.skip("one text encoder, or none that is CLIP")
    method = AdvUnlearn(warm_up=0.0, steps=1, latents=Bank(ddim_steps=2, trajectories=1))
    job = job_of(model, [CAT], method)
    prefixes = Prefixes(job, method, method.latents.open(job))
    student = Student(model, shaken(model))
    start = prefixes.random(torch.Generator().manual_seed(1))
    prefixes.found = start
    prefixes.search(student, torch.tensor([0, 0]), torch.Generator().manual_seed(0))
    for encoder, w in prefixes.found.items():
        size = model.parts[encoder].get_input_embeddings().weight.square().mean().sqrt()
        far = (w - start[encoder]).abs() / (method.step * size)
        torch.testing.assert_close(far, torch.ones_like(far), rtol=1e-2, atol=0)  # Adam's first


# -- full size ---------------------------------------------------------------------------------


def published(kind):
    """A UNet's settings as they were published."""
    config = STANDARD[kind]["unet/config.json"]
    return {k: v for k, v in config.items() if k != "_class_name"}


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
        published("sd2"),
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
        published("sdxl"),
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
    "Flux2KleinPipeline, 4B": (
        D.Flux2Transformer2DModel,
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        {
            "full": 3_875_544_576,
            "kv": 94_371_840,
            "xattn": 188_744_960,
            "selfattn": 188_744_960,
            "text": 670_041_344,
            "single": 2_453_672_960,
        },
        23_592_960,
    ),
    "Flux2KleinPipeline, 9B": (
        D.Flux2Transformer2DModel,
        {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
        {
            "full": 9_078_581_248,
            "kv": 268_435_456,
            "xattn": 536_872_960,
            "selfattn": 536_872_960,
            "text": 1_845_495_808,
            "single": 5_234_497_536,
        },
        50_331_648,
    ),
    "ZImagePipeline": (
        D.ZImageTransformer2DModel,
        {},
        {
            "full": 6_154_908_736,
            "kv": 58_982_400,
            "text": 353_925_632 + 9_836_800,
            "single": 5_427_310_080,
        },
        9_830_400,
    ),
}
"""Denoisers at full size: class, settings, parameters of weight groups, and of what reads text."""


@pytest.mark.parametrize("name", FULL)
def test_weight_groups_at_full_size_have_the_known_sizes(name):
    cls, settings, sizes, reads = FULL[name]
    with torch.device("meta"):
        denoiser = cls(**settings)
    own = dict(denoiser.named_parameters())
    family = next(f for f in FAMILIES.values() if name.partition(",")[0] in f.pipelines)
    found = {g: sum(own[n].numel() for n in family.group(denoiser, g)) for g in sizes}
    assert found == sizes
    assert sum(own[n].numel() for n in family.text_maps(denoiser)) == reads


@pytest.mark.parametrize("family_class", FAMILIES.values())
def test_every_family_has_the_common_groups(family_class):
    common = {"xattn", "kv", "selfattn", "noxattn", "transformer", "full"}
    assert common <= set(family_class.groups)
    assert Tuning().group in family_class.groups


# -- files that other programs load ------------------------------------------------------------


def beside(model, path):
    """A single file's diffusers folder, without the weights that the file holds."""
    folder = path.with_suffix("")
    inside = ("unet", "vae", "text_encoder*") if model.family.denoiser == "unet" else ()
    gone = ["*.safetensors"] if inside else []
    shutil.copytree(model.folder, folder, ignore=shutil.ignore_patterns(*gone))


def test_a_single_file_comes_back_as_it_was(family, words, tmp_path, cache):
    name, _, model = family
    edit = tiny_method(ESD(), words).erase(model, [CAT], QUIET)
    path = merge_single(model, edit, tmp_path / "one.safetensors")
    beside(model, path)
    if name in ("flux dev", "flux schnell"):  # diffusers' reader knows FLUX's own width only
        return
    again = load(path, device="cpu", size=model.size)
    own = {**model.denoiser.state_dict(), **edit.weights}
    assert same_weights(again.denoiser.state_dict(), own)
    torch.testing.assert_close(ours(again), ours(model, edit.on(model)), rtol=0, atol=1e-5)
    assert load(path, device="cpu").folder == again.folder  # converted once
    assert not [p for p in (tmp_path / "cache" / "single").iterdir() if p.name.startswith(".")]


def test_a_single_file_of_mixed_precisions_is_refused(family, tmp_path, cache):
    _, _, model = family
    path = merge_single(model, unchanged(model), tmp_path / "one.safetensors")
    beside(model, path)
    tensors = load_file(path)
    inside = [k for k in tensors if k.startswith("model.diffusion_model.")] or list(tensors)
    tensors[inside[0]] = tensors[inside[0]].half()
    save_file(tensors, path)
    with pytest.raises(UserError, match="stored in F16 and F32"):
        load(path, device="cpu")


@pytest.mark.parametrize("what", ["misses", "has besides"])
def test_a_single_file_with_missing_or_extra_keys_is_refused(family, what, tmp_path, cache):
    _, _, model = family
    path = merge_single(model, unchanged(model), tmp_path / "one.safetensors")
    beside(model, path)
    tensors = load_file(path)
    key = next(k for k in tensors if "norm" in k or "mlp" in k)
    if what == "misses":
        del tensors[key]
    else:
        tensors[f"{key}2"] = tensors[key].clone()
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"it {what} 1 keys, first '{key}"):
        load(path, device="cpu")
    assert not (tmp_path / "cache" / "single").exists() or not list(
        (tmp_path / "cache" / "single").iterdir()
    )


@pytest.mark.slow
def test_flux_is_read_back_at_its_own_width(tmp_path, cache):
    """diffusers' reader knows no other; one block of each kind, two gigabytes in all."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        wide = {
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "axes_dims_rope": (16, 56, 56),
        }
        pipeline = flux(num_layers=1, num_single_layers=1, **wide)
    finally:
        torch.set_default_dtype(before)
    pipeline.save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", dtype="bf16", device="cpu", size=SIZES["flux dev"])
    own = model.parameters()
    edit = Edit({n: own[n].float() + 1 for n in model.group("kv")}, {"base": model.base})
    path = merge_single(model, edit, tmp_path / "one.safetensors")
    beside(model, path)
    again = load(path, dtype="bf16", device="cpu", size=SIZES["flux dev"])
    wanted = {**model.denoiser.state_dict(), **{n: w.bfloat16() for n, w in edit.weights.items()}}
    assert same_weights(again.denoiser.state_dict(), wanted)


def test_single_files_of_transformers_have_the_published_names():
    for name, size, known in (
        (
            "StableDiffusion3Pipeline",
            {"num_layers": 2, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
            {
                "joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536),
                "joint_blocks.0.x_block.attn2.ln_k.weight": (64,),
                "joint_blocks.0.context_block.attn.qkv.bias": (4608,),
                "joint_blocks.0.context_block.mlp.fc2.weight": (1536, 6144),
                "joint_blocks.1.context_block.adaLN_modulation.1.weight": (3072, 1536),
                "pos_embed": (1, 36864, 1536),
                "x_embedder.proj.weight": (1536, 16, 2, 2),
                "y_embedder.mlp.0.weight": (1536, 2048),
                "final_layer.adaLN_modulation.1.weight": (3072, 1536),
                "context_embedder.weight": (1536, 4096),
            },
        ),
        (
            "FluxPipeline",
            {"num_layers": 1, "num_single_layers": 1},
            {
                "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
                "double_blocks.0.txt_attn.norm.query_norm.scale": (128,),
                "double_blocks.0.txt_mlp.2.weight": (3072, 12288),
                "double_blocks.0.img_mod.lin.weight": (18432, 3072),
                "single_blocks.0.linear1.weight": (21504, 3072),
                "single_blocks.0.linear2.weight": (3072, 15360),
                "single_blocks.0.modulation.lin.weight": (9216, 3072),
                "single_blocks.0.norm.key_norm.scale": (128,),
                "guidance_in.in_layer.weight": (3072, 256),
                "vector_in.out_layer.bias": (3072,),
                "txt_in.weight": (3072, 4096),
                "img_in.weight": (3072, 64),
                "final_layer.linear.weight": (64, 3072),
            },
        ),
    ):
        cls, settings, *_ = FULL[name]
        with torch.device("meta"):
            denoiser = cls(**{**settings, **size})
        kind = next(f for f in FAMILIES.values() if name in f.pipelines)
        found = kind().original({"transformer": denoiser})
        shapes = {k: tuple(w.shape) for k, w in found.items()}
        assert known.items() <= shapes.items()
        stray = ("transformer_blocks", "to_q", "norm1", "ff.", "time_text_embed")
        assert not [k for k in shapes if any(s in k for s in stray)]
        wanted = sum(w.numel() for w in denoiser.state_dict().values())
        assert sum(w.numel() for w in found.values()) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", STANDARD)
def test_the_standard_architectures_are_the_published_ones(kind, tmp_path):
    given = STANDARD[kind]
    lay(tmp_path, given, v=True)
    config = dict(given["unet/config.json"])
    with torch.device("meta"):
        unet = D.UNet2DConditionModel.from_config(config)
    known = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}
    assert sum(p.numel() for p in unet.parameters()) == known[kind]
    from transformers import CLIPTokenizer

    for name in given["model_index.json"]:
        if name.startswith("tokenizer"):
            own = CLIPTokenizer.from_pretrained(tmp_path / name)
            assert own("", padding="max_length").input_ids[-1] in (0, 49407)
            assert own.model_max_length == 77


@pytest.mark.slow
def test_the_shipped_model_goes_into_one_file_and_comes_back_alone(emoji, tmp_path, cache):
    path = merge_single(emoji, unchanged(emoji), tmp_path / "emoji.safetensors")
    again = load(path, device="cpu")
    assert same_weights(again.denoiser.state_dict(), emoji.denoiser.state_dict())
    one, two = (
        next(m.generate(["church, noto style"], [0], steps=4, guidance=4.0, output_type="pt"))
        for m in (again, emoji)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_files_that_are_no_checkpoint_are_refused(tmp_path, cache):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint that efface knows .* 'some\.weight'"):
        load(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="truncated or damaged"):
        load(tmp_path / "y.safetensors")
    save_file({"double_blocks.0.x": torch.zeros(2)}, tmp_path / "z.safetensors")
    with pytest.raises(UserError, match="holds the transformer of a FluxPipeline alone"):
        load(tmp_path / "z.safetensors")


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_lora_loads_in_a_stock_pipeline_scales_and_unloads(family, form, words, tmp_path):
    pytest.importorskip("peft")
    _, pipeline, model = family
    method = tiny_method(ESD(rank=2, lr=0.05), words)
    edit = method.erase(model, [CAT], QUIET)
    lora = factorise(model, edit, 2)
    assert lora.error < 1e-5
    if form == "kohya" and model.family.denoiser != "unet":
        with pytest.raises(UserError, match="choose the form 'peft'"):
            save_lora(model, lora, tmp_path / "a.safetensors", form)
        return
    save_lora(model, lora, tmp_path / "a.safetensors", form)
    before = stock(pipeline)
    weights = {k: p.clone() for k, p in model.parameters().items()}
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    try:
        torch.testing.assert_close(stock(pipeline), ours(model, edit.on(model)), rtol=0, atol=1e-3)
        own = model.parameters()
        for strength in (-1.0, 0.5):
            pipeline.set_adapters(pipeline.get_active_adapters(), strength)
            scaled = {k: own[k] + strength * (w - own[k]) for k, w in edit.weights.items()}
            torch.testing.assert_close(stock(pipeline), ours(model, scaled), rtol=0, atol=1e-3)
    finally:
        pipeline.unload_lora_weights()
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    assert same_weights(dict(denoiser.named_parameters()), weights)
    torch.testing.assert_close(stock(pipeline), before, rtol=0, atol=1e-6)
