"""What a user types and sees: options, numbers, refusals, and odd terminals."""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from conftest import CHURCH

import efface.cli
from efface.cli import completion, runfolder, score, terminal
from efface.cli.erase import Erase, options, run_erase
from efface.cli.main import ABOUT, main
from efface.cli.opening import Base, Opening, chosen, opened
from efface.cli.watching import watcher
from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError, escaped
from efface.evaluation import scoring
from efface.evaluation.protocols import load as load_protocol
from efface.methods import METHODS
from efface.models.families import FAMILIES
from efface.settings import ranges
from efface.vocabularies import INLINE, KINDS

CLASSES = {n: importlib.import_module(f"efface.cli.{n}") for n in ABOUT}
OPTIONS = {n: getattr(m, "Options", Erase) for n, m in CLASSES.items()}


def told(capsys, *args):
    """The one line on stderr of a command that must fail."""
    assert main([str(a) for a in args]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.strip().splitlines()
    assert line.startswith("efface: error: ")
    return line.removeprefix("efface: error: ")


# -- options -----------------------------------------------------------------------------------


def test_home_is_home_where_no_shell_says_so(tiny, tmp_path, monkeypatch, capsys):
    """A shell leaves ``--out=~/x`` and ``"~/x"`` as they are."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    k, w = next(iter(tiny.parameters().items()))
    edit = Edit({k: w + 1}, {"base": tiny.base, "model": tiny.name, "concepts": [], "method": "x"})
    edit.save("~/edit.safetensors")
    assert Edit.load("~/edit.safetensors").digest == edit.digest
    assert main(["inspect", "~/edit.safetensors"]) == 0
    assert main(["merge", "~/edit.safetensors", f"--model={tiny.name}", "--out=~/out"]) == 0
    capsys.readouterr()
    assert not list((tmp_path / "work").iterdir())
    assert {p.name for p in (tmp_path / "home").iterdir()} == {"edit.safetensors", "out"}


def test_every_command_is_one_file_and_one_line():
    files = {p.stem for p in Path(efface.cli.__file__).parent.glob("*.py")}
    shared = {
        "__init__",
        "completion",
        "gate",
        "main",
        "opening",
        "picture",
        "plan",
        "runfolder",
        "terminal",
        "watching",
    }
    assert files - shared == set(ABOUT)
    assert all(callable(m.command) for m in CLASSES.values())
    assert all(len(f"  sensitivity  {about}") <= 85 for about in ABOUT.values())


@pytest.mark.parametrize("name", [n for n in OPTIONS if n not in ("demo", "diff")])
def test_every_command_that_opens_a_model_says_so_alike(name):
    """Files are read as they are stored; what draws or embeds takes all options."""
    parts = [f.default for f in dataclasses.fields(OPTIONS[name])]
    text = Path(CLASSES[name].__file__).read_text()
    if "opened(" in text or "chosen(" in text:
        assert sum(type(p) in (Base, Opening) for p in parts) == 1
    draws = (
        "attack",
        "bench",
        "erase",
        "generate",
        "report",
        "score",
        "sensitivity",
        "study",
        "vocabulary",
    )
    assert (Opening() in parts) == (name in draws)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_number_says_its_range_in_the_help(name):
    cls = OPTIONS[name]
    known, said = ranges(cls), re.sub(r"[│\s]", "", terminal.helped(cls, [], "efface"))
    for field, hint in get_type_hints(cls).items():
        kinds = {hint, *get_args(hint)}
        assert bool(kinds & {int, float}) == (field in known), field
        if field in known:
            assert str(known[field]).replace(" ", "") in said


@pytest.mark.parametrize("name", [*METHODS, "sensitivity", "vocabulary"])
def test_the_help_has_every_vocabulary_and_every_weight_group(name):
    cls = METHODS.get(name) or OPTIONS[name]
    said = " ".join(re.sub("│", " ", terminal.helped(cls, [], "efface")).split())
    names = {f.name for f in dataclasses.fields(cls)}
    for kind in (*KINDS, f"{INLINE} fox, sky") if names & {"vocabulary", "source"} else ():
        assert kind in said
    for family in FAMILIES.values() if "group" in names and name != "mace" else ():  # kv only
        assert all(re.search(rf"\b{group}\b", said) for group in family.groups)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "--promt", "x"], "unknown option '--promt'; did you mean '--prompt'?"),
        (["erase", "ap", "--concpt", "x"], "unknown option '--concpt'; did you mean '--concept'?"),
        (["erase", "ap", "--search.memry", "0.3"], "did you mean '--search.memory'?"),
        (["erase", "ap", "search:gumbel", "--search.tua", "3"], "did you mean '--search.tau'?"),
        (["erase", "ap", "--updats=3", "church"], "did you mean '--updates'?"),
        (["models", "--foo"], "unknown option '--foo'; efface models --help lists"),
        (["report", "x", "--open"], "unknown option '--open'; efface report --help lists"),
        (["report", "x", "--jsn"], "unknown option '--jsn'; did you mean '--json'?"),
        (["lora", "u", "--alow-error", "1"], "unknown option '--alow-error'; did you mean '--al"),
        (["lora", "u", "--alow_error=1"], "unknown option '--alow_error'; did you mean '--al"),
        (["lora", "--alow-error", "1", "u", "v"], "unknown option '--alow-error'; did you mean"),
        (["merge", "u", "-o", "v"], "unknown option '-o'; efface merge --help lists"),
        (["apply", "u", "--strenth", "1"], "unknown option '--strenth'; did you mean '--strength"),
        (["lora", "u", "--allow_error", "x"], "got 'x' for --allow"),
        (["methods", "ap"], "nothing reads 'ap'"),
        (["generate", "--seeds", "two"], "got 'two' for --seeds; a whole number is needed."),
        (["generate", "--guidance=x"], "got 'x' for --guidance; a number is needed."),
        (["erase", "esd", "x", "--lr", "inf"], "got inf for lr; a finite number, 0 or more, is"),
        (["erase", "esd", "x", "--lr", "1e400"], "got inf for lr; a finite number, 0 or more, is"),
        (["erase", "esd", "x", "--lr=nan"], "got nan for lr; a finite number, 0 or more, is"),
        (["erase", "esd", "x", "--lr=-inf"], "got -inf for lr; a finite number, 0 or more, is"),
        (["erase", "esd", "x", "--lr", "1e-400"], "got '1e-400' for --lr; that is too small to"),
        (["erase", "esd", "x", "--lr=-3.5E-999"], "got '-3.5E-999' for --lr; that is too small"),
        (["lora", "a", "b", "--allow-error", f"0.{'0' * 400}1"], "for --allow-error; that is too"),
        (["generate", "--seeds"], "--seeds needs a value"),
        (["merge"], "RUN is missing; efface merge --help"),
        (["apply", "run"], "FOLDER is missing"),
        (["erase", "--concept", "x"], "name the method first"),
        (["erase", "ap", "x", "search:gumbl"], "unknown kind of search 'gumbl'; did you mean"),
        (["scor"], "unknown command 'scor'; did you mean 'score'?"),
        (["--print-completion", "fish"], "unknown shell 'fish'"),
        (["--print-completion"], "unknown shell ''"),
        (["erase", "uce", "church", "--log", "tensorboard"], "it has no losses to log"),
        (["erase", "esd", "church", "--log", "tensorbord"], "did you mean 'tensorboard'?"),
    ],
)
def test_a_wrong_option_is_one_line_with_the_nearest_right_one(args, message, capsys):
    assert message in told(capsys, *args)


@pytest.mark.parametrize("name", ABOUT)
def test_every_command_names_an_unknown_option(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "20")
    first = {"erase": ["ap"], "study": ["order"]}.get(name, [])
    for before in ([], ["x"], ["x", "y"]):
        said = told(capsys, name, *first, *before, "--quxly", "1")
        assert said.startswith("unknown option '--quxly'; efface ")
    assert not list(tmp_path.iterdir())


NUMBERS = {
    "generate": {
        "--guidance": ("nan", "inf", "-1"),
        "--size": ("-64", "100000000"),
        "--seeds": ("0", "1000000000"),
        "--steps": ("0",),
    },
    "score": {"--pictures": ("0",), "--limit": ("-1",), "--steps": ("0",), "--size": ("-1",)},
    "report": {"--pictures": ("0",)},
    "sensitivity": {"--latents": ("0", "1000000"), "--top": ("0",), "--pictures": ("0",)},
    "lora a b": {"--rank": ("0",), "--allow-error": ("nan", "-0.1", "2")},
    "vocabulary": {"--nearest": ("-1",)},
    "bench emoji-objects": {"--seeds": ("0",), "--updates": ("0",)},
}


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [(c, f, v) for c, flags in NUMBERS.items() for f, values in flags.items() for v in values],
)
def test_a_number_out_of_range_is_refused_before_anything_is_opened(
    command, flag, value, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    field = flag.strip("-").replace("-", "_")
    got = float(value) if value in ("nan", "inf") or "." in value else value
    assert re.match(
        rf"got {got}(\.0)? for {field}; .* is needed", told(capsys, *command.split(), flag, value)
    )
    assert not list(tmp_path.iterdir())


def test_a_method_takes_concepts_by_position_and_its_preset_from_the_help():
    cls = options("ap", METHODS["ap"]())
    found = terminal.parsed(
        cls,
        ["church", "wolf -> fox", "--concept", "dog", "search:gumbel", "--search.tau", "2"],
        "x",
    )
    assert (found.common.concepts, found.common.concept) == (("church", "wolf -> fox"), ("dog",))
    assert (found.method.search.kind, found.method.search.tau) == ("gumbel", 2)
    assert type(found.method) is METHODS["ap"]
    said = terminal.helped(cls, [], "efface erase ap").replace("│", "")
    assert f"set out from: {', '.join(METHODS['ap'].presets())}." in " ".join(said.split())


def test_outputs_that_are_there_are_refused_before_a_model_is_opened(tmp_path, capsys):
    made, edit = tmp_path / "made.safetensors", tmp_path / "edit.safetensors"
    made.touch()
    Edit({"a": torch.ones(1)}, {"base": "x", "model": "/nowhere"}).save(edit)
    for args in (["merge", edit, made], ["lora", edit, "--out", made], ["combine", "--out", made]):
        assert "exists already" in told(capsys, *args)
    assert "name one: OUT, or --out OUT" in told(capsys, "merge", edit)
    church = tmp_path / "church.safetensors"
    Edit({"a": torch.ones(1)}, {"base": "x", "concepts": [Concept("church").to_json()]}).save(
        church
    )
    for args in (["combine", edit, edit, "--out", "x.json"], ["attack", church, "--out", "kept"]):
        assert "its name must end in ." in told(capsys, *args)
    assert "got 2 places" in told(capsys, "merge", edit, "a", "--out", "b")
    assert "Not a directory" in told(capsys, "merge", edit, made / "below" / "out")


def test_a_misfitting_edit_is_refused_before_a_picture_is_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    about = {"base": "of another", "model": "/nowhere", "concepts": [Concept("church").to_json()]}
    Edit({"a": torch.ones(1)}, about).save(run)
    for command in ("score", "report", "sensitivity"):
        line = told(capsys, command, run, "--model", "emoji")
        assert "the edit is of another architecture than" in line
    assert [p.name for p in tmp_path.rglob("*")] == ["run", "edit.safetensors"]


def test_options_that_nothing_would_read_are_refused(capsys):
    score, csv = ("score", "--model", "emoji"), ("--protocol", "coco", "--prompts", "x.csv")
    assert "it takes no file" in told(capsys, *score, "--limit", "3")
    assert "not by concepts" in told(capsys, *score, *csv, "--concept", "dog")
    assert "--pictures does nothing" in told(capsys, *score, *csv, "--pictures", "3")


# -- which model -------------------------------------------------------------------------------


def test_the_model_is_the_one_given_or_the_edit_s_own_or_the_shipped_one(
    tiny_folder, capsys, monkeypatch
):
    edit = Edit({}, {"model": str(tiny_folder)})
    other = Base(model="somebody/else")
    assert chosen(other, edit) == "somebody/else"
    assert chosen(Base(), edit) == str(tiny_folder)
    assert chosen(Base(), Edit({}, {})) == "emoji"
    assert "no --model is given: this is about 'emoji'" in capsys.readouterr().err
    assert chosen(Base(), None, tell=False) == "emoji"
    monkeypatch.chdir(tiny_folder.parent)
    assert chosen(Base(model=tiny_folder.name)) == str(tiny_folder)
    assert capsys.readouterr().err == ""
    assert opened(Opening(model=tiny_folder.name, device="cpu", size=16)).picture_size == (16, 16)


def test_a_base_that_is_gone_is_named_with_the_option_that_helps():
    with pytest.raises(UserError, match=r"'/gone/model', is not there: say .* by --model"):
        opened(Opening(), Edit({}, {"model": "/gone/model"}))
    with pytest.raises(UserError, match=r"'emojy', is not found .* by --model"):
        opened(Opening(), Edit({}, {"model": "emojy"}))
    with pytest.raises(UserError, match="unknown dtype"):
        opened(Opening(dtype="fp23"), Edit({}, {"model": "emoji"}))


# -- a run's folder ----------------------------------------------------------------------------


def test_a_folder_s_name_is_short_in_bytes_and_holds_nothing_odd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("🐕" * 60, "é" * 200, "a/b\\c:d", "../up", "e\u0301"):
        found = runfolder.folder_for(None, "uce", [dataclasses.replace(CHURCH, name=name)])
        assert len(found.name.encode()) <= 60 + len("uce-")
        assert all(c.isalnum() or c in "_-" for c in found.name)
        found.mkdir(parents=True)
    mug = dataclasses.replace(CHURCH, name="beer mug")
    assert runfolder.folder_for(None, "uce", [mug, CHURCH]) == Path("runs/uce-beer_mug-church")


def test_what_a_kill_left_of_run_json_does_not_make_a_folder_unusable(tmp_path):
    (tmp_path / ".run.json.1234.part").write_text("{")
    assert runfolder.folder_for(tmp_path, "uce", [CHURCH]) == tmp_path
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="is not empty"):
        runfolder.folder_for(tmp_path, "uce", [CHURCH])


def test_time_and_device_of_every_sitting_are_in_run_json(tmp_path):
    runfolder.begin(tmp_path / "run", {"method": "x"}, ["efface", "erase"])
    for seconds, device in ((1.5, "cpu"), (2.0, "cuda:0")):
        runfolder.sit(tmp_path / "run", device)
        assert runfolder.record(tmp_path / "run")["seconds"] is None
        runfolder.spent(tmp_path / "run", seconds)
    found = runfolder.record(tmp_path / "run")
    assert [s["device"] for s in found["sittings"]] == ["cpu", "cuda:0"]
    assert (found["seconds"], found["command"]) == (3.5, ["efface", "erase"])
    assert {"efface", "python", "torch"} == set(found["versions"])
    assert runfolder.begin(tmp_path / "run", {"method": "x"}, []) is None
    for _ in range(2):  # the first is killed
        runfolder.sit(tmp_path / "run", "cpu")
    runfolder.spent(tmp_path / "run", 1.0)
    assert runfolder.record(tmp_path / "run")["seconds"] is None  # not counted


def test_losses_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    watch = watcher("tensorboard", METHODS["esd"](), tmp_path / "log")
    assert not (tmp_path / "log").exists()
    watch(1, {"loss": 0.5}, Edit({}, {}))
    assert list((tmp_path / "log").glob("events*"))


def test_a_log_says_what_to_install(tmp_path, monkeypatch):
    for name in ("tensorboard", "tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        watcher("tensorboard", METHODS["esd"](), tmp_path)


def test_damaged_scores_are_one_line(tmp_path):
    for text in ("{", "[]"):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(UserError, match=r"scores\.json'"):
            runfolder.scores_of(tmp_path, Edit({}))


def test_scores_of_pictures_made_otherwise_stand_beside_the_plain_ones(tmp_path):
    question = scoring.Question(load_protocol("emoji-objects"), True)
    found = scoring.Scores({"pictures": 4}, {})
    how = (Opening(), Opening(dtype="bf16", size=64))
    names = [score.keep(found, question, tmp_path, x).name for x in how]
    assert names == ["scores.json", "scores-bf16-64px.json"]
    assert {p.name for p in tmp_path.iterdir()} == set(names)


# -- surroundings ------------------------------------------------------------------------------


def shell(args, stdout, **env):
    """The command line in a process of its own."""
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-m", "efface", *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **env},
        check=False,
    )


def test_a_reader_that_has_seen_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = shell(["--help"], closed)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = shell(["--help"], full)
    assert done.returncode == 2
    assert done.stderr == b"efface: error: cannot write the output: No space left on device.\n"


@pytest.mark.skipif(os.name != "posix", reason="no such shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_is_closed_is_no_error(closed):
    line = shlex.join([sys.executable, "-m", "efface", "--help"])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["sh", "-c", f"{line} {closed}"]
    done = subprocess.run(command, capture_output=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"usage: efface COMMAND" in done.stdout) == (closed == "2>&-")


@pytest.mark.filterwarnings("always:dropped characters")
def test_what_cannot_be_seen_in_a_kept_word_is_said(capsys):
    args = ["erase", "uce", "church", "--keep", "ca\u202estle", "--model", "no/such/model"]
    assert main(args) == 2
    said = capsys.readouterr().err.splitlines()
    assert r"dropped characters that cannot be seen from the keep 'ca\u202estle'" in said[0]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_our_signs_gets_others(encoding):
    done = shell(["--help"], subprocess.PIPE, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"usage: efface COMMAND" in done.stdout


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="safetensors itself cannot be imported there, with 3.13"
)
def test_a_working_folder_that_is_gone_does_not_matter_for_the_help(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os, sys; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n"
    code += "from efface.cli.main import main; sys.exit(main(['--help']))"
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_hidden_characters_are_shown():
    assert escaped("\x1b[31mred\u202eder\u200b\n") == r"\x1b[31mred\u202eder\u200b\n"
    family = "\U0001f468\u200d\U0001f469"
    assert escaped(f"château 🐕 {family} …") == f"château 🐕 {family} …"


def test_names_do_not_steer_the_terminal(capsys):
    terminal.show([["\x1b[2J\u202e", "b"]], ["a", "c"])
    assert "\\x1b[2J\\u202e" in capsys.readouterr().out
    line = told(capsys, "score", "\x1b[2J\nx")
    assert "\x1b" not in line


def test_a_table_is_folded_to_the_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    terminal.show([["a", "word " * 30]], ["name", "is"])
    assert max(map(len, screen.getvalue().splitlines())) <= 40


@pytest.mark.slow
def test_shells_complete_commands_methods_and_options():
    text = completion.script("bash")

    def completed(line):
        asked = f'{text}\nCOMP_LINE="{line}"; COMP_POINT={len(line)}; _efface; '
        asked += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("efface sc") == ["score"]
    assert completed("efface erase a") == ["ap", "age", "advunlearn"]
    assert completed("efface erase ap church --search.ta") == ["--search.tau"]
    assert completed("efface erase ap search:g") == ["gumbel"]
    assert "--dtype" in completed("efface report run --")


def test_a_killed_run_and_a_finished_one_are_told_apart(tmp_path, tiny_folder, capsys):
    erase = Erase(("church",), out=tmp_path, picture=False, opening=Opening(model=str(tiny_folder)))
    assert run_erase(METHODS["uce"](), erase, []) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert run_erase(METHODS["uce"](), erase, []) == 0
    again = capsys.readouterr()
    assert "is finished already; nothing was trained." in again.err
    assert again.out == first.out
    assert len(runfolder.record(tmp_path)["sittings"]) == 1
