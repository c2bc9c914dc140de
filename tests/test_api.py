"""What a diffusers user types first, on a pipeline of every family."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import mostly_slow, same_weights
from families import SIZES, TINY, build

import efface
from efface import AP, ESD, Bank, Concept, Edit, Run, UserError

QUIET = Run(progress=False)
SMALL = {"updates": 2, "batch": 1, "latents": Bank(ddim_steps=2, trajectories=1)}


def own(pipe):
    part = getattr(pipe, "unet", None) or pipe.transformer
    return {k: p.clone() for k, p in part.named_parameters()}


@pytest.mark.parametrize("name", mostly_slow(TINY, ("sd2", "z-image")))  # an old and a new one
def test_the_whole_way_on_a_pipeline(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = build(name)
    pipe.set_progress_bar_config(disable=True)
    before = own(pipe)
    edit = efface.erase(
        efface.load_model(pipe, size=SIZES[name]) if name in SIZES else pipe,
        ["cow", "sun -> tree"],
        method="ap",
        keep=["river"],
        vocabulary=str(words),
        lr=1e-2,
        run=QUIET,
        **SMALL,
    )
    assert same_weights(own(pipe), before)
    assert [c["name"] for c in edit.meta["concepts"]] == ["cow", "sun"]
    assert edit.meta["concepts"][1]["anchor"] == "tree"
    edit.save("runs/mine")
    again = Edit.load("runs/mine")
    assert again.digest == edit.digest
    with again.applied(pipe, strength=0.8):
        inside = own(pipe)
    assert same_weights(own(pipe), before)
    k = max(edit.weights, key=lambda k: float((edit.weights[k] - before[k]).norm()))
    slow = before[k] + 0.8 * (edit.weights[k] - before[k])
    torch.testing.assert_close(inside[k], slow, rtol=1e-5, atol=1e-6)
    assert 0 <= edit.save_lora("mine.safetensors", rank=64) < 1
    assert (tmp_path / "mine.safetensors").exists()
    assert edit.merged_into(pipe) is pipe
    assert torch.equal(own(pipe)[k], edit.weights[k])
    with pytest.raises(UserError, match="hash"):  # what it was made for is gone
        again.applied(pipe).__enter__()


def test_one_concept_one_word_and_a_method_with_its_settings(tiny, words):
    texts = [
        efface.erase(tiny, "church", method=m, keep="moon", run=QUIET, **SMALL)
        for m in ("esd", ESD())
    ]
    assert texts[0].digest == texts[1].digest
    assert texts[0].meta["config"]["keep"] == ["moon"]
    classes = ESD(keep=("moon",), **SMALL).erase(tiny, [Concept("church")], QUIET)
    assert classes.digest == texts[0].digest


@pytest.mark.parametrize("knob", ["updates", "lr", "batch", "seed", "vocabulary"])
def test_a_knob_that_is_given_changes_that_knob_alone(knob):
    value = {"updates": 7, "lr": 0.5, "batch": 3, "seed": 9, "vocabulary": "tags"}[knob]
    changed, plain = AP(**{knob: value}), AP()
    differ = {f for f in AP.__dataclass_fields__ if getattr(changed, f) != getattr(plain, f)}
    assert differ == {knob}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: efface.erase(m, "church", method="edd"), "unknown method 'edd'; did you mean"),
        (lambda m: efface.erase(m, "church", updaets=3), "unknown setting of ap: 'updaets'"),
        (lambda m: efface.erase(m, "church", preset="papr"), "unknown preset 'papr'"),
        (lambda m: efface.erase(m, []), "no concept to erase"),
        (lambda m: efface.erase(m, "church", method=ESD), "ESD.* for method; a name"),
        (lambda m: efface.erase(m, "church", method=None), "got None for method"),
        (lambda m: efface.erase(m, "church", preset=["paper"]), "unknown preset"),
        (lambda m: efface.erase(m, "church", vocabulary=["fox"]), "for vocabulary, list; a text"),
        (lambda m: efface.erase(m, "church", batch=2.5), "got 2.5 for batch, float; a whole"),
        (lambda m: efface.erase(m, "church", search="exact"), "got exact for search"),
        (lambda m: efface.erase(m, "church", adam_8bit="no"), "got no for adam_8bit"),
        (lambda m: efface.erase(m, "church", keep=None), "keep: a list of words"),
        (lambda m: efface.erase(m, "church", keep="fox, wolf"), "keep: a string is one word"),
        (lambda m: ESD(keep="fox, wolf"), "keep: a string is one word"),
        (lambda m: efface.erase(m, "church", run="runs/x"), "for run; an efface.Run"),
        (lambda m: efface.Run(folder=5), "got 5 for folder"),
        (lambda m: efface.Run(on_update="print"), "got 'print' for on_update"),
        (lambda m: efface.erase(m, "church", method=ESD(), preset="lora"), "not with a method"),
        (
            lambda m: efface.erase("emogi", "church"),
            "unknown model .*'emogi'; did you mean 'emoji'",
        ),
    ],
)
def test_a_slip_is_one_line(tiny, call, message):
    with pytest.raises(UserError, match=message):
        call(tiny)


def test_a_runs_folder_may_be_a_text(tiny, tmp_path):
    run = efface.Run(folder=str(tmp_path / "run"), progress=False)
    edit = efface.erase(tiny, "church", method="uce", run=run)
    assert efface.Edit.load(tmp_path / "run").digest == edit.digest


def test_every_public_name_is_there():
    for name in efface.__all__:
        assert getattr(efface, name) is not None
    assert {
        "Forecast",
        "Paused",
        "Tuning",
        "Search",
        "Latents",
        "Run",
        "erase",
        "score",
        "AP",
    } <= set(efface.__all__)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (
            lambda m, e: next(m.generate("church", guidance=float("nan"))),
            "got nan for guidance; 0 to",
        ),
        (
            lambda m, e: next(m.generate("church", guidance="7")),
            "got 7 for guidance, str; a number",
        ),
        (lambda m, e: next(m.generate("church", steps=1.5)), "got 1.5 sampling steps"),
        (lambda m, e: next(m.generate(["church"], [0.5])), "got 0.5 for seeds, float; a whole"),
        (lambda m, e: next(m.generate(["church"], [2**64])), f"got {2**64} for seeds"),
        (lambda m, e: m.at(-64), "got -64 for size; 0 to 8,192 is needed"),
        (lambda m, e: m.at(7), "must be a multiple of"),
        (lambda m, e: m.at(64.0), "got 64.0 for size, float; a whole number"),
        (lambda m, e: efface.score(m, 3), "got 3 for an edit; give a run folder"),
        (
            lambda m, e: efface.score(m, e, "emoji-objects", pictures=1.5),
            "got 1.5 for pictures, float",
        ),
        (lambda m, e: efface.score(m, e, "emoji-objects", pictures=0), "got 0 for pictures; 1 to"),
        (
            lambda m, e: efface.score(m, e, "emoji-objects", concepts=None),
            "a list of words is needed",
        ),
        (lambda m, e: efface.score(m, e, "emoji-objects", concepts=[3]), "3"),
        (lambda m, e: e.save_lora("unused.safetensors", "x", model=m), "got x for rank, str"),
        (lambda m, e: e.save_lora("unused.safetensors", 10**9, model=m), "got 1000000000 for rank"),
    ],
)
def test_a_wrong_number_or_type_is_one_line_from_python(tiny, what, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit = Edit({}, {"concepts": [], "method": "uce"})
    with pytest.raises(UserError, match=re.escape(told)):
        what(tiny, edit)
    assert not list(tmp_path.iterdir())


def test_whole_numbers_of_numpy_are_whole_numbers(tiny):
    asked = {"steps": np.int64(1), "output_type": "pt"}
    (found,) = tiny.generate("church", np.arange(3, 4), **asked)
    (same,) = tiny.generate("church", [3], 1, output_type="pt")
    assert torch.equal(found, same)
