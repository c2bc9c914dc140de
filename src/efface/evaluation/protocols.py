"""A protocol: which pictures are made, how, and what is asked of them; one small file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from efface.errors import UserError, pick
from efface.storage import ASSETS

FOLDER = ASSETS / "protocols"


class Listed(NamedTuple):
    """A prompt of a file."""

    prompt: str
    seed: int
    concept: str
    """"" where the file does not say."""


def read_csv(path: Path, name: str) -> str:
    """The text of a CSV file, or of the one called ``name`` inside a wheel or zip file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if path.suffix not in (".whl", ".zip"):
            return path.read_text(encoding="utf8")
        with zipfile.ZipFile(path) as z:
            inside = next(n for n in z.namelist() if n.rsplit("/", 1)[-1] == name)
            return z.read(inside).decode("utf8")
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as e:
        raise UserError(f"cannot read the prompts in {str(path)!r}: {e}.") from None
    except StopIteration:
        raise UserError(f"{str(path)!r} holds no file {name!r}.") from None


@dataclass(frozen=True)
class Protocol:
    """An evaluation that another person can repeat: its hash stands in every result."""

    name: str
    about: str = ""
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The concepts that are erased at once, by the split's name."""
    preserved: Sequence[str] = ()
    """Whose survival is measured, less the erased ones; empty: all that the judge knows."""
    neighbours: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Named relatives of erased concepts, also reported apart."""
    kind: str = "object"
    """Kind of the erased concepts."""
    template: str = "{}"
    """A prompt of a concept; with ``{subject}`` one for each of ``subjects``."""
    subjects: Sequence[str] = ()
    pictures: Mapping[str, int] = field(default_factory=lambda: {"erased": 20, "preserved": 2})
    """Pictures of each prompt in a cell, of erased and of preserved concepts."""
    steps: int | None = None
    """Sampling steps; None: the model's own."""
    guidance: float | None = None
    """Scale of classifier-free guidance; None: the model's own."""
    judge: str = "emoji-2"
    """Name and version of the judge."""
    head: str = "concept"
    """What the judge names: ``concept`` or ``style``."""
    source: Mapping[str, str] = field(default_factory=dict)
    """For prompts that come from a file of the user's: its usual name (``file``) and the columns of
    ``prompt``, ``seed`` and, where there is one, ``concept``; empty: prompts from the template."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the judge calls a concept, where it is not its name."""
    metrics: Sequence[str] = ("esr", "psr")

    def __post_init__(self) -> None:
        pick(dict.fromkeys(("concept", "style")), self.head, "head of the judge")
        for kind in ("erased", "preserved"):
            if self.pictures.get(kind, 0) < 1:
                raise UserError(
                    f"the protocol {self.name!r} asks for {self.pictures.get(kind, 0)} pictures of "
                    f"{kind} concepts; at least 1 is needed."
                )

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 over all that decides a result.

        Fields at their defaults are left out, so that a new field leaves old protocols the same.
        """
        plain = asdict(Protocol("", ""))
        said = {
            k: v for k, v in asdict(self).items() if k not in ("name", "about") and v != plain[k]
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    def erased(self, split: str) -> tuple[str, ...]:
        """The concepts of a split.

        Raises:
            UserError: no such split.
        """
        return tuple(pick(self.splits, split, "split"))

    def near(self, erased: Sequence[str]) -> tuple[str, ...]:
        """The named neighbours of what is erased, each once, without the erased."""
        found = dict.fromkeys(n for c in erased for n in self.neighbours.get(c, ()))
        return tuple(n for n in found if n not in set(erased))

    def others(self, erased: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
        """The preserved concepts of a split, out of all that are ``known``."""
        return tuple(n for n in (self.preserved or known) if n not in set(erased))

    def prompts(self, concept: str) -> list[str]:
        """Every prompt of a concept."""
        return [self.template.format(concept, subject=s) for s in self.subjects or ("",)]

    def listed(self, path: Path) -> list[Listed]:
        """The prompts of a CSV file, or of the CSV of that name inside a wheel or zip file.

        Raises:
            UserError: no such file, no such column, or a seed that is no integer.
        """
        text = read_csv(path, self.source["file"])
        rows = list(csv.DictReader(io.StringIO(text)))
        columns = {k: v for k, v in self.source.items() if k != "file"}
        missing = [c for c in columns.values() if not rows or c not in rows[0]]
        if missing:
            raise UserError(
                f"{str(path)!r} has no column {missing[0]!r}; the protocol {self.name!r} reads "
                f"{', '.join(columns.values())}."
            )
        try:
            return [
                Listed(
                    r[columns["prompt"]],
                    int(r[columns["seed"]]),
                    r[columns["concept"]] if "concept" in columns else "",
                )
                for r in rows
            ]
        except ValueError as e:
            raise UserError(f"{str(path)!r} holds a seed that is no integer: {e}.") from None

    def seeds(self, kind: str, seed: int) -> range:
        """Sampling seeds of a cell: every training seed has pictures of its own."""
        n = self.pictures[kind]
        return range(seed * n, seed * n + n)


PROTOCOLS: Mapping[str, Path] = MappingProxyType(
    {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
)
"""The protocols that ship, by name."""


def load(name_or_path: str) -> Protocol:
    """A protocol by its name, or from a JSON file.

    Raises:
        UserError: no such protocol, broken JSON, or unknown fields.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = pick(PROTOCOLS, name_or_path, "protocol (or file)")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        known = {f.name for f in fields(Protocol)}
        for key in raw:
            pick(dict.fromkeys(known), key, f"field of the protocol {str(path)!r}:")
        return Protocol(**{"name": path.stem, **raw})
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f"{str(path)!r} is no protocol: {e}.") from None
