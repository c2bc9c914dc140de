"""Real kills at every file operation: the same command again ends as if nothing had happened."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from conftest import CHURCH, DOG, quick, shaken
from hard.killing import contents, killed
from safetensors.torch import load_file, save_file

from efface.edits.edit import Edit
from efface.edits.in_place import apply, remove
from efface.edits.ledger import Ledger, checked
from efface.edits.merge import merge
from efface.errors import UserError
from efface.evaluation.samples import Samples, Wanted, generate
from efface.methods import METHODS
from efface.methods.esd import ESD
from efface.models import load
from efface.models.files import tensors
from efface.training import Run
from efface.training.runs import CHECKPOINT, EDIT

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """What of the tiny model's folder counts here, with the denoiser in fp16 beside it."""
    out = shutil.copytree(tiny_folder / "unet", tmp_path / "model" / "unet").parent
    shutil.copy(tiny_folder / "model_index.json", out)
    half = {k: w.half() for k, w in load_file(out / UNET).items()}
    save_file(half, out / UNET.replace(".safe", ".fp16.safe"), {"format": "pt"})
    return out


def moved(model, seed, concept=CHURCH):
    meta = {"base": model.base, "method": "esd", "concepts": [concept.to_json()]}
    return Edit(shaken(model, "kv", seed=seed), meta)


def campaign(start, act, undisturbed, tmp_path, step=1):
    """Kill ``act`` at every ``step``-th operation, give it again, and compare.

    Gives the operation that it no longer came to.
    """
    for n in range(0, 200, step):
        out = tmp_path / f"try{n}"
        shutil.copytree(start, out)
        done = not killed(lambda out=out: act(out), n)
        if not done:
            act(out)
        assert contents(out) == undisturbed, n
        shutil.rmtree(out)
        if done:
            return n
    raise AssertionError("it never ended")


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 1])
def test_kills_while_applying_and_removing(tiny, folder, tmp_path, step):
    one, two = moved(tiny, 0), moved(tiny, 1, DOG)
    plain = contents(folder)
    first, both = (shutil.copytree(folder, tmp_path / name) for name in ("first", "both"))
    for out, edits in ((first, [one]), (both, [one, two])):
        for edit in edits:
            apply(out, edit)
    with_one, with_both = contents(first), contents(both)
    ways = (
        (folder, lambda f: apply(f, one), with_one),
        (first, lambda f: apply(f, two), with_both),
        (first, remove, plain),
        (both, remove, plain),
    )
    for start, act, end in ways:
        assert campaign(start, act, end, tmp_path, step) > 15
    only = shutil.copytree(both, tmp_path / "only")
    remove(only, two.digest)
    taken = lambda f: remove(f, two.digest[:7])  # noqa: E731
    assert campaign(both, taken, contents(only), tmp_path, step) > 10
    remove(only)
    assert contents(only) == plain


def test_a_killed_change_is_undone_by_the_opposite_command(tiny, folder, tmp_path):
    edit, plain = moved(tiny, 0), contents(folder)
    for n in range(0, 60, 5):
        out = shutil.copytree(folder, tmp_path / f"try{n}")
        if not killed(lambda out=out: apply(out, edit), n):
            break
        remove(out)
        assert contents(out) == plain


@pytest.mark.slow
def test_kills_while_merging(tiny, tmp_path):
    edit = moved(tiny, 0)
    (tmp_path / "start").mkdir()
    (tmp_path / "end").mkdir()

    def act(folder):
        merge(tiny, edit, folder / "out")

    act(tmp_path / "end")
    for n in range(100):
        out = tmp_path / f"try{n}"
        out.mkdir()
        done = not killed(lambda out=out: act(out), n, ("replace", "rename", "unlink", "rmdir"))
        whole = out / "out"
        assert not whole.exists() or dict(checked(whole))[UNET] == "edited"
        act(out)
        assert contents(out) == contents(tmp_path / "end")
        if done:
            break
    assert n >= 2


def test_kills_while_saving(tiny, tmp_path):
    (tmp_path / "start").mkdir()
    moved(tiny, 1).save(tmp_path / "start" / EDIT)
    end = shutil.copytree(tmp_path / "start", tmp_path / "end")
    moved(tiny, 0).save(end / EDIT)
    act = lambda f: moved(tiny, 0).save(f / EDIT)  # noqa: E731
    assert campaign(tmp_path / "start", act, contents(end), tmp_path) >= 3


@pytest.mark.slow
def test_kills_while_erasing_lose_no_more_than_one_interval(tiny, words, tmp_path):
    method, done = quick(ESD(), words, updates=3), []

    def act(folder):
        def note(update, *_):
            done.append(update)

        method.erase(tiny, [CHURCH], Run(folder, note, progress=False))

    act(tmp_path / "end")
    for n in range(40):
        out = tmp_path / f"try{n}"
        was_killed = killed(lambda out=out: act(out), n, ("replace", "unlink"))
        kept = (out / CHECKPOINT).exists()
        if not was_killed:
            break
        done.clear()
        if not (out / EDIT).exists():
            act(out)
            assert len(done) == (3 if n == 0 else 1 if n == 1 else 0), n  # updates 1, 2 | 3 | all
            assert kept or n == 0
        else:
            act(out)
        assert contents(out) == contents(tmp_path / "end")
    assert n >= 5


FAST = ("esd", "ca", *(n for n, m in METHODS.items() if m.closed_form))


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_a_full_disk_when_the_edit_is_saved_loses_no_update(
    tiny, words, tmp_path, monkeypatch, name
):
    method, done = quick(METHODS[name](), words, updates=4), []
    if name == "stereo":
        method = replace(method, inversion=2, inversion_batch=2)

    def act(folder):
        run = Run(tmp_path / folder, lambda n, *_: done.append(n), False)
        method.erase(tiny, [CHURCH, DOG], run)

    def full_disk(path, *_, **__):
        if EDIT in path.name:
            raise OSError(28, "No space left on device")
        real(path, *_, **__)

    real = tensors.dump
    monkeypatch.setattr(tensors, "dump", full_disk)
    with pytest.raises(UserError, match=rf"cannot write '.*{EDIT}': No space left on device"):
        act("run")
    monkeypatch.undo()
    before = len(done)
    assert (before == 0) == method.closed_form
    act("run")
    assert len(done) == before
    act("whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [EDIT]


@pytest.mark.slow
def test_kills_while_drawing_leave_the_same_bytes(tiny, tmp_path):
    wanted = [Wanted(p, s, p) for p in ("church", "dog") for s in (0, 1)]
    more = [*wanted, Wanted("moon", 0, "moon")]

    def act(folder):
        generate(tiny, wanted, folder, steps=2, progress=False)
        generate(tiny, more, folder, steps=2, progress=False)

    act(tmp_path / "end")
    for n in range(40):
        out = tmp_path / f"try{n}"
        if not killed(lambda out=out: act(out), n, ("replace",)):
            break
        act(out)
        assert contents(out) == contents(tmp_path / "end")
    assert n == len(more) + 1


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the ledger", "after the ledger"])
def test_another_model_in_the_place_of_a_killed_one_is_left_alone(
    tiny, folder, other_folder, tmp_path, when
):
    edit = moved(tiny, 0)
    for n in range(100):
        out = shutil.copytree(folder, tmp_path / f"try{n}")
        assert killed(lambda out=out: apply(out, edit), n)
        written = (out / "erasures.json").exists()
        values = (out / "erasures" / "base.safetensors").exists()
        if (values and not written) if when.startswith("before") else written:
            break
    shutil.copy(other_folder / UNET, out / UNET)
    (out / UNET.replace(".safe", ".fp16.safe")).unlink()
    before = (out / UNET).read_bytes()
    other = moved(load(other_folder, device="cpu"), 0)
    for act in (lambda: apply(out, edit), lambda: apply(out, other), lambda: remove(out)):
        with pytest.raises(UserError, match=r"another base model|were changed since"):
            act()
    assert (out / UNET).read_bytes() == before


def test_a_second_process_is_told_that_another_one_works_there(tiny, folder, words, tmp_path):
    from efface.storage import locked

    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        (tmp_path / "run").mkdir()
        with locked(folder), locked(tmp_path / "run"):
            os.write(tell, b"x")
            signal.pause()
        os._exit(0)
    os.read(told, 1)
    try:
        acts = (
            lambda: apply(folder, moved(tiny, 0)),
            lambda: remove(folder),
            lambda: quick(ESD(), words).erase(tiny, [CHURCH], Run(tmp_path / "run", None, False)),
        )
        for act in acts:
            with pytest.raises(UserError, match=rf"another process \(number {child}\) works in"):
                act()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert Ledger.read(folder) is None
    apply(folder, moved(tiny, 0))  # a lock ends with its process


@pytest.mark.slow
def test_two_at_once_note_each_picture_once(tiny, tmp_path):
    wanted = [Wanted(p, s, p) for p in ("church", "dog") for s in (0, 1)]
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                generate(tiny, wanted, tmp_path / "both", steps=2, progress=False)
                code = 0
            finally:
                os._exit(code)
    assert [os.waitpid(c, 0)[1] for c in children] == [0, 0]
    alone = generate(tiny, wanted, tmp_path / "alone", steps=2, progress=False)
    assert contents(tmp_path / "both") == contents(alone.folder)
    assert Samples.open(tmp_path / "both").rows == tuple(wanted)
    assert torch.isfinite(alone.images()).all()
