"""Tiny random models of real classes, and the shipped one."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.evaluation.judges.emoji import EmojiJudge, JudgeConfig
from efface.methods.ap import AP
from efface.models import DiffusionModel, load
from efface.models.files.standard import STANDARD
from efface.models.files.tensors import dump
from efface.storage import ASSETS
from efface.testing import tiny_pipeline
from efface.training import Job, Run, Tuning

torch.set_num_threads(1)  # tiny models on a busy machine: many times faster


def pytest_collection_finish(session):
    """What is there by now stays: the collector of garbage need not look at it again."""
    gc.freeze()


def pytest_runtest_setup(item):
    """Other tests than the fast ones take oneDNN's convolutions, as users do; to set one up costs
    more time than a tiny model's convolution itself."""
    tiers = {m.name for m in item.iter_markers()}
    torch.backends.mkldnn.set_flags(not tiers.isdisjoint({"slow", "gpu", "hub"}))


QUIET = Run(progress=False)
CHURCH = Concept("church")
DOG = Concept("dog", anchor="cat", synonyms=("hound",))
WORDS = [
    f"{a} {b}"
    for a in ("red", "blue", "big", "small")
    for b in ("house", "cow", "sun", "tree", "river")
]

SD14 = {k: v for k, v in STANDARD["sd1"]["unet/config.json"].items() if k != "_class_name"}
"""The UNet of Stable Diffusion 1.4."""


def script(path, name=""):
    """A script as a module, its neighbours beside it.

    Args:
        name: another one than the file's.
    """
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up, and tables.py its neighbour
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def mostly_slow(cases, fast):
    """The cases of a test, of which all but a few are slow ones."""
    return [c if c in fast else pytest.param(c, marks=pytest.mark.slow) for c in cases]


def sd14_folder(folder):
    """A folder of that architecture, text encoder and autoencoder as well: random, fp16, 2 GB."""
    folder.mkdir()
    for name, config in STANDARD["sd1"].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    shutil.copytree(ASSETS / "emoji" / "tokenizer", folder / "tokenizer")
    for part, cls in {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
    }.items():
        config = {k: v for k, v in STANDARD["sd1"][f"{part}/config.json"].items() if k[0] != "_"}
        with torch.device("meta"):
            own = cls(CLIPTextConfig(**config)) if cls is CLIPTextModel else cls(**config)
        g = torch.Generator().manual_seed(0)
        name = "model" if cls is CLIPTextModel else "diffusion_pytorch_model"
        state = {
            k: (
                torch.randn(w.shape, generator=g) / 50 if w.ndim > 1 else torch.ones(w.shape)
            ).half()
            for k, w in own.state_dict().items()
        }
        dump(folder / part / f"{name}.safetensors", state, {"format": "pt"})
    return folder


def quick(method, words, updates=2):
    """A method with its settings made small; whatever it does not have is left alone."""
    small = {
        "latents": {"ddim_steps": 3, "trajectories": 2},
        "search": {"refresh": 2, "probes": 2, "top": 3},
        "pictures": {"n": 2, "ddim_steps": 3},
        "recall": {"refresh": 1, "batch": 2},
    }
    changes = {}
    for name, values in small.items():
        part = getattr(method, name, None)
        if part is not None:
            own = {k: v for k, v in values.items() if hasattr(part, k)}
            changes[name] = dataclasses.replace(part, **own)
    if isinstance(method, Tuning):
        changes |= {"updates": updates, "save_every": 2, "batch": min(method.batch, 2)}
    if getattr(method, "vocabulary", ""):
        changes["vocabulary"] = str(words)
    if getattr(method, "pool_size", 0):
        changes["pool_size"] = 6
    if hasattr(method, "steps"):
        changes["steps"] = min(method.steps, 3)
    if hasattr(method, "inversion"):
        changes |= {"inversion": 2, "inversion_batch": 2}
    if changes.get("vocabulary") and hasattr(method, "energy"):
        changes["energy"] = 0.5  # a tiny text encoder has room for few words
    return dataclasses.replace(method, **changes)


def job_of(model, concepts, method=None, run=QUIET):
    """A job for a method's parts to be looked at."""
    return Job(method or AP(), model, tuple(concepts), run)


def shaken(model, group="xattn", by=0.2, seed=0):
    """Weights of a group, moved at random: what a training may come to."""
    g, own = torch.Generator().manual_seed(seed), model.parameters()
    return {
        k: own[k] + by * own[k].std() * torch.randn(own[k].shape, generator=g)
        for k in model.group(group)
    }


def unchanged(model):
    """An edit that leaves a model as it is."""
    name, own = next(iter(model.parameters().items()))
    return Edit({name: own.float().cpu()}, {"base": model.base})


def same_weights(a, b):
    """Whether two dicts of tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, in a temporary folder."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer():
    return CLIPTokenizer.from_pretrained(ASSETS / "emoji" / "tokenizer")


def saved(pipeline, folder):
    """A pipeline's folder, its tokenizer in the two files of Stable Diffusion 1: read in a sixth
    of the time of the one that would be written now."""
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(ASSETS / "emoji" / "tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return saved(tiny_pipeline(), tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    """The same architecture with other weights."""
    return saved(tiny_pipeline(seed=1), tmp_path_factory.mktemp("other") / "model")


CLOTHES = ("coat", "dress", "bag", "boot", "shirt", "hat")
TOLD = {
    "splits": {"1": ["coat"]},
    "neighbours": {"coat": ["dress", "hat"]},
    "template": "a photo of a {}",
    "steps": 2,
    "guidance": 2.0,
    "judge": "clothes-1",
    "metrics": ["esr", "psr", "drift"],
}
"""A protocol of the tiny model's own."""


@pytest.fixture(scope="session")
def clothes_folder(tiny_folder, tmp_path_factory):
    """A folder of a tiny model that brings its words, its protocol and its judge."""
    folder = tmp_path_factory.mktemp("clothes") / "model"
    shutil.copytree(tiny_folder, folder)
    rows = [{"name": n, "tags": [f"a kind of {n}", "wear"]} for n in CLOTHES]
    (folder / "concepts.json").write_text(json.dumps({"concepts": rows}))
    (folder / "protocol.json").write_text(json.dumps(TOLD))
    torch.manual_seed(0)
    judge = EmojiJudge(JudgeConfig(CLOTHES, ("photo",), (8, 8), (1, 1), "clothes-1"))
    judge.concept_head.weight.data *= 100  # of different minds about different pictures
    judge.save(folder / "judge")
    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A word list file."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


@pytest.fixture(scope="session")
def loaded(tiny_folder):
    model = load(tiny_folder, device="cpu")
    return model, {k: p.clone() for k, p in model.parameters().items()}


@pytest.fixture
def tiny(loaded, tiny_folder) -> DiffusionModel:
    """The tiny model; whatever a test does with it, its weights must be the same afterwards."""
    model, before = loaded
    model.name, model.steps, model.lr = str(tiny_folder), 4, 1e-3
    yield model
    assert same_weights(model.parameters(), before)
    assert not any(p.requires_grad for p in model.parameters().values())


@pytest.fixture(scope="session")
def emoji() -> DiffusionModel:
    return load("emoji", device="cpu")
