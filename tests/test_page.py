"""The page without a browser and without Gradio: what it may touch, asks for, and shows."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from efface.cli.erase import options, preset, wanted_concepts
from efface.cli.terminal import parsed
from efface.concepts import Concept
from efface.edits.gates import Gate
from efface.errors import UserError
from efface.methods import METHODS
from efface.methods.ap import AP
from efface.page import files, markup, server, takeaway, views
from efface.page.desk import Desk
from efface.page.jobs import Job, State, Task, holder
from efface.page.places import Places
from efface.page.wish import Form, Wish, form_of, line_of, wish_in, wish_of
from efface.reporting.grid import PICTURE
from efface.storage import locked
from efface.training import Rollout
from efface.training.search import Gumbel

MARKUP = "<img src=x onerror=alert(1)>"
LINE = {"channel": "text", "key": "rephrase", "rates": {}, "verdict": "held"}


@pytest.fixture
def places(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    return Places.of(start)


@pytest.fixture
def outside(tmp_path):
    """A run of somebody else's, beside the start folder."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "secret.png").write_bytes(b"secret")
    return folder


@pytest.fixture
def desk(places):
    return Desk(places)


def with_form(**told):
    return Form(**{"names": "church", "method": "esd", "updates": 2, **told})


# -- places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["..", "../outside", "runs/../../outside", "/etc", "/", "link", "\0"]
)
def test_nothing_outside_of_the_start_folder_is_reached(places, outside, path):
    (places.start / "link").symlink_to(outside)
    with pytest.raises(UserError):
        places.inside(path)
    with pytest.raises(UserError):
        places.inside(f"{path}/run.json" if path != "\0" else path)
    with pytest.raises(UserError):
        places.run(path)


def test_what_is_inside_is_reached_by_any_spelling(places):
    (places.start / "real").mkdir()
    (places.start / "alias").symlink_to(places.start / "real")
    assert places.inside("a/../real") == places.start / "real"
    assert places.inside(str(places.start / "real")) == places.start / "real"
    assert places.inside("alias/x") == places.start / "real" / "x"


@pytest.mark.parametrize("path", [".", ".efface", ".efface/jobs", ""])
def test_a_run_cannot_lie_where_the_page_keeps_its_own(places, path):
    with pytest.raises(UserError):
        places.run(path)


def test_only_models_that_were_given_are_opened(places, tiny_folder, other_folder):
    with pytest.raises(UserError, match="not one that this page may open"):
        places.model(str(tiny_folder))
    given = Places.of(places.start, [tiny_folder])
    assert given.model(str(tiny_folder)) == str(tiny_folder.resolve())
    assert given.known() == ["emoji", str(tiny_folder.resolve())]
    assert (places.first, given.first) == ("emoji", str(tiny_folder.resolve()))
    with pytest.raises(UserError, match="may open"):
        given.model(os.path.join(tiny_folder, os.path.relpath(other_folder, tiny_folder)))
    for name in ("owner/model", "../model", "", "~/model"):
        with pytest.raises(UserError):
            given.model(name)


def test_a_model_that_vanished_is_said(places, tmp_path):
    model = tmp_path / "disk" / "model"
    model.mkdir(parents=True)
    given = Places.of(places.start, [model])
    model.rmdir()
    with pytest.raises(UserError, match="is not there"):
        given.model(str(model))


def test_runs_are_listed_the_latest_first_and_no_links(places, outside):
    for k, name in enumerate(("old", "new")):
        (places.start / "runs" / name).mkdir(parents=True)
        (places.start / "runs" / name / "run.json").write_text("{}")
        os.utime(places.start / "runs" / name / "run.json", (k, k))
    (places.start / "runs" / "link").symlink_to(outside)
    assert places.runs() == ["runs/new", "runs/old"]


# -- wishes ---------------------------------------------------------------------------------------

WISHES = [
    with_form(method="ap", keep="castle, -odd", synonyms="chapel", anchor="house"),
    with_form(names="church -> house | chapel\nwolf\n-dash", method="esd", seed=7),
    with_form(names="search:gumbel", method="ap"),
    with_form(method="uce", names='it\'s "x" $y'),
]


@pytest.mark.parametrize("form", WISHES)
def test_the_command_that_is_shown_asks_for_the_same(places, form):
    wish = wish_of(form, places)
    check_command(wish)


def check_command(wish):
    name, args = wish.method.name, wish.command()[3:]
    found = parsed(options(name, preset(name, args)), args, "efface erase")
    assert found.method == wish.method
    assert tuple(wanted_concepts(found.common)) == wish.concepts
    assert found.common.opening.model == wish.model
    assert found.common.out == Path(wish.home)


def test_the_command_says_kinds_of_parts_too(places):
    method = AP(search=Gumbel(tau=1.5), latents=Rollout(), eta=-0.0 + 2, exclude_erased=False)
    check_command(Wish(method, (Concept("church"),), "emoji"))


@pytest.mark.parametrize("form", WISHES)
def test_the_python_that_is_shown_asks_for_the_same(places, form, monkeypatch):
    wish, asked = wish_of(form, places), {}

    def erase(method, model, concepts, run):
        asked.update(method=method, model=model, concepts=concepts, run=run)

    for cls in METHODS.values():
        monkeypatch.setattr(cls, "erase", erase)
    exec(wish.python(), {})
    assert asked["method"] == wish.method
    assert asked["model"] == wish.model
    assert asked["concepts"] == [line_of(c) for c in wish.concepts]
    assert asked["run"].folder == Path(wish.home)


def test_a_permalink_is_the_hash_of_the_config_and_of_nothing_else(places):
    one = wish_of(with_form(), places)
    assert wish_of(with_form(folder="runs/mine"), places).link == one.link
    others = [with_form(seed=1), with_form(updates=3), with_form(keep="x"), with_form(anchor="y")]
    assert len({one.link, *(wish_of(f, places).link for f in others)}) == 5
    assert one.key == one.link
    assert wish_of(with_form(folder="runs/mine"), places).key != one.key


@pytest.mark.parametrize("form", WISHES)
def test_a_wish_survives_json_and_a_form(places, form):
    wish = wish_of(form, places)
    assert Wish.from_json(json.loads(json.dumps(wish.to_json()))) == wish
    assert wish_of(form_of(wish), places) == wish


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"names": " \n "}, "Name what is to be removed"),
        ({"names": "a, b"}, "comma"),
        ({"names": "a\nb", "anchor": "c"}, "Several concepts"),
        ({"names": "a", "anchor": "a"}, "own anchor"),
        ({"names": "a", "anchor": "b, c"}, "anchor: a comma in 'b, c'"),
        ({"names": "a", "keep": "a"}, "a"),
        ({"names": "a\x07b"}, "control"),
        ({"names": "x\n" * 30}, "30 concepts"),
        ({"updates": float("nan")}, "nan for updates"),
        ({"updates": -3}, "-3 for updates"),
        ({"updates": 2.5}, "whole number"),
        ({"updates": None}, "nothing for updates"),
        ({"updates": "many"}, "whole number"),
        ({"seed": -1}, "seed"),
        ({"seed": float("inf")}, "inf for the seed"),
        ({"method": "magic"}, "unknown method"),
        ({"model": "/etc/passwd"}, "may open"),
        ({"folder": "/tmp"}, "outside"),
        ({"folder": "../x"}, "outside"),
    ],
)
def test_bad_input_is_one_clear_line(places, told, why):
    with pytest.raises(UserError, match=why) as e:
        wish_of(with_form(**told), places)
    assert "\n" not in str(e.value)
    assert not list(places.start.iterdir())


def test_keeping_a_victim_is_another_run(places):
    wish = wish_of(with_form(keep="castle"), places)
    more = wish.keeping("mosque")
    assert more.method.keep == ("castle", "mosque")
    assert more.home != wish.home
    with pytest.raises(UserError):
        wish.keeping("church")


# -- jobs -----------------------------------------------------------------------------------------


def test_a_job_that_was_killed_is_stopped_and_one_that_runs_is_not_started_again(places):
    job = Job(places, wish_of(with_form(), places), "erase")
    assert job.state().phase == "new"
    job.folder.mkdir(parents=True)
    with locked(job.folder):
        job.keep(State("running", "Training", 3, 10))
        assert holder(job.folder) == os.getpid()
        assert job.state().phase == "running"
        job.start()  # nothing: it runs
        assert not (job.folder / "job.json").exists()
    assert job.state() == State("stopped", job.last_words(), 3, 10)


def test_a_job_that_is_stopped_while_it_starts_says_so_and_not_that_it_was_killed(places):
    job = Job(places, wish_of(with_form(), places), "erase")
    job.folder.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as starting:
        job.keep(State("starting", "Opening", pid=starting.pid))
        job.stop()
    assert starting.returncode == -signal.SIGTERM
    assert job.state() == State("stopped", "Stopped; it goes on from here")
    measure = Job(places, job.wish, "measure")
    measure.stop()  # nothing runs
    assert measure.state().phase == "new"
    assert measure.stopped == "Stopped"  # it begins anew


def test_a_job_that_is_starting_is_busy_as_long_as_its_process_lives(places):
    job = Job(places, wish_of(with_form(), places), "erase")
    job.folder.mkdir(parents=True)
    job.keep(State("starting", "Opening", pid=os.getpid()))
    assert job.state().busy
    with subprocess.Popen(["true"]) as gone:
        pass
    job.keep(State("starting", "Opening", pid=gone.pid))
    assert job.state().phase == "stopped"


def test_the_last_words_of_a_full_disk_are_told(places):
    job = Job(places, wish_of(with_form(), places), "erase")
    job.folder.mkdir(parents=True)
    job.keep(State("running", "Training", 3, 10))
    (job.folder / "log.txt").write_text("x\nefface: error: cannot write 'a': No space left\n")
    assert job.state().said == "cannot write 'a': No space left"


def test_a_job_does_not_leave_the_start_folder(places, outside):
    wish = replace(wish_of(with_form(), places), folder="../outside")
    with pytest.raises(UserError, match="outside"):
        Job(places, wish, "erase").start()
    assert not places.own.exists()


# -- files and views ------------------------------------------------------------------------------


@pytest.fixture
def finished(desk, tiny, tiny_folder, monkeypatch):
    """A desk with a finished run of the tiny model, and its key."""
    places = Places.of(desk.places.start, [tiny_folder])
    desk = Desk(places)
    wish = wish_of(with_form(model=str(tiny_folder), method="uce", anchor="house"), places)
    monkeypatch.chdir(places.start)
    wish.method.erase(tiny, wish.concepts).save(places.run(wish.home))
    return desk, desk.know(wish)


@pytest.mark.parametrize(
    "name", ["../../x.png", "%2e%2e", "/etc/passwd", "x.txt", "..png", "a/b.png"]
)
def test_addresses_lead_nowhere_else(finished, outside, name):
    desk, key = finished
    for find in (
        lambda: files.picture(desk, name),
        lambda: files.live(desk, f"{desk.wish(key).key}-erase", name),
        lambda: files.live(desk, "../outside", "secret.png"),
        lambda: files.taken(desk, key, name),
        lambda: files.found(desk, key, "attacks-page-small", name),
        lambda: files.found(desk, key, "../../outside", "secret.png"),
        lambda: files.found(desk, key, "attacks-page-/../../../../outside", "secret.png"),
    ):
        with pytest.raises(UserError):
            find()


def test_links_to_elsewhere_are_neither_served_nor_packed(finished, outside):
    desk, key = finished
    home = desk.places.run(desk.wish(key).home)
    (home / "take-away").mkdir()
    (home / "take-away" / "leak.png").symlink_to(outside / "secret.png")
    (home / "leak.png").symlink_to(outside / "secret.png")
    with pytest.raises(UserError):
        files.taken(desk, key, "leak.png")
    made = takeaway.take(desk.places, desk.wish(key), desk.edit(key), "run")
    assert zipfile.ZipFile(made.path).namelist() == ["edit.safetensors"]


@pytest.mark.parametrize("form", ["lora", "folder", "card", "run", "single"])
def test_what_is_taken_away_is_whole_and_served(finished, form):
    desk, key = finished
    said = desk.take(key, form, 0.5)
    (path,) = (p for p in takeaway.there(desk.places, desk.wish(key)))
    assert "-0.5" in path.name
    assert path.name in said
    assert files.taken(desk, key, path.name) == path
    assert path.name in views.taken(desk, key)
    desk.take(key, form, 0.5)  # again: it is there


@pytest.mark.parametrize("form", ["lora", "folder", "single"])
def test_files_that_cannot_hold_gates_say_so(finished, form):
    desk, key = finished
    wish, edit = desk.wish(key), desk.edit(key)
    assert "gates" not in takeaway.take(desk.places, wish, edit, form, 0.5).said
    gate = Gate(("church",), {name: w * 0 for name, w in edit.weights.items()})
    gated = replace(edit, gates=(gate,))
    home = desk.places.run(wish.home)
    told = {"about": {"edit": gated.digest, "judge": "j"}, "units": {}, "lines": [LINE]}
    (home / "attacks.json").write_text(json.dumps(told))
    assert (
        "open for every prompt in this file"
        in takeaway.take(desk.places, wish, gated, form, 1.0).said
    )
    if form == "folder":
        assert "## Attacks" not in (home / "take-away" / "diffusers" / "README.md").read_text()


def test_a_full_disk_leaves_nothing_half_written(finished, monkeypatch):
    desk, key = finished

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zipfile.ZipFile.write", full)
    with pytest.raises(UserError, match="No space left"):
        desk.take(key, "run", 1.0)
    assert not takeaway.there(desk.places, desk.wish(key))


@contextmanager
def small_files(n):
    """No file of this process may grow beyond so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", ["lora", "kohya", "single", "folder", "card", "run"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(finished, form):
    desk, key = finished
    (desk.places.run(desk.wish(key).home) / "large").write_bytes(os.urandom(9000))  # for the zip
    with small_files(500), pytest.raises(UserError) as told:
        desk.take(key, form, 1.0)
    assert "\n" not in str(told.value)
    assert not takeaway.there(desk.places, desk.wish(key))
    left = list((desk.places.run(desk.wish(key).home) / "take-away").rglob("*"))
    assert not [p for p in left if p.is_file()]
    desk.take(key, form, 1.0)  # once there is room
    assert takeaway.there(desk.places, desk.wish(key))


def test_a_model_that_vanished_after_the_training_is_said(desk, tiny, tiny_folder, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(tiny_folder, mine)
    desk = Desk(Places.of(desk.places.start, [mine]))
    wish = wish_of(with_form(model=str(mine), method="uce", anchor="house"), desk.places)
    home = desk.places.run(wish.home)
    wish.method.erase(str(mine), wish.concepts).save(home)
    (home / "run.json").write_text(json.dumps({"run": wish.about(), "command": ["efface", "x"]}))
    key = desk.know(wish)
    shutil.rmtree(mine)
    for act in (
        lambda: desk.compare(key, "cat", 0, 1),
        lambda: desk.hurt(key, 1),
        *(lambda form=f: desk.take(key, form, 1.0) for f in ("lora", "single", "folder")),
    ):
        with pytest.raises(UserError, match="is not there"):
            act()
    assert desk.edit(key).weights
    assert desk.take(key, "card", 1.0)  # needs no model
    assert views.run(desk, key)


@pytest.mark.parametrize("strength", [float("nan"), -0.5, 1.6, float("inf"), None, "1", True])
def test_a_strength_that_is_none_is_said(finished, strength):
    desk, key = finished
    for act in (
        lambda: desk.compare(key, "cat", 0, strength),
        lambda: desk.hurt(key, strength),
        lambda: desk.take(key, "lora", strength),
    ):
        with pytest.raises(UserError, match="the strength"):
            act()


@pytest.mark.slow
def test_base_and_edited_are_drawn_on_the_same_seeds(finished):
    desk, key = finished
    shown = desk.compare(key, "cat", 5, 0)
    first, second = shown.split("without the edit")
    assert first.count("/efface/picture/") == 4
    assert all(x in second for x in part(first))  # at strength 0 the very same pictures
    assert part(desk.compare(key, "cat", 5, 1.5)) != part(shown)
    assert "seed 8" in shown


def part(html):
    return re.findall(r"/efface/picture/\w+\.png", html)[-4:]


def test_markup_in_every_field_is_escaped(finished, tiny_folder):
    desk, key = finished
    form = with_form(
        names=MARKUP, synonyms=MARKUP + "1", anchor=MARKUP + "2", keep=MARKUP + "3",
        model=str(tiny_folder), folder="runs/" + MARKUP.replace("/", ""),
    )  # fmt: skip
    bad = desk.know(wish_of(form, desk.places))
    job = desk.job(bad, "erase")
    job.folder.mkdir(parents=True)
    job.keep(State("failed", MARKUP))
    seen = {
        "words": [{"word": MARKUP, "role": "near"}, {"word": MARKUP, "role": "erased"}],
        "concepts": [{"name": MARKUP, "anchor": MARKUP}],
        "points": [
            {"update": u, "esr": 0.0, "worst": 1.0, "word": MARKUP, "pictures": {MARKUP: ["0.png"]}}
            for u in (0, 1)
        ],
    }
    (job.folder / "watch.json").write_text(json.dumps(seen))
    shown = [
        views.run(desk, bad),
        views.summary(desk, bad),
        views.same(desk, bad),
        views.taken(desk, bad),
        desk.compare(key, MARKUP, 0, 1),
        markup.line(MARKUP),
    ]
    for html in shown:
        assert "<img src=x" not in html
        assert "onerror=alert(1)>" not in html
    assert "&lt;img src=x" in shown[0]


@pytest.mark.slow
def test_sensitive_pictures_are_blurred_until_they_are_clicked(finished):
    desk, key = finished
    assert 'class="veil"' not in desk.compare(key, "cat", 0, 1)
    assert desk.compare(key, "a naked man", 0, 1).count('class="veil"') == 8


def test_a_run_is_opened_from_its_folder(finished, places):
    desk, key = finished
    wish = desk.wish(key)
    home = desk.places.run(wish.home)
    (home / "run.json").write_text(json.dumps({"run": wish.about(), "command": ["efface", "x"]}))
    found = wish_in(home, desk.places)
    assert (found.method, found.concepts, found.model) == (wish.method, wish.concepts, wish.model)
    assert found.command() == ["efface", "x"]
    again = desk.open(wish.home)
    assert desk.finished(again)
    (home / "run.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        desk.open(wish.home)


def test_a_run_is_not_taken_for_another_one_in_its_folder(finished):
    desk, key = finished
    wish = desk.wish(key)
    record = desk.places.run(wish.home) / "run.json"
    record.write_text(json.dumps({"run": {**wish.about(), "efface": "0"}}))
    opened = desk.open(wish.home)
    assert form_of(desk.wish(opened)).folder == ""  # named by the form: a new one has its own
    assert desk.finished(key)
    other = replace(form_of(wish), names="wolf", folder=wish.home)
    with pytest.raises(UserError, match="holds another run: empty “Run folder” under Settings"):
        desk.train(other, 0)
    stray = desk.know(wish_of(other, desk.places))
    assert not desk.finished(stray)
    with pytest.raises(UserError, match="holds another run by now"):
        desk.edit(stray)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"strength": 1, "ESR-1": {}}]', "[{}]"])
def test_a_damaged_curve_is_said_in_its_place_and_measured_anew(finished, text):
    desk, key = finished
    path = desk.job(key, "measure").folder / "curve.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert views.sign(desk, key) == views.sign(desk, key)  # so that it is said once
    assert views.strengths(desk, key).count("“Measure” makes it anew") == 1
    score = {"value": 50.0, "low": 40.0, "high": 60.0, "n": 4}
    points = [{"strength": s, "ESR-1": score, "PSR-1": score} for s in (0.0, 1.0)]
    path.write_text(json.dumps(points))
    assert views.strengths(desk, key).count("<svg") == 2


def test_of_a_run_that_the_command_made_its_picture_is_shown(finished):
    desk, key = finished
    home, before = desk.places.run(desk.wish(key).home), views.sign(desk, key)
    assert "<img" not in views.run(desk, key)
    (home / PICTURE).write_bytes(b"x")
    assert views.sign(desk, key) != before
    assert f"/{key}/{PICTURE}" in views.run(desk, key)
    assert files.taken(desk, key, PICTURE) == home / PICTURE


def test_a_run_that_was_stopped_here_and_ended_by_the_command_is_trained(finished):
    desk, key = finished
    job = desk.job(key, "erase")
    job.folder.mkdir(parents=True)
    job.keep(State("stopped", job.stopped, 2, 4))
    shown = views.run(desk, key)
    assert "Trained" in shown
    assert "goes on" not in shown
    edit = desk.places.run(desk.wish(key).home) / "edit.safetensors"
    job.keep(State("failed", "No space left.", 2, 4))
    assert "No space left" in views.run(desk, key)  # after the edit was written, as far as is known
    os.utime(edit, (later := job.told.stat().st_mtime + 5, later))
    assert "Trained" in views.run(desk, key)
    job.keep(State("stopped", job.stopped, 2, 4))
    desk.places.run(desk.wish(key).home).joinpath("edit.safetensors").unlink()
    assert "Stopped; it goes on from here" in views.run(desk, key)


def test_damaged_results_of_attacks_do_not_hide_the_others(finished):
    desk, key = finished
    home = desk.places.run(desk.wish(key).home)
    (home / "attacks-small.json").write_text("{")
    said = views.attacks(desk, key, False)
    assert "attacks-small.json" in said
    assert "Move it away, or attack again" in said


def test_what_was_found_is_shown_with_its_prompt(finished):
    desk, key = finished
    folder = desk.places.run(desk.wish(key).home) / "attacks-small"
    folder.mkdir(exist_ok=True)
    for i, told in enumerate(('{"prompt": "a <i>spire"}', "{", '{"prompt": 3}', "[]")):
        Image.new("RGB", (8, 8)).save(folder / f"rephrase-edited-church-{i}.png")
        (folder / f"rephrase-edited-church-{i}.json").write_text(told)
    Image.new("RGB", (8, 8)).save(folder / "rephrase-base-church-0.png")
    said = views.artefacts(desk, key, folder)
    assert said.count("<img") == 4
    assert "a &lt;i&gt;spire" in said
    assert "<i>" not in said
    assert "keep" not in views.artefacts(desk, key, folder)
    assert "was not kept" in views.artefacts(desk, key, folder / "none")


def test_leaving_the_list_of_runs_does_not_open_the_run_again(finished):
    desk, key = finished
    wish = desk.wish(key)
    assert desk.shows(key, wish.home)
    assert desk.shows("", "")
    assert not desk.shows(key, "")
    assert not desk.shows("", wish.home)
    record = desk.places.run(wish.home) / "run.json"
    record.write_text(json.dumps({"run": {**wish.about(), "model": "emoji"}}))
    assert not desk.shows(key, wish.home)  # another run is in it by now


def test_a_link_finds_a_run_that_a_command_made(finished):
    desk, key = finished
    wish = desk.wish(key)
    mine = desk.places.run("runs/mine")
    desk.places.run(wish.home).rename(mine)
    (mine / "run.json").write_text(json.dumps({"run": wish.about(), "command": ["efface", "x"]}))
    (desk.places.run("runs/other")).mkdir()
    (desk.places.run("runs/other") / "run.json").write_text("{")
    opened = desk.open("runs/mine")
    assert Desk(desk.places).wish(opened) == desk.wish(opened)


def test_what_is_shown_changes_with_what_is_on_disk(finished):
    desk, key = finished
    before = views.sign(desk, key)
    assert views.sign(desk, key) == before
    desk.take(key, "card", 1)
    assert views.sign(desk, key) != before
    assert views.sign(desk, "") == ""


def test_attacks_of_every_budget_and_of_the_command_are_shown(finished):
    desk, key = finished
    home, edit = desk.places.run(desk.wish(key).home), desk.edit(key).digest
    for name, verdict in (
        ("attacks-page-small", "inconclusive (control failed: base 20)"),
        ("attacks-page-full", "not judged"),
        ("attacks", "held"),
        ("attacks-page-9", "fell"),
    ):
        judge = "" if verdict == "not judged" else "a judge"
        told = {
            "about": {"edit": "another" if verdict == "fell" else edit, "judge": judge},
            "units": {},
            "lines": [{**LINE, "verdict": verdict}],
        }
        (home / f"{name}.json").write_text(json.dumps(told))
    shown = views.attacks(desk, key, False)
    assert re.findall(r'class="verdict \w+[ \w]*">([^<]+)<', shown).count("fell") == 0
    for said in (
        "Budget: small",
        '>inconclusive</span> <span class="note">control failed: base 20<',  # seen without a mouse
        "Budget: full",
        ">not judged<",
        "By the command: attacks.json",
    ):
        assert said in shown
    assert shown.count("% of the way back") == 1
    assert shown.count("shown, % [95 %]") == 2
    with pytest.raises(UserError, match="no such file"):
        files.found(desk, key, "attacks", "x.png")


def test_what_says_what_was_measured_is_made_anew_after_more_was(finished):
    desk, key = finished
    home = desk.places.run(desk.wish(key).home)
    desk.take(key, "folder", 1)
    card = home / "take-away" / "diffusers" / "README.md"
    packed = home / "take-away" / "diffusers.zip"
    before = packed.stat().st_mtime_ns
    desk.take(key, "folder", 1)
    assert packed.stat().st_mtime_ns == before
    assert "Nothing was measured" in card.read_text()
    (home / "report.html").write_text("old")
    assert not takeaway.outdated(home, home / "report.html")
    score = {"value": 12.0, "low": None, "high": None, "n": 2}
    some = {"protocol": "p", "judge": "j", "edit": desk.edit(key).digest, "pictures": 1}
    hits = {"church": {"edited": [[0]], "unedited": [[1]]}, "x": {"edited": [[0]]}}
    told = {**some, "edited": {"ESR-1": score}, "concepts": hits}
    (home / "scores-p-12345678.json").write_text(json.dumps(told))
    os.utime(home / "scores-p-12345678.json", ns=(2**62, 2**62))
    assert takeaway.outdated(home, home / "report.html")
    os.utime(home / "scores-p-12345678.json")
    desk.take(key, "folder", 1)
    assert "by the judge j, on 1 picture of each of 2 concepts" in card.read_text()
    assert "| ESR-1 | 12.0" in zipfile.ZipFile(packed).read("README.md").decode()


def test_pictures_of_sensitive_words_are_blurred_beside_any_concept(desk):
    shown = markup.figures([markup.Figure("castle", ["a"]), markup.Figure("Swords,", ["b"])])
    assert shown.count('class="veil"') == 1
    assert 'aria-label="Show: Swords,"' in shown


def test_a_step_tells_what_went_wrong_but_no_fault_of_ours():
    pytest.importorskip("gradio")
    from efface.page.steps.frame import said, said_each

    def fails(error):
        raise error

    def fails_later(error):
        yield "opening"
        raise error

    for error, line in ((UserError("no."), "no."), (MemoryError(), "out of memory: ")):
        assert line in said(fails, 1)(error)[0]
        assert line in list(said_each(fails_later)(error))[-1][0]
    with pytest.raises(RuntimeError, match="ours"):
        said(fails, 1)(RuntimeError("ours"))


def test_gradio_hands_on_numbers_as_they_were_typed():
    gr = pytest.importorskip("gradio")
    from efface.page.steps import frame

    strength, whole = frame.slider("Strength"), gr.Number(0, precision=0)
    for told in (-1, 2.5, None):
        assert strength.preprocess(told) == told
        assert whole.preprocess(told) == told


def test_how_many_of_several_concepts_are_looked_at_is_said():
    seen = {
        "words": [{"word": w, "role": "erased"} for w in "ab"] + [{"word": "c", "role": "near"}],
        "concepts": [{"name": w} for w in "abcde"],
        "points": [{"update": u, "esr": 50.0, "worst": None, "word": ""} for u in (0, 1)],
    }
    assert "Erased: the first 2 of 5 concepts" in views.curves(seen)
    assert "the first" not in views.curves({**seen, "concepts": [{}, {}]})


def test_two_tabs_have_a_run_each(desk):
    one, two = (desk.know(wish_of(with_form(names=n), desk.places)) for n in ("church", "wolf"))
    assert desk.wish(one).names == ["church"]
    assert desk.wish(two).names == ["wolf"]
    assert desk.job(one, "erase").folder != desk.job(two, "erase").folder
    with pytest.raises(UserError, match="no run in this folder"):
        desk.wish("0" * 12)
    with pytest.raises(UserError, match="say what to remove first"):
        desk.wish("")


def test_a_link_finds_its_run_in_a_page_that_was_opened_again(desk):
    wish = wish_of(with_form(), desk.places)
    job = Job(desk.places, wish, "erase")
    job.folder.mkdir(parents=True)
    task = Task("erase", wish.to_json(), str(desk.places.start))
    (job.folder / "job.json").write_text(json.dumps(task.__dict__))
    assert Desk(desk.places).wish(wish.key) == wish


# -- the server -----------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said():
    with server.listening(0) as held:
        port = held.getsockname()[1]
        assert held.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UserError, match=f"port {port}.*Give another"):
            server.listening(port)


def test_other_names_of_this_machine_and_other_pages_are_refused():
    own = {"host": "127.0.0.1:7860"}
    assert not server.refused("/", own)
    assert not server.refused("/", {**own, "origin": "http://localhost:7860"})
    assert server.refused("/", {"host": "evil.example:7860"})
    assert server.refused("/", {"host": "127.0.0.1.evil.example"})
    assert server.refused("/", {})
    assert server.refused("/", {**own, "origin": "https://evil.example"})
    assert server.refused("/gradio_api/upload", own)
    assert server.refused("/gradio_api/file=/etc/passwd", own)


def test_the_second_page_on_a_folder_is_told(desk):
    assert desk.other() == ""
    desk.places.own.mkdir()
    with locked(desk.places.own):
        assert desk.other() == ""  # our own
        (desk.places.own / ".lock").write_text("1")
        assert "another page (process 1)" in desk.other()


def test_what_a_page_says_where_it_begins(desk, monkeypatch, capsys):
    """Of a screen that is not there, and of another page on the same folder."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not server.display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert server.display()
    monkeypatch.delenv("WAYLAND_DISPLAY")
    held = []
    monkeypatch.setattr(server, "serve_on", lambda _, found: (held.append(found), found.close()))
    for name in ("GRADIO_TEMP_DIR", "EFFACE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    code = (
        "import sys, time; from pathlib import Path; from efface.storage import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    try:
        assert server.serve(desk.places, 0) == 0
        told = capsys.readouterr()
        assert told.out.startswith("http://127.0.0.1:")
        assert "there is no screen here" in told.err
        assert "another page" not in told.err
        command = [sys.executable, "-c", code, desk.places.own]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            assert server.serve(desk.places, 0, browser=False) == 0
            told = capsys.readouterr()
            other.kill()
        assert "another page (process" in told.err
        assert "no screen" not in told.err  # no browser was asked for
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert len(held) == 2


def test_nothing_is_reported_to_anybody(places, monkeypatch):
    monkeypatch.delenv("EFFACE_CACHE", raising=False)
    told = server.quiet(places)
    assert told["GRADIO_ANALYTICS_ENABLED"] == "False"
    for name in ("GRADIO_TEMP_DIR", "EFFACE_CACHE"):
        assert Path(told[name]).is_relative_to(places.start)


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    from efface.cli import page

    monkeypatch.setattr(page, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'efface\[page\]'"):
        page.command([])
