"""The benchmark of cost, at tiny size."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import mostly_slow, script

from efface.methods import METHODS
from efface.methods.ap import AP
from efface.training import Tuning

ROOT = Path(__file__).parents[1]
TRAINED = [n for n, m in METHODS.items() if issubclass(m, Tuning)]


@pytest.fixture(scope="module")
def size():
    """``bench/size.py``, its neighbour beside it."""
    pytest.importorskip("peft")
    return script(ROOT / "bench" / "size.py", "size_bench")


@pytest.fixture
def model(size):
    return size.random_model("tiny", "cpu", torch.float32)


def weights(model):
    return {k: w.detach().clone() for k, w in model.denoiser.named_parameters()}


def test_the_peers_train_and_leave_the_model_as_it_was(size, model):
    before = weights(model)
    for make in size.PEERS.values():
        row = size.peer(model, make, 2, 1)
        assert len(row["seconds"]) == 1
        assert row["seconds"][0] > 0
        after = weights(model)
        assert after.keys() == before.keys()
        assert all(torch.equal(w, after[k]) for k, w in before.items())
        assert not any(p.requires_grad for p in model.denoiser.parameters())


def test_the_adapters_of_the_lora_step_move(size, model):
    with size.PEERS["diffusers' LoRA step"](model, 1) as step:
        trained = [p for p in model.denoiser.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        step()
        assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))


def test_every_trained_method_is_measured_at_an_equal_batch(size, tmp_path):
    (tmp_path / "words.txt").write_text("cow\nriver\n")
    found = size.trained(3, tmp_path / "words.txt")
    assert set(TRAINED) < set(found)
    assert all(m.batch == 3 for m in found.values())
    assert found["ap"].preserve_batch == 3


@pytest.mark.parametrize("name", mostly_slow([*TRAINED, "ap official"], {"stereo"}))
def test_every_trained_method_gives_a_row_at_batch_one(size, model, tmp_path, name):
    (tmp_path / "words.txt").write_text("cow\nriver\n")
    row = size.ours(model, size.trained(1, tmp_path / "words.txt")[name], 1)
    assert len(row["seconds"]) == 1
    assert row["backward"] >= 1


def test_a_row_has_the_time_evaluations_and_memory_of_an_update(size, model, tmp_path):
    (tmp_path / "words.txt").write_text("cow\nriver\n")
    row = size.ours(model, size.trained(2, tmp_path / "words.txt")["esd"], 3)
    assert len(row["seconds"]) == 3
    assert (row["forward"], row["backward"], row["rows"]) == (2, 2, 2)
    assert row["plan"] > 0
    assert row["peak"] is None or row["peak"] > 1e7
    again = size.ours(model, size.trained(2, tmp_path / "words.txt")["esd"], 1, checkpointing=True)
    assert again["plan"] < row["plan"]
    assert size.closed(model, METHODS["uce"](), 3)["concepts"] == 3
    assert size.attempt(lambda: (_ for _ in ()).throw(RuntimeError("out of memory"))) == {
        "failed": "out of memory"
    }
    two = size.joined({"seconds": [1.0], "peak": 5}, {"seconds": [2.0], "peak": 3})
    assert two == {"seconds": [1.0, 2.0], "peak": 5}


def test_the_table_says_which_machine_and_what_failed(size, tmp_path):
    rows = {
        "diffusers' LoRA step": {"seconds": [1.0, 3.0, 2.0], "peak": 2_000_000_000},
        "ap": {"seconds": [3.0], "forward": 3.0, "backward": 2.0, "rows": 2, "peak": None},
        "uce, 1": {"seconds": [1.0], "peak": 10**9, "concepts": 1},
        "mace": {"failed": "out of memory"},
    }
    about = {"machine": "a machine", "arch": "sd14", "size": 256, "batch": 1, "dtype": "fp32"}
    about |= {"attention": "sdpa", "compile": False, "rows": rows}
    (tmp_path / "x.json").write_text(json.dumps(about))
    page = size.written("a\n<!-- size -->\n<!-- /size -->b\n", tmp_path)
    assert "a machine: sd14, 256 pixels, fp32, batch 1." in page
    assert "| diffusers' LoRA step | 2.00 | 1.00 |  | 2.0 |" in page
    assert "| ap | 3.00 | 1.50 | 3 / 2 |  |" in page
    assert "| uce, 1 | 1.00 |  |  | 1.0 |" in page
    assert "| mace | failed: out of memory |" in page
    assert "Not yet measured on a GPU." in page
    assert size.written(page, tmp_path) == page
    for page in ("a\n", "<!-- size -->\n", "<!-- /size -->\n<!-- size -->\n"):
        with pytest.raises(ValueError, match="no place 'size'"):
            size.written(page, tmp_path)


def test_the_docs_show_the_committed_results(size):
    text = size.DOCS.read_text(encoding="utf8")
    assert size.written(text, size.OUT) == text
    on_gpu = size.OUT / "h200"
    rows = json.loads((on_gpu / "bf16-8.json").read_text())["rows"]
    us, base = (sorted(rows[n]["seconds"])[2] for n in ("ap", "diffusers' LoRA step"))
    line = next(x for x in text.splitlines() if "bf16, batch 8" in x)
    assert f" {us / base:.2f} " in line
    rows = json.loads((on_gpu / "search.json").read_text())["rows"]
    seen = rows["ap exact, whole"]
    share = seen["scoring"] / (seen["scoring"] + 60 * seen["update"])
    line = next(x for x in text.splitlines() if x.startswith("| ap exact, whole"))
    assert f"{share:.0%}" in line


@pytest.mark.slow
def test_a_short_training_is_compared_with_full_precision(size):
    found = size.parity(argparse.Namespace(device="cpu"))
    assert found["cpu fp32"] == {"loss": 0, "weights": 0}
    assert 0 < found["cpu bf16"]["loss"] < 0.5


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_cpu_at_tiny_sizes(tmp_path):
    env = {
        **os.environ,
        "DEVICE": "cpu",
        "LIMIT": "1200",
        "SKIP": "compiled",  # minutes of a compiler
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = str(ROOT / "bench" / "gpu.sh")
    done = subprocess.run(["sh", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {p.stem for p in tmp_path.glob("*.json")}
    assert names >= {"parity", "bf16-1", "bf16-2", "methods", "no-sdpa", "fp32", "sdxl"}
    assert "compiled" not in names
    rows = json.loads((tmp_path / "methods.json").read_text())["rows"]
    assert {"ap official", "ESD's published loop", "uce, 100"} <= set(rows)
    whole = json.loads((tmp_path / "whole.json").read_text())["rows"]
    assert whole["ap, whole"]["updates"] == 4
    assert whole["ap, whole"]["backward"] == 4 * AP().rows
    searched = json.loads((tmp_path / "search.json").read_text())["rows"]
    one, few = (searched[f"ap exact{n}, whole"] for n in ("", ", among 64"))
    assert one["forward"] - few["forward"] == pytest.approx(2 * 2 * (1000 - 64), rel=0.1)
    assert min(one["scoring"], few["scoring"]) > 0
    short = subprocess.run(
        ["sh", script], env={**env, "LIMIT": "0"}, capture_output=True, text=True
    )
    assert short.returncode == 1
    assert "left out, the time is over" in short.stderr


@pytest.mark.slow
def test_a_killed_measurement_goes_on(size, tmp_path, monkeypatch, capsys):
    out, words = tmp_path / "x.json", tmp_path / "words.txt"
    words.write_text("one\ntwo\n")
    asked = ["--arch", "tiny", "--updates", "1", "--rounds", "2", "--only", "esd", "--only", "uce"]
    a = size.options().parse_args(asked)
    a.batch, model = 1, size.built(a)
    seen, real = [], size.ours

    def killed(model, method, *rest):
        seen.append(method.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(model, method, *rest)

    monkeypatch.setattr(size, "ours", killed)
    with pytest.raises(KeyboardInterrupt):
        size.measure(a, model, words, out)
    once = json.loads(out.read_text())["rows"]["esd"]["seconds"]
    size.measure(a, model, words, out)
    rows = json.loads(out.read_text())["rows"]
    assert seen == ["esd"] * 3
    assert rows["esd"]["seconds"][:1] == once
    assert list(rows) == ["esd", "uce, 1", "uce, 10", "uce, 100"]
    size.measure(a, model, words, out)
    assert len(seen) == 3
    a.batch, had = 2, out.read_text()  # another question
    with pytest.raises(SystemExit, match="holds results of other settings: name another file"):
        size.measure(a, model, words, out)
    assert (len(seen), out.read_text()) == (3, had)
    size.measure(a, model, words, out.with_name("y.json"))
    assert len(seen) == 5


@pytest.mark.parametrize("more", [[], ["--whole"]])
def test_a_row_that_there_is_not_is_refused_in_one_line(size, monkeypatch, more, tmp_path):
    out = tmp_path / "x.json"
    monkeypatch.setattr(size, "built", lambda a: pytest.fail("no model is needed"))
    args = ["size.py", "--only", "app", "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", args)
    with pytest.raises(SystemExit, match=r"^--only 'app': no such row; there are .*ap.*\.$"):
        size.main()
    assert not out.exists()
    names = size.rows(bool(more))
    assert names
    assert len(set(names)) == len(names)
