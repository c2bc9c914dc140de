"""The whole way through the page in a Chromium, by the keyboard alone, and what people do with
runs that are stopped, closed and taken away: ``make browser``.

``EFFACE_SHOTS=docs/page`` keeps the pictures of the docs, and trains longer. ``EFFACE_MODEL``
is another model than the shipped one: a tiny one, where only the page is in question.
``EFFACE_START`` is the folder to start in, where runs that are finished are not trained again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from efface.cli.main import main
from efface.edits.edit import Edit
from efface.models import load
from efface.page.takeaway import FORMS

pytestmark = pytest.mark.browser

SHOTS = os.environ.get("EFFACE_SHOTS", "")
MODEL = [f"--model={m}" for m in os.environ.get("EFFACE_MODEL", "").split() if m]
UPDATES = 20 if SHOTS else 3
MANY = 20
"""Updates of a run that is stopped: with pictures after each it takes long enough for that."""
WIDTHS = {1280: 860, 400: 860}
LONG = 1000 * int(os.environ.get("EFFACE_WAIT", "600"))
"""Milliseconds: machines are busy."""
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder that the page is started in."""
    return Path(os.environ.get("EFFACE_START") or tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def address(start):
    """The page, served by the command."""
    command = [sys.executable, "-m", "efface", "page", "--port", "0", "--no-browser", *MODEL]
    with subprocess.Popen(command, cwd=start, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def chromium():
    """The system's browser."""
    sync = pytest.importorskip("playwright.sync_api", reason="pip install 'efface[browser]'")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with sync.sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


class Tab:
    """A tab, of a browser or one of its contexts; it notes what must not be."""

    def __init__(self, home, address, width, path="/"):
        self.page = home.new_page()
        self.page.set_viewport_size({"width": width, "height": WIDTHS[width]})
        self.page.set_default_timeout(LONG)
        self.address, self.width, self.wrong = address, width, []
        self.page.on("console", self.console)
        self.page.on("request", self.request)
        self.page.on("pageerror", lambda e: self.wrong.append(f"error {e}"))
        self.page.goto(address + path)
        self.page.get_by_role("tab", name="1 Remove").wait_for()
        self.page.wait_for_timeout(1500)

    def console(self, message):
        if message.type == "error":
            self.wrong.append(f"console {message.text}")

    def request(self, asked):
        if not asked.url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"request {asked.url}")

    def click(self, name, role="button"):
        """Click something by its name; a tab behind others draws slowly."""
        self.page.bring_to_front()
        whole = re.compile(rf"^{re.escape(name)}\W*$")
        self.page.get_by_role(role, name=whole).first.click()

    def fill(self, label, text):
        """Write into a field, and leave it."""
        field = self.page.get_by_label(label, exact=True).first
        field.fill(text)
        field.blur()

    def reach(self, found):
        """Go to something by Tab."""
        found.wait_for()
        for _ in range(150):
            if found.evaluate("x => x === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not reach {found}")

    def press(self, name, role="button"):
        """Press something by its name."""
        self.reach(self.page.get_by_role(role, name=re.compile(rf"{name}\W*")).first)
        self.page.keyboard.press("Enter")

    def write(self, label, text):
        """Write into a field."""
        self.reach(self.page.get_by_label(label, exact=True).first)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def step(self, name, shows):
        """Go to a step, through the menu where there is no room; a key may be lost to a redraw."""
        for _ in range(20):
            tab = self.page.get_by_role("tab", name=name).first
            if not tab.is_visible():
                self.reach(self.page.locator(".overflow-menu > button"))
                self.page.keyboard.press("Enter")
                tab = self.page.locator(".overflow-dropdown button", has_text=name)
            self.reach(tab)
            self.page.keyboard.press("Enter")
            self.page.wait_for_timeout(1500)
            if self.page.get_by_text(shows, exact=True).first.is_visible():
                return
        raise AssertionError(f"{name} does not open")

    def see(self, text):
        """Wait until a text is to be seen."""
        self.page.get_by_text(text).first.wait_for()

    @property
    def link(self):
        """The run's, by the address."""
        return re.search(r"\?run=([0-9a-f]{12})$", self.page.url)[1]

    @property
    def about(self):
        """What the form and the run say that is removed, and the run's link."""
        field = self.page.get_by_label("What to remove", exact=True).first
        return field.input_value(), self.page.locator("#run h2").first.text_content(), self.link

    def shot(self, name):
        """A picture for the docs, where they are asked for: 256 colours, small."""
        if SHOTS:
            self.page.evaluate("document.activeElement.blur()")
            self.page.mouse.move(0, 0)
            self.page.evaluate("document.querySelector('#head p').style.visibility = 'hidden'")
            self.page.wait_for_timeout(1200)
            path = Path(SHOTS) / f"{name}-{self.width}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=path, full_page=True)
            Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(
                path, optimize=True
            )

    def accessible(self):
        """Nothing that axe-core calls serious, and lasts: gradio fades what it redraws."""
        from axe_playwright_python.sync_playwright import Axe

        for _ in range(20):
            found = Axe().run(self.page).response["violations"]
            bad = [v for v in found if v["impact"] in ("serious", "critical")]
            if not bad:
                return
            self.page.wait_for_timeout(500)
        raise AssertionError([(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in bad])

    def narrow(self):
        """Nothing is wider than the window."""
        wide = self.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= self.width, f"{wide} pixels in {self.width}"

    def sound(self):
        """All that is asked of every step."""
        self.accessible()
        self.narrow()
        assert not self.wrong, self.wrong


@pytest.mark.parametrize("width", WIDTHS)
def test_the_whole_way_by_the_keyboard(chromium, address, width):
    tab = Tab(chromium, address, width)
    tab.press("Train")  # nothing is named yet
    tab.see("Name what is to be removed first.")
    tab.sound()
    tab.write("What to remove", "church")
    tab.write("Becomes", "house")
    tab.press("Settings")
    tab.write("Updates", str(UPDATES + (width == 400)))  # a run of its own
    tab.write("Updates between pictures (0: none)", "5" if SHOTS else "2")
    tab.press("Settings")
    tab.press("Look ahead")
    tab.page.get_by_role("heading", name="Likely to be hurt").wait_for()
    tab.see("Memory")  # comes last
    tab.sound()
    tab.shot("remove")
    tab.press("Train")
    tab.see("To be removed")
    tab.sound()
    tab.see("Trained in")
    assert re.search(r"\?run=[0-9a-f]{12}$", tab.page.url)
    tab.sound()
    tab.shot("run")
    compared(tab)
    taken(tab)


def compared(tab):
    """Step 3."""
    tab.step("3 Compare", "Draw")
    tab.press("Draw")
    tab.see("with the edit")
    tab.press("Who was hurt")
    tab.see("Keep and retrain")
    tab.sound()
    tab.shot("compare")


def taken(tab):
    """Steps 4 and 5."""
    tab.step("4 Attack", "Nothing was attacked yet.")
    tab.see("Nothing was attacked yet.")
    tab.sound()
    tab.step("5 Take away", "LoRA for diffusers")
    tab.press("LoRA for diffusers")
    link = tab.page.get_by_role("link", name="lora-peft.safetensors")
    tab.reach(link)
    with tab.page.expect_download() as found:
        tab.page.keyboard.press("Enter")
    lora = Path(found.value.path()).read_bytes()
    assert b"lora_A" in lora[:100_000]
    tab.sound()
    tab.shot("take")
    again = tab.page.url  # the page is closed, and opened again
    tab.page.close()
    other = Tab(tab.page.context.browser, tab.address, tab.width, again.removeprefix(tab.address))
    other.see("Trained in")
    other.sound()
    other.page.close()


TRAINING = re.compile(r"^Training: \d+ of")
STOPPED = "Stopped; it goes on from here"
EVERY = "Updates between pictures (0: none)"


@pytest.mark.skipif("EFFACE_START" in os.environ, reason="its runs have to be new")
def test_runs_are_stopped_gone_on_with_compared_attacked_and_taken_away(
    chromium, address, start, tmp_path, monkeypatch
):
    monkeypatch.chdir(start)
    with chromium.new_context() as context:
        church = begun(Tab(context, address, 1280), "church", "house")
        stopped(church, start)
        closed = begun(Tab(context, address, 1280), "dog", "cat")
        link, other = church.link, closed.link
        assert church.about == ("church", "church", link)
        church.see(STOPPED)
        gone_on_with(church)
        closed.page.close()  # while it trains
        dog = Tab(context, address, 1280, f"/?run={other}")
        dog.see(TRAINING)
        stopped(dog, start)
        ended_by_the_command(dog)
        church.see("Trained in")
        assert church.about == ("church", "church", link)
        assert dog.about == ("dog", "dog", other)
        assert updates_of(church, start) == updates_of(dog, start) == MANY
        attacking(church)
        compared_at_half(church)
        attacked(church)
        everything_taken(church, tmp_path)
        dog.sound()
        assert not church.wrong + closed.wrong, church.wrong + closed.wrong


def begun(tab, name, anchor):
    """A run whose pictures make it slow, after its first updates."""
    tab.fill("What to remove", name)
    tab.fill("Becomes", anchor)
    tab.click("Settings")
    updates = tab.page.get_by_label("Updates", exact=True).first
    for _ in range(3):  # what looks ahead may still draw the form anew
        tab.fill("Updates", str(MANY))
        tab.page.wait_for_timeout(1000)
        if updates.input_value() == str(MANY):
            break
    tab.fill(EVERY, "1")
    tab.click("Train")
    tab.see(TRAINING)
    return tab


def stopped(tab, start):
    """It stands still, and has its updates so far."""
    tab.click("Stop")
    tab.see(STOPPED)
    tab.sound()
    home = home_of(tab, start)
    assert (home / "unfinished.safetensors").exists()
    assert not (home / "edit.safetensors").exists()


def gone_on_with(tab):
    """The same run, now without pictures."""
    tab.click("1 Remove", "tab")
    tab.fill(EVERY, "0")
    tab.click("2 Run", "tab")
    tab.click("Go on")
    tab.page.get_by_text(STOPPED).first.wait_for(state="hidden")


def ended_by_the_command(tab):
    """What the page stopped is ended by the command that it shows."""
    tab.click("5 Take away", "tab")
    told = shlex.split(tab.page.get_by_label("The command", exact=True).text_content())
    assert main([*told[1:], "--no-picture"]) == 0
    tab.click("2 Run", "tab")
    tab.see("Trained in")
    tab.page.get_by_role("button", name="Go on").wait_for(state="hidden")


def home_of(tab, start):
    """The run's folder."""
    return start / f"runs/ap-{tab.about[1]}-{tab.link[:6]}"


def updates_of(tab, start):
    """The updates that a run took in its two sittings, by what they cost."""
    home = home_of(tab, start)
    record, meta = json.loads((home / "run.json").read_text()), Edit.load(home).meta
    assert len(record["sittings"]) == 2
    assert record["seconds"] == pytest.approx(sum(s["seconds"] for s in record["sittings"]))
    return meta["cost"]["backward"] / (meta["config"]["batch"] * meta["config"]["reuse"])


def attacking(tab):
    """The attack that draws least, and the report, which takes longest."""
    tab.click("5 Take away", "tab")
    tab.click("Report")
    tab.see("The report is being made; it appears here.")
    tab.click("4 Attack", "tab")
    for name in ("rephrase (text)", "completion (latent)", "reading (weights)"):
        tab.click(name, "checkbox")
    tab.click("Attack")
    tab.page.get_by_role("button", name="Stop attacking").wait_for()


def attacked(tab):
    """It has a verdict."""
    tab.click("4 Attack", "tab")
    row = tab.page.get_by_role("row").filter(has_text="reading")
    assert row.locator(".verdict").text_content() in ("held", "fell", "inconclusive")
    tab.sound()


def compared_at_half(tab):
    """Base beside edited at a strength that is typed."""
    tab.click("3 Compare", "tab")
    tab.fill("number input for Strength", "0.5")
    tab.see("with 0.5 of the edit")
    drawn = "[...document.querySelectorAll('.figures.rows img')].filter(x => x.naturalWidth).length"
    tab.page.wait_for_function(f"{drawn} === 8")
    tab.sound()


FILES = {
    "lora": "lora-peft.safetensors",
    "kohya": "lora-kohya.safetensors",
    "single": "model.safetensors",
    "folder": "diffusers.zip",
    "card": "README.md",
    "run": "run.zip",
    "report": "report.html",
}


def everything_taken(tab, folder):
    """Every file that is offered, opened as its reader opens it."""
    assert FILES.keys() == FORMS.keys()
    tab.click("5 Take away", "tab")
    found = {form: taken_whole(tab, form, folder) for form in FILES}
    for form, part in (("lora", "lora_A"), ("kohya", "lora_down"), ("single", "")):
        some = load_file(found[form])
        assert any(part in name and bool(x.any()) for name, x in some.items())
        assert all(bool(x.isfinite().all()) for x in some.values())
    for form in ("folder", "run"):
        with zipfile.ZipFile(found[form]) as z:
            assert z.testzip() is None
            z.extractall(folder / form)
    load(folder / "folder")
    assert Edit.load(folder / "run").meta["concepts"][0]["name"] == "church"
    assert "church" in found["card"].read_text(encoding="utf8")
    report, asked = tab.page.context.new_page(), []
    report.on("request", lambda r: asked.append(r.url))
    report.goto(found["report"].as_uri())
    assert "church" in report.inner_text("body")
    assert report.evaluate("document.images.length")
    assert report.evaluate("[...document.images].every(x => x.complete && x.naturalWidth)")
    assert all(url.startswith(("file:", "data:")) for url in asked)


def taken_whole(tab, form, folder):
    """A file that is made, and comes by its link."""
    if not tab.page.get_by_role("link", name=FILES[form]).count():
        tab.click(FORMS[form][0])
    with tab.page.expect_download() as found:
        tab.page.get_by_role("link", name=FILES[form]).click()
    assert found.value.suggested_filename == FILES[form]
    found.value.save_as(folder / FILES[form])
    return folder / FILES[form]
