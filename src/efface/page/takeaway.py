"""What is taken away from a run: files for other programs, written into the run's folder."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from efface.cli.runfolder import scores_of
from efface.edits.edit import Edit
from efface.edits.lora import factorise
from efface.edits.lora import save as save_lora
from efface.edits.merge import merge, merge_single
from efface.errors import UserError, pick
from efface.models import DiffusionModel, load
from efface.page.places import Places
from efface.page.wish import Wish
from efface.reporting.attacked import attacked, markdown
from efface.reporting.card import card
from efface.reporting.grid import PICTURE
from efface.storage import make_folder, write, write_text
from efface.training import EDIT

TAKEN = "take-away"
"""In the run's folder: where the files go."""
RANKS = (16, 32, 64, 128, 256)
"""Of a LoRA: the first that leaves out little enough."""
LEFT_OUT = 0.1
"""The largest part of the change that a LoRA may leave out, 0 to 1."""


class Asked(NamedTuple):
    """What a file is made from."""

    places: Places
    wish: Wish
    edit: Edit
    strength: float

    @property
    def home(self) -> Path:
        """The run's folder."""
        return self.places.run(self.wish.home)

    def opened(self) -> DiffusionModel:
        """The base model, which is where it was.

        Raises:
            UserError: it is not.
        """
        return load(self.places.model(self.wish.model), device="cpu")

    def path(self, name: str) -> Path:
        """A new file's place; a strength other than 1 is in its name."""
        stem, dot, suffix = name.partition(".")
        at = "" if self.strength == 1 else f"-{self.strength:g}"
        return self.places.inside(str(self.home / TAKEN / f"{stem}{at}{dot}{suffix}"))


class Taken(NamedTuple):
    """A file that was made."""

    path: Path
    said: str = ""
    """What is to be known of it."""


GATES = (
    "its gates, which prompts open, are open for every prompt in this file: more is changed than "
    "by the edit itself, and nothing was measured on that"
)
"""Of files that cannot hold gates."""


def known(a: Asked, *said: str) -> str:
    """What is to be known of a file of weights."""
    return "; ".join([*said, *([GATES] if a.edit.gates else [])])


def lora(a: Asked, form: str) -> Taken:
    """A LoRA, of the lowest rank that holds the edit well enough."""
    out = a.path(f"lora-{form}.safetensors")
    model = a.opened()
    edit = a.edit.scaled(a.strength, model)
    for rank in RANKS:
        found = factorise(model, edit, rank)
        if found.error <= LEFT_OUT:
            break
    else:
        raise UserError(
            f"a LoRA of rank {RANKS[-1]} leaves out {found.error:.0%} of the edit: take the single "
            "file or the folder."
        )
    if not out.exists():
        save_lora(model, found, out, form)
    return Taken(out, known(a, f"rank {rank}, {found.error:.1%} of the change left out"))


def single(a: Asked) -> Taken:
    """One file in the original layout."""
    out = a.path("model.safetensors")
    if not out.exists():
        model = a.opened()
        merge_single(model, a.edit.scaled(a.strength, model), out)
    return Taken(out, known(a))


def folder(a: Asked) -> Taken:
    """A diffusers folder, and the same as one zip file."""
    out = a.path("diffusers")
    packed = out.with_name(f"{out.name}.zip")
    if outdated(a.home, packed):
        if out.exists() and outdated(a.home, out / "README.md"):
            shutil.rmtree(out)  # its card and its ledger say what was measured
        if not out.exists():
            model = a.opened()
            edit = a.edit.scaled(a.strength, model)
            gated = bool(a.edit.gates)  # then what was measured is not of these weights
            found = None if gated else scores_of(a.home, a.edit, a.strength)
            attacks = "" if gated else markdown(attacked(a.home, edit.digest))
            merge(model, edit, out, partial(card, edit, found, attacks=attacks), found)
        write(packed, partial(zipped, out, a.places))
    return Taken(packed, known(a, f"the folder itself is {a.places.told(out)}"))


def model_card(a: Asked) -> Taken:
    """The card, with what was measured and attacked so far."""
    out = a.path("README.md")
    edit = a.edit if a.strength == 1 else a.edit.scaled(a.strength, a.opened())
    attacks = markdown(attacked(a.home, edit.digest))
    write_text(out, card(edit, scores_of(a.home, a.edit, a.strength), attacks=attacks))
    return Taken(out)


def run_folder(a: Asked) -> Taken:
    """The run's folder as one zip file, without what was made from it."""
    out = a.path("run.zip")
    write(out, partial(zipped, a.home, a.places))
    return Taken(out)


REPORT = "report.html"
"""In the run's folder."""


def outdated(home: Path, path: Path) -> bool:
    """Whether a file that says what is known of a run is missing, or older than something of that.

    Args:
        home: the run's folder.
    """
    if not path.exists():
        return True
    names = (EDIT, "attacks*.json", "scores*.json", "strength-*/scores*.json", "sensitivity*.json")
    known = [p.stat().st_mtime_ns for name in names for p in home.glob(name)]
    return path.stat().st_mtime_ns < max(known, default=0)


def report(a: Asked) -> Taken:
    """The report, where it is made already."""
    path = a.places.inside(str(a.home / REPORT))
    if not path.is_file():
        raise UserError("the report is not made yet.")
    return Taken(path)


FORMS: dict[str, tuple[str, Callable[[Asked], Taken]]] = {
    "lora": ("LoRA for diffusers", partial(lora, form="peft")),
    "kohya": ("LoRA for A1111, ComfyUI", partial(lora, form="kohya")),
    "single": ("Single file", single),
    "folder": ("Diffusers folder", folder),
    "card": ("Model card", model_card),
    "run": ("Run folder", run_folder),
    "report": ("Report", report),
}
"""What can be taken away: its name, and what makes it."""


def take(places: Places, wish: Wish, edit: Edit, form: str, strength: float = 1.0) -> Taken:
    """Make a file, whole or not at all, where it is not there already.

    Args:
        form: a key of :data:`FORMS`.

    Raises:
        UserError: it cannot be made or written; nothing is left half-written.
    """
    label, make = pick(FORMS, form, "form")
    if strength == 0:
        raise UserError("at strength 0 this is the unedited model: choose more than 0.")
    asked = Asked(places, wish, edit, strength)
    make_folder(asked.home / TAKEN)
    try:
        return make(asked)
    except OSError as e:
        raise UserError(f"{label}: cannot be written ({e.strerror}); nothing is lost.") from None


def zipped(home: Path, places: Places, out: Path) -> None:
    """A folder's files in one zip file; links that lead elsewhere, and other zips, are left out."""
    room = shutil.disk_usage(out.parent).free
    files = [
        p for p in sorted(home.rglob("*")) if p.is_file() and p.suffix not in (".zip", ".part")
    ]
    files = [p for p in files if places.start in p.resolve().parents and p != out]
    if home.name != "diffusers":
        files = [p for p in files if TAKEN not in p.relative_to(home).parts]
    need = sum(p.stat().st_size for p in files)
    if need > room:
        raise UserError(f"the disk is full: {need:,} bytes are needed, {room:,} are free.")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        for path in files:
            z.write(path, path.relative_to(home))


def drawn(home: Path) -> list[Path]:
    """The command's picture of a run, if it drew one."""
    path = home / PICTURE
    return [path] if path.is_file() and not path.is_symlink() else []


def there(places: Places, wish: Wish) -> list[Path]:
    """What was taken away from a run so far."""
    home = places.run(wish.home)
    some = (home / TAKEN).iterdir() if (home / TAKEN).is_dir() else ()
    found = [p for p in sorted(some) if p.is_file() and not p.is_symlink() and p.name[0] != "."]
    last = home / REPORT
    return [*found, *([last] if last.is_file() and (home / EDIT).exists() else [])]
