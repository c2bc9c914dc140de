import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr

import pytest
from conftest import WORDS, mostly_slow
from diffusers import StableDiffusionPipeline
from PIL import Image

from efface.cli.main import ABOUT, main
from efface.edits.edit import Edit
from efface.methods import METHODS
from efface.scores import Score
from efface.wordlists import shipped

JSON, NO_PICTURE = ("--json",), ("--no-picture",)
SMALL = (
    *("--updates", "3", "--batch", "2", "--lr", "1e-3"),
    *("--latents.ddim-steps", "4", "--latents.trajectories", "2"),
)
PICTURES = ("--pictures.n", "2", "--pictures.ddim-steps", "3")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_args(tiny_folder):
    return ("--model", str(tiny_folder), "--device", "cpu")


@pytest.fixture
def small(words):
    """The flags that make a method's run short."""
    return {
        "ap": (*SMALL, "--vocabulary", str(words), "--search.any", "0.5"),
        "esd": SMALL,
        "uce": (),
        "ca": (*SMALL[:6], *PICTURES),
        "age": (*SMALL, "--vocabulary", str(words)),
        "speed": ("--vocabulary", str(words)),
        "dp": (),
        "oce": ("--vocabulary", str(words)),
        "minimax": ("--vocabulary", str(words)),
        "twofold": (*SMALL, "--vocabulary", str(words), "--search.any", "0.5"),
        "race": SMALL,
        "stereo": (*SMALL, "--inversion", "2", "--inversion-batch", "2"),
        "advunlearn": (*SMALL, "--vocabulary", str(words), "--steps", "2"),
        "rece": (),
        "spm": SMALL,
        "mace": (*SMALL[:6], "--vocabulary", str(words), *PICTURES),
    }


@pytest.fixture
def run(capsys):
    """Run a command: exit code, stdout, and the lines on stderr that are no progress bar."""

    def call(*args):
        try:
            code = main([str(a) for a in args])
        except SystemExit as e:  # tyro's own complaints
            code = e.code
        told = capsys.readouterr()
        lines = re.split(r"[\r\n]+", told.err)
        return code, told.out, [x for x in lines if x.strip() and not re.search(r"\d%\|", x)]

    return call


@pytest.fixture(scope="module")
def erased(tiny_folder, tmp_path_factory):
    """A run's folder, made by UCE: the quickest."""
    out = tmp_path_factory.mktemp("erased") / "run"
    args = ["erase", "uce", "--concept", "church", "--out", str(out), *NO_PICTURE]
    with redirect_stderr(io.StringIO()) as told:
        assert main([*args, "--model", str(tiny_folder), "--device", "cpu"]) == 0
    assert "error" not in told.getvalue()
    assert "warning" not in told.getvalue()
    return out


@pytest.fixture
def finished(here, erased):
    """A copy of such a folder."""
    return shutil.copytree(erased, here / "run")


def files(folder):
    return {p.relative_to(folder) for p in folder.rglob("*")}


# -- what works --------------------------------------------------------------------------------


def test_help_is_quick_and_does_not_wait_for_torch():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from efface.cli.main import main\n"
        "main(sys.argv[1:])\n"
        "print(time.perf_counter() - start, 'torch' in sys.modules, file=sys.stderr)"
    )
    for args in (["--help"], ["-h"], [], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        seconds, torch_too = done.stderr.split()
        assert float(seconds) < 2
        assert torch_too == "False"
        assert done.stdout.startswith("efface " if args == ["--version"] else "usage: efface")


def test_help_names_every_command(run):
    code, out, err = run("--help")
    assert (code, err) == (0, [])
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in ABOUT)


@pytest.mark.parametrize("command", ABOUT)
def test_every_command_has_a_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"usage: efface {command}" in out


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_flags(run, name):
    code, out, _ = run("erase", name, "--help")
    assert code == 0
    for flag in ("CONCEPT", "--keep", "--model", "--out", "--json", "--preset"):
        assert flag in out


@pytest.mark.parametrize("name", mostly_slow(METHODS, ("ap", "uce")))
def test_erase_from_end_to_end(here, run, tiny_args, small, name):
    args = ("erase", name, "--concept", "church", "--concept", "dog -> cat | hound")
    args += (*tiny_args, "--out", here / "run", *NO_PICTURE, *JSON, *small.get(name, ()))
    code, out, err = run(*args)
    told = [line.split(": ")[0] for line in err]
    steered = ["church is to become", "dog is to become", "(another"]
    assert (code, told) == (0, steered if METHODS[name]().anchor == "auto" else [])
    found = json.loads(out)
    assert files(here / "run") == {*map(type(here), ("run.json", "edit.safetensors"))}
    edit = Edit.load(here / "run")
    assert found["weights"] == len(edit.weights) > 0
    counted = ("forward", "backward")
    assert [found["cost"][k] for k in counted] == [edit.meta["cost"][k] for k in counted]
    told = json.loads((here / "run" / "run.json").read_text())
    assert told["run"]["method"] == edit.meta["method"] == name
    assert told["run"]["config"] == edit.meta["config"]
    assert told["seconds"] == found["cost"]["seconds"] > 0
    assert told["sittings"][0]["device"] == "cpu"
    concepts = [(c["name"], c["anchor"], c["synonyms"]) for c in edit.meta["concepts"]]
    if METHODS[name]().anchor == "auto":
        assert err[0].endswith(concepts[0][1])
        concepts[0] = ("church", "", [])
    assert concepts == [("church", "", []), ("dog", "cat", ["hound"])]
    assert edit.meta["config"].get("updates", 3) == 3

    stamp = (here / "run" / "edit.safetensors").stat().st_mtime_ns
    code, out, err = run(*args)  # the same again
    assert code == 0
    assert len(err) == 1
    assert "is finished already; nothing was trained" in err[0]
    assert json.loads(out) == found
    assert (here / "run" / "edit.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_run_has_a_picture_and_says_what_moved_most(here, run, tiny_args):
    args = ("erase", "uce", "--concept", "church", *tiny_args, "--out", here / "run")
    code, out, _ = run(*args)
    assert code == 0
    assert "before-after.png" in out
    assert "moved most" in out
    with Image.open(here / "run" / "before-after.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 100
    names = {"run.json", "edit.safetensors", "before-after.png"}
    assert {str(p) for p in files(here / "run")} == names


def test_a_closed_form_says_where_it_preserves_no_word(here, run, tiny_args, words):
    none = "preserved words      none: --vocabulary auto preserves a list, --keep WORD one more"
    for i, (more, said) in enumerate(
        (((), True), (("--keep", "fox"), False), (("--vocabulary", words), False))
    ):
        args = ("erase", "uce", "church", *more, *tiny_args, "--out", here / f"run{i}")
        _, out, _ = run(*args, *NO_PICTURE)
        assert (none in out) == said
    _, out, _ = run(*("erase", "esd", "church", *tiny_args, "--updates", "1"), *NO_PICTURE)
    assert "preserved words" not in out  # it knows none


def test_presets_are_taken_and_single_fields_changed(here, run, tiny_args, words):
    code, out, err = run(
        *("erase", "ap", "--preset", "official", "--concept", "church", *tiny_args),
        *("--vocabulary", words, "--pool-size", "5", "--latents.ddim-steps", "3"),
        *("--updates", "2", "--eta", "0.5", "--out", here / "run", *NO_PICTURE),
    )
    assert (code, err) == (0, [])
    config = Edit.load(here / "run").meta["config"]
    assert f"5 words of: {words}" in out
    assert config["x0_weighting"]
    assert config["search"]["kind"] == "gumbel"
    assert (config["eta"], config["latents"]["ddim_steps"]) == (0.5, 3)


def test_concepts_come_from_a_file_as_well(here, run, tiny_args):
    (here / "c.txt").write_text("# mine\nchurch -> castle\n\ndog | hound, puppy\n")
    (here / "c.json").write_text('[{"name": "moon", "anchor": "sun"}, "river"]')
    for name, wanted in (
        ("c.txt", [("church", "castle"), ("dog", "")]),
        ("c.json", [("moon", "sun"), ("river", "")]),
    ):
        args = ("erase", "uce", "--concepts-file", name, *tiny_args, *NO_PICTURE)
        code, _, err = run(*args, "--out", here / name.replace(".", "-"))
        assert (code, err) == (0, [])
        found = Edit.load(here / name.replace(".", "-")).meta["concepts"]
        assert [(c["name"], c["anchor"]) for c in found] == wanted


def test_a_killed_run_goes_on(here, run, tiny_args, small, monkeypatch):
    args = ("erase", "esd", "--concept", "church", *tiny_args, *NO_PICTURE, *small["esd"])
    args += ("--save-every", "1")
    real, calls = METHODS["esd"].erase, []

    def killed_at_the_second_update(self, model, concepts, run):
        def on_update(update, *_):
            calls.append(update)
            if update == 2:
                raise KeyboardInterrupt

        return real(self, model, concepts, type(run)(run.folder, on_update, False))

    monkeypatch.setattr(METHODS["esd"], "erase", killed_at_the_second_update)
    code, _, err = run(*args, "--out", here / "run")
    assert (code, err) == (130, ["efface: stopped; the same command goes on from here."])
    assert {str(p) for p in files(here / "run")} == {"run.json", "unfinished.safetensors"}
    goes_on = shlex.join(map(str, ("efface", *args, "--out", here / "run")))
    for asked in (
        ("score", "run"),
        ("report", "run"),
        ("attack", "run"),
        ("sensitivity", "run"),
        ("inspect", "run/run.json"),
        ("generate", "--prompt", "x", "--edit", "run/unfinished.safetensors"),
        ("merge", "run/edit.safetensors", "out"),
        ("lora", "run", "out.safetensors"),
        ("apply", "run", "folder"),
        ("combine", "run", "run", "--out", "both.safetensors"),
    ):
        code, out, err = run(*asked)
        assert (code, out) == (2, "")
        assert err == [
            f"efface: error: the run in 'run' is not finished and has no edit yet; it goes on "
            f"with: {goes_on}"
        ]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run(*args, "--out", here / "run")[0] == 0
    assert run(*args, "--out", here / "whole")[0] == 0
    assert Edit.load(here / "run").digest == Edit.load(here / "whole").digest
    assert {str(p) for p in files(here / "run")} == {"run.json", "edit.safetensors"}


def test_inspect(run, finished):
    code, out, err = run("inspect", finished)
    assert (code, err) == (0, [])
    edit = Edit.load(finished)
    assert edit.digest in out
    assert re.search(r"method +uce", out)
    assert re.search(r"erases +church", out)
    code, out, _ = run("inspect", finished / "edit.safetensors", *JSON)
    told = json.loads(out)
    assert told["digest"] == edit.digest
    assert told["weights"] == {k: list(w.shape) for k, w in edit.weights.items()}
    assert told["scores"] is None
    assert "none yet: efface score" in run("inspect", finished)[1]
    score = {"value": 95.0, "low": 90.0, "high": 98.0, "n": 20}
    found = {"protocol": "mine 1234", "judge": "a judge", "edited": {"ESR-1": score}}
    (finished / "scores.json").write_text(json.dumps(found))
    assert "ESR-1 95.0 [90.0, 98.0] (mine 1234, a judge)" in run("inspect", finished)[1]
    assert json.loads(run("inspect", finished, *JSON)[1])["scores"] == found


def test_merge(here, run, finished):
    code, out, err = run("merge", finished, here / "merged")
    assert (code, err) == (0, [])
    assert out.strip() == str(here / "merged")
    unet = StableDiffusionPipeline.from_pretrained(here / "merged").unet
    own = dict(unet.named_parameters())
    assert all((own[k] == w).all() for k, w in Edit.load(finished).weights.items())


def test_generate(here, run, finished, tiny_args):
    args = ("generate", "--prompt", "church", "--prompt", "a dog", "--seeds", "2")
    args += ("--steps", "3", *tiny_args, *JSON)
    pictures = {}
    for name, more in (("base", ()), ("edited", ("--edit", finished))):
        code, out, err = run(*args, *more, "--out", here / name)
        assert (code, err) == (0, [])
        told = json.loads(out)
        assert [(r["prompt"], r["seed"]) for r in told] == [
            (p, s) for p in ("church", "a dog") for s in ("0", "1")
        ]
        pictures[name] = [Image.open(r["file"]).tobytes() for r in told]
    assert pictures["base"] != pictures["edited"]
    assert len(set(pictures["base"])) >= 2


def test_an_edit_made_by_a_relative_path_finds_its_base_from_anywhere(
    here, run, tiny_folder, monkeypatch
):
    monkeypatch.chdir(tiny_folder.parent)
    args = ("erase", "uce", "church", "dog -> cat", "--model", tiny_folder.name, *NO_PICTURE)
    assert run(*args, "--out", here / "run")[::2] == (0, [])
    meta = Edit.load(here / "run").meta
    assert meta["model"] == str(tiny_folder)
    assert [(c["name"], c["anchor"]) for c in meta["concepts"]] == [("church", ""), ("dog", "cat")]
    monkeypatch.chdir(here)
    draw = ("generate", "--edit", "run", "--prompt", "a church", "--steps", "2", "--device", "cpu")
    code, out, err = run(*draw, *JSON)
    assert (code, err) == (0, [])
    assert (here / json.loads(out)[0]["file"]).exists()


def test_inspect_of_a_model_s_folder_shows_its_ledger(run, here, finished, tiny_folder):
    folder = shutil.copytree(tiny_folder, here / "model")
    assert "nothing was erased from it" in run("inspect", folder)[1]
    assert run("apply", finished, folder)[0] == 0
    assert re.search(r"uce +church", run("inspect", folder)[1])
    assert json.loads(run("inspect", folder, *JSON)[1])["erasures"][0]["concepts"] == ["church"]


def test_vocabulary(run, tiny_args, words, here):
    model = tiny_args[:2]
    code, out, err = run("vocabulary", words, *model, "--nearest", "0")
    assert (code, err) == (0, [])
    assert out.splitlines() == WORDS
    (here / "more.txt").write_text("\n".join([*WORDS, "church", "Church"]))
    args = ("vocabulary", here / "more.txt", *model, "--concept", "church", "--nearest", "5")
    code, out, _ = run(*args, *JSON)
    told = json.loads(out)
    assert len(told["words"]) == 5
    assert set(told["words"]) <= set(WORDS)


@pytest.mark.slow
def test_shipped_words_are_shown(run, tiny_args):
    model = tiny_args[:2]
    code, out, err = run("vocabulary", *model, "--nearest", "3", *JSON)
    assert (code, err) == (0, [])
    told = json.loads(out)
    assert told["source"].endswith(" shipped nouns")
    assert told["words"] == list(shipped("nouns")[:3])
    for name in ("styles", "people"):
        assert run("vocabulary", name, *model, "--nearest", "1")[1].strip() == shipped(name)[0]


def test_methods_and_models_are_listed(run):
    for command, table in (("methods", METHODS), ("models", {"emoji": 0})):
        code, out, err = run(command)
        assert (code, err) == (0, [])
        assert all(re.search(rf"^{name} ", out, re.MULTILINE) for name in table)
        told = json.loads(run(command, "--json")[1])
        assert told.keys() == table.keys()
    presets = json.loads(run("methods", "--json")[1])["ap"]["presets"]
    assert presets.keys() == METHODS["ap"].presets().keys()


def test_a_prompt_that_is_too_long_warns_and_goes_on(here, run, tiny_args):
    prompt = "dog " * 14 + "church house"
    args = ("generate", "--prompt", prompt, "--steps", "2", *tiny_args, "--out", here / "p")
    code, _, err = run(*args)
    assert code == 0
    assert len(err) == 1
    assert re.match(r"efface: warning: .*longer than 16 tokens; cut off: 'church house", err[0])
    assert len(list((here / "p").glob("*.png"))) == 1


# -- what does not -----------------------------------------------------------------------------

ESD = ("erase", "esd", "--concept", "dog")
AP = ("erase", "ap", "--concept", "dog")
MISTAKES = {
    "unknown command": (("eraze",), "unknown command 'eraze'; did you mean 'erase'"),
    "unknown method": (("erase", "esdd"), "unknown method 'esdd'; did you mean 'esd'"),
    "unknown preset": ((*AP, "--preset", "offical"), "'offical'; did you mean 'official'"),
    "no presets": (
        ("erase", "age", "--concept", "dog", "--preset", "paper"),
        "the method 'age' has no presets",
    ),
    "no concept": (("erase", "esd"), "no concept to erase; give --concept"),
    "empty concept": (("erase", "esd", "--concept", " "), "got an empty concept"),
    "its own anchor": (("erase", "esd", "--concept", "dog -> Dog"), "is its own anchor"),
    "anchor option": ((*ESD, "--anchor", "dog"), "is its own anchor"),
    "kept and erased": ((*ESD, "--keep", "cat", "--keep", "DOG"), "'DOG' is on the keep list"),
    "kept with a comma": (
        (*ESD, "--keep", "castle, fox"),
        "a comma in --keep 'castle, fox': did you mean 2 words? Give --keep 'castle' --keep 'fox'",
    ),
    "kept with an anchor": ((*ESD, "--keep", "castle -> fox"), "'castle -> fox' on the keep list"),
    "anchors with a comma": ((*ESD, "--anchor", "castle, fox"), "anchor: a comma in"),
    "foreseen twice": (
        ("sensitivity", "--concept", "dog -> cat", "--concept", "Dog -> fox"),
        "another anchor: 'cat' and 'fox'",
    ),
    "foreseen anchors": (
        ("sensitivity", "--concept", "dog", "--anchor", "cat, fox"),
        "anchor: a comma in 'cat, fox'",
    ),
    "no concepts file": (("erase", "esd", "--concepts-file", "no.txt"), "cannot read"),
    "negative updates": ((*ESD, "--updates", "-3"), "got -3 for updates"),
    "negative steps": ((*ESD, "--latents.ddim-steps", "-1"), "got -1 for ddim_steps"),
    "unknown search": ((*AP, "search:exat"), "unknown kind of search 'exat'; did you mean 'exact'"),
    "unknown model": ((*ESD, "--model", "emojy"), "did you mean 'emoji'"),
    "no such folder": ((*ESD, "--model", "no/such/model"), "no such folder"),
    "missing edit to inspect": (("inspect", "none.safetensors"), "no edit at"),
    "missing edit to merge": (("merge", "none", "out"), "no edit at"),
    "missing edit to score": (("score", "none"), "no edit at"),
    "missing edit to draw": (("generate", "--prompt", "x", "--edit", "none"), "no edit at"),
    "nothing to draw": (("generate",), "nothing to draw"),
    "no seeds": (("generate", "--prompt", "x", "--seeds", "0"), "got 0 for seeds"),
    "no pictures": (("score", "unedited", "--pictures", "0"), "got 0 for pictures"),
}
WITH_MODEL = {
    "unknown dtype": ((*ESD, "--dtype", "fp23"), "did you mean 'fp32'"),
    "unknown form of weights": ((*ESD, "--quantise", "nf5", *SMALL), "did you mean 'nf4'"),
    "unknown group": ((*ESD, "--group", "xatn", *SMALL), "did you mean 'xattn'"),
    "unknown vocabulary": ((*AP, "--vocabulary", "tokns", *SMALL), "did you mean 'tokens'"),
    "misspelt nouns": ((*AP, "--vocabulary", "nuons", *SMALL), "did you mean 'nouns'"),
    "no vocabulary file": ((*AP, "--vocabulary", "no.txt", *SMALL), "cannot read the word list"),
    "names of another model": ((*AP, "--vocabulary", "names", *SMALL), "brings no list of names"),
    "unknown spread": (
        (*AP, "--vocabulary", "WORDS", "--pool-size", "3", "--spread", "evn", *SMALL),
        "did you mean 'even'",
    ),
    "smaller than K": (
        (*AP, "--vocabulary", "WORDS", "--pool-size", "21", *SMALL),
        "holds 20 words without the erased ones; 21 were asked",
    ),
    "negative sampling steps": (
        ("generate", "--prompt", "dog", "--steps", "-1"),
        "got -1 for steps",
    ),
    "too many sampling steps": (("generate", "--prompt", "dog", "--steps", "2000"), "2000"),
}


def complaint(run, *args):
    """The one line on stderr of a command that must fail."""
    code, out, err = run(*args)
    assert code == 2
    assert out == ""
    assert len(err) == 1, err
    assert err[0].startswith("efface: error: ")
    return err[0]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(here, run, case):
    args, message = MISTAKES[case]
    assert message in complaint(run, *args)
    assert not files(here)


@pytest.mark.parametrize("case", WITH_MODEL)
def test_a_mistake_that_the_model_shows_is_one_line_and_leaves_nothing(
    here, run, tiny_args, words, case
):
    args, message = WITH_MODEL[case]
    args = [str(words) if a == "WORDS" else a for a in args]
    assert message in complaint(run, *args, *tiny_args)
    assert not files(here)


def test_a_loss_that_is_not_finite_is_one_line(here, run, tiny_args):
    small = [{"1e-3": "1e30"}.get(a, a) for a in SMALL]
    assert "the loss of update 1 is" in complaint(run, *ESD, *small, *tiny_args)


@pytest.mark.parametrize("command", [ESD, ("generate", "--prompt", "dog")])
def test_an_output_folder_that_is_not_ours_is_refused(here, run, tiny_args, command):
    (here / "mine").mkdir()
    (here / "mine" / "holiday.jpg").write_bytes(b"")
    before = files(here)
    assert "is not empty" in complaint(run, *command, *tiny_args, "--out", "mine")
    assert files(here) == before


def test_a_run_file_of_something_else_is_refused(here, run, tiny_args):
    (here / "mine").mkdir()
    for text in ("{", "[]", '{"name": "npm"}'):
        (here / "mine" / "run.json").write_text(text)
        assert "no run of ours" in complaint(run, *ESD, *tiny_args, "--out", "mine")
        assert (here / "mine" / "run.json").read_text() == text


@pytest.mark.parametrize("command", [ESD, ("generate", "--prompt", "dog")])
def test_a_file_in_place_of_the_output_folder_is_refused(here, run, tiny_args, command):
    (here / "mine").write_text("mine")
    for out in ("mine", "mine/below"):
        assert "'mine" in complaint(run, *command, *tiny_args, "--out", out)
    assert (here / "mine").read_text() == "mine"
    assert len(files(here)) == 1


def test_a_folder_with_another_run_is_refused(here, run, finished, tiny_args):
    before = {p: p.read_bytes() for p in finished.iterdir()}
    uce = ("erase", "uce", *NO_PICTURE, *tiny_args, "--out", finished, "--concept")
    assert "differs in: concepts;" in complaint(run, *uce, "dog")
    assert "differs in: config;" in complaint(run, *uce, "church", "--ridge", "2")
    assert "differs in: method, config" in complaint(run, *ESD[:-1], "church", *uce[2:-1])
    assert {p: p.read_bytes() for p in finished.iterdir()} == before


def test_merging_twice_is_refused(here, run, finished):
    (here / "merged").mkdir()
    assert "exists already" in complaint(run, "merge", finished, here / "merged")
    assert not files(here / "merged")


def test_an_edit_of_another_base_is_refused(here, run, finished, other_folder):
    before = files(here)
    for args in (
        ("merge", finished, here / "merged", "--model", other_folder),
        ("lora", finished, here / "lora.safetensors", "--model", other_folder),
        *[("generate", "--prompt", "x", "--edit", finished, "--model", other_folder)],
    ):
        assert "load the model it was made for" in complaint(run, *args)
    assert files(here) == before


def test_a_damaged_edit_is_refused(run, finished):
    path = finished / "edit.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated or damaged" in complaint(run, "inspect", finished)


BY_FILE = {
    "attack": ("attack", "RUN"),
    "score": ("score", "RUN"),
    "report": ("report", "RUN"),
    "sensitivity": ("sensitivity", "RUN"),
    "generate": ("generate", "--prompt", "x", "--edit", "RUN"),
    "inspect": ("inspect", "RUN"),
    "merge": ("merge", "RUN", "merged"),
    "lora": ("lora", "RUN", "lora.safetensors"),
    "apply": ("apply", "RUN", "model"),
    "combine": ("combine", "RUN", "RUN", "--out", "both.safetensors"),
}
"""Every command that takes a run's folder."""


@pytest.mark.parametrize("args", BY_FILE.values(), ids=BY_FILE)
def test_a_file_of_a_run_is_answered_with_its_folder(here, run, finished, args):
    before = files(here)
    record = finished / "run.json"
    told = complaint(run, *(record if a == "RUN" else a for a in args))
    assert f"run.json' is no edit, or damaged; give the run's folder, {str(finished)!r}." in told
    assert files(here) == before


def test_a_file_that_is_none_of_a_run_is_no_edit(here, run):
    (here / "notes.txt").write_text("church")
    assert "notes.txt' is no edit, or damaged; give a run's folder." in complaint(
        run, "inspect", here / "notes.txt"
    )


def test_scores_need_a_judge_of_that_model(run, finished):
    assert "no judge ships for" in complaint(run, "score", finished)
    asked = ("report", finished, "--strength", 0.3)
    assert "no judge ships for" in complaint(run, *asked)  # a curve of what?


def test_a_report_without_a_judge_shows_what_there_is(run, finished):
    about = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps({**about, "moved_most": {"<b>fox": 0.125}}))
    ner = Score(12.5, 10.0, 15.0, 40).to_json()
    told = {"protocol": "nudity-i2p abc", "prompts": 40, "scores": {"NER-0.5": ner}}
    (finished / "scores-nudity-i2p.json").write_text(json.dumps(told))
    code, out, _ = run("report", finished, "--pictures", 2)
    assert (code, out.strip()) == (0, str(finished / "report.html"))
    page = (finished / "report.html").read_text()
    assert "No judge names what this model draws" in page
    assert "moved by 12.5%" in page
    assert "<b>fox" not in page
    assert "NER-0.5" in page
    assert "PSR-k" not in page
    assert "Concept by concept" not in page
    shown = re.findall(r'alt="(?:church|&lt;b&gt;fox), (?:before|after)" src="data:([^"]+)', page)
    assert len(shown) == 8
    assert len(set(shown)) == 8  # the edit changes every one
    drawn = {p: p.stat().st_mtime_ns for p in finished.glob("samples*/*.png")}
    assert len(drawn) == 4
    assert run("report", finished, "--pictures", 2)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in finished.glob("samples*/*.png")} == drawn


def test_a_mistake_of_ours_keeps_its_traceback(run, monkeypatch):
    def broken(args):
        raise RuntimeError("ours")

    monkeypatch.setattr("efface.cli.models.command", broken)
    with pytest.raises(RuntimeError, match="ours"):
        run("models")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_memory_that_runs_out_is_one_line_and_leaves_the_folder_free(
    here, run, tiny_args, monkeypatch, error
):
    def short(*_):
        raise error

    monkeypatch.setattr(METHODS["esd"], "erase", short)
    args = ("erase", "esd", "church", *tiny_args, *NO_PICTURE, "--out", here / "run")
    assert "out of memory" in complaint(run, *args)
    assert not (here / "run").exists()


def test_eight_bit_moments_and_four_bit_weights_are_noted(run, here, tiny_args):
    pytest.importorskip("bitsandbytes")
    out = here / "small"
    code, _, _ = run(
        *ESD, *SMALL, *tiny_args, "--adam-8bit", "--quantise", "nf4", "--out", out, "--no-picture"
    )
    assert code == 0
    meta = Edit.load(out).meta
    assert (meta["config"]["adam_8bit"], meta["quantised"]) == (True, "nf4")
