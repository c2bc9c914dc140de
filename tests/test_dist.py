"""What is installed: the version that everything says, and a wheel that needs no repository."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = 60_000_000
"""Bytes of a wheel."""


def test_everything_says_the_same_version():
    told = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf8")
    assert f"\nversion: {told}\n" in citation
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest in (told, "Unreleased")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with wheel and sdist: the one that is there (``EFFACE_DIST``), or a new one."""
    if "EFFACE_DIST" in os.environ:
        return ROOT / os.environ["EFFACE_DIST"]
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    call = [sys.executable, "-m", "build", "--no-isolation", "-o", str(out), str(ROOT)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The wheel in an environment of its own, with what it depends on; run something in it."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", with_pip=True)
    python = home / "venv" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, timeout=300)
    (site,) = (home / "venv" / "lib").glob("python*/site-packages")
    deps = sysconfig.get_path("purelib")  # a path, so that no .pth in it brings the repository
    (site / "dependencies.pth").write_text(f"{deps}\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env |= {"EFFACE_CACHE": str(home / "cache")}

    def run(*args):
        call = [str(home / "venv" / "bin" / args[0]), *args[1:]]
        done = subprocess.run(call, cwd=home, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_wheel_is_small_and_holds_the_model_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < MOST
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0].partition("-")[0] for n in names} == {"efface"}
    for name in ("emoji/unet/diffusion_pytorch_model.safetensors", "SOURCES.md"):
        assert f"efface/assets/{name}" in names
    assert "efface/py.typed" in names
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as f:
        inside = {n.partition("/")[2] for n in f.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"} <= inside
    assert not any(n.startswith((".venv", "runs", "dist/")) for n in inside)


@pytest.mark.slow
def test_it_works_without_the_repository(installed, built):
    (wheel,) = built.glob("*.whl")
    version = wheel.name.split("-")[1]
    found = installed("python", "-c", "import efface; print(efface.__file__, efface.__version__)")
    assert str(ROOT) not in found
    assert "site-packages" in found
    assert found.split()[-1] == version
    assert installed("efface", "--version").strip() == f"efface {version}"
    said = installed("efface", "demo", "--updates", "2", "--pictures", "1")
    assert "ESR-1" in said
    assert "before-after.png" in said
