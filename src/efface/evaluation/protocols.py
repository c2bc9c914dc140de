"""A protocol: which pictures are made, how, and what is asked of them; one small file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import string
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from efface.concepts import TEMPLATES
from efface.errors import UserError, pick
from efface.evaluation.metrics import METRICS
from efface.names import COMMAS, among, apart, twice
from efface.settings import checked, read_json, shown
from efface.storage import ASSETS, decoded, read_text

FOLDER = ASSETS / "protocols"


class Listed(NamedTuple):
    """A prompt of a file."""

    prompt: str
    seed: int
    concept: str
    """"" where the file does not say."""


LARGEST = 2**30
"""Bytes of a prompt file inside a wheel or zip file."""
MANY = 100_000
"""Pictures of a prompt that no protocol needs."""
SEEDS = range(2**62)
"""Seeds that a prompt can have."""


def read_csv(path: Path, name: str) -> str:
    """The text of a CSV file, or of the one called ``name`` inside a wheel or zip file.

    Raises:
        UserError: it cannot be read, is damaged, or is no text.
    """
    if path.suffix.lower() not in (".whl", ".zip"):
        return read_text(path, "prompt file")
    where = f"{name!r} in {str(path)!r}"
    try:
        with zipfile.ZipFile(path) as z:
            inside = next((i for i in z.infolist() if i.filename.rsplit("/", 1)[-1] == name), None)
            if inside is None:
                raise UserError(f"{str(path)!r} holds no file {name!r}.")
            if inside.file_size > LARGEST:
                raise UserError(f"{where} is larger than {LARGEST >> 30} GiB.")
            raw = z.read(inside)
    except OSError as e:
        raise UserError(f"cannot read the prompts in {str(path)!r}: {e.strerror or e}.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as e:
        raise UserError(f"{str(path)!r} is damaged or locked, or no zip file: {e}.") from None
    return decoded(raw, where)


def read_rows(text: str, columns: Sequence[str], where: str) -> Iterator[tuple[int, list[str]]]:
    """The values of some columns of a CSV, with the line that each row ends in.

    Raises:
        UserError: a column that is missing or there twice, a row that is too short or too long,
            quotes that do not end, or a field of more than 131,072 characters.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = next(reader, [])
        for c in columns:
            if head.count(c) != 1:
                wrong = f"has no column {c!r}" if c not in head else f"has two columns {c!r}"
                raise UserError(f"{where} {wrong}; {', '.join(columns)} are read.")
        at = [head.index(c) for c in columns]
        for row in reader:
            if row and len(row) != len(head):
                raise UserError(
                    f"{where} has {len(row)} values in line {reader.line_num}, and {len(head)} "
                    "columns."
                )
            if row:
                yield reader.line_num, [row[i] for i in at]
    except csv.Error as e:
        raise UserError(f"{where} is no CSV in line {reader.line_num}: {e}.") from None


@dataclass(frozen=True)
class Protocol:
    """An evaluation that another person can repeat: its hash stands in every result."""

    name: str
    about: str = ""
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The concepts that are erased at once, by the split's name."""
    preserved: Sequence[str] = ()
    """Whose survival is measured, less the erased ones; empty: all that the judge knows."""
    held_out: Sequence[str] = ()
    """Preserved concepts that no method is ever shown, nor its search or its settings; scored
    apart. A method may use the others."""
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
    witness: str = ""
    """A second judge of another kind, which scores every cell of the benchmark as well."""
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
        """Refuse what cannot be drawn or asked.

        Raises:
            UserError: names the field.
        """
        pick(dict.fromkeys(("concept", "style")), self.head, "head of the judge")
        pick(TEMPLATES, self.kind, "kind of concept")
        for kind in self.pictures:
            pick(dict.fromkeys(("erased", "preserved")), kind, "kind of pictures")
        for kind in ("erased", "preserved"):
            if not 1 <= self.pictures.get(kind, 0) <= MANY:
                raise UserError(
                    f"{self.pictures.get(kind, 0)} pictures of {kind} concepts; 1 to {MANY:,} are "
                    "possible."
                )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"steps is {self.steps}; at least 1, or null for the model's own.")
        if self.guidance is not None and not 0 <= self.guidance <= sys.float_info.max:
            raise UserError(f"guidance is {self.guidance}; at least 0, or null for the model's.")
        check_template(self.template, bool(self.subjects))
        for split, names in self.splits.items():
            check_names(names, f"split {split!r}")
        for who, names in self.neighbours.items():
            check_names(names, f"neighbours of {who!r}")
        check_names(self.preserved, "preserved")
        check_names(self.held_out, "held_out")
        if self.preserved:
            self.check_held_out(self.preserved)
        for key in self.source:
            pick(dict.fromkeys(("file", "prompt", "seed", "concept")), key, "key of source")
        missing = [k for k in ("file", "prompt", "seed") if self.source and k not in self.source]
        if missing:
            raise UserError(f"source has no {missing[0]!r}; file, prompt and seed are needed.")
        if not self.metrics:
            raise UserError("metrics is empty: nothing would be measured.")
        for metric in self.metrics:
            pick(METRICS, metric, "metric")

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
        named = among(self.neighbours, erased)
        return apart(dict.fromkeys(n for c in named for n in self.neighbours[c]), erased)

    def others(self, erased: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
        """The preserved concepts of a split, out of all that are ``known``."""
        return apart(self.preserved or known, erased)

    def usable(self, erased: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
        """The preserved concepts that a method may be shown."""
        return apart(self.others(erased, known), self.held_out)

    def check_held_out(self, known: Sequence[str]) -> None:
        """Refuse a held-out name that stands for no concept: another one would be shown.

        Args:
            known: all that is preserved.

        Raises:
            UserError: names it.
        """
        erased = [n for names in self.splits.values() for n in names]
        for name in apart(self.held_out, (*known, *erased)):
            pick(dict.fromkeys(known), name, "preserved concept in held_out:")
        commas = [n for n in known if any(c in COMMAS for c in n)] if self.held_out else []
        if commas:
            raise UserError(
                f"{commas[0]!r} has a comma, and some names are held out: what a method is shown "
                "is a list with commas; give it another name."
            )

    def prompts(self, concept: str) -> list[str]:
        """Every prompt of a concept."""
        return [self.template.format(concept, subject=s) for s in self.subjects or ("",)]

    def listed(self, path: Path) -> list[Listed]:
        """The prompts of a CSV file, or of the CSV of that name inside a wheel or zip file.

        Raises:
            UserError: names the file, and the line where there is one.
        """
        where = f"the prompt file {str(path)!r}"
        columns = [self.source[k] for k in ("prompt", "seed", "concept") if k in self.source]
        found = []
        for line, row in read_rows(read_csv(path, self.source["file"]), columns, where):
            seed = int(row[1]) if re.fullmatch(r"[0-9]{1,20}", row[1].strip()) else -1
            if seed not in SEEDS:
                raise UserError(
                    f"{where} has the seed {shown(row[1])} in line {line}; a whole number from 0 "
                    "to 2**62 is needed."
                )
            found.append(Listed(row[0], seed, row[2] if len(row) > 2 else ""))
        if not found:
            raise UserError(f"{where} holds no prompt.")
        return found

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
        UserError: no such protocol, or one that cannot be; names the file and the field.
    """
    path = Path(name_or_path)
    if path.suffix.lower() != ".json":
        path = pick(PROTOCOLS, name_or_path, "protocol (or file)")
    raw = read_json(path, "protocol")
    named = {"name": path.stem, **raw} if isinstance(raw, dict) else raw
    return checked(Protocol, named, f"the protocol {str(path)!r}")


def check_names(names: Sequence[str], what: str) -> None:
    """Refuse an empty name, and one that is there twice, also in another spelling.

    Raises:
        UserError: says which list holds it.
    """
    if not all(n.strip() for n in names):
        raise UserError(f"{what} holds an empty name.")
    if double := twice(names):
        raise UserError(f"{what} holds {double!r} twice: its pictures would count twice.")


def check_template(template: str, subjects: bool) -> None:
    """Refuse a prompt template that asks for no concept, or for what nobody gives.

    Args:
        subjects: whether ``{subject}`` is given.

    Raises:
        UserError: says what is wrong with it.
    """
    allowed = ("", "subject") if subjects else ("",)
    try:
        parts = [p[1:] for p in string.Formatter().parse(template) if p[1] is not None]
    except ValueError as e:
        raise UserError(f"template is {template!r}: {e}; {{}} stands for the concept.") from None
    for name, form, turned in parts:
        if name not in allowed or form or turned:
            raise UserError(
                f"template is {template!r}; it may hold {{}} for the concept"
                + (" and {subject}." if subjects else ", and {subject} where there are subjects.")
            )
    names = [p[0] for p in parts]
    if names.count("") != 1 or (subjects and "subject" not in names):
        also = " and {subject}" if subjects else ""
        raise UserError(f"template is {template!r}; it needs {{}} for the concept{also}, once.")
