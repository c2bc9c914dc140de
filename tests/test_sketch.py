"""A large denoiser of which only what closed forms edit is in memory."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import CHURCH, QUIET, same_weights, sd14_folder, shaken
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from efface.cli import erase as command
from efface.cli.main import main
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.methods.speed import SPEED
from efface.methods.uce import UCE
from efface.models import load, watched
from efface.models.families.stable_diffusion import StableDiffusion
from efface.models.files import sketch
from efface.models.files.tensors import readers
from efface.models.identity import identity

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch):
    monkeypatch.setattr(sketch, "WORTH", 0)


@pytest.fixture
def lean(tiny_folder):
    model = load(tiny_folder, device="cpu", maps_only=True)
    assert missing(model)
    return model


def missing(model):
    """The weights that are not in memory."""
    return {k for k, w in model.denoiser.named_parameters() if w.is_meta}


def test_only_what_reads_the_text_is_in_memory(lean, tiny):
    maps = set(lean.text_maps())
    assert missing(lean) == set(tiny.parameters()) - maps
    assert all(torch.equal(lean.parameters()[k], tiny.parameters()[k]) for k in maps)
    assert (lean.base, lean.dtype, lean.device) == (tiny.base, tiny.dtype, tiny.device)
    assert lean.latent_shape == tiny.latent_shape
    assert not any(w.requires_grad for w in lean.parameters().values())


def test_it_lies_where_it_was_asked_for(tiny_folder):
    what, family = ("diffusers", "UNet2DConditionModel"), StableDiffusion
    where = torch.device("meta")  # a device that every machine has
    found = sketch.sketch(tiny_folder / "unet", what, torch.float32, family, list, where)
    assert all(w.is_meta for w in found.parameters())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_closed_forms_are_the_same_and_open_no_more(tiny_folder, words, dtype):
    whole = load(tiny_folder, device="cpu", dtype=dtype)
    for method in (UCE(), SPEED(vocabulary=str(words))):
        lean = load(tiny_folder, device="cpu", dtype=dtype, maps_only=True)
        edit = method.erase(lean, [CHURCH], QUIET)
        assert missing(lean)
        assert edit.digest == method.erase(whole, [CHURCH], QUIET).digest


@pytest.mark.slow
def test_whatever_needs_the_rest_opens_it(tiny, tiny_folder):
    def fresh():
        return load(tiny_folder, device="cpu", maps_only=True)

    def seen(model):
        z, t = model.noise(1, torch.Generator().manual_seed(0)), torch.tensor([500])
        return model.predict(z, t, model.null(1))

    lean = fresh()
    smaller = lean.at(16)
    assert torch.equal(seen(lean), seen(tiny))
    assert not missing(lean)
    assert smaller.denoiser is lean.denoiser  # opened once for both
    assert identity(fresh()) == identity(tiny)
    assert not missing(fresh().to("cpu"))
    lean = fresh()
    with watched(lean) as found:
        seen(lean)
    assert found
    other = Edit(shaken(tiny), {"base": tiny.base})  # of more than what reads the text
    assert same_weights(other.scaled(0.5, fresh()).weights, other.scaled(0.5, tiny).weights)
    edit = UCE().erase(tiny, [CHURCH], QUIET)
    lean = fresh()
    with edit.applied(lean), edit.applied(tiny):
        assert torch.equal(seen(lean), seen(tiny))


def test_a_method_opens_a_path_leanly_and_a_small_one_whole(tiny_folder, monkeypatch):
    edit = UCE().erase(str(tiny_folder), "church", QUIET)
    assert missing(edit.base)
    monkeypatch.setattr(sketch, "WORTH", 10**9)
    assert not missing(load(tiny_folder, device="cpu", maps_only=True))


@pytest.mark.parametrize("quantise", ["", "nf4"])
def test_the_command_opens_so_for_closed_forms_alone(tiny_folder, tmp_path, monkeypatch, quantise):
    asked, real = [], command.opened

    def opened(*args, **how):
        asked.append(how["maps_only"])
        return real(*args, **{**how, "quantise": ""})

    monkeypatch.setattr(command, "opened", opened)
    monkeypatch.chdir(tmp_path)
    common = ("church", "--model", str(tiny_folder), "--device", "cpu", "--dry-run", "--no-picture")
    more = ("--quantise", quantise) if quantise else ()
    assert main(["erase", "uce", *common, *more]) == 0
    assert (
        main(["erase", "esd", *common, *more, "--updates", "1", "--latents.ddim-steps", "1"]) == 0
    )
    assert asked == [not quantise, False]


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def told(folder, **how):
    with pytest.raises(UserError) as e:
        load(folder, device="cpu", **how)
    return str(e.value)


def not_finite(state):
    state["conv_in.weight"][0, 0, 0, 0] = float("nan")


def lost(state):
    del state["conv_in.weight"]


def too_many(state):
    state["more.weight"] = torch.ones(2)


def misshapen(state):
    state["conv_in.weight"] = torch.ones(3)


@pytest.mark.parametrize("spoil", [not_finite, lost, too_many, misshapen])
def test_what_is_damaged_is_refused_as_ever(folder, spoil):
    state = load_file(folder / UNET)
    spoil(state)
    save_file(state, folder / UNET, {"format": "pt"})
    assert told(folder, maps_only=True) == told(folder)


def test_a_truncated_file_and_an_odd_config_are_refused_in_one_line(folder):
    whole = (folder / UNET).read_bytes()
    for left in (4, 200, -1):
        (folder / UNET).write_bytes(whole[:left])
        assert "truncated" in told(folder, maps_only=True)
    (folder / UNET).write_bytes(whole)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "norm_num_groups": 5}))
    assert told(folder, maps_only=True) == told(folder)


def test_shards_and_variants_are_read(folder, tiny):
    state = load_file(folder / UNET)
    names = sorted(state)
    (folder / UNET).unlink()
    files = {}
    for i, some in enumerate((names[::2], names[1::2]), 1):
        name = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({k: state[k] for k in some}, folder / "unet" / name, {"format": "pt"})
        files |= dict.fromkeys(some, name)
    index = {"metadata": {}, "weight_map": files}
    (folder / f"{UNET}.index.json").write_text(json.dumps(index))
    lean = load(folder, device="cpu", maps_only=True)
    assert missing(lean)
    assert UCE().erase(lean, [CHURCH], QUIET).digest == UCE().erase(tiny, [CHURCH], QUIET).digest


def test_readers_give_what_the_library_gives(tmp_path):
    state = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).half(),
        "c": torch.randn(2, 2).bfloat16(),
        "d": torch.arange(7),
        "e": torch.tensor(1.5),
        "f": torch.zeros(0, 3),
        "g": torch.tensor([True, False]),
        "h": torch.ones(4).to(torch.float8_e4m3fn),
    }
    save_file(state, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as f:
        for k, read in readers(tmp_path / "x.safetensors").items():
            assert read().dtype == f.get_tensor(k).dtype
            assert torch.equal(read().float(), f.get_tensor(k).float())
    raw = (tmp_path / "x.safetensors").read_bytes()
    wrong = raw.replace(b'"shape":[3,4]', b'"shape":[3,5]')
    (tmp_path / "y.safetensors").write_bytes(wrong)
    with pytest.raises(UserError, match=r"'a' is not whole"):
        readers(tmp_path / "y.safetensors")["a"]()


@pytest.mark.slow
@pytest.mark.xdist_group("large")
def test_a_closed_form_of_stable_diffusion_s_size_takes_at_most_3_gb(tmp_path):
    """A folder of 1.4's architecture in fp16, at random; peak of the whole process."""
    folder = sd14_folder(tmp_path / "sd14")
    code = (
        "import sys, torch\n"
        "from efface.cli.main import main\n"
        "from efface.evaluation.bench import peak_memory\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(peak_memory(torch.device('cpu')))"
    )
    args = ["erase", "uce", "church", "--model", str(folder), "--device", "cpu", "--no-picture"]
    args += ["--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 3000  # MB
