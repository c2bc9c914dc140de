"""What the page may read and write: the folder that it was started in, and the models given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efface.cli.runfolder import RECORD
from efface.errors import UserError
from efface.models import MODELS

OWN = ".efface"
"""In the start folder: what the page keeps of its own."""


@dataclass(frozen=True)
class Places:
    """A start folder, and models elsewhere."""

    start: Path
    """Absolute, without links in it."""
    models: tuple[Path, ...] = ()
    """Models, or folders of models; the same."""

    @classmethod
    def of(cls, start: Path, models: Sequence[Path] = ()) -> Places:
        """The places of a page.

        Raises:
            UserError: no such folder, or no such model.
        """
        if not start.is_dir():
            raise UserError(f"{str(start)!r} is no folder: name one to start the page in.")
        for path in models:
            if not path.exists():
                raise UserError(f"there is no model at {str(path)!r}.")
        return cls(start.resolve(), tuple(p.resolve() for p in models))

    @property
    def own(self) -> Path:
        """Where the page keeps its own."""
        return self.start / OWN

    def inside(self, text: str) -> Path:
        """A path in the start folder, absolute.

        Args:
            text: relative to the start folder, or absolute.

        Raises:
            UserError: it leads elsewhere: by ``..``, as an absolute path, or by a link.
        """
        if not text.strip() or "\0" in text:
            raise UserError(f"got {text!r} for a path in the folder of this page.")
        try:
            found = (self.start / text).resolve()
        except (OSError, RuntimeError):  # a link that leads to itself
            found = Path("/")
        if found != self.start and self.start not in found.parents:
            raise UserError(
                f"{text!r} is outside of the folder that this page was started in: it reads and "
                "writes nothing there."
            )
        return found

    def run(self, text: str) -> Path:
        """The folder of a run.

        Raises:
            UserError: as :meth:`inside`, or it is the start folder itself, or the page's own.
        """
        found = self.inside(text)
        if found == self.start or found == self.own or self.own in found.parents:
            raise UserError(f"{text!r} cannot hold a run: name a folder such as runs/church.")
        return found

    def told(self, path: Path) -> str:
        """A path as it is shown: relative to the start folder."""
        return str(path.relative_to(self.start)) if self.start in path.parents else str(path)

    def model(self, text: str) -> str:
        """The name or the absolute path of a model.

        Raises:
            UserError: one that may not be opened, or is not there any more.
        """
        name = text.strip()
        if name in MODELS:
            return name
        if not name or "\0" in name:
            raise UserError("no model is named.")
        path = (self.start / name).expanduser().resolve()
        if not any(p == path or p in path.parents for p in (self.start, *self.models)):
            raise UserError(
                f"the model {name!r} is not one that this page may open: start it with "
                "--model PATH (again for more). Nothing is fetched from elsewhere."
            )
        if not path.exists():
            raise UserError(
                f"the model {name!r} is not there: was it moved, or its disk taken off?"
            )
        return str(path)

    def known(self) -> list[str]:
        """The models to choose from: those that ship, and those given."""
        found = list(MODELS)
        for path in self.models:
            several = path.is_dir() and not is_model(path)
            some = sorted(path.iterdir()) if several else [path]
            found += [str(p) for p in some if is_model(p)]
        return list(dict.fromkeys(found))

    @property
    def first(self) -> str:
        """The model to begin with: the first one given, else the first that ships."""
        known = self.known()
        return known[len(MODELS)] if len(known) > len(MODELS) else known[0]

    def runs(self) -> list[str]:
        """Folders of runs in ``runs``, the latest first, as they are shown."""
        home = self.start / "runs"
        some = home.iterdir() if home.is_dir() and self.start in home.resolve().parents else ()
        found = [p for p in some if (p / RECORD).is_file() and not p.is_symlink()]
        return [self.told(p) for p in sorted(found, key=age)]


def age(folder: Path) -> float:
    """A run's age: the smaller, the later it was begun or gone on with."""
    return -(folder / RECORD).stat().st_mtime


def is_model(path: Path) -> bool:
    """Whether a path looks like a model: a diffusers folder, or a safetensors file."""
    if path.is_file():
        return path.suffix.lower() == ".safetensors"
    return (path / "model_index.json").exists()
