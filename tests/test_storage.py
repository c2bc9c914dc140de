"""Files on disk: modes, locks, leftovers, bytes, and what is said of damaged ones."""

import json
import os
import stat
import struct
import subprocess
import sys

import pytest
import torch
from conftest import CHURCH, QUIET, quick, same_weights, shaken
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from efface.edits.edit import FORMAT, Edit, seal
from efface.errors import UserError
from efface.evaluation.evaluate import unedited_folder
from efface.evaluation.protocols import load as load_protocol
from efface.evaluation.samples import settings_of
from efface.methods.esd import ESD
from efface.models import load
from efface.models.files import tensors
from efface.models.identity import identity
from efface.storage import locked, sweep, untouched, write, write_folder, write_text
from efface.training import Run
from efface.training.runs import CHECKPOINT, EDIT


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    return subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_says(tiny, tmp_path, mask):
    old = os.umask(mask)
    try:
        Edit(shaken(tiny, "kv"), {"base": tiny.base}).save(tmp_path / "run")
        write_text(tmp_path / "text", "x")
        write_folder(tmp_path / "folder", lambda p: (p / "x").write_text("x"))
        write(tmp_path / "weights", lambda p: save_file({"a": torch.zeros(1)}, p))
    finally:
        os.umask(old)
    for name in ("run/edit.safetensors", "text", "folder/x", "weights"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask, name
    (tmp_path / "text").chmod(0o640)
    write_text(tmp_path / "text", "y")
    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == 0o640  # as somebody has set it


def test_files_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    seen, real = [], {name: getattr(os, name) for name in ("fsync", "replace")}
    for name in real:
        monkeypatch.setattr(os, name, lambda *a, n=name: (seen.append(n), real[n](*a)))
    write_text(tmp_path / "x", "x")
    assert seen == ["fsync", "replace", "fsync"]


def test_what_dead_processes_left_is_swept(tmp_path, dead):
    left = [f".a.{dead}.part", f".b.{dead}.part"]
    stay = [f".a.{os.getpid()}.part", ".a.1.part", ".a.part", "a.1.part", f".x.{dead}.parts"]
    for name in (*left, *stay):
        (tmp_path / name).write_text("half")
    (tmp_path / f".folder.{dead}.part" / "unet").mkdir(parents=True)
    write_text(tmp_path / "a", "whole")
    names = {p.name for p in tmp_path.iterdir()}
    assert left[0] not in names
    assert left[1] in names
    write_folder(tmp_path / "folder", lambda p: (p / "x").write_text("x"))
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "folder", *stay[1:]}


def test_a_folder_in_which_only_a_killed_run_began_is_untouched(tmp_path, dead):
    out = tmp_path / "run"
    assert untouched(out)
    out.mkdir()
    for name in (".lock", f".run.json.{dead}.part"):
        (out / name).write_text("")
    assert untouched(out)
    (out / "holiday.jpg").write_text("")
    assert not untouched(out)


def test_a_lock_is_let_go_with_its_block(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            with pytest.raises(UserError, match=rf"another process \(number {os.getpid()}\) works"):
                locked(tmp_path).__enter__()
            assert (tmp_path / ".lock").exists()
        assert not list(tmp_path.iterdir())


# -- bytes -------------------------------------------------------------------------------------


def test_our_safetensors_are_read_by_the_library(tmp_path):
    some = {
        "b": torch.arange(6.0).view(2, 3),
        "a": torch.tensor(3),
        "half": torch.ones(3).half(),
        "bf": torch.ones(3).bfloat16()[::2],
        "bool": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "grün": torch.zeros(1, dtype=torch.uint8),
        "t": torch.arange(6.0).view(2, 3).T,
    }
    about = {"z": "1", "ä": "2\n"}
    tensors.save(tmp_path / "x", some, about)
    assert same_weights(load_file(tmp_path / "x"), some)
    with safe_open(tmp_path / "x", "pt") as f:
        assert f.metadata() == about
    found = tensors.header(tmp_path / "x")
    assert found.meta == about
    assert all(e.shape == tuple(some[k].shape) for k, e in found.tensors.items())
    tensors.save(tmp_path / "y", dict(reversed(some.items())), dict(reversed(about.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    tensors.patch(tmp_path / "x", {"b": torch.full((2, 3), 7.0)})
    assert same_weights(load_file(tmp_path / "x"), {**some, "b": torch.full((2, 3), 7.0)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        struct.pack("<Q", 2**60),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 70)
        + b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'.ljust(70),
    ],
)
def test_what_is_no_safetensors_file_is_named(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.safetensors' is no safetensors file") as e:
        tensors.header(tmp_path / "x.safetensors")
    assert "\n" not in str(e.value)


def test_the_same_run_gives_the_same_file(tiny, words, tmp_path):
    for name in ("one", "two"):
        quick(ESD(), words).erase(tiny, [CHURCH], Run(tmp_path / name, progress=False))
    one, two = ((tmp_path / n / EDIT).read_bytes() for n in ("one", "two"))
    assert one == two
    edit = Edit.load(tmp_path / "one")
    assert edit.meta["cost"].keys() == {"forward", "backward"}
    assert quick(ESD(), words).erase(tiny, [CHURCH], QUIET).spent["seconds"] > 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == [EDIT]


# -- what is read ------------------------------------------------------------------------------


def sealed(path, about, weights=None):
    """An edit file with any metadata, as whole as one of ours."""
    weights = weights or {"a": torch.zeros(2)}
    digest = Edit(weights).digest
    meta = {"format": FORMAT, "digest": digest, "meta": about, "seal": seal(digest, about)}
    tensors.save(path, weights, meta)
    return path


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ("{", "is broken JSON"),
        ("[1]", r"is \[1\]; an object"),
        ('{"base": 3}', "base is 3; a text or null"),
        ('{"concepts": "church"}', "concepts is 'church'; a list"),
        ('{"concepts": [{"name": "x"}]}', r"concepts\[0\] is .*; a name and an anchor"),
        ('{"dtype": "load"}', "dtype is 'load'; one of 'float32', 'bfloat16'"),
        ('{"gates": [1]}', r"gates\[0\] is 1; a list"),
        ('{"cost": []}', r"cost is \[\]; an object"),
    ],
)
def test_metadata_of_another_shape_is_one_line(tmp_path, about, told):
    path = sealed(tmp_path / "edit.safetensors", about)
    with pytest.raises(UserError, match=rf"edit\.safetensors'.*{told}") as e:
        Edit.load(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_tensor_and_file(tmp_path, bad):
    weights = {"a": torch.zeros(2), "b": torch.tensor([0.0, bad])}
    path = sealed(tmp_path / "edit.safetensors", "{}", weights)
    with pytest.raises(UserError, match=r"edit\.safetensors' is damaged: 'b' holds NaN or inf"):
        Edit.load(path)
    with pytest.raises(UserError, match="'b' holds NaN or infinity"):
        Edit(weights).save(tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()


def test_an_edit_file_without_weights_is_refused(tmp_path):
    path = tmp_path / "edit.safetensors"
    digest = Edit({}).digest
    meta = {"format": FORMAT, "digest": digest, "meta": "{}", "seal": seal(digest, "{}")}
    tensors.save(path, {}, meta)
    with pytest.raises(UserError, match=r"edit\.safetensors' holds no changed weights"):
        Edit.load(path)


@pytest.mark.parametrize("what", ["update", "cost", "tensor", "shape", "type"])
def test_a_checkpoint_of_another_shape_is_one_line(tiny, words, tmp_path, what):
    method, out = quick(ESD(), words, updates=4), tmp_path / "run"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.erase(tiny, [CHURCH], Run(out, lambda n, *_: n == 3 and stop(), progress=False))
    path = out / CHECKPOINT
    found, meta = load_file(path), dict(tensors.header(path).meta)
    name = next(k for k in found if k.startswith("w/"))
    if what == "update":
        meta["update"] = "two"
    elif what == "cost":
        meta["cost"] = json.dumps({**json.loads(meta["cost"]), "forward": "many"})
    elif what == "tensor":
        del found[name]
    elif what == "shape":
        found[name] = torch.zeros(1, 2, 3)
    else:
        del meta["cost"]
    tensors.save(path, found, meta)
    told = rf"checkpoint '.*{CHECKPOINT}' is damaged .*delete it to start afresh"
    with pytest.raises(UserError, match=told) as e:
        method.erase(tiny, [CHURCH], Run(out, progress=False))
    assert "\n" not in str(e.value)


# -- what draws --------------------------------------------------------------------------------


@pytest.mark.slow
def test_whatever_draws_is_in_the_key_of_its_pictures(tiny_folder):
    model = load(tiny_folder, device="cpu")
    seen = [identity(model)]
    assert identity(load(tiny_folder, device="cpu")) == seen[0]

    def changed():
        seen.append(identity(model))
        assert len(set(seen)) == len(seen)

    with torch.no_grad():
        for part in ("vae", "text_encoder", "unet"):
            next(iter(model.parts[part].parameters())).add_(1)
            changed()
    model.vae.register_to_config(scaling_factor=0.5)
    model.parts["vae"] = load(tiny_folder, device="cpu").vae
    changed()
    model.parts["tokenizer"] = type(model.tokenizer).from_pretrained(tiny_folder / "tokenizer")
    model.tokenizer.model_max_length = 7
    changed()
    config = {**model.scheduler.config, "beta_end": 0.02}
    model.parts["scheduler"] = type(model.scheduler).from_config(config)
    changed()


def test_inside_an_edit_the_model_is_another(tiny):
    edit, protocol = Edit(shaken(tiny, "kv"), {"base": tiny.base}), load_protocol("emoji-objects")
    base, plain = tiny.base, settings_of(tiny, None, None, None)
    folder = unedited_folder(tiny, protocol)
    with edit.applied(tiny):
        inside = settings_of(tiny, None, None, None)
        assert tiny.base != base
        assert (inside.base, inside.model) != (plain.base, plain.model)
        assert inside.model != plain.model
        assert unedited_folder(tiny, protocol) != folder
        with pytest.raises(UserError, match="load the model it was made for"):
            edit.on(tiny)
    assert tiny.base == base
    assert settings_of(tiny, None, None, None) == plain
    assert unedited_folder(tiny, protocol) == folder


def test_a_model_that_an_edit_was_put_into_for_good_is_another(tiny_folder):
    model = load(tiny_folder, device="cpu")
    base = model.base
    Edit(shaken(model, "kv"), {"base": base}).merged_into(model)
    assert model.base != base


def test_help_does_not_wait_for_torch_because_of_our_files():
    code = "import sys, efface.storage; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False"
