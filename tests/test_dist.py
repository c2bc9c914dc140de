"""What is installed: the version that everything says, and a wheel that needs no repository."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from urllib.request import urlopen

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


def test_the_oldest_pins_are_the_lower_bounds():
    told = (ROOT / "pyproject.toml").read_text(encoding="utf8")
    (needed,) = re.findall(r"^dependencies = \[.*?\n(.*?)^\]", told, re.MULTILINE | re.DOTALL)
    (page,) = re.findall(r"^page = \[(.*?)\]", told, re.MULTILINE)
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', needed + page))
    assert {"torch", "gradio"} <= bounds.keys()
    oldest = (ROOT / "constraints-oldest.txt").read_text(encoding="utf8")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", oldest, re.MULTILINE))
    for name, bound in bounds.items():
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", pins[name]), name


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with wheel and sdist: the one that is there (``EFFACE_DIST``), or a new one."""
    if "EFFACE_DIST" in os.environ:
        return ROOT / os.environ["EFFACE_DIST"]
    out = tmp_path_factory.mktemp("dist")
    call = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def alone(built, tmp_path_factory):
    """The wheel in an environment of its own, without the repository: folder, environment.

    With ``EFFACE_DIST`` pip installs what it needs, the page's Gradio included; else, offline,
    the environment borrows the packages of this one.
    """
    home = tmp_path_factory.mktemp("alone")
    venv.create(home / "venv", with_pip=True)
    (wheel,) = built.glob("*.whl")
    pip = [home / "venv" / "bin" / "python", "-m", "pip", "install", "-q"]
    pip.append("--disable-pip-version-check")
    if "EFFACE_DIST" in os.environ:
        pip += ["-c", ROOT / "constraints.txt", f"efface[page] @ {wheel.resolve().as_uri()}"]
    else:
        pip += ["--no-deps", "--no-index", wheel]
        (site,) = (home / "venv" / "lib").glob("python*/site-packages")
        deps = sysconfig.get_path("purelib")  # a path, so that no .pth in it brings the repository
        (site / "dependencies.pth").write_text(f"{deps}\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run(pip, check=True, timeout=3600, env=env)
    return home, env | {"EFFACE_CACHE": str(home / "cache")}


@pytest.fixture
def run(alone):
    """Run something in that environment."""
    home, env = alone

    def call(name, *args):
        command = [home / "venv" / "bin" / name, *args]
        done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


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
def test_it_works_without_the_repository(run, built):
    (wheel,) = built.glob("*.whl")
    version = wheel.name.split("-")[1]
    found = run("python", "-c", "import efface; print(efface.__file__, efface.__version__)")
    assert str(ROOT) not in found
    assert "site-packages" in found
    assert found.split()[-1] == version
    assert run("efface", "--version").strip() == f"efface {version}"
    said = run("efface", "demo", "--updates", "2", "--pictures", "2")
    assert "ESR-1" in said
    assert "before-after.png" in said


@pytest.mark.slow
def test_the_page_opens_and_ends_without_the_repository(alone, run):
    home, env = alone
    if run("python", "-c", "import importlib.util as i; print(i.find_spec('gradio'))") == "None\n":
        pytest.skip("Gradio is not installed; make dist installs it")
    command = [home / "venv" / "bin" / "efface", "page", "--port", "0", "--no-browser"]
    start = home / "start"
    start.mkdir()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=start, env=env, stdout=pipe, text=True) as page:
        try:
            address = page.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
            with urlopen(address, timeout=60) as answer:
                assert "gradio_config" in answer.read().decode()
            page.send_signal(signal.SIGINT)
            assert page.wait(60) == 0
        finally:
            page.kill()
