"""The benchmark's cells, tables and the report, on the shipped model with a few pictures."""

import base64
import dataclasses
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from efface.cli.main import main
from efface.errors import UserError
from efface.evaluation import tasks
from efface.evaluation.bench import (
    UNEDITED,
    Cell,
    Opened,
    finished,
    label,
    lineup,
    plain,
    run_cell,
)
from efface.evaluation.cells import run_all
from efface.evaluation.evaluate import judge_for
from efface.evaluation.protocols import PROTOCOLS, Protocol, load
from efface.evaluation.tasks import Crew, Failed
from efface.reporting.tables import difference, harmonic, markdown, ranking, read, score
from efface.scores import rate
from efface.training import Tuning


@pytest.fixture
def protocol(tmp_path):
    """Two splits, four concepts, two steps."""
    told = {
        "splits": {"1": ["church"], "2": ["bomb", "wolf"]},
        "preserved": ["church", "castle", "bomb", "fox"],
        "neighbours": {"church": ["castle"]},
        "pictures": {"erased": 2, "preserved": 1},
        "steps": 2,
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps(told))
    return str(path)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


# -- protocols -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_shipped_protocols_can_be_read(name):
    p = load(name)
    assert p.name == name
    assert p.about
    assert len(p.digest) == 12


def test_the_digest_is_of_all_that_decides_a_result(protocol):
    p = load(protocol)
    assert p.digest == Protocol(**{**p.__dict__, "about": "other words"}).digest
    for change in ({"steps": 3}, {"template": "a {}"}, {"preserved": ["fox"]}):
        assert p.digest != Protocol(**{**p.__dict__, **change}).digest


def test_a_protocol_knows_its_concepts_prompts_and_seeds(protocol):
    p = load(protocol)
    assert p.erased("2") == ("bomb", "wolf")
    assert p.others(["church"], ()) == ("castle", "bomb", "fox")
    assert p.near(["church"]) == ("castle",)
    assert list(p.seeds("erased", 3)) == [6, 7]
    styles = load("emoji-styles")
    assert len(styles.prompts("noto style")) == len(styles.subjects)
    assert styles.prompts("noto style")[0].endswith(", noto style")


def test_broken_protocols_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"unknown protocol .* did you mean 'emoji-objects'"):
        load("emoji-object")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="is broken JSON in line 1"):
        load(str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text('{"picturs": {}}')
    with pytest.raises(UserError, match="unknown field"):
        load(str(tmp_path / "b.json"))
    (tmp_path / "c.json").write_text('{"pictures": {"erased": 0}}')
    with pytest.raises(UserError, match="0 pictures of erased"):
        load(str(tmp_path / "c.json"))
    with pytest.raises(UserError, match="unknown split"):
        load("emoji-objects").erased("9")


# -- cells ---------------------------------------------------------------------------------------


def test_a_cell_is_one_json_and_is_not_run_again(protocol, tmp_path, emoji):
    cell, out, work = Cell(protocol, "1", "uce", 1), tmp_path / "out", tmp_path / "work"
    assert not cell.there(out)
    row = run_cell(cell, out, work, progress=False)
    assert cell.there(out)
    assert [p.name for p in out.iterdir()] == ["small-1-uce-1.json"]
    assert json.loads((out / cell.file).read_text()) == row
    assert row["erased"] == ["church"]
    assert "anchors" not in row  # the null prompt
    assert set(row["hits"]) == {"church", "castle", "bomb", "fox"}
    assert [len(h) for h in row["hits"]["church"]] == [2, 2]
    assert row["scores"]["ESR-1"]["n"] == 2
    assert row["cost"]["peak_memory_mb"] > 100
    assert row["protocol"].startswith("small ")
    before = (out / cell.file).stat().st_mtime_ns
    assert run_cell(cell, out, work, progress=False) == row
    assert (out / cell.file).stat().st_mtime_ns == before
    judge = judge_for(emoji)
    identity = cell.identity(emoji, f"{judge.config.version} {judge.sha256}")
    assert finished(cell, out, identity) == row
    early = {k: v for k, v in row["config"].items() if k != "diversify"}  # before it was there
    (out / cell.file).write_text(json.dumps({**row, "config": early}))
    assert finished(cell, out, identity) == row
    told = json.loads((tmp_path / "small.json").read_text())
    (tmp_path / "small.json").write_text(json.dumps({**told, "steps": 3}))
    other = cell.identity(emoji, f"{judge.config.version} {judge.sha256}")
    for n, end in ((3, "not 9"), (4, "…")):
        changed = {**identity, **dict.fromkeys(("seed", "method", "split", "judge")[:n], 9)}
        with pytest.raises(UserError, match=rf"of other settings \(([^;]*; ){{2,3}}[^;]*{end}\)"):
            finished(cell, out, changed)
    with pytest.raises(UserError, match=r"of other settings .*protocol is"):
        finished(cell, out, other)  # of another protocol: neither taken for this one nor lost


@pytest.mark.slow
def test_seeds_have_pictures_of_their_own_and_methods_share_them(protocol, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    run_cell(Cell(protocol, "1", UNEDITED, 0), out, work, progress=False)
    folder = next((tmp_path / "cache" / "unedited").iterdir())
    first = {p.name for p in folder.glob("*.png")}
    run_cell(Cell(protocol, "1", UNEDITED, 1), out, work, progress=False)
    assert len({p.name for p in folder.glob("*.png")}) == 2 * len(first)


@pytest.mark.parametrize("method", lineup())
def test_the_line_up_has_the_same_updates_for_all(method):
    config = Cell("emoji-objects", "1", method, 2, updates=40).config()
    assert label(method)
    if isinstance(config, Tuning):
        line = method.partition("@")[0]
        apart = line in ("spm", "mace")  # five adapters share them
        times = {"ap-official-full": 2.5, "ap-official-equal": 0.12}.get(line, 1)
        assert config.updates == (8 if apart else round(40 * times))
        assert Cell("emoji-objects", "1", method, 2, 40).made == round(40 * times)
        assert config.seed == 2


def test_peers_can_have_anchors_that_are_searched_for_among_what_they_may_see(
    protocol, tmp_path, monkeypatch
):
    names = list(lineup())
    assert names[names.index("esd") + 1] == "esd@auto"
    assert label("esd@auto@prompts") == "ESD, anchors searched for, in 16 prompts"
    several = {n.removesuffix("@prompts") for n in names if n.endswith("@prompts")}
    assert several == {n for n in names if "@prompts" not in n} - {UNEDITED}
    for n in ("uce", "ap"):
        one, two = (Cell(protocol, "2", m, 1).config() for m in (n, f"{n}@prompts"))
        assert two == dataclasses.replace(one, diversify=16)
    assert label("esd@auto") == "ESD, anchors searched for"
    assert not {"ap@auto", "age@auto", f"{UNEDITED}@auto"} & set(names)
    assert not any("@" in n for n in plain())
    plainly, steered = (Cell(protocol, "2", n, 1, updates=7).config() for n in ("esd", "esd@auto"))
    assert dataclasses.replace(plainly, anchor="auto") == steered
    told = json.loads((tmp_path / "small.json").read_text())
    (tmp_path / "small.json").write_text(json.dumps({**told, "held_out": ["fox"]}))
    asked = []

    def erase(self, model, concepts, run):
        asked.append(run.words)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(steered), "erase", erase)
    with pytest.raises(KeyboardInterrupt):
        Opened(Cell(protocol, "2", "esd@auto", 1)).erase(tmp_path / "work", progress=False)
    assert asked == ["words: church, castle"]  # no fox, and nothing that is erased


def test_a_cell_says_what_its_concepts_became(protocol, tmp_path, monkeypatch):
    def steered(model, concepts, *_):
        return tuple(dataclasses.replace(c, anchor="castle") for c in concepts)

    monkeypatch.setattr("efface.training.erasure.steered", steered)
    cell, out = Cell(protocol, "1", "uce@auto", 1), tmp_path / "out"
    row = run_cell(cell, out, tmp_path / "work", progress=False)
    assert row["anchors"] == {"church": "castle"}
    identity = Opened(cell).identity
    assert finished(cell, out, identity) == row
    early = {k: v for k, v in row.items() if k != "anchors"}  # before it was there
    (out / cell.file).write_text(json.dumps(early))
    assert finished(cell, out, identity) == early


# -- tables --------------------------------------------------------------------------------------


@pytest.fixture
def results(protocol, tmp_path):
    """Cells of three methods, made up."""
    out, g = tmp_path / "out", torch.Generator().manual_seed(0)
    out.mkdir()
    for method, chance in ((UNEDITED, 0.95), ("esd", 0.4), ("ap", 0.8)):
        for seed in (0, 1):
            erased = 0.95 if method == UNEDITED else 0.1
            hits = {}
            for c in ("church", "castle", "bomb", "fox"):
                n, p = (10, erased) if c == "church" else (30, chance)
                top1 = (torch.rand(n, generator=g) < p).int().tolist()
                hits[c] = [top1, [1] * n]
            row = {"protocol": "small 1", "split": "1", "method": method, "seed": seed}
            row |= {"erased": ["church"], "hits": hits, "updates": 400, "scores": {}}
            if method != UNEDITED:
                cost = {"forward": 4000, "backward": 800, "seconds": 90.0, "peak_memory_mb": 2048}
                row |= {"cost": cost}
            (out / f"small-1-{method}-{seed}.json").write_text(json.dumps(row))
    return out


@pytest.fixture
def _known(protocol, monkeypatch):
    """The small protocol by its bare name."""
    from efface.reporting import figures, tables

    for module in (figures, tables):
        monkeypatch.setattr(module, "load", lambda _: load(protocol))


@pytest.mark.usefixtures("_known")
def test_the_table_is_what_the_files_hold(results):
    found = read(results, "small")
    assert list(found) == [UNEDITED, "ap", "esd"]
    hits = [h for r in found["ap"] for c in ("castle", "bomb", "fox") for h in r["hits"][c][0]]
    assert score(found["ap"], "preserved", 1, "small").value == rate(hits).value
    gone = [1 - h for r in found["esd"] for h in r["hits"]["church"][0]]
    assert score(found["esd"], "erased", 1, "small").value == rate(gone).value
    mean = score(found["ap"], "preserved", 1, "small").value
    mean -= score(found["esd"], "preserved", 1, "small").value
    far = difference(found["ap"], found["esd"], 1, "small")
    assert far.value == pytest.approx(mean)
    assert far.low < far.value < far.high
    text = markdown(results, "small")
    assert "| ESD | 2 |" in text
    assert "| 10.0 F + 2.0 B | 1.5 | 2.0 |" in text
    gone = difference(found["ap"], found["esd"], 1, "small", "erased")
    assert f"| ESD | 2 | {gone} | {far} | " in text
    assert text.startswith("Split 1: church.")


@pytest.mark.usefixtures("_known")
def test_cells_of_different_settings_are_not_put_into_one_row(results):
    for seed, eta in ((0, 1.0), (1, 2.0)):
        path = results / f"small-1-esd-{seed}.json"
        row = json.loads(path.read_text()) | {"config": {"eta": eta, "tuning": {"seed": seed}}}
        path.write_text(json.dumps(row))
    with pytest.raises(UserError, match="are of different settings"):
        read(results, "small")
    row["config"]["eta"] = 1.0
    path.write_text(json.dumps(row))
    assert len(read(results, "small")["esd"]) == 2


@pytest.mark.usefixtures("_known")
def test_cells_of_different_judges_are_not_put_into_one_table(results):
    path = results / "small-1-esd-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"judge": "another"}))
    with pytest.raises(UserError, match="differ in one of: protocol, base, judge"):
        read(results, "small")


@pytest.mark.usefixtures("_known")
def test_what_no_picture_is_of_is_a_dash(results):
    for path in results.iterdir():
        row = json.loads(path.read_text())
        row["hits"].pop("castle")  # the only neighbour
        path.write_text(json.dumps(row))
    assert "| – |" in markdown(results, "small").splitlines()[5]


def test_bad_input_is_said_once_before_any_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    out = ("--out", str(tmp_path / "out"))
    for args, message in (
        (["--model", "nosuch", *out], "unknown model"),
        (["--updates", "0", *out], "got 0 for updates"),
        (["--out", str(tmp_path / "file")], "cannot make"),
    ):
        assert main(["bench", "emoji-objects", "--method", "esd", "--seeds", "1", *args]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1


@pytest.mark.usefixtures("_known")
def test_places_are_those_of_the_harmonic_mean(results):
    found = read(results, "small")
    place = ranking(found)
    assert (place["ap"].value, place["esd"].value) == (1, 2)
    assert place["ap"].low is None  # a single erased concept
    means = {n: harmonic(found[n], found[UNEDITED], "small") for n in place}
    assert means["ap"] > means["esd"]
    esr = score(found["esd"], "erased", 1, "small").value
    kept = score(found["esd"], "preserved", 1, "small").value
    kept *= 100 / score(found[UNEDITED], "preserved", 1, "small").value
    assert means["esd"] == pytest.approx(2 / (1 / esr + 1 / kept))


@pytest.mark.usefixtures("_known")
def test_the_pareto_picture_is_well_formed_and_names_every_method(results):
    from xml.etree import ElementTree

    from efface.reporting.figures import marks, pareto

    svg = pareto(results, "small")
    ElementTree.fromstring(svg)
    assert [m.label for m in marks(read(results, "small"), "small")] == ["AP, ours", "ESD"]
    for name in ("ESD", "AP, ours"):
        assert f">{name}</text>" in svg


@pytest.mark.usefixtures("_known")
def test_no_result_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no result of the protocol"):
        read(tmp_path, "small")


def test_the_command_refuses_what_it_does_not_know(protocol, capsys):
    for args, message in (
        (["emoji-objects", "--method", "esdd"], "unknown method of the benchmark 'esdd'"),
        (["emoji-objects", "--split", "9"], "unknown split '9'"),
        (["emoji-objects", "--seeds", "0"], "got 0 for seeds"),
        (["emoji"], "unknown protocol"),
    ):
        assert main(["bench", *args]) == 2
        assert message in capsys.readouterr().err


# -- the report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run of a closed form, and the page about it."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFACE_CACHE", str(folder / "cache"))
        run = folder / "run"
        erase = ["erase", "uce", "--concept", "church", "--out", str(run), "--no-picture"]
        assert main(erase) == 0
        import efface.evaluation.scoring as scoring

        some = ("church", "castle", "mosque", "synagogue", "bomb", "wolf")
        few = dataclasses.replace(load("emoji-objects"), preserved=some)
        patch.setattr(scoring, "own_protocol", lambda model, edit: few)
        ner = {"value": 12.5, "low": 10.0, "high": 15.0, "n": 40}
        told = {"protocol": "nudity-i2p abc", "prompts": 40, "scores": {"NER-0.5": ner}}
        (run / "scores-nudity-i2p.json").write_text(json.dumps(told))
        names = folder / "names.txt"
        names.write_text("\n".join(some))
        look = ["sensitivity", str(run), "--vocabulary", str(names), "--latents", "2"]
        assert main(look) == 0
        assert main(["report", str(run), "--pictures", "2"]) == 0
    return run / "report.html"


@pytest.mark.slow
def test_the_page_needs_nothing_from_outside(report):
    html = report.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert not re.search(r"url\(|@import|<script", html)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", html)
    assert len(pictures) >= 8
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)


@pytest.mark.slow
def test_the_page_says_what_was_measured_and_how_to_do_it_again(report):
    html = report.read_text()
    (kept,) = report.parent.glob("scores-emoji-objects-*.json")  # two pictures, not four
    scores = json.loads(kept.read_text())
    assert f"{scores['edited']['ESR-1']['value']:.1f} [" in html
    assert "efface erase uce --concept church" in html
    assert "not a security boundary" in html
    assert "12.5 [10.0, 15.0]" in html
    assert "emoji-objects " in html
    (said,) = report.parent.glob("sensitivity-*.json")
    told = json.loads(said.read_text())
    worst = next(iter(told["instruments"][0]["words"]))
    assert f"these moved most, in % of the squared noise: {worst} (" in html
    assert "data:image/svg+xml;base64," in html
    assert html.count("inear edit of the text maps can erase") == 1  # sensitivity has it


@pytest.mark.slow
def test_the_page_opens_in_a_browser_at_both_widths(report, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    for width in (1280, 400):
        picture = tmp_path / f"{width}.png"
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={width},2000", f"--screenshot={picture}", report.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        assert picture.stat().st_size > 20_000
    dump = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", report.as_uri()]
    dom = subprocess.run(dump, check=True, capture_output=True, timeout=120, text=True).stdout
    assert "What this erasure did" in dom


@pytest.mark.slow
def test_cells_that_come_to_nothing_are_told(protocol, tmp_path, monkeypatch):
    def some(desk, cells, crew):
        assert (crew.jobs, crew.fresh) == (2, True)
        yield cells[1], Failed("its process died: exit code 9")
        yield cells[0], desk.open()(cells[0])

    monkeypatch.setattr(tasks, "_in_processes", some)
    cells = [Cell(protocol, s, "uce", 0) for s in ("1", "2")]
    (lost,) = run_all(cells, tmp_path / "out", tmp_path / "work", Crew(2))
    assert lost == (cells[1], "its process died: exit code 9")
    assert cells[0].there(tmp_path / "out")
    assert not cells[1].there(tmp_path / "out")


@pytest.mark.slow
def test_cells_run_on_a_local_ray_cluster_and_give_what_one_process_gives(protocol, tmp_path):
    ray = pytest.importorskip("ray")
    cells = [Cell(protocol, split, "uce", 0) for split in ("1", "2")]
    try:
        failed = run_all(cells, tmp_path / "ray", tmp_path / "work-ray", Crew(ray="local"))
        broken = Opened(cells[0]).folder(tmp_path / "broken")
        broken.parent.mkdir()
        broken.touch()  # a file where the cell's folder is to be
        lost = run_all(cells[:1], tmp_path / "none", tmp_path / "broken", Crew(ray="local"))
    finally:
        ray.shutdown()
    assert not failed
    assert [f.cell for f in lost] == cells[:1]
    assert broken.name in lost[0].why
    assert not (tmp_path / "none" / cells[0].file).exists()
    for cell in cells:
        row = json.loads((tmp_path / "ray" / cell.file).read_text())
        alone = run_cell(cell, tmp_path / "alone", tmp_path / "work", progress=False)
        assert (row["hits"], row["edit"]) == (alone["hits"], alone["edit"])
        assert row["scores"] == alone["scores"]


@pytest.mark.usefixtures("_known")
def test_a_method_that_is_alone_has_no_place(results):
    found = read(results, "small")
    assert set(ranking(found)) == {"ap", "esd"}
    assert ranking({n: found[n] for n in (UNEDITED, "ap")}) == {}


def test_cells_without_a_score_that_others_have_are_told_beside_them(monkeypatch, capsys):
    """The unedited model's pictures have not drifted from themselves."""
    kept = Path(__file__).parents[1] / "bench" / "results"
    monkeypatch.setattr("efface.cli.bench.ready", lambda *_: None)  # they are there
    monkeypatch.setattr("efface.cli.bench.run_all", lambda *_: [])
    args = ["--method", "unedited", "--method", "esd", "--seeds", "1", "--out", str(kept)]
    assert main(["bench", "emoji-objects-2", *args]) == 0
    first, second = capsys.readouterr().out.strip().splitlines()[-2:]
    assert first.startswith("unedited")
    assert "–" in first
    assert second.startswith("ESD")
    assert "–" not in second


@pytest.mark.parametrize(
    ("script", "name", "said"),
    [
        ("trials", "app", "'app': no such trial; there are .*, ours, "),
        ("trials", "ours@x", "ours@x: a seed is a whole number"),
        ("search", "app", "'app': no such method; there are ap, "),
    ],
)
def test_the_searches_for_settings_refuse_what_there_is_not(script, name, said, monkeypatch):
    bench = Path(__file__).parents[1] / "bench"
    monkeypatch.setattr("sys.argv", [f"{script}.py", name])
    monkeypatch.syspath_prepend(bench)  # as where it is a script
    with pytest.raises(SystemExit, match=f"^{said}"):
        runpy.run_path(str(bench / f"{script}.py"), None, "__main__")
