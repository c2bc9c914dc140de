"""The before/after picture: small where it would take long, and never in the result's way."""

import dataclasses
import json

import pytest
import torch
from conftest import CHURCH, QUIET, shaken
from PIL import Image, ImageDraw, ImageFont

from efface.cli import picture as command
from efface.cli.main import main
from efface.edits.edit import Edit
from efface.methods.uce import UCE
from efface.models import load
from efface.reporting import grid
from efface.reporting.grid import Preview, before_after


@pytest.fixture
def slow(monkeypatch):
    """Every denoiser on the CPU counts as a slow one."""
    monkeypatch.setattr(grid, "SLOW", 0.0)


@dataclasses.dataclass
class Like:
    """What a preview asks of a model, of any size."""

    numbers: int
    side: int
    kind: str
    steps: int = 50
    guides: str = "cfg"

    def parameters(self):
        return {"a": torch.empty(self.numbers, device="meta")}

    @property
    def latent_shape(self):
        return (4, self.side // 8, self.side // 8)

    @property
    def picture_size(self):
        return (self.side, self.side)

    @property
    def device(self):
        return torch.device(self.kind)


def test_only_a_large_denoiser_on_a_cpu_is_shown_small(tiny):
    assert Preview.of(tiny, 7) == Preview(7)
    large = Like(860_000_000, 512, "cpu")
    assert Preview.of(large, 7) == Preview(2, 2, 1, 15, 256, 16)
    assert Preview.of(Like(860_000_000, 512, "cuda"), 7) == Preview(7)
    assert Preview.of(Like(10_000_000, 64, "cpu"), 1) == Preview(1)
    assert Preview.of(Like(860_000_000, 128, "cpu"), 1).size == 128
    whole, few = Preview(1), Preview.of(large, 1)
    assert few.evaluations(large) * few.share(large) < whole.evaluations(large) / 20


def test_a_model_at_another_size_is_the_one_that_was_opened_at_it(tiny, tiny_folder):
    other, opened = tiny.at(16), load(tiny_folder, device="cpu", size=16)
    assert (other.picture_size, tiny.picture_size) == ((16, 16), (8, 8))
    pictures = [
        next(m.generate("church", steps=2, output_type="pt")) for m in (other, opened, tiny.at(8))
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert pictures[2].shape == (3, 8, 8)
    assert other.denoiser is tiny.denoiser
    assert other.base == tiny.base


def test_a_preview_has_as_many_pictures_as_it_says(tiny, tmp_path, monkeypatch):
    drawn, real = [], grid.draw

    def draw(model, edit, wanted, *args, **named):
        drawn.append((model.size, args, [(w.concept, w.seed) for w in wanted]))
        return real(model, edit, wanted, *args, **named)

    monkeypatch.setattr(grid, "draw", draw)
    edit = Edit(shaken(tiny, "kv"), {"base": tiny.base})
    few = Preview(1, 2, 1, 2, 16)
    path = before_after(tiny, edit, ["church", "dog"], ["a", "b", "c"], tmp_path / "p.png", few)
    wanted = [("church", 0), ("a", 0), ("b", 0)]
    assert drawn == [(16, (2,), wanted)] * 2
    assert few.pictures == 3
    with Image.open(path) as sheet:
        assert sheet.width < 6 * grid.CELL


@pytest.fixture
def args(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["erase", "uce", "church", "--model", str(tiny_folder), "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.usefixtures("slow")
def test_the_result_comes_before_the_picture_and_outlives_its_kill(
    args, tmp_path, capsys, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "before_after", killed)
        assert main([*args, "--out", "run"]) == 130
    out, err = capsys.readouterr()
    assert "run/edit.safetensors" in out
    assert "efface report run" in out  # no judge scores it
    assert "moved most" not in out
    assert err.startswith("the edit is saved and told first; then 3 pictures of 8 pixels are drawn")
    stamp = (tmp_path / "run" / "edit.safetensors").stat().st_mtime_ns
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["moved_most"]
    monkeypatch.setattr(command, "most_moved", killed)  # it is known already
    assert main([*args, "--out", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "nothing was trained" in err
    assert found["moved_most"] == kept
    assert (tmp_path / found["picture"]).exists()
    assert (tmp_path / "run" / "edit.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("slow")
def test_without_a_picture_nothing_is_said_of_it(args, capsys):
    assert main([*args, "--no-picture"]) == 0
    assert capsys.readouterr().err == ""


def test_where_it_is_slow_an_edit_of_what_reads_text_is_looked_at_without_the_denoiser(tiny, words):
    few = Preview(1, 2, 1, 2, 8, 4)
    edit = UCE().erase(tiny, [CHURCH], QUIET)
    with tiny.counting() as spent:
        text = command.most_moved(tiny, edit, [CHURCH], str(words), few)
    assert spent.forward == 0
    seen = command.most_moved(tiny, edit, [CHURCH], str(words), Preview(1))
    assert len(text) == len(seen) == 5
    with tiny.counting() as spent:
        other = Edit(shaken(tiny), {"base": tiny.base})
        moved = command.most_moved(tiny, other, [CHURCH], str(words), few)
    assert len(moved) == 4  # the nearest four
    assert 0 < spent.forward < 100


@pytest.mark.parametrize("name", ["église", "Ångström", "церковь", "plain"])
def test_names_of_other_scripts_are_no_boxes_in_a_picture(name):
    text, font = grid.legible(name, 13)
    assert text == name
    box = bytes(font.getmask("\uffff"))  # what stands for a sign that a font has not
    assert all(bytes(font.getmask(c)) != box for c in name)


def test_a_sign_that_no_font_has_is_written_as_its_number(monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.fontManager.ttflist", [])
    assert grid.legible("教 é", 13)[0] == "\\u6559 é"
    assert grid.signs(__file__) == frozenset()


def test_a_long_name_stays_in_its_columns_and_says_that_it_goes_on():
    sheet = ImageDraw.Draw(Image.new("RGB", (400, 40)))
    font = ImageFont.load_default(13)
    for name in ("x" * 200, "a very long name " * 9, "Donaudampfschifffahrtsgesellschaft"):
        lines = grid.wrap(sheet, name, font, 180)
        assert len(lines) <= 2
        assert all(sheet.textlength(line, font=font) <= 180 for line in lines)
        assert lines[-1].endswith("...") == (len("".join(lines)) < len(name.replace(" ", "")))
    assert grid.wrap(sheet, "beer mug", font, 180) == ["beer mug"]


def test_what_stands_over_one_preserved_concept_is_not_cut():
    font, rows = ImageFont.load_default(15), [[torch.zeros(3, 8, 8)] * 2]
    said = "preserved, worst hurt first"
    assert grid.grid(rows, ["a", "b"], 1, 1).width >= 70 + 96 + 24 + font.getlength(said)
