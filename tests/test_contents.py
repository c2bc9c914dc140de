"""Every file of a model folder that can hold the denoiser: edited, left out, or refused by name."""

import json
import os
import shutil

import pytest
import torch
from conftest import CHURCH, shaken
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from efface.cli.main import main
from efface.edits.contents import contents
from efface.edits.edit import Edit
from efface.edits.in_place import apply, remove
from efface.edits.ledger import Ledger, checked
from efface.edits.merge import merge, merge_single
from efface.errors import UserError
from efface.models import load, weight_files
from efface.reporting.card import card

NAME = "unet/diffusion_pytorch_model"
UNET = f"{NAME}.safetensors"
STRAY = [
    "text_encoder/._model.safetensors",
    "unet/._diffusion_pytorch_model.safetensors",
    "vae/._diffusion_pytorch_model.safetensors",
]
"""What macOS writes beside files on other systems' disks."""
HIDDEN = [".DS_Store", ".git/", *STRAY, "vae/Thumbs.db"]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def moved(model, seed=0, group="kv"):
    meta = {"base": model.base, "model": model.name, "method": "esd"}
    return Edit(shaken(model, group, seed=seed), meta | {"concepts": [CHURCH.to_json()]})


def halved(folder, name=f"{NAME}.fp16.safetensors"):
    """The denoiser again, in half precision."""
    weights = {k: w.half() for k, w in load_file(folder / UNET).items()}
    save_file(weights, folder / name, {"format": "pt", "of": "x", "a": "b"})
    return folder / name


def sharded(folder, kind=""):
    """The denoiser again, in two shards with their index."""
    weights, files = load_file(folder / UNET), {}
    names = sorted(weights)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    for i, some in enumerate(halves, 1):
        name = f"diffusion_pytorch_model{kind}-0000{i}-of-00002.safetensors"
        save_file({k: weights[k] for k in some}, folder / "unet" / name, {"format": "pt"})
        files |= dict.fromkeys(some, name)
    dots = kind and f"{kind[1:]}."
    index = folder / "unet" / f"diffusion_pytorch_model.safetensors.index.{dots}json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def foreign(folder):
    """The denoiser in forms that are not looked into, or not edited; a name for each."""
    binary = b"\x80\x02}q\x00X\x05\x00\x00\x00state\x00" * 9
    names = [
        "v1-5-pruned.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_flax_model.msgpack",
        "unet/model.onnx",
        "onnx/unet/weights.pb",
        "elsewhere/tf_model.h5",
        "vae-and-unet.ckpt",
        "vaeBaked-v15.ckpt",
        "text_encoder_and_all.bin",
        "text_encoder/unet.bin",
    ]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(binary)
    weights = load_file(folder / UNET)
    (folder / "notes").write_bytes(b"a text, at first\n" * 999 + binary)
    names.append("notes")
    befores = {
        "one-file": "model.diffusion_model.",
        "unet/own": "unet.",
        "compiled": "_orig_mod.",
        "trainer": "state.net.unet_model.",
    }
    for name, before in befores.items():
        save_file({before + k: w for k, w in weights.items()}, folder / f"{name}.safetensors")
        names.append(f"{name}.safetensors")
    eight = {k: w.to(torch.float8_e4m3fn) for k, w in weights.items()}
    save_file(eight, folder / "unet" / "diffusion_pytorch_model.fp8.safetensors")
    (folder / "elsewhere" / "broken.safetensors").write_bytes(b"\xff\x00" * 20)
    return sorted(
        [*names, "unet/diffusion_pytorch_model.fp8.safetensors", "elsewhere/broken.safetensors"]
    )


def harmless(folder):
    """Files that hold no denoiser."""
    lora = {
        "double_blocks.0.lora_A.weight": torch.zeros(2),
        "double_blocks.0.alpha": torch.ones(()),
    }
    save_file(lora, folder / "style.safetensors")
    save_file({"first_stage_model.decoder.conv_in.weight": torch.ones(2)}, folder / "v.safetensors")
    (folder / "vae" / "model.onnx").write_bytes(b"\x08\x00" * 9)
    (folder / "vae_decoder").mkdir()
    (folder / "vae_decoder" / "model.onnx").write_bytes(b"\x08\x00" * 9)
    (folder / "sample.png").write_bytes(b"\x89PNG\x00")
    (folder / "Demo.MP4").write_bytes(b"\x00\x00\x00\x20ftyp")
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1\x00")
    (folder / "vae" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    for name in STRAY:
        (folder / name).write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (folder / "LICENSE").write_text("free – für alle")
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "objects" / "1").write_bytes(b"\x00" * 9)
    return ["style.safetensors", "v.safetensors", "vae/model.onnx", "vae_decoder/model.onnx"]


def test_every_file_is_told_apart(folder):
    halved(folder)
    sharded(folder, ".non_ema")
    names, safe = foreign(folder), harmless(folder)
    found = contents(folder)
    assert found.part == "unet"
    assert found.own == [UNET]
    assert found.foreign == names
    assert [name for name in found.alike if "non_ema" in name] == [
        f"{NAME}.non_ema-0000{i}-of-00002.safetensors" for i in (1, 2)
    ]
    assert set(safe) < set(found.other)
    assert {"vae/diffusion_pytorch_model.safetensors", *safe} < set(found.other)
    assert {"LICENSE", "sample.png", "Demo.MP4", "model_index.json"} < set(found.plain)
    assert sorted(found.hidden) == HIDDEN
    assert not any(p.startswith("unet/") and p.endswith("safetensors") for p in found.plain)


def test_every_variant_is_edited_and_comes_back_bit_for_bit(tiny, folder):
    half, _ = halved(folder), sharded(folder, ".bf16")
    before = {p.name: p.read_bytes() for p in (folder / "unet").iterdir()}
    edit = moved(tiny)
    ledger = apply(folder, edit)
    own, now = load_file(folder / UNET), load_file(half)
    for k, w in now.items():
        was = tiny.parameters()[k]
        slow = (was.half().float() + edit.weights[k] - was).half() if k in edit.weights else was
        assert torch.equal(w, slow.half()), k
        torch.testing.assert_close(own[k], edit.weights.get(k, was), rtol=1e-6, atol=1e-6)
    shards = [load_file(p) for p in sorted((folder / "unet").glob("*bf16-*"))]
    assert all(torch.equal({**shards[0], **shards[1]}[k], w) for k, w in own.items())
    drawn = StableDiffusionPipeline.from_pretrained(folder, variant="fp16")
    assert all(
        torch.equal(dict(drawn.unet.named_parameters())[k], now[k].float()) for k in edit.weights
    )
    told = dict(checked(folder))
    assert {k for k, state in told.items() if state == "edited"} == {
        f"unet/{n}" for n in before if n.endswith(".safetensors")
    }
    assert told["vae/diffusion_pytorch_model.safetensors"] == "not a denoiser"
    assert ledger.files.keys() == told.keys()
    remove(folder)
    assert {p.name: p.read_bytes() for p in (folder / "unet").iterdir()} == before


def test_what_cannot_be_edited_is_refused_by_name(tiny, folder):
    before = (folder / UNET).read_bytes()
    for name in foreign(folder):
        with pytest.raises(UserError, match=rf"'{name}'.* would go on drawing what is erased"):
            apply(folder, moved(tiny))
    assert (folder / UNET).read_bytes() == before
    assert not (folder / "erasures").exists()


def test_what_overflows_is_refused_with_tensor_and_file(tiny, folder):
    halved(folder)
    name = next(iter(shaken(tiny, "kv")))
    far = Edit({name: tiny.parameters()[name] + 1e6}, {"base": tiny.base})
    with pytest.raises(UserError, match=rf"'{name}' overflows float16 in .*fp16\.safetensors"):
        apply(folder, far)
    assert Ledger.read(folder) is None


def test_a_merged_folder_has_no_unedited_denoiser(tiny, folder, tmp_path, capsys):
    halved(folder)
    sharded(folder, ".non_ema")
    left, safe = foreign(folder), harmless(folder)
    model = load(folder, device="cpu")
    edit = moved(model)
    edit.save(tmp_path / "edit.safetensors")
    out = tmp_path / "out"
    assert main(["merge", str(tmp_path / "edit.safetensors"), str(out)]) == 0
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert not files & {*left, f"{NAME}.fp16.safetensors"}
    assert not any("non_ema" in f or f.startswith(".git") for f in files)
    assert {UNET, *safe, "LICENSE", "sample.png"} < files
    found, own = load_file(out / UNET), model.parameters()
    assert all(torch.equal(w, edit.weights.get(k, own[k])) for k, w in found.items())
    told = dict(checked(out))
    assert {k for k, state in told.items() if state == "left out"} == {
        *left,
        *HIDDEN,
        f"{NAME}.fp16.safetensors",
        *(f"{NAME}.non_ema-0000{i}-of-00002.safetensors" for i in (1, 2)),
    }
    assert told[UNET] == "edited"
    text = (out / "README.md").read_text()
    for name, state in told.items():
        assert f"| `{name}` | {state} |" in text
    try:  # either there is no such variant, or it is the edited one
        pipe = StableDiffusionPipeline.from_pretrained(out, variant="fp16")
    except (OSError, ValueError):
        return
    assert all(torch.equal(dict(pipe.unet.named_parameters())[k], found[k]) for k in edit.weights)


def test_shards_are_merged_into_one_file(tiny, folder, tmp_path):
    sharded(folder)
    (folder / UNET).unlink()
    model = load(folder, device="cpu")
    assert model.base == tiny.base
    out = merge(model, moved(model), tmp_path / "out")
    assert [p.name for p in (out / "unet").iterdir() if p.suffix != ".json"] == [UNET[5:]]
    assert load(out, device="cpu").base == Ledger.read(out).now
    assert dict(checked(out))[UNET] == "edited"
    assert not list((out / "unet").glob("*index*"))


def test_the_files_that_diffusers_opens_are_the_own_ones(folder):
    unet = folder / "unet"
    assert [p.name for p in weight_files(unet)] == [UNET[5:]]
    save_file({"x": torch.zeros(1)}, unet / "backup.safetensors")
    assert [p.name for p in weight_files(unet)] == [UNET[5:]]
    (unet / "backup.safetensors").unlink()
    index = sharded(folder)
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert [p.name for p in weight_files(unet)] == shards
    (unet / shards[1]).unlink()
    with pytest.raises(UserError, match=f"index.json' names '{shards[1]}', which is not there"):
        weight_files(unet)
    index.write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(UserError, match=r"index\.json': weight_map must give a file's name"):
        weight_files(unet)
    index.write_text("{\n{")
    with pytest.raises(UserError, match=r"index\.json' is broken JSON in line 2"):
        weight_files(unet)


def test_a_folder_is_compared_with_its_ledger(tiny, folder, tmp_path):
    with pytest.raises(UserError, match=r"it has no erasures\.json"):
        checked(folder)
    apply(folder, moved(tiny))
    assert dict(checked(folder))[UNET] == "edited"
    half = halved(folder)
    for act in (checked, remove, lambda f: apply(f, moved(tiny, 1))):
        with pytest.raises(UserError, match=r"fp16\.safetensors' .* came after"):
            act(folder)
    half.unlink()
    data = bytearray((folder / UNET).read_bytes())
    data[-1] ^= 1
    (folder / UNET).write_bytes(data)
    with pytest.raises(UserError, match=rf"{UNET}' were changed since erasures\.json"):
        checked(folder)


def test_a_merged_folder_that_is_there_already_stays(tiny, tmp_path):
    out = merge(tiny, moved(tiny), tmp_path / "out")
    assert merge(tiny, moved(tiny), out) == out
    with pytest.raises(UserError, match="exists already"):
        merge(tiny, moved(tiny, 1), out)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "broken JSON in line 1"),
        ("[]", r"is \[\]; an object"),
        ('{"now": "x"}', "has no field 'base'"),
        ('{"base": 1, "now": "x"}', "base is 1; a text is needed"),
        ('{"base": "x", "now": "x", "erasures": ["y"]}', r"erasures\[0\] is 'y'; an object"),
        ('{"base": "x", "now": "x", "what": 1}', "'what'"),
    ],
)
def test_a_damaged_ledger_is_one_line(folder, text, told):
    (folder / "erasures.json").write_text(text)
    for act in (remove, checked, Ledger.read):
        with pytest.raises(UserError, match=rf"erasures\.json'.*{told}") as e:
            act(folder)
        assert "\n" not in str(e.value)


def test_damaged_values_beside_the_ledger_are_not_put_back(tiny, folder):
    apply(folder, moved(tiny))
    path, before = folder / "erasures" / "base.safetensors", (folder / UNET).read_bytes()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"base\.safetensors' is damaged"):
        remove(folder)
    assert (folder / UNET).read_bytes() == before


def test_an_edit_without_weights_is_refused_everywhere(tiny, folder, tmp_path):
    empty, out = Edit({}, {"base": tiny.base}), tmp_path / "out"
    acts = (
        lambda: apply(folder, empty),
        lambda: merge(tiny, empty, out),
        lambda: merge_single(tiny, empty, out.with_suffix(".safetensors")),
        lambda: empty.save(out),
        lambda: empty.on(tiny),
        lambda: empty.merged_into(tiny),
        lambda: empty.save_lora(out, model=tiny),
    )
    for act in acts:
        with pytest.raises(UserError, match="no changed weights"):
            act()
    assert not out.exists()


def test_a_card_without_files_has_no_such_table(tiny):
    assert "## Files" not in card(moved(tiny), None)


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_what_is_no_file_is_refused_by_name(tiny, folder, tmp_path, what):
    name = folder / "unet" / "extra.safetensors"
    name.symlink_to(tmp_path / "nowhere") if what == "link" else os.mkfifo(name)
    edit = moved(load(folder, device="cpu"))
    for do in (lambda: apply(folder, edit), lambda: contents(folder)):
        with pytest.raises(UserError, match=r"extra.safetensors' is a link to nothing, or no file"):
            do()


def test_links_that_lead_round_are_not_followed(tiny, folder, tmp_path):
    whole = contents(folder)
    (folder / "unet" / "round").symlink_to(folder, target_is_directory=True)
    (folder / "loop").symlink_to(".", target_is_directory=True)
    assert contents(folder) == whole
    (folder / "again").symlink_to(folder / "unet", target_is_directory=True)
    (folder / "unet" / "round").unlink()
    assert "again/diffusion_pytorch_model.safetensors" in contents(folder).alike


def test_what_file_managers_leave_is_in_nobodys_way(tiny, folder):
    halved(folder)
    (folder / UNET).unlink()  # the half precision alone
    harmless(folder)
    assert load(str(folder), device="cpu").base != tiny.base
    edit = moved(load(str(folder), device="cpu"))
    assert apply(folder, edit).files["unet/._diffusion_pytorch_model.safetensors"].state == (
        "not looked into"
    )
    (folder / "unet" / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    assert checked(folder)
    assert not remove(folder).erasures


def test_a_denoiser_that_lies_in_another_models_folder_is_not_changed_there(tiny, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    before = (other / UNET).read_bytes()
    shutil.rmtree(folder / "unet")
    (folder / "unet").symlink_to(other / "unet")
    with pytest.raises(UserError, match=r"'.*/model/unet' is a link to '.*/other/unet'.*merge"):
        apply(folder, moved(tiny))
    assert (other / UNET).read_bytes() == before
    assert not (folder / "erasures.json").exists()
    out = merge(load(str(folder), device="cpu"), moved(tiny), tmp_path / "out")
    assert not (out / "unet").is_symlink()
    assert (other / UNET).read_bytes() == before


def test_a_linked_file_is_replaced_and_what_it_leads_to_stays(tiny, folder, tmp_path):
    blob = shutil.move(folder / UNET, tmp_path / "blob")
    (folder / UNET).symlink_to(blob)
    before = blob.read_bytes()
    apply(folder, moved(tiny))
    assert blob.read_bytes() == before
    assert (folder / UNET).read_bytes() != before
    remove(folder)
    assert (folder / UNET).read_bytes() == before


def test_a_denoiser_whose_ending_is_in_capitals_is_not_overlooked(folder):
    (folder / "elsewhere").mkdir()
    shutil.copy(folder / UNET, folder / "elsewhere" / "again.SAFETENSORS")
    found = contents(folder)
    assert found.alike == ["elsewhere/again.SAFETENSORS"]


def test_a_run_in_a_models_folder_keeps_its_edit_as_it_is(tiny, folder):
    edit, run = moved(tiny), folder / "runs" / "church"
    edit.save(run)
    before = (run / "edit.safetensors").read_bytes()
    apply(folder, edit)
    assert (run / "edit.safetensors").read_bytes() == before
    assert ("runs/church/edit.safetensors", "not a denoiser") in checked(folder)
    moved(tiny, seed=1).save(folder / "runs" / "later")  # a run after it is no change of the model
    assert not remove(folder).erasures
    full = moved(tiny, group="full")
    full.save(folder / "unet" / "whole.safetensors")  # diffusers opens what lies there
    assert contents(folder).alike == ["unet/whole.safetensors"]


def test_a_model_inside_with_edits_of_its_own_is_not_edited_again(tiny, folder, tmp_path):
    source = load(str(folder), device="cpu")
    inner = merge(source, moved(tiny), folder / "out" / "merged")
    before = {p: p.read_bytes() for p in inner.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"'out/merged/' in .* a model with edits of its own"):
        apply(folder, moved(tiny, seed=1))
    assert {p: p.read_bytes() for p in inner.rglob("*") if p.is_file()} == before
    out = merge(source, moved(tiny, seed=1), tmp_path / "beside")
    assert not (out / "out").exists()
    assert ("out/merged/", "left out") in checked(out)


def test_the_folders_above_what_is_written_are_made(tiny, folder, tmp_path):
    source = load(str(folder), device="cpu")
    merge_single(source, moved(tiny), tmp_path / "a" / "b" / "one.safetensors")
    merge(source, moved(tiny), tmp_path / "c" / "d" / "model")
    assert (tmp_path / "a" / "b" / "one.safetensors").is_file()
    moved(tiny).save_lora(tmp_path / "e" / "lora.safetensors", model=tiny)
    assert (tmp_path / "e" / "lora.safetensors").is_file()
    merged, own = str(tmp_path / "c" / "d" / "model"), str(folder)
    assert main(["diff", own, merged, "--out", str(tmp_path / "f" / "edit.safetensors")]) == 0
    assert (tmp_path / "f" / "edit.safetensors").is_file()
    assert (tmp_path / "c" / "d" / "model" / UNET).is_file()
