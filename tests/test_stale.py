"""Nothing that was made with another model, tokenizer or judge is taken for what is asked now."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import CLOTHES, TOLD

from efface.evaluation.bench import Cell, Opened
from efface.evaluation.sensitivity import text_states
from efface.models import load
from efface.studies.lab import Lab


@pytest.fixture
def own(clothes_folder, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(clothes_folder, folder)
    return folder


def scaled(folder):
    path = folder / "vae" / "config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "scaling_factor": 0.5}))


def renamed(folder):
    (folder / "concepts.json").write_text(json.dumps({"concepts": [{"name": "cap", "tags": []}]}))


@pytest.mark.slow
@pytest.mark.parametrize("change", [scaled, renamed])
def test_a_cell_and_a_study_of_ones_own_model_are_of_all_its_parts_and_words(own, change, tmp_path):
    cell = Cell(str(own / "protocol.json"), "1", "uce", 0, model=str(own))
    before, lab = Opened(cell), Lab(tmp_path / "lab", str(own), progress=False)
    place = lab.place("uce", {"base": lab.model.base})
    assert Opened(cell).identity == before.identity
    change(own)
    after, again = Opened(cell), Lab(tmp_path / "lab", str(own), progress=False)
    assert after.model.base == before.model.base  # the denoiser alone
    assert after.identity != before.identity
    assert after.folder(tmp_path) != before.folder(tmp_path)
    assert again.place("uce", {"base": lab.model.base}) != place


def test_results_with_the_shipped_model_stay_what_they_are(emoji):
    known = {"protocol", "split", "method", "seed", "config", "erased", "base", "judge", "sampler"}
    assert set(Cell("emoji-objects", "1", "uce", 0).identity(emoji, "")) == known


def test_a_study_asks_the_judge_what_the_protocol_asks(own, tmp_path, cache):
    labels = dict(zip(CLOTHES, (*CLOTHES[1:], CLOTHES[0]), strict=True))
    lab = Lab(tmp_path / "lab", str(own), progress=False)
    guesses = lab.judge.classify(lab.samples(None, CLOTHES, 1).images()).concepts[:, 0]
    lab.protocol = replace(lab.protocol, labels=labels)
    wanted = [CLOTHES.index(labels[c]) for c in CLOTHES]
    assert lab.seen(None, CLOTHES, 1).top1.tolist() == (guesses == torch.tensor(wanted)).tolist()
    lab.protocol = replace(lab.protocol, head="style", labels=dict.fromkeys(CLOTHES, "photo"))
    assert lab.seen(None, CLOTHES, 1).top1.all()  # the only style that it knows
    assert TOLD["judge"] == lab.judge.version


@pytest.mark.slow
def test_text_states_are_of_one_tokenizer_and_list(own, tmp_path):
    words = [f"{a} {b}" for a in range(64) for b in range(64)]
    model = load(own, device="cpu")
    first = text_states(model, words, tmp_path, progress=False)
    text_states(model, [*words[:-2], "\n".join(words[-2:])], tmp_path, progress=False)
    model.parts["tokenizer"].add_tokens(["63 63"])
    model.parts["text_encoder"].resize_token_embeddings(len(model.parts["tokenizer"]))
    second = text_states(model, words, tmp_path, progress=False)
    assert len(list((tmp_path / "text").iterdir())) == 3
    assert first.shape == second.shape
