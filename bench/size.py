"""The cost of every method at Stable Diffusion's size, beside its peers, in one process.

A random model of the exact architecture. Runs take turns, so that the machine's moods meet all of
them: diffusers' LoRA step, the loop of ESD's published settings, and some updates of every trained
method; then the closed forms for 1, 10 and 100 concepts. One JSON a machine in ``bench/size``;
``--table`` writes them into ``docs/size.md``.

    python bench/size.py                               # the CPU, 256 pixels, a few updates
    python bench/size.py --device cuda --dtype bf16 --size 512 --batch 4
    python bench/size.py --device cuda --dtype bf16 --whole --updates 200 --out whole.json
                                                       # whole trainings, over 1,000 nouns
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from peers import ARCHITECTURES, PEERS, random_model
from size_tables import written

from efface.concepts import Concept
from efface.errors import UserError
from efface.methods import METHODS
from efface.methods.ap import AP
from efface.models import DiffusionModel
from efface.models.placement import DTYPES
from efface.storage import VERSION, write_text
from efface.training import Bank, Method, Run, Tuning
from efface.training.anchors import AUTO
from efface.training.forecast import memory_plan

HERE = Path(__file__).parent
OUT = HERE / "size"
DOCS = HERE.parent / "docs" / "size.md"
WORDS = 32
"""Preserved words; the searches among them are not timed, but the updates between."""
MANY = (1, 10, 100)
"""Concepts of a closed form."""


def trained(batch: int, words: Path) -> dict[str, Any]:
    """Every trained method, with preparations so small that the updates are what takes time."""
    found: dict[str, Any] = {n: m() for n, m in METHODS.items() if issubclass(m, Tuning)}
    found["ap official"] = AP.presets()["official"]
    return {n: small(m, batch, words) for n, m in found.items()}


def small(method: Any, batch: int, words: Path) -> Any:
    """A method with a short bank, few pictures, few words, and its anchor given."""
    changes: dict[str, Any] = {"batch": batch}
    if method.anchor == AUTO:
        changes["anchor"] = "sky"  # looked for once, before the updates
    if isinstance(getattr(method, "latents", None), Bank):
        changes["latents"] = Bank(ddim_steps=2, trajectories=1)
    if is_dataclass(getattr(method, "pictures", None)):
        changes["pictures"] = replace(method.pictures, n=1, ddim_steps=1)
    if hasattr(method, "preserve_batch"):
        changes["preserve_batch"] = batch
    if hasattr(method, "plain"):
        changes["plain"] = 0.0  # the adversary takes the time
    if hasattr(method, "inversion"):
        changes |= {
            "inversion": 1,
            "inversion_batch": max(batch, 2),
            "share": 0.0,
        }  # its last stage
    if hasattr(method, "anchors"):
        changes["anchors"] = batch
    if hasattr(method, "vocabulary"):
        changes |= {"vocabulary": str(words)}
    if hasattr(method, "pool_size"):
        changes |= {"pool_size": 0, "nearest": 0}
    return replace(method, **changes)


class Peak:
    """The largest memory since it was made: the device's own, or the process's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int | None:
        """None: it cannot be told here."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        status = Path("/proc/self/status")
        if not status.exists():
            return None
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peer(
    model: DiffusionModel, make: Callable[..., AbstractContextManager[Any]], batch: int, n: int
) -> dict[str, Any]:
    """``n`` timed steps of a peer, after one that warms up."""
    with ExitStack() as stack:
        step = stack.enter_context(make(model, batch))
        peak, times = Peak(model.device), []
        for _ in range(n + 1):
            settle(model.device)
            began = perf_counter()
            step()
            settle(model.device)
            times.append(perf_counter() - began)
        return {"seconds": times[1:], "peak": peak.bytes()}


def ours(
    model: DiffusionModel, method: Any, n: int, compiled: bool = False, checkpointing: bool = False
) -> dict[str, Any]:
    """``n`` timed updates of a method, after one that warms up."""
    seen: list[tuple[float, int, int]] = []

    def clock(*_: object) -> None:
        settle(model.device)
        c = model.counter
        seen.append((perf_counter(), c.forward, c.backward))

    peak = Peak(model.device)
    if compiled:
        model.denoiser.compile()
    run = Run(None, clock, False, checkpointing)
    replace(method, updates=n + 1).erase(model, ["church"], run)
    took, *counts = ([b[i] - a[i] for a, b in pairwise(seen)] for i in range(3))
    return {
        "seconds": took,
        "forward": sum(counts[0]) / n,
        "backward": sum(counts[1]) / n,
        "rows": method.rows,
        "peak": peak.bytes(),
        "plan": memory_plan(method, model, 0, checkpointing).total,
    }


def closed(model: DiffusionModel, method: Method, n: int) -> dict[str, Any]:
    """A closed form for ``n`` concepts."""
    concepts = [Concept(f"thing {i}", anchor="sky") for i in range(n)]
    peak, began = Peak(model.device), perf_counter()
    method.erase(model, concepts, Run(progress=False))
    settle(model.device)
    return {"seconds": [perf_counter() - began], "peak": peak.bytes(), "concepts": n}


def whole(model: DiffusionModel, method: Any) -> dict[str, Any]:
    """A training from beginning to end, over the vocabulary that it has by default.

    ``before`` the second update: anchors, latents, the first update. A ``scoring`` of all
    candidates is told by the time that its update took longer than the median one.
    """
    seen: list[float] = []

    def clock(*_: object) -> None:
        settle(model.device)
        seen.append(perf_counter())

    peak, was, began = Peak(model.device), replace(model.counter), perf_counter()
    method.erase(model, ["church"], Run(None, clock, False))
    settle(model.device)
    spent, took = model.counter.since(was), perf_counter() - began
    updates = [b - a for a, b in pairwise(seen)]
    usual, every = median(updates), getattr(getattr(method, "search", None), "refresh", 0)
    scored = [updates[i - 1] - usual for i in range(every, len(seen), every)] if every else []
    return {
        "seconds": [took],
        "before": seen[0] - began,
        "update": usual,
        "updates": method.updates,
        **({"scoring": median(scored), "refresh": every} if scored else {}),
        "forward": spent.forward,
        "backward": spent.backward,
        "peak": peak.bytes(),
    }


def trainings(updates: int) -> dict[str, Any]:
    """What is trained from beginning to end: as it is by default, and AP with other searches."""
    exact = AP.presets()["exact"]
    among = replace(exact, search=replace(exact.search, among=64))
    found = {"ap": AP(), "esd": METHODS["esd"](), "ap exact": exact, "ap exact, among 64": among}
    return {f"{n}, whole": replace(m, updates=updates) for n, m in found.items()}


def rows(whole: bool) -> list[str]:
    """The names of all that can be measured."""
    if whole:
        return list(trainings(1))
    closed_forms = (n for n, cls in METHODS.items() if cls.closed_form)
    return [*PEERS, *trained(1, Path()), "ap, checkpointing", *closed_forms]


def tasks(a: argparse.Namespace, model: DiffusionModel, words: Path) -> dict[str, Any]:
    """What takes turns, by name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    if a.whole:
        for name, method in trainings(a.updates).items():
            found[name] = lambda m=method: whole(model, m)
    else:
        for name, make in PEERS.items():
            found[name] = lambda make=make: peer(model, make, a.batch, a.updates)
        methods = trained(a.batch, words)
        for name, method in methods.items():
            found[name] = lambda m=method: ours(model, m, a.updates, a.compile)
        found["ap, checkpointing"] = lambda: ours(
            model, methods["ap"], a.updates, a.compile, checkpointing=True
        )
    return {k: f for k, f in found.items() if not a.only or k in a.only}


def built(a: argparse.Namespace) -> DiffusionModel:
    """The model to measure on."""
    model = random_model(a.arch, a.device, DTYPES[a.dtype], a.size)
    if a.attention == "plain":
        from diffusers.models.attention_processor import AttnProcessor

        model.denoiser.set_attn_processor(AttnProcessor())
    return model


def measure(a: argparse.Namespace, model: DiffusionModel, words: Path, out: Path) -> None:
    """Everything, in turns; what is in the file already is not measured again.

    Args:
        a: with one ``batch``.
        out: the JSON, written after every run.
    """
    what = {
        "efface": VERSION,
        "torch": torch.__version__,
        "machine": machine(model.device),
        "arch": a.arch,
        "size": model.picture_size[0],
        "batch": a.batch,
        "dtype": a.dtype,
        "attention": a.attention,
        "compile": a.compile,
    }
    had = json.loads(out.read_text()) if out.exists() else {}
    if had and not what.items() <= had.items():
        sys.exit(f"{out} holds results of other settings: name another file by --out.")
    rows: dict[str, dict[str, Any]] = had.get("rows", {})

    def keep(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        write_text(out, json.dumps({**what, "rows": rows}, indent=1) + "\n")
        print(name, json.dumps(row), flush=True)

    for turn in range(1 if a.whole else a.rounds):
        for name, run in tasks(a, model, words).items():
            if len(rows.get(name, {}).get("seconds", ())) <= turn * a.updates:
                keep(name, joined(rows.get(name), attempt(run)))
    for name, cls in () if a.whole else METHODS.items():
        if cls.closed_form and (not a.only or name in a.only):
            method = replace(cls(), vocabulary=str(words))  # type: ignore[call-arg]
            for n in MANY:
                if f"{name}, {n}" not in rows:
                    keep(f"{name}, {n}", attempt(lambda m=method, n=n: closed(model, m, n)))


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a run gives; where it fails, why: the others go on."""
    try:
        return run()
    except (RuntimeError, UserError) as e:
        return {"failed": str(e).splitlines()[0][:200]}


def joined(had: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
    """Two rounds as one: all times, the larger peak."""
    if not had or "failed" in more or "failed" in had:
        return more if not had or "failed" in more else had
    peaks = [x["peak"] for x in (had, more) if x["peak"] is not None]
    return {**more, "seconds": had["seconds"] + more["seconds"], "peak": max(peaks, default=None)}


def machine(device: torch.device) -> str:
    """What it ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((x.partition(":")[2].strip() for x in lines if "model name" in x), "")
    return (
        f"{name or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    )


def parity(a: argparse.Namespace) -> dict[str, dict[str, float]]:
    """How far a short training of a tiny model is from the CPU's in fp32.

    Of the losses of its updates the largest relative difference, and of the change of the weights
    the norm of the difference; the latter is large in half precision in any case, as Adam takes a
    step of the same size along a gradient that is noise.
    """
    method = replace(METHODS["esd"](), updates=5, batch=2, latents=Bank(ddim_steps=2), lr=1e-3)  # type: ignore[call-arg]
    kinds = {"cpu fp32": ("cpu", "fp32"), "cpu bf16": ("cpu", "bf16")}
    if a.device != "cpu":
        kinds |= {f"{a.device} {d}": (a.device, d) for d in ("fp32", "bf16", "fp16")}
    moved, losses = {}, {}
    for name, (device, dtype) in kinds.items():
        model, seen = random_model("tiny", device, DTYPES[dtype]), []
        run = Run(None, lambda _, told, __, seen=seen: seen.append(told["loss"]), False)
        edit = method.erase(model, "church", run)
        own = model.parameters()
        moved[name] = torch.cat([edit.change(k, own[k]).flatten() for k in sorted(edit.weights)])
        losses[name] = torch.tensor(seen)
    first, usual = moved["cpu fp32"], losses["cpu fp32"]
    return {
        k: {
            "loss": float(((losses[k] - usual) / usual).abs().max()),
            "weights": float((moved[k] - first).norm() / first.norm()),
        }
        for k in kinds
    }


def options() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--arch", default="sd14", choices=list(ARCHITECTURES))
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", default="fp32", choices=list(DTYPES))
    p.add_argument("--size", type=int, default=0, help="pixels; 0: 256 on a CPU, else the model's")
    p.add_argument("--batch", type=int, nargs="+", default=[1], help="several: a file each")
    p.add_argument("--updates", type=int, default=2, help="timed, of each run")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--only", action="append", help="a row; again for more")
    p.add_argument("--compile", action="store_true", help="torch.compile the denoiser")
    p.add_argument("--attention", default="sdpa", choices=("sdpa", "plain"))
    p.add_argument("--parity", action="store_true", help="only compare a short training with fp32")
    p.add_argument("--whole", action="store_true", help="only whole trainings of --updates")
    p.add_argument("--out", type=Path, help="the JSON; default: bench/size/MACHINE.json")
    p.add_argument("--table", action="store_true", help="only write docs/size.md anew")
    return p


def main() -> None:
    a = options().parse_args()
    for name in a.only or ():
        if name not in rows(a.whole):
            sys.exit(f"--only {name!r}: no such row; there are {', '.join(rows(a.whole))}.")
    if a.table:
        DOCS.write_text(written(DOCS.read_text(), OUT))
        return
    if a.device == "cpu" and not a.size and a.arch != "tiny":
        a.size = 256
    kind = "".join(c if c.isalnum() else "-" for c in machine(torch.device(a.device))).lower()
    out = a.out or OUT / f"{kind}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    if a.parity:
        write_text(out, json.dumps({"parity": parity(a)}, indent=1) + "\n")
    else:
        with tempfile.TemporaryDirectory() as folder:
            words = Path(folder) / "words.txt"
            words.write_text("\n".join(f"word {i}" for i in range(WORDS)) + "\n")
            model, batches = built(a), a.batch
            for a.batch in batches:
                own = f"{out.stem}-{a.batch}.json" if len(batches) > 1 else out.name
                measure(a, model, words, out.with_name(own))


if __name__ == "__main__":
    main()
