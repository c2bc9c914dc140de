"""What is public is documented, and what the README shows is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import efface
from efface.cli.main import ABOUT
from efface.methods import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")


@pytest.mark.parametrize("name", [n for n in efface.__all__ if n != "__version__"])
def test_every_public_name_is_in_the_docs(name):
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf8")
    assert re.search(rf"\b{name}\b", text)
    assert getattr(efface, name) is not None


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


def test_the_readme_holds_the_table_of_the_results():
    import importlib.util

    spec = importlib.util.spec_from_file_location("table", ROOT / "bench" / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert table.written(README) == README
