"""The fine-tuning is plain Adam on the averaged gradient; a checkpoint that lies is refused."""

import json
from dataclasses import replace

import accelerate
import pytest
import torch
from conftest import CHURCH, DOG, QUIET, job_of, quick, same_weights
from safetensors import safe_open
from safetensors.torch import save_file

from efface.edits.edit import Edit
from efface.edits.lowrank import LowRank
from efface.errors import UserError
from efface.methods.ap import AP
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import Counter, load
from efface.testing import tiny_pipeline
from efface.training import Bank, Job, Run, Student, loop, processes
from efface.training.checkpoints import Checkpoint
from efface.training.loop import finetune
from efface.training.runs import CHECKPOINT, Paused
from efface.training.student import Clock

METHOD = ESD(latents=Bank(ddim_steps=3, trajectories=2), batch=2, updates=3, save_every=2)


def caught_loss(model, method):
    """The method's loss, and its job."""
    seen = []

    class Catching(Job):
        def train(self, loss, *_, **__):
            seen.append(loss)
            return {}

    job = job_of(model, [CHURCH, DOG], method)
    method.make(Catching(job.method, job.model, job.concepts, job.run))
    return job, seen[0]


@pytest.mark.parametrize(("accumulate", "lr"), [(1, 0.0), (3, 0.0), (2, 5e-3)])
def test_an_update_is_adams_on_the_mean_gradient_of_its_batches(tiny, accumulate, lr):
    method = replace(METHOD, accumulate=accumulate, lr=lr)
    job, loss = caught_loss(tiny, method)
    own = tiny.parameters()
    slow = {k: own[k].detach().clone().requires_grad_() for k in tiny.group("xattn")}
    adam = torch.optim.Adam(slow.values(), lr=lr or tiny.lr)
    for update in range(3):
        batches = [job.generator("update", update, "batch", i) for i in range(accumulate)]
        (sum(loss(Student(tiny, slow), g) for g in batches) / accumulate).backward()
        adam.step()
        adam.zero_grad()
    found = finetune(job, loss)
    assert found.updates == 3
    for k, w in slow.items():
        torch.testing.assert_close(found.weights[k], w.detach(), rtol=1e-4, atol=1e-6)


def test_adapters_learn_ten_times_as_fast(tiny):
    job, loss = caught_loss(tiny, replace(METHOD, rank=2))
    own = tiny.parameters()
    adapters = LowRank({k: own[k] for k in tiny.group("xattn")}, 2, job.generator("adapters"))
    for w in adapters.factors.values():
        w.requires_grad_()
    adam = torch.optim.Adam(adapters.factors.values(), lr=10 * tiny.lr)
    for update in range(3):
        g = job.generator("update", update, "batch", 0)
        loss(Student(tiny, adapters.weights(adapters.factors)), g).backward()
        adam.step()
        adam.zero_grad()
    found = finetune(job, loss).weights
    for k, w in adapters.weights(adapters.factors).items():
        torch.testing.assert_close(found[k], w.detach(), rtol=1e-4, atol=1e-6)


class Killed(Exception):
    """The end of a process."""


@pytest.fixture
def left(tiny, words, tmp_path):
    """A method, its folder, and the tensors and metadata of the checkpoint in it."""
    method = quick(ESD(), words, updates=4)

    def on_update(update, losses, edit):
        if update == 3:
            raise Killed

    with pytest.raises(Killed):
        method.erase(tiny, [CHURCH], Run(tmp_path, on_update, progress=False))
    with safe_open(tmp_path / CHECKPOINT, "pt") as f:
        return method, tmp_path, {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118


def without_a_weight(tensors, meta):
    del tensors[next(k for k in tensors if k.startswith("w/"))]


def of_another_shape(tensors, meta):
    name = next(k for k in tensors if k.startswith("w/"))
    tensors[name] = torch.zeros(3, 2)


def no_number(tensors, meta):
    meta["update"] = "two"


def no_cost(tensors, meta):
    meta["cost"] = json.dumps({"forward": "many"})


def broken_cost(tensors, meta):
    meta["cost"] = "{"


@pytest.mark.parametrize(
    "spoil", [without_a_weight, of_another_shape, no_number, no_cost, broken_cost]
)
def test_a_checkpoint_that_does_not_fit_is_refused(tiny, left, spoil):
    method, folder, tensors, meta = left
    spoil(tensors, meta)
    save_file(tensors, folder / CHECKPOINT, meta)
    with pytest.raises(UserError, match=r"checkpoint .* is damaged"):
        method.erase(tiny, [CHURCH], Run(folder, progress=False))


def test_what_is_taken_back_is_what_was_kept_and_no_more(tmp_path):
    def fresh():
        weights = {k: torch.nn.Parameter(torch.ones(2)) for k in ("a.weight", "b.weight")}
        adam = torch.optim.Adam(weights.values())
        return weights, adam, Checkpoint(tmp_path, {}, weights, adam, [])

    weights, adam, keep = fresh()
    for n, w in enumerate(weights.values(), 1):
        w.grad = torch.full((2,), float(n))
    adam.step()
    keep.save(1, Counter())
    others, other, again = fresh()
    assert again.restore(Counter()) == 1
    for k, w in weights.items():
        assert torch.equal(others[k], w)
        mine, theirs = adam.state[w], other.state[others[k]]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(v, theirs[n]) for n, v in mine.items())


def test_a_clock_starts_with_the_first_update(tiny):
    clock, student = Clock(), Student(tiny, {})
    for update in (0, 1):
        clock.begin(student, 0, torch.Generator())
        clock.end(student)
        assert clock.update == update
    again = Clock()
    again.restore(clock.state())
    assert again.update == 1


def other_words(folder, words):
    made = folder / "other.txt"
    made.write_text("\n".join(reversed(words.read_text().split("\n"))))
    made.replace(words)
    return load(tiny_pipeline())


def other_rate(folder, words):
    model = load(tiny_pipeline())
    model.lr = 0.5
    return model


def other_part(name):
    """The same model, with one weight of a part changed by a thousandth."""

    def made(folder, words):
        model = load(tiny_pipeline())
        weight = next(p for p in model.parts[name].parameters() if p.ndim > 1)
        weight.data.view(-1)[0] += 1e-3
        return model

    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        other_rate,
        other_part("text_encoder"),
        other_part("vae"),
        other_words,
        lambda *_: load(tiny_pipeline(), size=16),
        lambda *_: load(tiny_pipeline("v_prediction")),
    ],
)
def test_a_run_does_not_go_on_where_its_weights_would_be_others(words, tmp_path, other):
    mine = tmp_path / "words.txt"
    mine.write_text(words.read_text())
    method = quick(AP(anchor=""), mine, updates=3)

    def on_update(update, losses, edit):
        if update == 2:
            raise Paused

    run = tmp_path / "run"
    with pytest.raises(Paused):
        method.erase(tiny_pipeline(), [CHURCH], Run(run, on_update, progress=False))
    with pytest.raises(UserError, match="with other settings"):
        method.erase(other(tmp_path, mine), [CHURCH], Run(run, progress=False))


@pytest.mark.parametrize("when", ["before the edit is saved", "before the state is saved"])
def test_a_stop_that_was_asked_for_outlives_a_kill(tiny, words, tmp_path, monkeypatch, when):
    method, heard = quick(AP(anchor=""), words, updates=5), []

    def stops(update, losses, edit):
        heard.append(update)
        return update == 3

    whole = method.erase(tiny, [CHURCH], Run(tmp_path / "whole", stops, progress=False))
    assert whole.meta["stopped_after"] == 3
    run, killed = Run(tmp_path / "run", stops, progress=False), (Edit, "save")
    if when == "before the state is saved":
        save = Checkpoint.save
        killed = (Checkpoint, "save")

        def dies(self, update, *more):
            return 1 / 0 if update == 3 else save(self, update, *more)
    else:

        def dies(*_):
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(*killed, dies)
        with pytest.raises(ZeroDivisionError):
            method.erase(tiny, [CHURCH], run)
    heard.clear()
    late = Run(run.folder, progress=False) if killed[0] is Edit else run  # nobody asks again
    edit = method.erase(tiny, [CHURCH], late)
    assert heard == ([] if killed[0] is Edit else [3])  # at most repeated
    assert edit.digest == whole.digest
    assert edit.meta["stopped_after"] == 3


def test_a_folder_that_holds_another_edit_is_refused(tiny, tmp_path):
    run = Run(tmp_path, progress=False)
    edit = UCE().erase(tiny, [CHURCH], run)
    with pytest.raises(UserError, match="holds another edit, which differs in: concepts"):
        UCE().erase(tiny, [DOG], run)
    assert Edit.load(tmp_path).digest == edit.digest
    assert UCE().erase(tiny, [CHURCH], run).digest == edit.digest


def test_a_run_goes_on_with_other_checkpoints(tiny, left):
    method, folder, _, _ = left
    whole = method.erase(tiny, [CHURCH], QUIET)
    edit = replace(method, save_every=1).erase(tiny, [CHURCH], Run(folder, progress=False))
    assert same_weights(dict(edit.weights), dict(whole.weights))
    assert edit.meta["cost"] == whole.meta["cost"]  # it did go on


def test_what_a_killed_run_took_is_counted_once(tiny, left):
    method, folder, _, _ = left
    whole = method.erase(tiny, [CHURCH], QUIET)
    edit = method.erase(tiny, [CHURCH], Run(folder, progress=False))
    assert same_weights(dict(edit.weights), dict(whole.weights))
    assert edit.meta["cost"] == whole.meta["cost"]


# -- several processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [False, True])
def test_a_process_joins_its_group_on_what_the_machine_has(monkeypatch, gpu):
    asked = []

    class Group:
        process_index, num_processes = 1, 3

        def __init__(self, cpu):
            asked.append(cpu)

    monkeypatch.setattr(accelerate, "PartialState", Group)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.join() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes.join() == (0, 1)
    assert not asked
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert processes.join() == (1, 3)
    assert asked == [not gpu]


def test_sums_are_over_all_processes_and_in_place(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.mul_(2))
    some = [torch.ones(2), torch.tensor(3.0)]
    processes.add_up(some)
    assert some[0].tolist() == [2, 2]
    assert some[1] == 6


def test_every_process_takes_its_share_of_the_batches(tiny, monkeypatch):
    method = replace(METHOD, accumulate=5)
    job, loss = caught_loss(tiny, method)
    own, summed = tiny.parameters(), []
    leaves = {k: own[k].detach().clone().requires_grad_() for k in tiny.group("xattn")}
    monkeypatch.setattr(loop, "join", lambda: (1, 3))
    monkeypatch.setattr(loop, "add_up", lambda xs: summed.extend(xs))
    value = loop.one_update(job, 7, Student(tiny, leaves), None, loss, ())
    slow = {k: own[k].detach().clone().requires_grad_() for k in leaves}
    mine = [loss(Student(tiny, slow), job.generator("update", 7, "batch", i)) for i in (1, 4)]
    (sum(mine) / 5).backward()
    assert value == pytest.approx(float(sum(mine).detach()) / 5, rel=1e-4)
    assert len(summed) == 1 + len(leaves)
    for k, w in slow.items():
        torch.testing.assert_close(leaves[k].grad, w.grad, rtol=1e-4, atol=1e-7)
