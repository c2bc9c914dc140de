"""The whole way through the page in a Chromium, by the keyboard alone: ``make browser``.

``EFFACE_SHOTS=docs/page`` keeps the pictures of the docs, and trains longer. ``EFFACE_MODEL``
is another model than the shipped one: a tiny one, where only the page is in question.
``EFFACE_START`` is the folder to start in, where runs that are finished are not trained again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.browser

SHOTS = os.environ.get("EFFACE_SHOTS", "")
MODEL = [f"--model={m}" for m in os.environ.get("EFFACE_MODEL", "").split() if m]
UPDATES = 20 if SHOTS else 3
WIDTHS = {1280: 860, 400: 860}
LONG = 1000 * int(os.environ.get("EFFACE_WAIT", "600"))
"""Milliseconds: machines are busy."""
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page, served by the command."""
    start = os.environ.get("EFFACE_START") or tmp_path_factory.mktemp("start")
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
    """A tab, used by the keyboard alone; it notes what must not be."""

    def __init__(self, browser, address, width):
        self.page = browser.new_page(viewport={"width": width, "height": WIDTHS[width]})
        self.page.set_default_timeout(LONG)
        self.address, self.width, self.wrong = address, width, []
        self.page.on("console", self.console)
        self.page.on("request", self.request)
        self.page.on("pageerror", lambda e: self.wrong.append(f"error {e}"))
        self.open("/")

    def console(self, message):
        if message.type == "error":
            self.wrong.append(f"console {message.text}")

    def request(self, asked):
        if not asked.url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"request {asked.url}")

    def open(self, path):
        self.page.goto(self.address + path)
        self.page.get_by_role("tab", name="1 Remove").wait_for()
        self.page.wait_for_timeout(1500)

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
    tab.see("Likely to be hurt")
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
    other = Tab(tab.page.context.browser, tab.address, tab.width)
    other.open(again.removeprefix(tab.address))
    other.see("Trained in")
    other.sound()
    other.page.close()
