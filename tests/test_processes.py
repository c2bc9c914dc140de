"""Two processes on one training do what one does with the same batches."""

import dataclasses
import os
import socket
import subprocess
import sys

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, quick

from efface.methods import METHODS
from efface.models import load
from efface.training import Run


def method_of(name, words, accumulate):
    """Four updates of four batches of one."""
    method = quick(METHODS[name](), words, updates=4)
    return dataclasses.replace(method, accumulate=accumulate, batch=1)


def train(rank, port, name, folder, words, out):
    """One of two processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    model = load(folder, device="cpu")
    model.lr = 1e-3
    edit = method_of(name, words, 4).erase(model, [CHURCH, DOG], Run(out, progress=False))
    torch.save(dict(edit.weights), out / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["esd", "ap"])
def test_two_processes_make_the_edit_that_one_makes(tiny_folder, words, tmp_path, name):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(train, (port, name, tiny_folder, words, tmp_path), nprocs=2)
    both = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1)]
    model = load(tiny_folder, device="cpu")
    model.lr = 1e-3
    alone = method_of(name, words, 4).erase(model, [CHURCH, DOG], QUIET)
    fewer = method_of(name, words, 1).erase(model, [CHURCH, DOG], QUIET)
    own = model.parameters()
    for k, w in alone.weights.items():
        assert torch.equal(both[0][k], both[1][k])
        moved = (w - own[k]).norm()
        assert (both[0][k] - w).norm() <= 0.15 * moved  # Adam makes much of a sum's last bits
        assert (fewer.weights[k] - w).norm() > 0.3 * moved
    assert not (tmp_path / "unfinished.safetensors").exists()


@pytest.mark.slow
def test_accelerate_launches_the_command_line(tiny_folder, tmp_path):
    from efface.edits.edit import Edit

    args = ["-m", "efface", "erase", "esd", "--concept", "church", "--model", str(tiny_folder)]
    args += ["--updates", "3", "--batch", "1", "--accumulate", "2"]
    args += ["--latents.ddim-steps", "2", "--latents.trajectories", "1", "--no-picture"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    many = subprocess.run(
        [*launch, *args, "--out", str(tmp_path / "many")], capture_output=True, text=True
    )
    assert many.returncode == 0, many.stderr
    assert many.stdout.count("changed weights") == 1  # one process tells
    subprocess.run([sys.executable, *args, "--out", str(tmp_path / "one")], check=True)
    a, b = (Edit.load(tmp_path / n) for n in ("many", "one"))
    for k, w in b.weights.items():
        torch.testing.assert_close(a.weights[k], w, rtol=1e-3, atol=1e-6)
