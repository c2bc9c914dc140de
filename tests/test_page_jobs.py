"""Jobs of the page: the run of the command, stopped and gone on with, watched and attacked."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import quick, same_weights

from efface.cli.erase import Erase, run_erase
from efface.cli.opening import Opening
from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.methods import METHODS
from efface.models import load
from efface.page import ahead, views, work
from efface.page.desk import Desk
from efface.page.jobs import Job, holder
from efface.page.live import Watch, points_in, watched
from efface.page.places import Places
from efface.page.wish import Wish
from efface.training.erasure import provenance

COAT = Concept("coat", anchor="boot")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A start folder, in which the process is."""
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EFFACE_CACHE", str(folder / "cache"))
    return folder


@pytest.fixture
def places(start, clothes_folder):
    return Places.of(start, [clothes_folder])


@pytest.fixture
def wish(clothes_folder, words):
    method = quick(METHODS["esd"](lr=1e-2), words, 4)
    return Wish(method, (COAT,), str(clothes_folder.resolve()))


def worked(places, wish, kind="erase", stop_at=0, **options):
    """A job, done in this process."""
    job = Job(places, wish, kind)
    job.folder.mkdir(parents=True, exist_ok=True)
    process = work.Process(job, options)
    if stop_at:
        plain = process.update

        def update(done, left):
            plain(done, left)
            if done == stop_at:
                process.asked_to_stop(signal.SIGTERM, None)

        process.update = update
    assert work.done(process) == 0
    return job


def by_command(wish, out):
    """The same by the command."""
    o = Erase(
        concepts=tuple(c.name + f" -> {c.anchor}" for c in wish.concepts),
        out=out,
        opening=Opening(model=wish.model),
        picture=False,
    )
    run_erase(wish.method, o, ["efface", "erase"])


@pytest.mark.slow
def test_the_page_and_the_command_make_the_same_run_and_go_on_with_each_others(
    places, wish, start, tmp_path
):
    by_command(wish, tmp_path / "command")
    expected = (tmp_path / "command" / "edit.safetensors").read_bytes()
    job = worked(places, wish, every=1)
    assert (job.run / "edit.safetensors").read_bytes() == expected

    shutil.rmtree(job.run)
    half = worked(places, wish, every=1, stop_at=2)
    assert half.state().phase == "stopped"
    assert (half.run / "unfinished.safetensors").exists()
    assert not (half.run / "edit.safetensors").exists()
    by_command(wish, half.run)  # the command goes on with the page's
    assert (half.run / "edit.safetensors").read_bytes() == expected

    shutil.rmtree(half.run)
    half = worked(places, wish, every=1, stop_at=3)
    again = worked(places, wish, every=1)  # the page with its own
    assert again.state().phase == "done"
    assert (again.run / "edit.safetensors").read_bytes() == expected
    assert json.loads((again.run / "run.json").read_text())["seconds"] > 0


@pytest.mark.slow
def test_a_run_shows_pictures_and_curves_on_fixed_seeds(places, wish):
    job = worked(places, wish, every=2, also=["hat"])
    seen = job.watched()
    words = {w["word"]: w["role"] for w in seen["words"]}
    assert words["coat"] == "erased"
    assert words["hat"] == "near"
    assert words["dress"] == "near"  # the protocol's neighbour
    assert [p["update"] for p in seen["points"]] == [0, 2, 4]
    assert seen["points"][0]["worst"] == 0
    assert seen["points"][2]["worst"] > 0
    assert all(0 <= p["esr"] <= 100 for p in seen["points"])
    for p in seen["points"]:
        assert len(p["pictures"]["coat"]) == 4
        for some in p["pictures"].values():
            assert all((job.folder / f).is_file() for f in some)
    desk = Desk(places)
    html = views.run(desk, desk.know(wish))
    assert html.count("<svg") == 2
    assert "Trained in" in html
    assert "“coat” became “boot”." in html


@pytest.mark.slow
def test_the_end_of_a_run_that_the_command_ended_is_looked_at(places, wish):
    half = worked(places, wish, every=2, stop_at=3)
    assert [p["update"] for p in half.watched()["points"]] == [0, 2]
    by_command(wish, half.run)
    again = worked(places, wish, every=2)
    assert again.state().phase == "done", again.state()
    seen = again.watched()
    assert [p["update"] for p in seen["points"]] == [0, 2, 4]
    assert seen["points"][-1]["worst"] > 0
    assert all((again.folder / f).is_file() for f in seen["points"][-1]["pictures"]["coat"])


def test_words_that_are_looked_at_are_erased_near_and_far(clothes_folder):
    found = watched(load(clothes_folder), [COAT])
    roles = [w.role for w in found]
    assert roles[0] == "erased"
    assert "near" in roles
    assert len({w.word for w in found}) == len(found)


def test_looking_leaves_the_count_of_the_model_as_it_was(clothes_folder, tmp_path):
    model = load(clothes_folder)
    watch = Watch(tmp_path / "watch", 1, lambda *_: None, lambda: False)
    before = model.counter.copy()
    watch.begun(model, [COAT])
    assert model.counter == before
    assert [p.update for p in points_in(watch.path)] == [0]
    watch.path.write_text("{broken")
    assert points_in(watch.path) == []


@pytest.mark.slow
def test_a_closed_form_is_shown_too(places, wish, clothes_folder):
    other = Wish(METHODS["uce"](), (COAT,), wish.model)
    job = worked(places, other, every=5)
    assert job.state().phase == "done"
    assert [p["update"] for p in job.watched()["points"]] == [0, 1]


@pytest.mark.parametrize("kind", ["measure", "attack", "report"])
def test_what_needs_a_finished_run_says_so(places, wish, kind):
    job = worked(places, wish, kind, attacks=["completion"])
    assert job.state().phase == "failed"
    assert "not finished" in job.state().said


def test_a_folder_that_another_process_works_in_is_said_and_left(places, wish):
    folder = places.run(wish.home)
    folder.mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from efface.storage import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        job = worked(places, wish, every=0)
        other.kill()
    assert job.state().phase == "failed"
    assert "another process" in job.state().said
    assert "\n" not in job.state().said


@pytest.mark.slow
def test_a_model_that_vanishes_and_a_full_disk_are_one_line(places, wish, monkeypatch, tmp_path):
    gone = Wish(wish.method, wish.concepts, str(tmp_path / "gone"))
    assert "no such folder" in worked(places, gone, every=0).state().said

    def full(*_, **__):
        raise UserError("cannot write 'x': No space left on device; nothing was left half-written.")

    monkeypatch.setattr("efface.training.checkpoints.save", full)
    job = worked(places, wish, every=0)
    assert job.state().phase == "failed"
    assert "No space left" in job.state().said
    monkeypatch.undo()


def test_memory_that_runs_out_is_one_line_on_the_page(places, wish, monkeypatch):
    def short(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1")

    monkeypatch.setattr("efface.training.checkpoints.save", short)
    state = worked(places, wish, every=0).state()
    assert state.phase == "failed"
    assert state.said.startswith("out of memory: ")


@pytest.mark.slow
def test_esr_and_psr_are_measured_along_the_strength(places, wish, monkeypatch):
    monkeypatch.setattr(work, "STRENGTHS", (0.5, 1.0))
    monkeypatch.setattr(work, "PICTURES", 1)
    worked(places, wish, every=0)
    job = worked(places, wish, "measure")
    assert job.state().phase == "done", job.state()
    points = json.loads((job.folder / "curve.json").read_text())
    assert [p["strength"] for p in points] == [0.0, 0.5, 1.0]
    assert all({"ESR-1", "PSR-1"} <= p.keys() for p in points)
    desk = Desk(places)
    assert views.strengths(desk, desk.know(wish)).count("<svg") == 2


@pytest.mark.slow
def test_the_report_has_scores_at_half_of_the_strength_as_well(places, wish):
    worked(places, wish, every=0)
    job = worked(places, wish, "report")
    assert job.state().phase == "done", job.state()
    said = (places.run(wish.home) / "report.html").read_text()
    assert "By strength" in said
    assert all(f"<tr><td>{s}</td>" in said for s in ("0", "0.5", "1"))


@pytest.mark.slow
def test_attacks_have_verdicts_and_show_what_was_found_only_when_asked(places, wish):
    worked(places, wish, every=0)
    job = worked(places, wish, "attack", attacks=["completion"], budget="small", keep=True)
    assert job.state().phase == "done", job.state()
    assert job.state().update == job.state().updates > 0
    desk = Desk(places)
    key = desk.know(wish)
    hidden, shown = (views.attacks(desk, key, show) for show in (False, True))
    assert 'class="verdict' in hidden
    assert "<img" not in hidden
    assert "<img" in shown
    with pytest.raises(UserError, match="at least one"):
        desk.attack(key, [], "small", 0, False)
    with pytest.raises(UserError, match="no attack"):
        desk.attack(key, ["magic"], "small", 0, False)


@pytest.mark.slow
def test_the_forecast_names_victims_limits_and_cost(places, wish, clothes_folder):
    model = load(clothes_folder)
    words = ahead.words_of(model, wish.concepts).words
    found = ahead.victims(model, wish, words)
    assert found
    assert [v.harm for v in found] == sorted((v.harm for v in found), reverse=True)
    assert "coat" not in [v.word for v in found]
    plan = ahead.plan(model, wish, places.run(wish.home))
    assert plan["updates"] == 4
    assert not places.run(wish.home).exists()
    assert "coat" in ahead.limit(model, wish, words)
    assert set(ahead.anchors(model, [Concept("coat")])) <= set(words)


@pytest.mark.slow
def test_a_job_is_a_process_that_outlives_its_page(places, wish, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: a sum's last bits depend on it
    job = Job(places, wish, "erase")
    job.start(every=0)
    assert job.state().busy
    Job(places, wish, "erase").start(every=0)  # another tab: it runs already
    end = time.monotonic() + 300
    while Job(places, wish, "erase").state().busy and time.monotonic() < end:
        time.sleep(0.2)
    assert job.state().phase == "done", job.log()
    assert not holder(job.folder)
    model = load(wish.model)
    assert same_weights(
        Edit.load(job.run).on(model), wish.method.erase(model, wish.concepts).on(model)
    )


def test_the_page_goes_on_with_a_run_in_the_precision_and_size_that_it_was_begun_in(
    tiny_folder, tmp_path
):
    assert work.opening_of(tmp_path, "x") == Opening(model="x")
    for dtype, size in (("bf16", 16), ("fp16", 0), ("fp32", 0)):
        model = load(tiny_folder, dtype=dtype, device="cpu", size=size)
        about = provenance(METHODS["uce"](), model, [Concept("church")])
        (tmp_path / "run.json").write_text(json.dumps({"run": about, "command": ["efface"]}))
        assert work.opening_of(tmp_path, "x") == Opening(model="x", dtype=dtype, size=size)
