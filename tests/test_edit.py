import json
import pickle
import struct

import pytest
import torch
from conftest import CHURCH, QUIET, SD14, quick, same_weights, shaken
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from efface.cli.main import main
from efface.edits import merge as merge_module
from efface.edits.edit import Edit
from efface.edits.merge import merge, merge_single
from efface.errors import UserError
from efface.evaluation.protocols import load as protocol
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import load
from efface.models.files import tensors as tensors_module
from efface.models.files.original import denoiser_key, vae_key
from efface.page.places import is_model
from efface.storage import write
from efface.testing import tiny_pipeline
from efface.training import Run


@pytest.fixture
def edit(tiny):
    return UCE().erase(tiny, [CHURCH], QUIET)


@pytest.fixture
def saved(edit, tmp_path):
    edit.save(tmp_path / "edit.safetensors")
    return tmp_path / "edit.safetensors"


def full_disk(path, tensors, meta):
    """Write a bit, then find that there is no more room."""
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_an_edit_comes_back_as_it_was(edit, saved):
    back = Edit.load(saved)
    assert same_weights(dict(back.weights), dict(edit.weights))
    assert back.digest == edit.digest
    assert dict(back.meta) == json.loads(json.dumps(dict(edit.meta)))


def test_an_edit_is_found_in_its_run_folder(edit, saved):
    assert Edit.load(saved.parent).digest == edit.digest


def test_the_digest_depends_on_names_shapes_types_and_every_bit():
    def digest(**weights):
        return Edit(weights).digest

    x = torch.arange(6.0).view(2, 3)
    nudged = x.clone()
    nudged.view(torch.int32)[1, 2] ^= 1
    seen = {
        digest(a=x),
        digest(b=x),
        digest(a=x.view(3, 2)),
        digest(a=x.half()),
        digest(a=nudged),
        digest(a=torch.tensor(1.0)),
    }
    assert len(seen) == 6
    assert digest(a=x, b=nudged) == Edit({"b": nudged, "a": x.clone()}).digest
    assert digest(a=x.T) == digest(a=x.T.contiguous())


@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit_in_the_tensors_is_caught(saved, where):
    raw = bytearray(saved.read_bytes())
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    raw[start + round(where * (len(raw) - 1 - start))] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(UserError, match="is damaged: its content is not"):
        Edit.load(saved)


def test_no_flipped_bit_in_the_header_ends_in_a_traceback(saved):
    raw = saved.read_bytes()
    end, failed = 8 + struct.unpack("<Q", raw[:8])[0], []
    for i in range(0, end, 7):
        bad = bytearray(raw)
        bad[i] ^= 1 << (i % 8)
        saved.write_bytes(bad)
        try:
            Edit.load(saved)
        except UserError:
            pass
        except Exception as e:  # noqa: BLE001 (whatever it is, it is the finding)
            failed.append(f"byte {i}: {e!r}"[:100])
    assert not failed, f"{len(failed)}: {failed[:3]}"


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_a_truncated_edit_is_refused(saved, left):
    saved.write_bytes(saved.read_bytes()[:left])
    with pytest.raises(UserError, match="truncated or damaged"):
        Edit.load(saved)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    for meta in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(2)}, tmp_path / "lora.safetensors", meta)
        with pytest.raises(UserError, match="is no efface edit"):
            Edit.load(tmp_path / "lora.safetensors")


def test_what_was_made_of_an_edit_is_named(tiny, edit, tmp_path):
    path = merge_single(tiny, edit, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no efface edit, but a LoRA or a whole model"):
        Edit.load(path)


@pytest.mark.parametrize("name", ["model.ckpt", "model.GGUF", "model.sft"])
def test_a_whole_model_is_a_folder_or_safetensors(edit, tmp_path, capsys, name):
    edit.save(tmp_path / "edit.safetensors")
    assert main(["merge", str(tmp_path / "edit.safetensors"), str(tmp_path / name)]) == 2
    assert "a whole model is a folder" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_an_ending_in_capitals_is_the_same_ending(tiny, edit, tmp_path, capsys):
    path, whole = tmp_path / "edit.SAFETENSORS", tmp_path / "whole.SafeTensors"
    edit.save(path)
    assert path.is_file()
    assert Edit.load(path).digest == edit.digest
    assert main(["merge", str(path), str(whole), "--model", tiny.name]) == 0
    assert whole.is_file()
    assert is_model(whole)
    lora = tmp_path / "lora.SAFETENSORS"
    assert main(["lora", str(path), str(lora), "--model", tiny.name]) == 0
    assert lora.is_file()
    (tmp_path / "old.CKPT").write_bytes(b"x")
    for opened in (load, Edit.load):
        with pytest.raises(UserError, match=r"old\.CKPT' is a pickle"):
            opened(tmp_path / "old.CKPT")
    (tmp_path / "mine.JSON").write_text('{"splits": {"1": ["church"]}}')
    assert protocol(str(tmp_path / "mine.JSON")).erased("1") == ("church",)


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    for name in ("edit.pt", "edit.bin", "edit.ckpt", "edit.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(UserError, match=r"pickle|truncated or damaged"):
            Edit.load(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_edit_is_named(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="no edit at"):
            Edit.load(path)


def test_a_run_without_its_edit_is_unfinished(tmp_path):
    said = "is not finished and has no edit yet; it goes on with"
    for record in ("", "{", "[]", '{"run": {}, "command": [5]}', '{"command": ["make"]}'):
        if record:
            (tmp_path / "run.json").write_text(record)
        with pytest.raises(UserError, match="no edit at"):  # nothing of ours
            Edit.load(tmp_path)
    (tmp_path / "unfinished.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=f"{said} the same erasure into the same folder"):
        Edit.load(tmp_path)
    (tmp_path / "run.json").write_text('{"run": {}, "command": ["efface", "erase", "a b"]}')
    with pytest.raises(UserError, match=f"{said}: efface erase 'a b'$"):
        Edit.load(str(tmp_path))
    with pytest.raises(UserError, match=r"no edit at .*other.safetensors"):
        Edit.load(tmp_path / "other.safetensors")


def test_another_base_is_refused_by_its_hash(edit, other_folder):
    other = load(other_folder, device="cpu")
    with pytest.raises(UserError, match=f"hash {edit.meta['base']}.*has hash {other.base}"):
        edit.check(other)
    with pytest.raises(UserError, match="load the model it was made for"), edit.applied(other):
        pass


def test_another_architecture_is_refused(edit, tiny):
    name, w = next(iter(edit.weights.items()))
    for weights, told in (
        ({name: w[:, :-1]}, "in the edit"),
        ({"somewhere.else": w}, "no such weight"),
    ):
        with pytest.raises(UserError, match=f"another architecture .*{told}"):
            Edit(weights, edit.meta).on(tiny)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_edit_that_is_not_finite_is_refused(edit, tiny, bad):
    weights = {k: w.clone() for k, w in edit.weights.items()}
    last = list(weights)[-1]
    weights[last][0, 0] = bad
    with pytest.raises(UserError, match=f"damaged: '{last}' holds NaN"):
        Edit(weights, edit.meta).check(tiny)


def test_applied_puts_the_weights_in_and_the_old_ones_back_bit_for_bit(edit, tiny):
    before = {k: p.clone() for k, p in tiny.parameters().items()}
    with edit.applied(tiny) as model:
        inside = {k: p.clone() for k, p in model.parameters().items()}
    assert same_weights({k: inside[k] for k in edit.weights}, dict(edit.weights))
    assert all(torch.equal(inside[k], before[k]) for k in before.keys() - edit.weights.keys())
    assert same_weights(tiny.parameters(), before)

    def fail_inside():
        with edit.applied(tiny):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert same_weights(tiny.parameters(), before)


def test_applied_and_laid_over_draw_the_same_picture(edit, tiny):
    over = torch.stack(
        list(tiny.generate(["church"], [3], weights=edit.on(tiny), output_type="pt"))
    )
    with edit.applied(tiny):
        inside = torch.stack(list(tiny.generate(["church"], [3], output_type="pt")))
    base = torch.stack(list(tiny.generate(["church"], [3], output_type="pt")))
    torch.testing.assert_close(over, inside, rtol=0, atol=1e-6)
    assert not torch.allclose(over, base, atol=1e-4)


# -- merge -------------------------------------------------------------------------------------


def test_a_merged_folder_opens_in_stock_diffusers(tiny, tmp_path):
    edit = Edit(shaken(tiny), {"base": tiny.base})
    merge(tiny, edit, tmp_path / "merged")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    own = tiny.parameters()
    for name, w in pipe.unet.named_parameters():
        assert torch.equal(w, edit.weights.get(name, own[name])), name
    ours = torch.stack(
        list(tiny.generate(["church"], [0], weights=edit.on(tiny), output_type="pt"))
    )
    again = load(tmp_path / "merged", device="cpu")
    theirs = torch.stack(list(again.generate(["church"], [0], steps=tiny.steps, output_type="pt")))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged"]


@pytest.mark.slow
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_single_file_opens_in_stock_diffusers(tmp_path, act):
    pipe = tiny_pipeline()
    if act == "gelu":  # Stable Diffusion 2.x: OpenCLIP's names
        config = CLIPTextConfig(**{**pipe.text_encoder.config.to_dict(), "hidden_act": act})
        pipe.text_encoder = CLIPTextModel(config)
    pipe.save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", device="cpu")
    edit = Edit(shaken(model), {"base": model.base})
    path = merge_single(model, edit, tmp_path / "one.safetensors")
    stock = StableDiffusionPipeline.from_single_file(
        path,
        config=str(tmp_path / "model"),
        local_files_only=True,
        safety_checker=None,
        feature_extractor=None,
    )
    own = {**model.denoiser.state_dict(), **edit.weights}
    assert same_weights(stock.unet.state_dict(), own)
    assert same_weights(stock.vae.state_dict(), model.vae.state_dict())
    theirs, ours = stock.text_encoder.state_dict(), model.parts["text_encoder"].state_dict()
    plain = {k.removeprefix("text_model."): w for k, w in theirs.items()}
    assert same_weights(plain, {k.removeprefix("text_model."): w for k, w in ours.items()})
    with pytest.raises(UserError, match="exists already"):
        merge_single(model, edit, path)


def test_single_file_names_are_those_of_the_published_checkpoints():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD14)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    of_unet, of_vae = denoiser_key(unet.config), vae_key(4)
    names = {of_unet(k) for k in unet.state_dict()} | {of_vae(k) for k in vae.state_dict()}
    assert len(names) == len(unet.state_dict()) + len(vae.state_dict())
    for name in (
        "input_blocks.0.0.weight",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.3.0.op.weight",
        "input_blocks.4.0.skip_connection.weight",
        "input_blocks.11.0.out_layers.3.bias",
        "middle_block.1.proj_in.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.8.2.conv.weight",
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
        "time_embed.2.weight",
        "out.2.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.mid.attn_1.proj_out.weight",
        "decoder.up.3.upsample.conv.weight",
        "decoder.up.0.block.2.conv2.weight",
        "decoder.mid.block_2.norm1.weight",
        "decoder.norm_out.weight",
        "quant_conv.weight",
    ):
        assert name in names, name


def test_merging_leaves_the_model_as_it_was(tiny, edit, tmp_path):
    before = {k: p.clone() for k, p in tiny.parameters().items()}
    merge(tiny, edit, tmp_path / "merged")
    assert same_weights(tiny.parameters(), before)


def test_merge_refuses_a_folder_that_exists(tiny, edit, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists already"):
        merge(tiny, edit, tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_merge_refuses_another_base(edit, other_folder, tmp_path):
    with pytest.raises(UserError, match="load the model it was made for"):
        merge(load(other_folder, device="cpu"), edit, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_merge_refuses_a_model_without_a_folder(tiny, edit, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "folder", None)
    with pytest.raises(UserError, match="not opened from a folder"):
        merge(tiny, edit, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_merge_stores_what_the_base_stores(tmp_path):
    tiny_pipeline().to(torch.float16).save_pretrained(tmp_path / "half")
    model = load(tmp_path / "half", device="cpu")
    merge(model, Edit(shaken(model), {"base": model.base}), tmp_path / "merged")
    weights = load_file(tmp_path / "merged" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}


def test_merge_on_a_full_disk_leaves_nothing(tiny, edit, tmp_path, monkeypatch):
    monkeypatch.setattr(merge_module, "dump", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        merge(tiny, edit, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


# -- writing -----------------------------------------------------------------------------------


def test_saving_into_a_folder_that_is_missing_makes_it(edit, tmp_path):
    edit.save(tmp_path / "a" / "b" / "edit.safetensors")
    assert Edit.load(tmp_path / "a" / "b").digest == edit.digest


def test_saving_below_a_file(edit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make '.*file': File exists"):
        edit.save(tmp_path / "file" / "edit.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_edit_whole(edit, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors_module, "dump", full_disk)
    with pytest.raises(UserError, match="No space left on device; nothing was left half-written"):
        Edit({"a": torch.zeros(1)}).save(saved)
    assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]
    assert Edit.load(saved).digest == edit.digest


def test_a_full_disk_while_training_leaves_no_half_checkpoint(tiny, words, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors_module, "dump", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        quick(ESD(), words, updates=4).erase(tiny, [CHURCH], Run(tmp_path, progress=False))
    assert not list(tmp_path.iterdir())


def test_write_replaces_whole_files_only(tmp_path):
    path = tmp_path / "x"
    write(path, lambda p: p.write_text("one"))
    write(path, lambda p: p.write_text("two"))
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_file_holds_the_changed_weights_and_nothing_else(edit, saved):
    assert load_file(saved).keys() == edit.weights.keys()
