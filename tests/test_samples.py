import json

import pytest
import torch
from conftest import shaken

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation import samples as samples_module
from efface.evaluation.samples import Samples, Wanted, generate
from efface.models import load
from efface.models.identity import identity

WANTED = [Wanted(p, s, p) for p in ("church", "dog", "red house") for s in (0, 1)]


def made(model, folder, wanted=WANTED, **options):
    return generate(model, wanted, folder, progress=False, **options)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def rows(folder):
    """What the log says, without the batches."""
    found = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [{k: r[k] for k in ("prompt", "seed", "concept")} for r in found]


@pytest.fixture
def folder(tiny, tmp_path):
    """A finished set, in a folder whose parents were missing."""
    made(tiny, tmp_path / "run" / "samples")
    return tmp_path / "run" / "samples"


def test_a_picture_and_a_row_for_each(tiny, folder):
    names = {w.file for w in WANTED}
    assert names | {"samples.json", "samples.jsonl"} == set(contents(folder))
    assert [Wanted(**r) for r in rows(folder)] == WANTED
    found = Samples.open(folder)
    assert found.rows == tuple(WANTED)
    assert found.settings.base == tiny.base
    assert (found.settings.steps, found.settings.guidance) == (tiny.steps, tiny.guidance)
    slow = torch.stack(
        list(tiny.generate([w.prompt for w in WANTED], [w.seed for w in WANTED], output_type="pt"))
    )
    torch.testing.assert_close(found.images(), slow, rtol=0, atol=0.51 / 255)


def test_nothing_is_made_twice(tiny, folder):
    before = contents(folder)
    with tiny.counting() as spent:
        again = made(tiny, folder)
    assert spent.forward == 0
    assert contents(folder) == before
    assert again.rows == tuple(WANTED)


def test_only_what_is_new_is_made(tiny, folder):
    more = [*WANTED, Wanted("moon", 0, "moon"), Wanted("moon", 0, "moon")]
    with tiny.counting() as spent:
        found = made(tiny, folder, more)
    assert spent.forward == 2 * tiny.steps
    assert found.rows == tuple(more[:-1])
    assert len(rows(folder)) == len(WANTED) + 1


def test_where_everything_is_drawn_there_is_no_bar(tiny, tmp_path, capsys):
    seen = []
    for _ in range(2):
        generate(tiny, WANTED, tmp_path / "x", progress=True)
        seen.append("picture" in capsys.readouterr().err)
    assert seen == [True, False]


def test_half_a_line_and_missing_pictures_are_made_again(tiny, folder):
    before, images, known = contents(folder), Samples.open(folder).images(), rows(folder)
    text = (folder / "samples.jsonl").read_text()
    (folder / "samples.jsonl").write_text(text[:-20])  # killed while writing the last row
    (folder / WANTED[1].file).unlink()
    (folder / WANTED[2].file).unlink()
    with tiny.counting() as spent:
        found = made(tiny, folder)
    assert spent.forward == 2 * 2 * tiny.steps  # the last picture is there, only its row was not
    assert found.rows == tuple(WANTED)
    after = contents(folder)
    assert after.keys() == before.keys()
    assert sorted(map(str, rows(folder))) == sorted(map(str, known))
    torch.testing.assert_close(found.images(), images, rtol=0, atol=1.01 / 255)


class Killed(Exception):
    """As good as SIGKILL."""


@pytest.mark.parametrize("after", [0, 1, 4])
def test_killed_and_started_again_it_makes_what_is_missing(
    tiny, folder, tmp_path, monkeypatch, after
):
    real, seen, again = samples_module.write, [], tmp_path / "again"

    def write(path, save, lasting=True):
        if path.suffix == ".png":
            if len(seen) == after:
                path.with_name(f".{path.name}.1.part").write_bytes(b"half a picture")
                raise Killed
            seen.append(path)
        real(path, save)

    monkeypatch.setattr(samples_module, "write", write)
    with pytest.raises(Killed):
        made(tiny, again)
    monkeypatch.undo()
    with tiny.counting() as spent:
        found = made(tiny, again)
    assert spent.forward == len(WANTED) * 2 * tiny.steps  # the whole batch: the same bytes
    assert [Wanted(**r) for r in rows(again)] == WANTED
    assert found.settings == Samples.open(folder).settings
    (again / f".{WANTED[after].file}.1.part").unlink()  # of a process that is alive
    assert contents(again) == contents(folder)


def test_pictures_that_another_process_draws_meanwhile_are_taken(
    tiny, folder, tmp_path, monkeypatch
):
    note = samples_module.note

    def slower(log, some, **more):
        note(log, some, **more)
        for w in some:
            (log.parent / w.file).write_bytes((folder / w.file).read_bytes())

    monkeypatch.setattr(samples_module, "note", slower)
    monkeypatch.setattr(type(tiny), "generate", lambda *_, **__: pytest.fail("drawn again"))
    made(tiny, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_other_settings_are_refused(tiny, folder):
    before = contents(folder)
    edit = Edit(shaken(tiny), {"base": tiny.base})
    for options, differ in (
        ({"steps": 3}, "steps"),
        ({"guidance": 2.0}, "guidance"),
        ({"edit": edit}, "edit"),
        ({"steps": 3, "edit": edit}, "edit, steps"),
    ):
        with pytest.raises(UserError, match=f"holds pictures made with another {differ};"):
            made(tiny, folder, **options)
    assert contents(folder) == before


def test_a_foreign_folder_is_refused(tiny, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="is not empty and holds no samples of ours"):
        made(tiny, tmp_path)
    assert list(contents(tmp_path)) == ["holiday.jpg"]


def test_a_file_in_place_of_the_folder_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make .*File exists"):
        made(tiny, tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot make .*Not a directory"):
        made(tiny, tmp_path / "file" / "below")


def test_bad_settings_leave_no_folder(tiny, tmp_path):
    with pytest.raises(UserError, match="got -1 sampling steps"):
        made(tiny, tmp_path / "samples", steps=-1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["samples.json", "samples.jsonl"])
def test_a_folder_without_its_two_files_is_no_sample_set(folder, broken):
    (folder / broken).unlink()
    with pytest.raises(UserError, match="is no folder of samples"):
        Samples.open(folder)


def test_settings_that_are_no_json_are_refused(folder):
    (folder / "samples.json").write_text('{"base": "x"}')
    with pytest.raises(UserError, match=r"samples\.json' has no field 'edit'"):
        Samples.open(folder)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 is broken JSON"),
        ('{"prompt": "x", "seed": "0", "concept": "x"}', "line 2: seed is '0'; a whole number"),
        ('{"prompt": "x", "seed": 0}', "line 2 has no field 'concept'"),
        ("[1]", r"line 2 is \[1\]; an object"),
    ],
)
def test_a_damaged_line_is_named(folder, line, told):
    log = folder / "samples.jsonl"
    text = log.read_text().splitlines(keepends=True)
    log.write_text(text[0] + line + "\n" + "".join(text[1:]))
    with pytest.raises(UserError, match=told):
        Samples.open(folder)


def test_a_damaged_picture_is_named(folder):
    (folder / WANTED[0].file).write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=rf"{WANTED[0].file}' cannot be read"):
        Samples.open(folder).images()


def test_an_edit_draws_other_pictures(tiny, folder, tmp_path):
    edit = Edit(shaken(tiny, by=1.0), {"base": tiny.base})
    other = made(tiny, tmp_path / "edited", edit=edit)
    assert other.settings.edit == edit.digest
    assert not torch.allclose(other.images(), Samples.open(folder).images(), atol=0.01)


def test_no_two_pictures_share_a_file():
    long = "a very long prompt that goes on and on and on, until it has said what it wants: "
    prompts = ["a cat", "a-cat", "a cat!", "a cat?", long + "dog", long + "church"]
    files = [Wanted(p, 0, "x").file for p in prompts]
    assert len(set(files)) == len(prompts)
    letters = "\N{MATHEMATICAL FRAKTUR SMALL A}" * 60  # four bytes each
    files.append(Wanted(letters, 2**31, "x").file)
    assert all(len(f.encode()) < 200 and "/" not in f for f in files)


def half(rank, model_folder, folder):
    """One of two processes that fill a folder together."""
    torch.set_num_threads(1)
    model = load(model_folder, device="cpu")
    generate(model, WANTED[rank::2], folder, steps=4, progress=False)


@pytest.mark.slow
def test_two_processes_fill_one_folder_as_one_does(tiny, tiny_folder, tmp_path):
    folder = tmp_path / "both"
    torch.multiprocessing.spawn(half, (tiny_folder, folder), nprocs=2)
    alone = made(tiny, tmp_path / "alone", steps=4)
    found = Samples.open(folder)
    assert sorted(r["prompt"] + str(r["seed"]) for r in rows(folder)) == sorted(
        w.prompt + str(w.seed) for w in WANTED
    )
    for w in WANTED:
        one, other = (
            Samples(f, (w,), found.settings).images() for f in (folder, tmp_path / "alone")
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1.01 / 255)
    assert found.settings == alone.settings


@pytest.mark.slow
def test_what_draws_is_the_same_model_after_its_tokenizer_was_used(tiny_folder):
    """A tokenizer remembers how it was last asked to pad, which says nothing of what it knows."""
    used, fresh = (load(tiny_folder, device="cpu") for _ in range(2))
    used.embed(["church", "a longer prompt than that"])
    used.tokenizer(["church"], padding=True)
    assert identity(used) == identity(fresh)
