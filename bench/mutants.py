"""How many small faults the tests find: a seeded sample of mutants of the code that gives numbers.

Mutants are cosmic-ray's (``pip install cosmic-ray``), of the kinds that make a quiet mistake, and
the ones of :data:`OURS`. Each runs in a process of its own, on a copy of the package, until the
first test fails. ``mutants.json`` keeps what is known, so that a run goes on where it stopped;
``docs/reliability.md`` shows it. By hand: ``make mutants``.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from size_tables import put

ROOT = Path(__file__).parent.parent
SRC, TESTS = ROOT / "src", ROOT / "tests"
OUT, DOCS = ROOT / "bench" / "mutants.json", ROOT / "docs" / "reliability.md"
ROOMS = ("methods", "training", "evaluation")
TIMEOUT = 300
"""Seconds of a mutant's tests; one that hangs is found out."""

SLOW = "kept_words_move_less"
"""Tests that are left out: minutes, for what others find in a second."""

OPERATORS = (
    *(f"ReplaceBinaryOperator_{a}_{b}" for a, b in (("Add", "Sub"), ("Sub", "Add"))),
    *(f"ReplaceBinaryOperator_{a}_{b}" for a, b in (("Mul", "Div"), ("Div", "Mul"))),
    *(f"ReplaceBinaryOperator_{a}_Mul" for a in ("Pow", "FloorDiv", "Mod")),
    *(f"ReplaceComparisonOperator_{a}_{b}" for a, b in (("Lt", "LtE"), ("LtE", "Lt"))),
    *(f"ReplaceComparisonOperator_{a}_{b}" for a, b in (("Gt", "GtE"), ("GtE", "Gt"))),
    *(f"ReplaceComparisonOperator_{a}_{b}" for a, b in (("Eq", "NotEq"), ("NotEq", "Eq"))),
    *(f"ReplaceComparisonOperator_{a}_{b}" for a, b in (("Is", "IsNot"), ("IsNot", "Is"))),
    *(f"ReplaceUnaryOperator_Delete_{a}" for a in ("USub", "Not", "Invert")),
    "AddNot",
    "ExceptionReplacer",
    "NumberReplacer",
    "ReplaceAndWithOr",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ReplaceFalseWithTrue",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ZeroIterationForLoop",
)
"""What cosmic-ray does to the code: of every operator only its neighbour, since most of the others
raise a TypeError at once and prove nothing."""

BY_ROOM = {
    "methods": ("defaults", "losses", "baselines", "shares"),
    "training": ("defaults", "losses", "checkpoints", "shares", "methods"),
    "evaluation": ("scoring", "measure", "samples", "protocols"),
}
"""Test files of a room's modules, likeliest first."""
BY_MODULE = {
    "methods/ap": ("defaults", "losses", "ap"),
    "methods/uce": ("defaults", "losses", "uce", "shares"),
    "training/processes": ("checkpoints",),
    "training/tuning": ("defaults", "methods"),
    "training/joint": ("filing",),
    "training/closed_form": ("uce", "shares", "losses"),
    "training/checkpoints": ("checkpoints", "methods"),
    "training/runs": ("checkpoints", "methods"),
    "training/pictures": ("defaults", "losses", "baselines"),
    "training/loop": ("checkpoints", "losses", "methods"),
    "training/search/exact": ("defaults", "losses", "ap"),
    "training/search/gumbel": ("defaults", "losses", "ap", "baselines"),
    "training/held": ("losses", "ap"),
    "training/search/online": ("losses",),
    "training/search/forecast": ("defaults", "forecast_search"),
    "training/recall": ("twofold", "race"),
    "training/minimax": ("minimax", "bound"),
    "training/projection": ("projection",),
    "training/weighing": ("minimax",),
    "training/anchors": ("anchors", "turns"),
    "training/turns": ("turns",),
    "training/change": ("baselines", "uce", "plugins"),
    "training/forecast": ("forecast",),
    "training/trial": ("forecast",),
    "training/inverse": ("rece", "attacks"),
    "methods/advunlearn": ("defaults", "advunlearn"),
    "methods/dp": ("defaults", "projection"),
    "methods/oce": ("defaults", "oce"),
    "methods/minimax": ("defaults", "minimax"),
    "methods/rece": ("defaults", "rece", "uce"),
    "methods/race": ("defaults", "race"),
    "methods/stereo": ("defaults", "race", "turns", "methods"),
    "methods/twofold": ("defaults", "twofold", "methods"),
    "training/search/pools": ("losses", "ap"),
    "training/search/random": ("ap",),
    "training/batches": ("defaults", "ap", "shares", "losses"),
    "training/latents": ("defaults", "ap", "shares", "losses"),
    "evaluation/bench": ("bench", "tables"),
    "evaluation/sensitivity": ("sensitivity", "scoring"),
    "evaluation/samples": ("samples", "baselines", "measure", "scoring"),
    "evaluation/protocols": ("protocols", "measure", "scoring"),
    "evaluation/metrics/metric": ("metrics", "plugins", "scoring"),
    "evaluation/clip": ("metrics",),
    "evaluation/metrics": ("quantiles", "metrics", "measure", "scoring"),
    "evaluation/judges/imagenet": ("measure", "protocols"),
    "evaluation/judges/emoji": ("defaults", "emoji"),
    "evaluation/judges": ("emoji", "metrics", "scoring", "protocols"),
    "evaluation/attacks": ("attacks", "defaults"),
    "evaluation/trial": ("siege",),
    "evaluation/siege": ("siege",),
    "evaluation/artefacts": ("siege", "attacks"),
    "evaluation/baselines": ("defaults", "siege", "attacks"),
    "evaluation/references": ("siege", "attacks"),
    "evaluation/finds": ("siege",),
    "evaluation/lessons": ("attacks", "siege"),
    "evaluation/verdicts": ("siege",),
    "evaluation/attack_bench": ("defaults", "attack_bench"),
    "evaluation/bound": ("bound",),
    "evaluation/cells": ("ready", "bench", "attack_bench"),
    "evaluation/tasks": ("tasks",),
    "evaluation/parts": ("sensitivity", "siege"),
    "evaluation/standing": ("bench", "stale", "attack_bench"),
    "evaluation/permitted": ("protocol2", "bench"),
    "evaluation/seen": ("metrics", "measure", "scoring"),
    "evaluation/answers": ("defaults", "readers", "bench", "scoring"),
    "evaluation/judge_files": ("emoji", "second_judge"),
    "evaluation/judges/second": ("second_judge",),
    "evaluation/evaluate": ("scoring", "protocols", "bench", "storage"),
    "intervals": ("scores", "quantiles"),
    "scores": ("scores", "quantiles", "metrics"),
}
"""The same where a module or a folder has its own."""


class Mutant(NamedTuple):
    """One change to one module."""

    module: str
    """Its path in the package, without ``.py``."""
    kind: str
    occurrence: int
    line: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """What makes it this mutant, whatever line it has moved to."""
        return f"{self.module}: {self.before} => {self.after}"


OURS: dict[str, tuple[tuple[str, str], ...]] = {
    "methods/ap": (
        ("return value + keeping.term(student, b.z, b.t, g)", "return value"),
        ("(self._weighted(words.weight) * harm)", "(self._weighted(words.weight) * 0 * harm)"),
        ("search.learn(chosen, harm)", "search.learn(chosen, 0 * harm)"),
    ),
    "training/held": (
        ("goal = job.model.predict(words.z, words.t, words.cond)", "goal = b.e_concept"),
        ("words.chosen * self.n", "words.chosen"),
    ),
    "methods/age": (
        ("e_anchor=e_anchor", "e_anchor=b.e_anchor"),
        (
            "with torch.no_grad():\n                same = model",
            "if True:\n                same = model",
        ),
    ),
    "methods/ca": (
        ("[c.anchor for c in concepts])", "[c.name for c in concepts])"),
        ("student(z, t, instead) if self.live", "student(z, t, concept) if self.live"),
    ),
    "methods/esd": (("b.goal(self.eta)", "b.goal(0.0)"),),
    "methods/mace": (
        ("where[name][template]]  # (B", "where[name][0]]  # (B"),
        ("return slice(min(1 + before, limit)", "return slice(min(before, limit)"),
        ("mine = masks[name][rows]", "mine = 1 - masks[name][rows]"),
        ("above = above + part[name]", "above = above + w"),
    ),
    "methods/spm": (
        ("self.anchoring * harm", "0 * harm"),
        ("b.goal(self.eta)", "b.goal(0.0)"),
        ("like.float().flatten(1).norm() / ", "1 / "),
    ),
    "methods/speed": (
        ("p[far >= far.mean()]", "p[far < far.mean()]"),
        ("torch.cat([some, kept])", "some"),
    ),
    "methods/dp": (
        ("torch.where(bare.repeat_interleave(len(c) // len(bare))[:, None], near, a)", "a"),
    ),
    "methods/oce": (
        ("keep - self.erase_scale * (g", "keep + self.erase_scale * (g"),
        ("self.keep_weight * self.erase_scale * still", "0 * still"),
        ("return proper(step)", "return proper(keep)"),
    ),
    "methods/rece": (
        ("[*found, back.states] if self.cumulative else", "[back.states] if True else"),
    ),
    "methods/race": (
        ("far.detach() - PACE", "far.detach() + PACE"),
        ("clock.update >= plain", "clock.update > plain"),
    ),
    "methods/twofold": (
        ("(1.0, self.preserve, self.against)", "(1.0, self.preserve, 0.0)"),
        ("search.learn(chosen, far[1])", "search.learn(chosen, 0 * far[1])"),
    ),
    "methods/stereo": (
        ("- (self.guidance + 1) * ways", "+ (self.guidance + 1) * ways"),
        ("if last else b.concept", "if not last else b.concept"),
    ),
    "methods/advunlearn": (
        ("grad.sign() if self.config.signs", "-grad.sign() if self.config.signs"),
        ("self.preserve * mse_loss(retained", "0 * mse_loss(retained"),
    ),
    "training/minimax": (
        ("squared ** (PACE / 2)", "squared ** (-PACE / 2)"),
        ("max(low - lam * size, 0.0)", "max(low, 0.0)"),
    ),
    "training/weighing": (("drift / max(made", "made / max(drift"),),
    "training/recall": (("self.found - PACE", "self.found + PACE"),),
    "training/search/online": (("self.config.memory * self.harm + ", "0 * self.harm + "),),
    "training/anchors": (("if apart[word] >= least", "if apart[word] > least"),),
    "training/closed_form": (("weight**0.5 * text_vectors", "weight * text_vectors"),),
    "training/batches": (("self.e_anchor - away", "self.e_anchor + away"),),
    "training/latents": (
        ('weights if self.config.of == "student"', 'weights if self.config.of == "frozen"'),
    ),
    "training/search/exact": (("harm.topk(", "(-harm).topk("),),
    "training/search/gumbel": (("torch.autograd.grad(-harm", "torch.autograd.grad(harm"),),
    "training/erasure": (("return self.weight * (student", "return (student"),),
    "intervals": (
        ("wanted = torch.tensor([0.025, 0.975]", "wanted = torch.tensor([0.05, 0.95]"),
        ("mass, torch.tensor([0.025, 0.975]", "mass, torch.tensor([0.05, 0.95]"),
        ("0.95 * mass[-1])", "0.90 * mass[-1])"),
        ("times / len(hits) * likelihood", "times * likelihood"),
    ),
    "scores": (
        ("torch.tensor([0.025, 0.975]", "torch.tensor([0.05, 0.95]"),
        ("Z = 1.959964", "Z = 1.644854"),
    ),
}
"""Faults that a reader of the papers might make, by hand: text of the code, and what stands there
instead."""

EQUIVALENT: dict[str, str] = {
    "training/search/gumbel: for logits, grad in zip(self.logits, grads, strict=True): => "
    "for logits, grad in zip(self.logits, grads, strict=False):": "a gradient for every vector of "
    "logits is what autograd gives",
    "evaluation/attacks/completion: FRESH = 10_000_000 => FRESH = 9999999": "seeds that nothing "
    "else has, as before",
    "evaluation/bound: ROUNDS = 50 => ROUNDS = 49": "a round less of an iteration that is proved "
    "after any number of them",
    "evaluation/judges/judge: def classify(self, images: Tensor, batch: int = 32, k: int = 5) -> "
    "Judgement: => def classify(self, images: Tensor, batch: int = 32, k: int = 6) -> "
    "Judgement:": "the default of an abstract method",
    "evaluation/parts: if len(parts) < 2 or isinstance(parts[0], Pictures): => "
    "if len(parts) < 2 or isinstance(parts[ 1], Pictures):": "all parts are of one kind",
    "training/change: moved = 0.0 => moved = -1.0": "where nothing is made, either is too little",
    "training/joint: if any(s != settings[0] for s in settings): => "
    "if any(s != settings[ 1] for s in settings):": "there are two edits at least, and they differ "
    "from any one of them where they differ at all",
    "evaluation/clip: return normalize(features(self.model.get_text_features(**x)), dim=-1) => "
    "return normalize(features(self.model.get_text_features(**x)), dim=1)": "features have two "
    "axes, the last is the second",
    "evaluation/judges/emoji: if images.shape[-2:] != (SIZE, SIZE): => "
    "if images.shape[2:] != (SIZE, SIZE):": "pictures have four axes",
    "evaluation/judges/imagenet: h, w = images.shape[-2:] => "
    "h, w = images.shape[2:]": "pictures have four axes",
    "evaluation/judges/judge: def classify(self, images: Tensor, batch: int = 32, k: int = 5) -> "
    "Judgement: => def classify(self, images: Tensor, batch: int = 33, k: int = 5) -> "
    "Judgement:": "the default of an abstract method; a batch changes the time alone",
}
"""Mutants that change nothing that anyone could notice, by name, and why."""


def tests_of(module: str) -> list[str]:
    """The test files for a module: its own, its folder's, or its room's."""
    fitting = [k for k in BY_MODULE if module == k or module.startswith(f"{k}/")]
    at = max(fitting, key=len, default="")
    names = BY_MODULE[at] if at else BY_ROOM[module.split("/")[0]]
    return [str(TESTS / f"test_{n}.py") for n in names]


def code_of(module: str) -> str:
    return (SRC / "efface" / f"{module}.py").read_text()


def changed(code: str, module: str, kind: str, occurrence: int) -> str | None:
    """The code of a mutant; None: there is no such one."""
    if kind == "ours":
        before, after = OURS[module][occurrence]
        if code.count(before) != 1:
            sys.exit(f"{module} has {before!r} {code.count(before)} times: mend OURS.")
        return code.replace(before, after)
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    found: str | None = mutate_code(code, get_operator(f"core/{kind}")(), occurrence)
    return found


def described(module: str, kind: str, occurrence: int) -> Mutant | None:
    """A mutant with the line that it changes; None: there is no such one, or it is no Python."""
    code = code_of(module)
    after = changed(code, module, kind, occurrence)
    if after is None:
        return None
    try:
        compile(after, module, "exec")
    except SyntaxError:
        return None
    a, b = code.splitlines(), after.splitlines()
    _, i, j, k, m = next(
        op for op in difflib.SequenceMatcher(None, a, b, False).get_opcodes() if op[0] != "equal"
    )
    old, new = (" ".join(x.strip() for x in lines) for lines in (a[i:j], b[k:m]))
    return Mutant(module, kind, occurrence, i + 1, old, new)


def sampled(each: int, seed: int) -> Iterator[Mutant]:
    """Ours, and of every module ``each`` of cosmic-ray's, drawn at random."""
    for module, faults in OURS.items():
        for i in range(len(faults)):
            found = described(module, "ours", i)
            assert found is not None
            yield found
    drawn = []
    for room in ROOMS:
        for path in sorted((SRC / "efface" / room).rglob("*.py")):
            if path.name == "__init__.py":
                continue
            module = path.relative_to(SRC / "efface").with_suffix("").as_posix()
            there = [(module, k, i) for k in OPERATORS for i in range(count(module, k))]
            of_module = random.Random(f"{seed}/{module}").sample(there, min(each, len(there)))
            drawn.append([m for x in of_module if (m := described(*x)) is not None])
    yield from filter(None, chain(*zip_longest(*drawn)))  # a round of all modules, and the next


def count(module: str, kind: str) -> int:
    """How many mutants of a kind a module has."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    operator = get_operator(f"core/{kind}")()
    nodes = ast_nodes(get_ast(code_of(module)))
    return sum(len(list(operator.mutation_positions(n))) for n in nodes)


def tried(mutant: Mutant | None, tests: Sequence[str]) -> tuple[str, str, float]:
    """Run tests on a copy of the package, with a mutant in it: outcome, the test, seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        src = Path(folder) / "src"
        shutil.copytree(SRC / "efface", src / "efface", ignore=shutil.ignore_patterns("assets"))
        (src / "efface" / "assets").symlink_to(SRC / "efface" / "assets")
        if mutant is not None:
            path = src / "efface" / f"{mutant.module}.py"
            code = changed(path.read_text(), mutant.module, mutant.kind, mutant.occurrence)
            assert code is not None
            path.write_text(code)
        log = Path(folder) / "log"
        child = os.fork()
        if not child:
            run(First(mutant.module if mutant else ""), src, tests, log)
        code = waited(child, began + TIMEOUT)
        failed = [x for x in log.read_text().splitlines() if x.startswith(("FAILED", "ERROR"))]
    by = failed[0].split(" - ")[0].rpartition("tests/")[2] if failed else ""
    if code in (2, 4) and not by:
        by = "import"
    outcome = {None: "timeout", 0: "survived", 5: "survived"}.get(code, "killed")
    return outcome, by, round(time.perf_counter() - began, 1)


class First:
    """Runs the tests that say a module's name before the others."""

    def __init__(self, module: str) -> None:
        self.name = module.rpartition("/")[2]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda i: not any(f"{x}{self.name}" in i.name for x in "_["))


def run(first: First, src: Path, tests: Sequence[str], log: Path) -> None:
    """Tests on another copy of the package, in this process, which ends here."""
    os.setsid()
    with log.open("w") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    os.environ["PYTHONPATH"] = str(src)
    sys.path.insert(0, str(src))
    os.chdir(ROOT)
    code = 1
    try:
        import pytest

        plugins = ["-p", "no:cacheprovider", "-p", "no:xdist"]
        temporary = f"--basetemp={src.parent / 'tests'}"
        code = int(
            pytest.main(
                ["-x", "-q", "--tb=no", "-k", f"not {SLOW}", *plugins, temporary, *tests], [first]
            )
        )
    finally:
        sys.stdout.flush()
        os._exit(code)


def waited(child: int, until: float) -> int | None:
    """The exit code of a process; None: it took too long, and was ended."""
    while time.perf_counter() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def warm() -> None:
    """Import once what every test needs and no mutant touches."""
    import diffusers
    import pytest
    import torch
    import transformers

    torch.set_num_threads(1)
    names = ("StableDiffusionPipeline", "UNet2DConditionModel", "AutoencoderKL", "DDIMScheduler")
    for x in names:
        getattr(diffusers, x)
    for x in ("CLIPTextModel", "CLIPTokenizer", "CLIPTextConfig"):
        getattr(transformers, x)
    assert pytest.__version__
    assert "efface" not in sys.modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=1, help="mutants of every module")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="try the survivors again")
    parser.add_argument("--ours", action="store_true", help="only our own")
    parser.add_argument("--control", action="store_true", help="first all tests without a mutant")
    args = parser.parse_args()
    warm()
    mutants = [m for m in sampled(args.each, args.seed) if not args.ours or m.kind == "ours"]
    if args.control:
        tests = sorted({t for m in mutants for t in tests_of(m.module)})
        outcome, by, _ = tried(None, tests)
        if outcome != "survived":
            sys.exit(f"the tests fail without a mutant: {outcome} {by}")
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    if kept and (kept["seed"], kept["each"]) != (args.seed, args.each):
        sys.exit(
            f"{OUT} is another sample (--seed {kept['seed']} --each {kept['each']}): move it away."
        )
    had = kept.get("mutants", {})
    here = {m.name for m in sampled(args.each, args.seed)}
    known = {k: m for k, m in had.items() if k in here}  # of this code and this sample
    for n, mutant in enumerate(mutants, 1):
        old = known.get(mutant.name)
        retry = args.again and mutant.name not in EQUIVALENT
        if old and not (retry and (old["outcome"] == "survived" or not old["by"])):
            continue
        outcome, by, seconds = tried(mutant, tests_of(mutant.module))
        print(f"{n}/{len(mutants)} {outcome} {seconds} s  {mutant.name}  {by}", flush=True)
        known[mutant.name] = {
            "module": mutant.module,
            "line": mutant.line,
            "kind": mutant.kind,
            "before": mutant.before,
            "after": mutant.after,
            "outcome": outcome,
            "by": by,
            "first": old["first"] if old else outcome,
        }
        asked = {"seed": args.seed, "each": args.each}
        OUT.write_text(json.dumps({**asked, "mutants": known}, indent=1) + "\n")
    DOCS.write_text(written(DOCS.read_text()))


def written(text: str) -> str:
    """The page with its tables as the results are now."""
    return put(text, "mutants", shown(json.loads(OUT.read_text())["mutants"]))


def shown(known: dict[str, dict[str, Any]]) -> str:
    """Score of every room, at first sight and now, and what survived."""
    same = [m for m in known if m in EQUIVALENT]
    found = {k: m for k, m in known.items() if k not in EQUIVALENT}
    rooms = Counter(m["module"].split("/")[0] for m in found.values())
    dead = Counter(m["module"].split("/")[0] for m in found.values() if m["outcome"] != "survived")
    early = Counter(m["module"].split("/")[0] for m in found.values() if m["first"] != "survived")
    lines = ["| in | mutants | killed at first | killed now |", "| --- | ---: | ---: | ---: |"]
    for room in (*ROOMS, "intervals", "scores"):
        n = max(rooms[room], 1)
        first, now = (f"{x} ({100 * x / n:.0f} %)" for x in (early[room], dead[room]))
        lines.append(f"| `{room}` | {rooms[room]} | {first} | {now} |")
    n = max(len(found), 1)
    first, now = (f"{x} (**{100 * x / n:.0f} %**)" for x in (early.total(), dead.total()))
    lines += [f"| all | {len(found)} | {first} | {now} |", ""]
    alive = [m for m in found.values() if m["outcome"] == "survived"]
    lines.append("Survivors:" if alive else "No mutant survived.")
    if alive:
        lines += ["", *(f"- {line(m)}" for m in alive)]
    if same:
        lines += ["", "The same program in all that can be seen, and not counted:", ""]
        lines += [f"- {line(known[m])}: {EQUIVALENT[m]}" for m in same]
    return "\n".join(lines).rstrip() + "\n"


def line(m: dict[str, Any]) -> str:
    """A mutant in words."""
    return f"`{m['module']}`: `` {m['before']} `` → `` {m['after']} ``"


if __name__ == "__main__":
    main()
