"""That nothing is left on the CPU where a model lies elsewhere: all of it on a device of the tests.

The numbers are those of the CPU. In processes of their own: PyTorch counts the devices that there
are once, at the first gradient.
"""

import json

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, quick
from families import build, ours
from torch.nn.attention import SDPBackend, sdpa_kernel

from efface.cli.main import main
from efface.methods import METHODS
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import load
from efface.models.files import sketch

try:
    import far
except ImportError:
    pytest.skip("this PyTorch has no devices in Python", allow_module_level=True)
pytestmark = pytest.mark.far


@pytest.fixture(scope="module")
def away(tiny_folder):
    """The tiny model on the other device."""
    far.register()
    model = load(tiny_folder, device="far")
    assert all(isinstance(w, far.Far) for w in model.parameters().values())
    model.lr, model.steps = 1e-3, 4
    return model


def test_two_devices_in_one_operation_are_refused(away):
    x = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="same device"):
        x.to("far") + x
    with pytest.raises(RuntimeError, match="not supported"):
        x.to("far").numpy()
    assert torch.equal((x.to("far") + x.to("far")).cpu(), 2 * x)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_erases_there_as_on_the_cpu(away, tiny, words, name):
    method = quick(METHODS[name](), words)
    with sdpa_kernel(SDPBackend.MATH):  # as there
        here, there = (method.erase(m, [CHURCH, DOG], QUIET) for m in (tiny, away))
    assert here.weights.keys() == there.weights.keys()
    assert apart(here, there, tiny) < 1e-3


def apart(here, there, model):
    """How far two edits of a model's weights are from each other, of the first one's change."""
    own = model.parameters()
    moved, same = (
        torch.cat([e.change(k, own[k]).flatten() for k in here.weights]) for e in (here, there)
    )
    return (moved - same).norm() / moved.norm()


def test_a_closed_form_of_a_large_folder_opens_its_maps_there(away, tiny_folder, monkeypatch):
    monkeypatch.setattr(sketch, "WORTH", 0)
    lean = load(tiny_folder, device="far", maps_only=True)
    assert any(w.is_meta for w in lean.parameters().values())
    edit = UCE().erase(lean, [CHURCH], QUIET)
    assert edit.digest == UCE().erase(away, [CHURCH], QUIET).digest


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_other_families_are_drawn_and_erased_from_there(away, words, family):
    here, there = load(build(family)), load(build(family))
    there.borrowed = False  # not the pipeline's any more
    there.to("far")
    assert there.device.type == "far"
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.allclose(ours(there), ours(here), atol=1e-4)
        for method in (ESD(), UCE()):
            made = [quick(method, words).erase(m, [CHURCH], QUIET) for m in (here, there)]
            assert apart(*made, here) < 1e-2


SMALL = {
    "completion": ("--completion.steps", "2", "--completion.begun", "1"),
    "img2img": ("--img2img.steps", "2", "--img2img.strengths", "0.5"),
    "inpaint": ("--inpaint.steps", "2", "--inpaint.holes", "0.5"),
    "inversion": (
        "--inversion.updates",
        "2",
        "--inversion.batch",
        "2",
        "--inversion.pictures",
        "2",
    ),
    "null-text": ("--null-text.steps", "2", "--null-text.rounds", "1", "--null-text.pictures", "2"),
    "reading": ("--reading.latents", "1"),
    "relearn": ("--relearn.points", "0", "2", "--relearn.pictures", "2", "--relearn.batch", "2"),
    "rephrase": ("--rephrase.texts", "2", "--rephrase.nearest", "2"),
    "ring-a-bell": ("--ring-a-bell.generations", "2", "--ring-a-bell.population", "4"),
    "states": (),
    "unlearndiffatk": ("--unlearndiffatk.levels", "1", "--unlearndiffatk.updates", "2"),
}


def test_every_command_works_there(away, clothes_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    there = ("--model", str(clothes_folder), "--device", "far")

    def asked(*args, where=there):
        assert main([*map(str, args), *where]) == 0, capsys.readouterr().err[-2000:]

    few = ("--updates", "2", "--latents.ddim-steps", "3", "--out", "run")
    asked("erase", "ap", "coat", *few)
    asked("erase", "uce", "coat", "--no-picture", "--out", "closed")
    asked("erase", "esd", "coat", "--dry-run", "--latents.ddim-steps", "3")
    asked("generate", "--prompt", "a coat", "--edit", "run", "--steps", "2", "--out", "drawn")
    asked("score", "run", "--steps", "2", "--pictures", "2")
    asked("sensitivity", "run", "--latents", "1")
    asked("sensitivity", "--concept", "coat", "--latents", "1")
    asked("report", "run", "--no-curve")
    for name, small in SMALL.items():
        asked("attack", "run", "--attack", name, *small, "--redraws", "4", "--sample", "1")
    asked("lora", "run", "lora.safetensors", "--allow-error", "1", where=there[:2])
    asked("merge", "run", "merged", where=there[:2])
    assert json.loads((tmp_path / "merged" / "erasures.json").read_text())
