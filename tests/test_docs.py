"""What is public is documented, and what the README shows is true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import script

import efface
from efface.cli.main import ABOUT
from efface.evaluation.attacks import ATTACKS
from efface.methods import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")


@pytest.fixture(scope="module")
def architecture():
    return script(ROOT / "docs" / "architecture.py")


@pytest.fixture(scope="module")
def outputs():
    return script(ROOT / "docs" / "outputs.py")


@pytest.mark.parametrize("name", [n for n in efface.__all__ if n != "__version__"])
def test_every_public_name_is_in_the_docs(name):
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf8")
    assert re.search(rf"\b{name}\b", text)
    assert getattr(efface, name) is not None


def test_a_flag_that_switches_something_off_says_no_default():
    """``--no-picture … (default: True)`` would read as no pictures."""
    text = (ROOT / "docs" / "outputs.md").read_text(encoding="utf8")
    flags = [x for x in re.split(r"\n\n|\n  (?=-)", text) if x.startswith("--no-")]
    assert len(flags) >= 3
    assert not [x for x in flags if "default: True" in x]


def links(page):
    """Where a page's links to other pages and files of the repository go, less those to the web."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf8"), flags=re.DOTALL)
    return [x for x in re.findall(r"\]\(([^)\s]+)\)", text) if not x.startswith("http")]


def anchors(page):
    """The names of a page's headings, as links have them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf8"), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


@pytest.mark.parametrize("command", [c for c in ABOUT if c != "demo"])
def test_every_command_is_in_the_docs(command):
    assert f"efface {command}" in (ROOT / "docs" / "cli.md").read_text(encoding="utf8")


def test_every_method_and_preset_is_in_the_readme():
    for name in METHODS:
        assert f"efface erase {name}" in README
        for preset in METHODS[name].presets():
            assert f"`{preset}`" in README


def test_the_commands_of_the_readme_exist():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    commands = re.findall(r"^efface (\S+)", blocks, re.MULTILINE)
    assert len(commands) >= 5
    assert set(commands) <= set(ABOUT)
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    for goal in re.findall(r"\bmake (\w+)`?", README):
        assert goal in {"demo", "test", "bench", "model"}, goal
        assert re.search(rf"^{goal}:", makefile, re.MULTILINE)


def test_make_bench_asks_for_what_stands_in_the_tables():
    text = (ROOT / "Makefile").read_text(encoding="utf8")
    lists = {k: v.split() for k, v in re.findall(r"^(\w+) := (.*)$", text, re.MULTILINE)}
    once = [*lists["REST"], *lists["STEERED"], *lists["LONG"]]
    wanted = {("emoji-objects-2", m, s) for m in lists["MAIN"] for s in range(3)}
    wanted |= {("emoji-objects-2", m, 0) for m in once}
    wanted |= {("emoji-attacks", m, s) for m in lists["HARD"] for s in range(3)}
    wanted |= {("emoji-attacks", m, 0) for m in lists["ATTACKED"]}
    files = {f"{p}-{split}-{m}-{s}.json" for p, m, s in wanted for split in "12"}
    there = {
        p.name
        for name in ("emoji-objects-2", "emoji-attacks")
        for p in (ROOT / "bench" / "results").glob(f"{name}-*.json")
        if json.loads(p.read_text())["protocol"].startswith("emoji-objects-2 ")
    }
    assert files <= there
    assert {x.replace("-1.json", "-0.json") for x in there - files} <= files  # a seed more


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/benchmark.md", "docs/attacks.md"])
def test_the_pages_hold_the_tables_of_the_results(page):
    table, text = script(ROOT / "bench" / "table.py"), (ROOT / page).read_text(encoding="utf8")
    assert table.written(text, ROOT / page) == text


def test_what_attacks_take_is_less_than_a_quarter_of_an_hour_and_said():
    bench = script(ROOT / "bench" / "attack.py", "attack_bench")
    found = json.loads(bench.OUT.read_text())
    assert bench.written(bench.DOCS.read_text(), found) == bench.DOCS.read_text()
    assert found["seconds"] <= 15 * 60
    assert set(ATTACKS) <= set(found["attacks"])


def test_the_picture_of_the_architecture_is_that_of_the_imports(architecture):
    kept = architecture.SVG.read_text(encoding="utf8")
    assert architecture.drawing() == kept, "python docs/architecture.py draws it anew"


def test_the_picture_counts_every_import_between_floors_once(architecture):
    floors = architecture.floors()
    counted = architecture.imports(floors)
    level = {name: i for i, floor in enumerate(floors) for name in floor}
    here = level["models"], level["concepts"]
    assert here in counted
    found = 0
    for path in (ROOT / "src" / "efface" / "models").rglob("*.py"):
        text = path.read_text(encoding="utf8")
        homes = re.findall(r"^ *(?:from|import) efface\.(\w+)", text, re.MULTILINE)
        found += len({h for h in homes if h in floors[here[1]]})
    assert counted[here] == found
    drawn = re.findall(r'class="count">(\d+)<', architecture.drawing())
    assert sorted(map(int, drawn)) == sorted(counted.values())


def test_a_stop_of_a_journey_that_is_gone_is_refused(architecture):
    with pytest.raises((AttributeError, ImportError)):
        architecture.exists("edits.edit.Patch")


def test_the_pages_get_their_tables(architecture):
    tables = script(ROOT / "docs" / "tables.py")
    pages = "\n".join(p.read_text(encoding="utf8") for p in (ROOT / "docs").glob("*.md"))
    for place in tables.TABLES:
        assert place in pages
    for name in METHODS:
        assert f"| `{name}` |" in tables.methods()
    for folder in (ROOT / "src" / "efface").glob("*/__init__.py"):
        assert f"| `{folder.parent.name}` |" in tables.rooms()


def test_every_command_has_its_output_in_the_docs(outputs):
    text = (ROOT / "docs" / "outputs.md").read_text(encoding="utf8")
    named = outputs.commands(text)
    assert {f"efface {name} --help" for name in ABOUT} <= set(named)
    kept = dict(re.findall(r"<!-- \$ (.+) -->\n```text\n\$ .+\n((?:.*\n)+?)```\n", text))
    assert list(kept) == named, "python docs/outputs.py writes the blocks"
    assert outputs.written(text, lambda c: kept[c].removesuffix("\n")) == text


def test_outputs_are_written_below_their_commands(outputs):
    page = "a\n<!-- $ efface one -->\n\nb\n<!-- $ efface two -->\n```text\nold\n```\nc\n"
    took = {"efface one": "took 3.5 min, 81.2 MB", "efface two": "digest b0aab9a15178f999"}
    now = outputs.written(page, took.__getitem__)
    assert "$ efface one\ntook …, …\n```\n\nb" in now
    assert "old" not in now
    assert "b0aab9a15178f999" not in now
    assert outputs.written(now, took.__getitem__) == now


@pytest.mark.slow
def test_the_docs_say_what_the_commands_print_now(outputs):
    page = ROOT / "docs" / "outputs.md"

    def roughly(text):
        """Numbers aside where pictures are drawn: another processor's sums differ."""
        drawn, _, helped = text.partition("\n## Help\n")
        return re.sub(r"[ -]+", " ", re.sub(r"\d[\d.,]*", "#", drawn)), helped

    assert roughly(outputs.anew(page)) == roughly(page.read_text(encoding="utf8"))
