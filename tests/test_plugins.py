"""A package of others adds a method; what is wrong with one is said, and hurts no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import warnings
from dataclasses import dataclass, replace
from importlib import invalidate_caches
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import efface
from efface.errors import UserError
from efface.methods import METHODS
from efface.methods.esd import ESD
from efface.methods.uce import UCE
from efface.models import FAMILIES, Family
from efface.plugins import Table, is_a
from efface.testing import check_method, small, tiny_model
from efface.training import Made, Method
from efface.training.change import check_change

ROOT = Path(__file__).parents[1]


def test_an_alias_of_a_class_is_no_class_of_its_kind():
    """``Named = dict[str, Tensor]`` in a method's file; Python 3.10 calls it a class."""
    assert is_a(dict, dict)
    assert not is_a(dict[str, int], dict)
    assert not is_a("dict", dict)


# -- installed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs Python in an environment of its own with ``examples/plugin`` in it."""
    home = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", home / "source")  # setuptools builds in place
    venv.create(home / "env")
    own = home / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    ours = [p for p in sys.path if p.endswith("-packages")]
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.check_output([own, "-c", where], text=True).strip()
    lines = "".join(f"import site; site.addsitedir({p!r})\n" for p in ours)
    (Path(site) / "ours.pth").write_text(lines)
    pip = [sys.executable, "-m", "pip", "--python", own, "install", "--quiet", "--no-deps"]
    offline = ["--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, home / "source"], check=True)
    env = {**os.environ, "PYTHONPATH": str(Path(efface.__file__).parents[1])}

    def run(*args):
        done = subprocess.run(
            [own, *map(str, args)], capture_output=True, text=True, env=env, cwd=home
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


EVERYWHERE = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import tables
import efface
from efface.cli.main import main
from efface.evaluation.bench import lineup
from efface.methods import METHODS
from efface.testing import check_method, tiny_pipeline

assert list(METHODS).index("project") == len(METHODS) - 1
assert efface.Project is METHODS["project"] and "Project" in efface.__all__
check_method(efface.Project())
check_method(METHODS["project"].presets()["half"])
assert lineup()["project"].label == "Projection"
assert "| `project` | Project the direction" in tables.methods()
tiny_pipeline().save_pretrained("tiny")
model = ["--model", "tiny"]
for args in (
    ["methods"],
    ["erase", "project", "--help"],
    ["erase", "project", "--concept", "church", "--out", "a", "--no-picture", *model],
    ["erase", "project", "--concept", "wolf", "--out", "b", "--no-picture", *model],
    ["erase", "project", "--concept", "church", "--concept", "wolf", "--out", "both",
     "--no-picture", *model],
    ["combine", "a", "b", "--how", "joint", "--out", "joint.safetensors"],
):
    print("#", *args, flush=True)
    try:
        assert main(args) == 0, args
    except SystemExit as e:
        assert not e.code, args
both, joint = efface.Edit.load("both"), efface.Edit.load("joint.safetensors")
assert both.digest == joint.digest
"""


@pytest.mark.slow
def test_an_installed_method_is_everywhere(installed):
    out = installed("-c", EVERYWHERE, ROOT / "docs")
    parts = {p.splitlines()[0]: p for p in out.split("# ")[1:]}
    assert "Project the direction from anchor to concept" in parts["methods"]
    assert "--share" in parts["erase project --help"]


# -- what is wrong with one ----------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts a package on the path: its code, and the entry points that it announces."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(name, points, code, kind="methods"):
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        about = tmp_path / f"{module}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        lines = "".join(f"{k} = {v}\n" for k, v in points.items())
        (about / "entry_points.txt").write_text(f"[efface.{kind}]\n{lines}")
        invalidate_caches()

    yield add
    for name in [n for n in sys.modules if n.startswith("thing_")]:
        del sys.modules[name]


GOOD = """
from efface.methods import METHODS
from efface.methods.uce import UCE
assert "uce" in METHODS
class Good(UCE):
    name, label = "{name}", "Good"
"""


def opened():
    """A table made anew, and what it complains of."""
    table = Table("methods", "efface.methods", Method)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = dict(table)
    return found, [str(w.message) for w in heard]


def test_a_method_of_another_package_is_listed_behind_ours(package):
    package("thing-good", {"good": "thing_good:Good"}, GOOD.format(name="good"))
    found, said = opened()
    assert said == []
    assert list(found) == [*METHODS, "good"]
    assert found["good"].__module__ == "thing_good"


def test_a_name_of_ours_is_refused_with_both_packages_named(package):
    package("thing-uce", {"uce": "thing_uce:Good"}, GOOD.format(name="uce"))
    package("thing-good", {"good": "thing_good:Good"}, GOOD.format(name="good"))
    found, said = opened()
    assert found["uce"] is UCE
    assert "good" in found
    assert said == [
        "methods: 'uce' is in efface and in thing-uce; the one of efface is used: rename the "
        "other, or uninstall its package."
    ]


def test_a_name_of_another_package_is_refused_with_both_named(package):
    for name in ("thing-b", "thing-a"):
        module = name.replace("-", "_")
        package(name, {"good": f"{module}:Good"}, GOOD.format(name="good"))
    found, said = opened()
    assert found["good"].__module__ == "thing_a"
    assert len(said) == 1
    assert "'good' is in thing-a and in thing-b; the one of thing-a is used" in said[0]


FAMILY = """
from efface.models.families.stable_diffusion import StableDiffusion
class Mine(StableDiffusion):
    name, label, pipelines = "mine", "Mine", ("MyPipeline",)
"""


def test_a_family_comes_the_same_way(package):
    ours = list(FAMILIES)
    package("thing-mine", {"mine": "thing_mine:Mine"}, FAMILY, "families")
    package("thing-bad", {"bad": "efface.methods.uce:UCE"}, "", "families")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = dict(Table("families", "efface.models.families", Family))
    assert list(found) == [*ours, "mine"]
    assert [str(w.message) for w in heard] == [
        "families: 'bad' of thing-bad is left out (efface.methods.uce:UCE is no Family)."
    ]


NO_METHOD = "class Good:\n    name = 'bad'\n"
NO_LABEL = """
from efface.training import Method
class Good(Method):
    name = "bad"
    def make(self, job): ...
"""
NO_MAKE = "from efface.training import Method\nclass Good(Method):\n    name = label = 'bad'\n"
BAD = {
    "no import": ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like"),
    "two lines": ("raise ValueError('one\\n  two')\n", "ValueError: one two"),
    "exits": ("raise SystemExit('no GPU')\n", "SystemExit: no GPU"),
    "no such class": ("x = 1\n", "AttributeError: module 'thing_bad' has no attribute 'Good'"),
    "no class": ("Good = 1\n", "thing_bad:Good is no Method"),
    "another class": (NO_METHOD, "thing_bad:Good is no Method"),
    "no make": (NO_MAKE, "Good lacks make"),
    "no label": (NO_LABEL, "Good does not say its label"),
    "two names": (GOOD.format(name="worse"), "entry point is called 'bad', its class 'worse'"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_that_cannot_be_used_is_left_out_in_one_line(package, case):
    code, why = BAD[case]
    package("thing-bad", {"bad": "thing_bad:Good"}, code)
    package("thing-good", {"good": "thing_good:Good"}, GOOD.format(name="good"))
    found, said = opened()
    assert list(found) == [*METHODS, "good"]
    assert len(said) == 1
    assert said[0].startswith("methods: 'bad' of thing-bad is left out (")
    assert why in said[0]
    assert "\n" not in said[0]


# -- the contract --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize(
    "name",
    [
        n if m.closed_form or n == "esd" else pytest.param(n, marks=pytest.mark.slow)
        for n, m in METHODS.items()
    ],
)
def test_every_method_of_ours_keeps_the_public_contract(model, name):
    """The quickest: ``test_methods.py`` asks more of all of them."""
    check_method(METHODS[name](), model)


def test_it_brings_a_model_of_its_own_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_method(UCE())
    assert torch.equal(torch.get_rng_state(), before)
    one, other = tiny_model(seed=0).parameters(), tiny_model(seed=1).parameters()
    assert any(not torch.equal(w, other[k]) for k, w in one.items())


def test_small_leaves_alone_what_a_method_does_not_have(tmp_path):
    assert small(UCE(), tmp_path) == UCE()
    quick = small(ESD(batch=1, eta=3.0), tmp_path)
    assert (quick.updates, quick.batch, quick.eta) == (2, 1, 3.0)
    assert quick.latents.trajectories == 2


@dataclass(frozen=True, kw_only=True)
class Broken(UCE):
    """A method that breaks one promise after the other; ``erase`` looks at no weights of it."""

    name: ClassVar[str] = "broken"
    label: ClassVar[str] = "Broken"
    closed_form: ClassVar[bool] = False

    how: str = ""

    def make(self, job):
        weights = dict(super().make(job).weights)
        first, own = next(iter(weights)), job.model.parameters()
        if self.how == "draws":
            weights[first] = weights[first] + torch.randn(weights[first].shape)
        elif self.how == "base":
            own[first].data.mul_(2)
        elif self.how == "gradients":
            own[first].requires_grad_()
        elif self.how == "training":
            job.model.denoiser.train()
        elif self.how == "nothing":
            weights = {k: own[k].clone() for k in weights}
        elif self.how == "empty":
            weights = {}
        elif self.how == "half":
            weights[first] = weights[first].half()
        elif self.how == "infinite":
            weights[first] = weights[first] / 0
        elif self.how == "shape":
            weights[first] = weights[first][:1]
        elif self.how == "strange":
            weights["strange"] = weights[first]
        elif self.how == "method":
            job.about["method"] = "another"
        elif self.how == "config":
            job.about["config"]["ridge"] = 7.0
        elif self.how == "concepts":
            job.about["concepts"] = []
        elif self.how == "keep" and self.keep:
            weights = {k: w / 0 for k, w in weights.items()}
        return Made(weights)

    def erase(self, model, concepts, run=None):
        if self.how == "all" and not concepts:
            concepts = ["moon"]
        method = replace(self, keep=()) if self.how == "both" else self
        return super(Broken, method).erase(model, concepts)


PROMISES = {
    "draws": "the same seed gives other weights",
    "base": "the base model was changed",
    "gradients": "left ready to train",
    "training": "left in training mode",
    "nothing": "nothing was changed",
    "empty": "holds no weights",
    "half": "is not fp32",
    "infinite": "is not finite",
    "shape": "no such weight",
    "strange": "no such weight: strange",
    "method": "does not say its method",
    "config": "other settings come back from the edit's file",
    "concepts": "does not say what it erased",
    "keep": "keep: not finite",
    "both": "what it kept",
    "all": "no concept at all is not refused",
}


def test_the_broken_method_is_whole_without_its_breaks():
    check_method(Broken())


SPOILING = ("base", "gradients", "training")
"""Those that leave no model behind for others."""


@pytest.mark.parametrize("how", PROMISES)
def test_each_broken_promise_is_said(model, how):
    with pytest.raises(AssertionError, match=PROMISES[how]):
        check_method(Broken(how=how), None if how in SPOILING else model)


class Closed(Broken):
    """The same as a closed form, whose weights ``erase`` looks at."""

    closed_form: ClassVar[bool] = True


REFUSED = {
    "nothing": "would change nothing",
    "empty": "would change nothing",
    "infinite": "by inf times its size",
    "shape": r"the edit has '.*' of \(1, 16\), the model \(.*, 16\)",
    "strange": "the edit has 'strange' of .*, the model no such weight",
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_closed_form_of_anybody_is_refused_weights_that_are_no_edit(model, how):
    with pytest.raises(UserError, match=REFUSED[how]):
        Closed(how=how).erase(model, ["church"])
    told = f"it cannot erase 'church' and 'dog': .*{REFUSED[how]}"
    with pytest.raises(AssertionError, match=told):
        check_method(Closed(how=how), model)


def test_a_refusal_that_comes_with_kept_words_says_them(model):
    with pytest.raises(AssertionError, match="keep 'moon', '': the edit would change "):
        check_method(Closed(how="keep"), model)


def test_a_closed_form_may_fill_a_weight_of_zeros():
    model = tiny_model()
    name, bias = next((k, w) for k, w in model.parameters().items() if k.endswith("to_out.0.bias"))
    bias.data.zero_()
    filled = {name: torch.full_like(bias, 0.5)}
    check_change(filled, model.parameters())
    with pytest.raises(UserError, match="by 1,414,214 times its size"):
        check_change({name: torch.full_like(bias, 5e5)}, model.parameters())


def test_what_is_no_method_or_has_no_label_or_other_presets_is_said(model):
    with pytest.raises(AssertionError, match="str is no efface"):
        check_method("uce", model)
    nameless = type("Nameless", (UCE,), {"label": ""})
    with pytest.raises(AssertionError, match="it has no label"):
        check_method(nameless(), model)
    lost = classmethod(lambda cls: {"lost": UCE()})
    odd = type("Odd", (UCE,), {"presets": lost, "lineup": classmethod(lambda cls: {})})
    with pytest.raises(AssertionError, match="preset 'lost': UCE is no Odd"):
        check_method(odd(), model)


@dataclass(frozen=True, kw_only=True)
class Wide(ESD):
    """Changes more than its group."""

    def make(self, job):
        made = super().make(job)
        own = job.model.parameters()
        return Made({**made.weights, "conv_in.bias": own["conv_in.bias"].cpu().float() + 1})


def test_a_weight_outside_the_group_is_said(model):
    with pytest.raises(AssertionError, match="outside the group 'xattn'"):
        check_method(Wide(), model)
