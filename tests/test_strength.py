"""How much of an edit: 0 is the base model, 1 the edit, gates and LoRA files as well."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, quick, same_weights, shaken
from PIL import Image
from safetensors.torch import load_file

from efface.cli.main import main
from efface.edits.combine import combine
from efface.edits.edit import Edit
from efface.edits.gates import Gate
from efface.edits.in_place import apply, remove
from efface.edits.ledger import Ledger
from efface.edits.lora import factorise
from efface.edits.merge import merge
from efface.errors import UserError
from efface.evaluation.samples import Wanted, draw
from efface.methods import METHODS
from efface.methods.esd import ESD
from efface.methods.spm import SPM
from efface.methods.uce import UCE
from efface.models import load
from efface.reporting.card import card
from efface.reporting.figures import strength_curve
from efface.scores import Score
from efface.training.joint import jointly

UNET = "unet/diffusion_pytorch_model.safetensors"
PROMPT = "small red river"


def moved(model, by=0.2):
    """An edit of all that reads text, as a training may make it."""
    meta = {"base": model.base, "model": model.name, "method": "esd", "dtype": model.precision}
    return Edit(shaken(model, "kv", by), {**meta, "concepts": [CHURCH.to_json()]}, base=model)


@pytest.fixture
def gated(tiny, words):
    """An edit with a gate for each of two concepts, made without a training."""
    edit = moved(tiny)
    gates, whole = [], {k: tiny.parameters()[k].clone() for k in edit.weights}
    for i, c in enumerate((CHURCH, DOG)):
        g, factors = torch.Generator().manual_seed(i), {}
        for k, w in whole.items():
            factors[f"{k}/up"] = torch.randn((len(w), 2), generator=g) / 10
            factors[f"{k}/down"] = torch.randn((2, w.shape[1]), generator=g) / 10
        gates.append(Gate(c.names, factors))
        whole = {k: w + gates[-1].change(k) for k, w in whole.items()}
    return dataclasses.replace(edit, weights=whole, gates=tuple(gates))


def pictures(model, edit, prompts=("church", PROMPT)):
    return torch.stack(list(draw(model, edit, [Wanted(p, 0, p) for p in prompts], progress=False)))


# -- the edit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_nothing_of_an_edit_is_the_base_model_and_all_of_it_the_edit(tiny, gated, kind):
    edit, own = gated if kind == "gated" else moved(tiny), tiny.parameters()
    nothing, whole = edit.scaled(0, tiny), edit.scaled(1.0)
    for k, w in nothing.weights.items():
        assert torch.equal(w.view(torch.int32), own[k].view(torch.int32))
        assert w.data_ptr() != own[k].data_ptr()
    assert whole.digest == edit.digest
    assert whole.meta == edit.meta
    for prompt in (None, PROMPT):
        for k, w in nothing.on(tiny, prompt).items():
            assert torch.equal(w.view(torch.int32), own[k].view(torch.int32))
        assert same_weights(edit.scaled(1, tiny).on(tiny, prompt), edit.on(tiny, prompt))
    assert torch.equal(pictures(tiny, nothing), pictures(tiny, None))
    assert torch.equal(pictures(tiny, whole), pictures(tiny, edit))
    assert nothing.strength == 0


def test_a_zero_keeps_its_sign():
    own = torch.tensor([-0.0, 0.0, 1.0])
    found = Edit({"a": torch.ones(3)}).laid("a", own, 0)
    assert torch.equal(found.view(torch.int32), own.view(torch.int32))


@pytest.mark.parametrize("s", [0.25, 0.5, 1.5])
def test_a_part_of_an_edit_is_that_part_of_its_change(tiny, gated, s):
    edit, own = moved(tiny), tiny.parameters()
    part = edit.scaled(s, tiny)
    for k, w in part.weights.items():
        torch.testing.assert_close(w, own[k] + s * (edit.weights[k] - own[k]))
    assert same_weights(part.on(tiny), edit.on(tiny, strength=s))
    assert part.digest != edit.digest
    assert (part.strength, part.meta["whole"]) == (s, edit.digest)
    again = part.scaled(2, tiny)
    assert (again.strength, again.meta["whole"]) == (2 * s, edit.digest)
    for k, w in again.weights.items():
        torch.testing.assert_close(w, own[k] + 2 * s * (edit.weights[k] - own[k]))
    for prompt in ("church", PROMPT):
        weights = gated.scaled(s, tiny).on(tiny, prompt)
        for k, w in weights.items():
            slow = sum(g.opening(tiny, prompt) * g.change(k) for g in gated.gates)
            torch.testing.assert_close(w, own[k] + s * slow, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spm", "esd-lora"])
def test_trained_gates_and_adapters_have_a_strength_as_well(tiny, words, name):
    method = SPM() if name == "spm" else ESD.presets()["lora"]
    method = dataclasses.replace(quick(method, words), lr=1e-2)
    edit = method.erase(tiny, [CHURCH], QUIET)
    half = edit.scaled(0.5)
    assert torch.equal(pictures(tiny, edit.scaled(0)), pictures(tiny, None))
    far = [(pictures(tiny, e) - pictures(tiny, None)).abs().max() for e in (half, edit)]
    assert 0 < far[0] < far[1]
    assert [g.names for g in half.gates] == [g.names for g in edit.gates]


def test_a_part_survives_a_file(tiny, gated, tmp_path):
    part = gated.scaled(0.3, tiny)
    part.save(tmp_path / "edit.safetensors")
    back = Edit.load(tmp_path / "edit.safetensors")
    assert (back.digest, back.strength) == (part.digest, 0.3)
    assert same_weights(back.on(tiny, PROMPT), part.on(tiny, PROMPT))


def test_the_rounding_to_half_precision_is_no_part_of_the_change(tiny, tiny_folder):
    half = load(tiny_folder, device="cpu", dtype="bf16")
    edit = moved(half)
    k = next(iter(edit.weights))
    change = edit.change(k, tiny.parameters()[k])
    for model in (half, tiny):
        own, part = model.parameters()[k].float(), edit.scaled(0.5, model)
        torch.testing.assert_close(part.weights[k], own + 0.5 * change)
        torch.testing.assert_close(part.change(k, own), 0.5 * change, rtol=1e-4, atol=1e-7)


def test_what_a_half_model_rounds_is_no_part_of_an_edit_of_the_full_one(
    tiny, tiny_folder, tmp_path
):
    half, names = load(tiny_folder, device="cpu", dtype="bf16"), tiny.text_maps()[:2]
    own = tiny.parameters()
    g = torch.Generator().manual_seed(0)
    small = {k: 0.005 * own[k].std() * torch.randn(own[k].shape, generator=g) for k in names}
    meta = {"base": tiny.base, "dtype": "float32"}
    edit = Edit({k: own[k].detach() + d for k, d in small.items()}, meta)
    other = Edit({k: own[k].detach() - 2 * d for k, d in small.items()}, meta)
    part, both = edit.scaled(0.5, half), combine(half, [edit, other])
    for k, d in small.items():
        torch.testing.assert_close(part.change(k, own[k]), 0.5 * d, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(both.change(k, own[k]), -d, rtol=1e-3, atol=1e-6)
    lost = [factorise(m, edit, 4).error for m in (tiny, half)]
    assert lost[0] == lost[1]


@pytest.mark.parametrize("s", [float("nan"), float("inf"), -0.1, 10.1, 1e30, True, "0.5", None])
def test_what_is_no_strength_is_refused_in_one_line(tiny, tmp_path, s):
    edit = moved(tiny)
    for call in (
        lambda: edit.scaled(s, tiny),
        lambda: edit.on(tiny, strength=s),
        lambda: edit.applied(tiny, s).__enter__(),
        lambda: edit.merged_into(tiny, s),
    ):
        with pytest.raises(UserError, match=r"^got .* for strength; 0 to 10 is needed") as e:
            call()
        assert "\n" not in str(e.value)


def test_what_is_solved_again_is_whole(tiny):
    one, two = (UCE().erase(tiny, [c], QUIET) for c in (CHURCH, DOG))
    half = one.scaled(0.5)
    with pytest.raises(UserError, match=r"the edit of church is at strength 0\.5.*by their sum"):
        jointly(tiny, [half, two], METHODS)
    k, w = next(iter(combine(tiny, [half, two]).weights.items()))
    own = tiny.parameters()[k]
    slow = own + 0.5 * (one.weights[k] - own) + (two.weights[k] - own)
    torch.testing.assert_close(w, slow)


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny, tmp_path):
    """A run's folder."""
    moved(tiny).save(tmp_path / "run")
    return tmp_path / "run"


def done(*args):
    assert main([str(a) for a in args]) == 0


def test_a_folder_takes_an_edit_at_one_strength_and_gives_it_back(tiny, tiny_folder, run, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    edit, own, before = Edit.load(run), tiny.parameters(), (folder / UNET).read_bytes()
    done("apply", run, folder, "--strength", "0.5")
    now = load_file(folder / UNET)
    for k, w in edit.weights.items():
        torch.testing.assert_close(now[k], own[k] + 0.5 * (w - own[k]))
    (found,) = Ledger.read(folder).erasures
    assert (found.strength, found.whole) == (0.5, edit.digest)
    assert found.edit == edit.scaled(0.5, tiny).digest
    assert apply(folder, edit, strength=0.5).erasures == (found,)  # it is there already
    for other in (1.0, 0.25):
        with pytest.raises(UserError, match=r"already, at strength 0\.5: take it out first"):
            apply(folder, edit, strength=other)
    remove(folder, found.edit)
    assert (folder / UNET).read_bytes() == before
    done("apply", run, folder)
    with pytest.raises(UserError, match="already, at strength 1: take it out first"):
        apply(folder, edit, strength=0.5)


def test_a_merged_model_and_a_lora_have_the_strength(tiny, run, tmp_path, capsys):
    edit, own = Edit.load(run), tiny.parameters()
    (run / "scores.json").write_text(json.dumps({"protocol": "of the whole edit"}))
    done("merge", run, tmp_path / "merged", "--strength", "0.5")
    done("merge", run, tmp_path / "merged", "--strength", "0.5")  # it is there already
    merged = load_file(tmp_path / "merged" / UNET)
    for k, w in edit.weights.items():
        torch.testing.assert_close(merged[k], own[k] + 0.5 * (w - own[k]))
    (entry,) = Ledger.read(tmp_path / "merged").erasures
    assert (entry.strength, entry.scores) == (0.5, None)  # those of the whole edit are not its own
    text = (tmp_path / "merged" / "README.md").read_text()
    assert "at 0.5 times its strength" in text
    assert "Nothing was measured" in text
    assert "times its strength" not in card(edit, None)
    capsys.readouterr()
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 2
    assert "exists already" in capsys.readouterr().err
    done("lora", run, tmp_path / "half.safetensors", "--strength", "0.5", "--rank", "16")
    half, whole = load_file(tmp_path / "half.safetensors"), factorise(tiny, edit, 16).tensors
    for k in [k for k in half if k.endswith("lora_A.weight")]:
        up = k.replace("lora_A", "lora_B")
        torch.testing.assert_close(
            half[up] @ half[k], 0.5 * whole[up] @ whole[k], rtol=1e-3, atol=1e-5
        )


def test_what_the_stored_precision_cannot_hold_is_not_merged(tiny_folder, tmp_path):
    load_half = load(tiny_folder, device="cpu", dtype="fp16")
    folder = shutil.copytree(tiny_folder, tmp_path / "half")
    for part in ("unet", "vae", "text_encoder"):
        load_half.parts[part].save_pretrained(folder / part)
    model = load(folder, device="cpu")
    k = model.group("kv")[0]
    edit = Edit({k: model.parameters()[k] + 30_000.0}, {"base": model.base, "model": str(folder)})
    with pytest.raises(UserError, match=r"overflows float16"):
        merge(model, edit.scaled(5, model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_pictures_are_drawn_at_a_strength(run, tiny_folder, tmp_path, capsys):
    common = ("generate", "--prompt", "church", "--steps", "2", "--model", tiny_folder)
    common += ("--device", "cpu")
    seen = {}
    for name, more in {
        "base": (),
        "0": ("--edit", run, "--strength", "0"),
        "0.5": ("--edit", run, "--strength", "0.5"),
    }.items():
        done(*common, *more, "--out", tmp_path / name)
        (picture,) = (tmp_path / name).glob("*.png")
        seen[name] = Image.open(picture).tobytes()
    assert seen["0"] == seen["base"]
    assert seen["0.5"] != seen["base"]
    capsys.readouterr()
    args = [*map(str, common), "--edit", str(run), "--strength", "0.7", "--out"]
    assert main([*args, str(tmp_path / "0.5")]) == 2  # pictures of another strength
    assert "made with another edit" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "-0.001", "1e9"])
@pytest.mark.parametrize(
    "command",
    [
        "generate --prompt x",
        "score run",
        "merge run out",
        "lora run out.safetensors",
        "apply run out",
        "report run",
    ],
)
def test_a_bad_strength_is_refused_before_anything_is_opened(
    command, value, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), f"--strength={value}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"got {float(value)} for strength; " in line
    assert not list(tmp_path.iterdir())


def test_a_strength_of_nothing_is_refused(capsys, run, tmp_path):
    for args in (("generate", "--prompt", "x"), ("score", "unedited")):
        assert main([*args, "--strength", "0.5"]) == 2
        assert "--strength is how much of an edit: name" in capsys.readouterr().err
    for args in (("merge", str(run), "out"), ("lora", str(run), "o"), ("apply", str(run), "out")):
        assert main([*args, "--strength", "0"]) == 2
        assert "more than 0, up to 10 is needed" in capsys.readouterr().err


# -- the curve -------------------------------------------------------------------------------------


def test_the_curve_shows_every_strength_and_needs_no_interval():
    some = {
        s: {"ESR-1": Score(90 * s, None, None, 4), "PSR-1": Score(80, 70, 90, 4)}
        for s in (0.0, 0.5, 1.0)
    }
    drawn = strength_curve(some)
    assert drawn == strength_curve(dict(reversed(some.items())))
    assert "strength of the edit" in drawn
    assert "ESR-1" in strength_curve({0.0: {"ESR-1": Score(1, None, None, 1)}})


def test_scores_at_a_strength_have_a_folder_of_their_own(monkeypatch, capsys):
    from efface.cli.runfolder import scores_of
    from efface.evaluation.scoring import strength_folder

    assert strength_folder(Path("run"), 1) == Path("run")
    assert strength_folder(Path("run"), 0.1) == Path("run/strength-0.1")
    assert strength_folder(Path("run"), 2) == strength_folder(Path("run"), 2.0)
    assert scores_of(Path("run"), Edit({}), 0.1) is None
