"""What an erasure will take: counted exactly, timed on two updates, nothing kept."""

import json
import re

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, mostly_slow, quick, same_weights
from safetensors.torch import load_file

from efface.cli import plan as plan_module
from efface.cli.main import main
from efface.errors import UserError
from efface.methods import METHODS
from efface.methods.ap import AP
from efface.methods.esd import ESD
from efface.training import Bank, Rollout, Run, Tuning
from efface.training import loop as loop_module
from efface.training.forecast import forecast
from efface.training.runs import CHECKPOINT
from efface.training.search import Exact, Gumbel
from efface.training.trial import row_seconds

KINDS = {
    "gumbel": AP(search=Gumbel(), latents=Rollout(ddim_steps=3, own=True), keep=("cow",)),
    "straight": AP.presets()["official"],
    "exact": AP(search=Exact(refresh=3, probes=2), latents=Bank(ddim_steps=3, trajectories=2)),
    "short list": AP(search=Exact(refresh=3, among=4), latents=Bank(ddim_steps=3, trajectories=2)),
    "rollout": ESD(latents=Rollout(ddim_steps=4), accumulate=2),
    "lora": ESD.presets()["lora"],
    "age": METHODS["age"](latents=Rollout(ddim_steps=3, own=True)),
}
ALL = {**{n: m() for n, m in METHODS.items()}, **KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(ALL, ("uce", "esd", "ap", "exact")))
def test_the_evaluations_are_those_of_the_erasure(tiny, words, name):
    method = quick(ALL[name], words, updates=4)
    concepts, state = [CHURCH, DOG], torch.get_rng_state()
    found = forecast(method, tiny, concepts)
    assert torch.equal(torch.get_rng_state(), state)
    edit = method.erase(tiny, concepts, QUIET)
    assert {"forward": found.forward, "backward": found.backward} == edit.meta["cost"]
    assert found.edit == sum(w.nbytes for w in edit.tensors().values())
    if isinstance(method, Tuning):
        assert found.updates == 4 * (len(concepts) if method.apart else 1)
        assert found.seconds > 3 * found.update > 0
        assert found.memory.activations > 0
    else:
        assert (found.updates, found.update, found.state) == (0, 0.0, 0)
        assert found.seconds == found.preparation > 0
    assert "predict" not in vars(tiny)


def test_two_updates_are_made_and_the_rest_only_counted(tiny, words, monkeypatch):
    seen, real = [], type(tiny).predict

    def predict(self, z, *args, **named):
        seen.append(torch.is_grad_enabled())
        return real(self, z, *args, **named)

    monkeypatch.setattr(type(tiny), "predict", predict)
    found = forecast(quick(ESD(keep=("cow",)), words, updates=7), tiny, [CHURCH])
    assert seen == [False] * 2 + [True] * 2 * 2  # a row timed twice; two updates, the keep list's
    assert found.updates == 7


def test_the_time_is_that_of_every_part(tiny, words, monkeypatch):
    clock = iter(range(0, 10**6))
    method = quick(ESD(latents=Rollout(ddim_steps=4)), words, updates=6)
    whole = method.erase(tiny, [CHURCH], QUIET).meta["cost"]
    for module in ("trial", "forecast"):
        name = f"efface.training.{module}.perf_counter"
        monkeypatch.setattr(name, lambda: float(next(clock)))
    assert row_seconds(tiny) == 0.5  # two rows between two ticks
    found = forecast(method, tiny, [CHURCH])
    assert found.update == 1
    left_out = whole["forward"] - whole["backward"]
    assert found.seconds == found.preparation + 6 * 1 + 0.5 * left_out


def test_updates_that_search_take_longer_than_those_that_are_timed(tiny, words, monkeypatch):
    clock = iter(range(0, 10**6))
    method = quick(METHODS["race"](plain=0.5, steps=3), words, updates=6)
    whole = method.erase(tiny, [CHURCH], QUIET).meta["cost"]
    for module in ("trial", "forecast"):
        name = f"efface.training.{module}.perf_counter"
        monkeypatch.setattr(name, lambda: float(next(clock)))
    found = forecast(method, tiny, [CHURCH])
    left_out = whole["forward"] - whole["backward"]
    assert found.update == 1
    assert found.seconds == found.preparation + 3 * 1 + 3 * 4 + 0.5 * left_out


@pytest.mark.parametrize("more", [{}, {"average": 0.5}, {"rank": 2}])
def test_what_a_killed_training_goes_on_from_is_as_large_as_was_told(tiny, words, tmp_path, more):
    method = quick(AP(**more), words, updates=3)

    def killed(update, losses, edit):
        if update == 3:
            raise InterruptedError

    told = forecast(method, tiny, [CHURCH]).state
    with pytest.raises(InterruptedError):
        method.erase(tiny, [CHURCH], Run(tmp_path, killed, progress=False))
    found = sum(t.numel() * t.element_size() for t in load_file(tmp_path / CHECKPOINT).values())
    assert told == pytest.approx(found, rel=0.02)


def test_the_mean_of_a_single_update_is_a_copy_too(tiny, words):
    plain, mean = (forecast(quick(ESD(average=a), words), tiny, [CHURCH]) for a in (0.0, 1e-6))
    own = sum(tiny.parameters()[k].numel() * 4 for k in tiny.group("xattn"))
    assert mean.memory.trained - plain.memory.trained == own


def test_a_trial_that_fails_leaves_the_model_as_it_was(tiny, words, monkeypatch):
    monkeypatch.setattr(loop_module, "one_update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forecast(quick(ESD(), words), tiny, [CHURCH])
    assert "predict" not in vars(tiny)
    with pytest.raises(UserError, match="church"):
        forecast(quick(ESD(keep=("church",)), words), tiny, [CHURCH])


def test_checkpointing_and_half_precision_are_tried_as_they_are(tiny_folder, words):
    from efface.models import load

    model = load(tiny_folder, device="cpu", dtype="bf16")
    before = {k: w.clone() for k, w in model.parameters().items()}
    found = [forecast(quick(ESD(), words), model, [CHURCH], again) for again in (False, True)]
    assert found[0].memory.activations > found[1].memory.activations
    assert found[0].forward == found[1].forward
    assert same_weights(model.parameters(), before)


# -- efface erase --dry-run ------------------------------------------------------------------------


@pytest.fixture
def erase(tmp_path, tiny_folder, monkeypatch, capsys):
    """Run ``efface erase`` in an empty folder: exit code, stdout and the lines on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))

    def call(*args):
        common = ("--model", str(tiny_folder), "--device", "cpu", "--out", "run")
        code = main(["erase", *map(str, args), *common])
        told = capsys.readouterr()
        lines = re.split(r"[\r\n]+", told.err)
        return code, told.out, [x for x in lines if x.strip() and not re.search(r"\d%\|", x)]

    return call


SMALL = ("--updates", "3", "--batch", "2", "--latents.ddim-steps", "3", "--no-picture")


@pytest.mark.slow
def test_the_plan_is_what_the_erasure_then_does_and_leaves_nothing(erase, tmp_path):
    args = ("esd", "church", *SMALL, "--json")
    code, out, err = erase(*args, "--dry-run")
    assert (code, err) == (0, [])
    assert not list(tmp_path.iterdir())
    plan = json.loads(out)
    assert (plan["state"], plan["updates"], plan["device"]) == ("new", 3, "cpu")
    assert plan["memory"]["total"] == sum(
        plan["memory"][k] for k in ("model", "trained", "activations")
    )
    assert plan["seconds"]["total"] >= 3 * plan["seconds"]["update"] > 0
    code, out, _ = erase(*args)
    assert code == 0
    cost = json.loads(out)["cost"]
    assert [plan["evaluations"][k] for k in ("forward", "backward")] == [
        cost["forward"],
        cost["backward"],
    ]
    stays = {f["path"] for f in plan["files"] if f["stays"]}
    assert stays == {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    real = (tmp_path / "run" / "edit.safetensors").stat().st_size
    (edit,) = (f["bytes"] for f in plan["files"] if f["path"].endswith("/edit.safetensors"))
    assert edit < real < edit + 20_000  # the header
    code, _, (line,) = erase("esd", "dog", *SMALL, "--dry-run")
    assert code == 2
    assert "holds another run, which differs in: concepts" in line


@pytest.mark.slow
def test_the_plan_in_words(erase, tmp_path):
    _, out, _ = erase("uce", "church", "--dry-run")
    assert re.search(r"evaluations +0 forward, 0 backward", out)
    assert "solved once, and thrown away" in out
    assert re.search(r"picture +[\d,]+ evaluations more", out)
    assert re.search(r"writes +run/before-after.png", out)
    _, out, _ = erase("spm", "church", "dog", *SMALL, "--dry-run")
    assert re.search(r"time +about .* \(6 updates of .* s, measured on two\)", out)
    assert re.search(r"writes +run/part-1.safetensors, until it is done", out)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_takes_and_writes_nothing(erase, tmp_path, monkeypatch):
    assert erase("uce", "church", "--no-picture")[0] == 0
    monkeypatch.setattr(plan_module, "forecast", lambda *_: 1 / 0)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    _, out, _ = erase("uce", "church", "--no-picture", "--dry-run")
    assert re.search(r"run +run \(finished: nothing is trained\)\n", out)
    assert re.search(r"evaluations +0 forward, 0 backward\nwrites +nothing\n", out)
    assert "memory" not in out
    plan = json.loads(erase("uce", "church", "--dry-run", "--json")[1])
    assert (plan["state"], plan["updates"], plan["memory"]["total"]) == ("finished", 0, 0)
    assert plan["evaluations"]["picture"] > 0
    record, picture = (tmp_path / "run" / name for name in ("run.json", "before-after.png"))
    missing = [str(p.relative_to(tmp_path)) for p in (record, picture)]  # what moved most, and it
    assert [f["path"] for f in plan["files"]] == missing
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    picture.touch()
    plan = json.loads(erase("uce", "church", "--dry-run", "--json")[1])
    assert plan["evaluations"] == {"forward": 0, "backward": 0, "picture": None}
    assert plan["files"] == []
