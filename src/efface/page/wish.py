"""What is asked for: typed into a form, kept as JSON, told as a command and as Python."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from efface.cli.runfolder import RECORD, record
from efface.concepts import Concept, check, listed, parse
from efface.errors import UserError, pick
from efface.methods import METHODS
from efface.models import MODELS
from efface.names import COMMAS, clean, one, slug
from efface.page.places import Places
from efface.settings import from_json, to_json
from efface.training import Method, Tuning

UPDATES = 150
"""Of a training, where nobody says: enough to see what happens, as in ``efface demo``."""
MANY = 20
"""Concepts that a form takes."""


@dataclass(frozen=True)
class Form:
    """What somebody typed; nothing of it is checked."""

    names: str = ""
    """Concepts, one a line, as on the command line."""
    synonyms: str = ""
    """Of the only concept, with commas between."""
    anchor: str = ""
    """Of the only concept; "": the method's."""
    keep: str = ""
    """Words to be preserved, with commas between."""
    model: str = "emoji"
    method: str = "ap"
    updates: Any = UPDATES
    seed: Any = 0
    folder: str = ""
    """The run's; "": by the method, the concepts and the hash."""


@dataclass(frozen=True)
class Wish:
    """An erasure that is asked for."""

    method: Method
    concepts: tuple[Concept, ...]
    model: str
    """A shipped name, or an absolute path."""
    folder: str = ""
    """The run's, in the start folder; "": see :attr:`home`."""
    typed: tuple[str, ...] = ()
    """The command that made the run, where a command did."""

    def about(self) -> dict[str, Any]:
        """All that makes it this one, as JSON."""
        return {
            "method": self.method.name,
            "config": to_json(self.method),
            "concepts": [c.to_json() for c in self.concepts],
            "model": self.model,
        }

    @property
    def link(self) -> str:
        """The permalink: the first 12 hex digits of the SHA-256 over what makes it this one."""
        told = json.dumps(self.about(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @property
    def key(self) -> str:
        """The permalink; with a hash of the run's folder, where that has a name of its own."""
        if not self.folder or self.folder == replace(self, folder="").home:
            return self.link
        return f"{self.link}-{hashlib.sha256(self.folder.encode()).hexdigest()[:6]}"

    @property
    def home(self) -> str:
        """The run's folder, in the start folder."""
        names = slug([c.name for c in self.concepts])
        return self.folder or f"runs/{self.method.name}-{names}-{self.link[:6]}"

    @property
    def names(self) -> list[str]:
        """The erased concepts."""
        return [c.name for c in self.concepts]

    @property
    def updates(self) -> int:
        """Weight updates; 0: a closed form."""
        return self.method.updates if isinstance(self.method, Tuning) else 0

    def keeping(self, word: str) -> Wish:
        """The same with one more word to be preserved: another run, in a folder of its own.

        Raises:
            UserError: it is erased.
        """
        keep = tuple(dict.fromkeys([*self.method.keep, clean(word, "keep")]))
        concepts, keep = check(self.concepts, keep)
        return replace(
            self, method=replace(self.method, keep=keep), concepts=concepts, folder="", typed=()
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.about(), "folder": self.folder, "typed": list(self.typed)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Wish:
        """Back from JSON.

        Raises:
            UserError: an unknown method, or settings that it does not take.
        """
        try:
            method = pick(METHODS, told["method"], "method")
            concepts = [
                Concept(**{**c, **{k: tuple(c[k]) for k in ("synonyms", "pool")}})
                for c in told["concepts"]
            ]
            made: Method = from_json(method, told["config"])
            where, typed = told.get("folder", ""), tuple(told.get("typed", ()))
            return cls(made, tuple(concepts), told["model"], where, typed)
        except (KeyError, TypeError, AttributeError) as e:
            raise UserError(f"this is no wish of ours, or damaged ({e}).") from None

    def command(self) -> list[str]:
        """The command that does the same."""
        if self.typed:
            return list(self.typed)
        lines = [line_of(c) for c in self.concepts]
        plain = [f"--concept={x}" if x[0] == "-" or ":" in x else x for x in lines]
        kinds, flags = told_settings(self.method, type(self.method)(), "")
        where = ["--model", self.model, "--out", self.home]
        return ["efface", "erase", self.method.name, *plain, *where, *kinds, *flags]

    def shell(self) -> str:
        """:meth:`command` for a shell."""
        return shlex.join(self.command())

    def python(self) -> str:
        """The Python that does the same."""
        start = type(self.method)()
        settings = {
            f.name: getattr(self.method, f.name)
            for f in fields(self.method)
            if getattr(self.method, f.name) != getattr(start, f.name)
        }
        lines = [
            repr(self.model),
            repr([line_of(c) for c in self.concepts]),
            *([] if self.method.name == "ap" else [f"method={self.method.name!r}"]),
            *(f"{k}={said(v)}" for k, v in settings.items()),
            f"run=efface.Run(Path({self.home!r}))",
        ]
        body = "".join(f"    {line},\n" for line in lines)
        return f"from pathlib import Path\n\nimport efface\n\nedit = efface.erase(\n{body})\n"


def said(value: Any) -> str:
    """A setting in Python."""
    if is_dataclass(value):
        own = ", ".join(f"{f.name}={said(getattr(value, f.name))}" for f in fields(value))
        return f"efface.{type(value).__name__}({own})"
    return repr(list(value) if isinstance(value, tuple) else value)


def line_of(concept: Concept) -> str:
    """A concept in a line, as the command takes it."""
    line = concept.name + (f" -> {concept.anchor}" if concept.anchor else "")
    return line + (f" | {', '.join(concept.synonyms)}" if concept.synonyms else "")


def told_settings(config: Any, start: Any, prefix: str) -> tuple[list[str], list[str]]:
    """What differs from a start, as arguments: kinds of parts, and flags.

    Args:
        prefix: before each flag's name, such as ``latents.``.
    """
    kinds: list[str] = []
    flags: list[str] = []
    for f in fields(config):
        value: Any = getattr(config, f.name)
        usual, name = getattr(start, f.name), prefix + f.name
        if value == usual:
            continue
        if is_dataclass(value):
            own: Any = type(value)
            if own is not type(usual):
                kinds.append(f"{name.replace('_', '-')}:{getattr(value, 'kind', '')}")
                usual = own()
            more = told_settings(value, usual, f"{name}.")
            kinds, flags = kinds + more[0], flags + more[1]
        else:
            flags += flag(name.replace("_", "-"), value)
    return kinds, flags


def flag(name: str, value: Any) -> Iterator[str]:
    """A setting as arguments."""
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
        return
    for x in map(str, value if isinstance(value, tuple) else (value,)):
        yield from (f"--{name}", x) if x and x[0] != "-" else (f"--{name}={x}",)


def wish_of(form: Form, places: Places) -> Wish:
    """What a form asks for.

    Raises:
        UserError: what is missing, contradicts itself, or may not be.
    """
    cls = pick(METHODS, form.method, "method")
    settings: dict[str, Any] = {"keep": split(form.keep, "keep")}
    known = cls.__dataclass_fields__
    if "updates" in known:
        settings["updates"] = whole(form.updates, "updates", 1, 10**7)
    if "seed" in known:
        settings["seed"] = whole(form.seed, "the seed", 0, 2**63 - 1)
    concepts, keep = check(concepts_of(form), settings["keep"])
    method = replace(cls(), **{**settings, "keep": keep})
    model = places.model(form.model)
    where = form.folder.strip()
    if where:
        where = places.told(places.run(where))
    return Wish(method, concepts, model, where)


def concepts_of(form: Form) -> list[Concept]:
    """The concepts of a form.

    Raises:
        UserError: none, too many, or synonyms and an anchor for several.
    """
    lines = [clean(x, "concept") for x in form.names.splitlines()]
    found = [parse(x) for x in lines if x]
    if not found:
        raise UserError("Name what is to be removed first.")
    if len(found) > MANY:
        raise UserError(
            f"got {len(found)} concepts; this page takes {MANY}, the command any number."
        )
    also, anchor = split(form.synonyms, "synonyms"), one(form.anchor, "anchor")
    if (also or anchor) and len(found) > 1:
        raise UserError(
            "Several concepts: write “name -> anchor | synonym, synonym”, a line each, and leave "
            "the boxes for synonyms and anchor empty."
        )
    if also or anchor:
        c = found[0]
        found = [Concept(c.name, anchor or c.anchor, c.kind, (*c.synonyms, *also), c.pool)]
    return listed(found)


def split(text: str, what: str) -> tuple[str, ...]:
    """Words with commas or line ends between them."""
    parts = re.split(f"[{COMMAS}\n]", text)
    return tuple(dict.fromkeys(p for p in (clean(x, what) for x in parts) if p))


def whole(value: Any, what: str, low: int, high: int) -> int:
    """A whole number that somebody typed.

    Raises:
        UserError: something else, or out of range.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or value != value or value in (float("inf"), float("-inf")) or value != int(value):
        raise UserError(f"got {written(value)} for {what}; a whole number is needed.")
    if not low <= value <= high:
        raise UserError(f"got {value:g} for {what}; {low:,} to {high:,} is needed.")
    return int(value)


def written(value: Any) -> str:
    """What somebody typed, as a message says it."""
    return "nothing" if value in (None, "") else repr(value)


def number(value: Any, what: str, low: float, high: float) -> float:
    """A number that somebody typed.

    Raises:
        UserError: something else, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UserError(f"got {written(value)} for {what}; {low:g} to {high:g} is needed.")
    return float(value)


def wish_in(folder: Path, places: Places) -> Wish:
    """What a run's folder was asked for.

    Raises:
        UserError: no run of ours, or of a model that this page may not open.
    """
    found = record(folder)
    told = {**found["run"], "folder": places.told(folder), "typed": found.get("command", ())}
    wish = Wish.from_json(told)
    return wish if wish.model in MODELS else replace(wish, model=places.model(wish.model))


def holds(wish: Wish, places: Places) -> bool:
    """Whether a wish's folder holds its own run, or none that can be read."""
    home = places.run(wish.home)
    if not (home / RECORD).exists():
        return True
    try:
        return wish_in(home, places).about() == wish.about()
    except UserError:  # damaged, or of a model that vanished: whoever opens it says so
        return True


def form_of(wish: Wish) -> Form:
    """A form that asks for the same, as far as a form can.

    A folder that is named by what is in the form is left out: it changes with that.
    """
    one = wish.concepts[0] if len(wish.concepts) == 1 else None
    return Form(
        one.name if one else "\n".join(map(line_of, wish.concepts)),
        ", ".join(one.synonyms) if one else "",
        one.anchor if one else "",
        ", ".join(wish.method.keep),
        wish.model,
        wish.method.name,
        wish.updates or UPDATES,
        getattr(wish.method, "seed", 0),
        "" if wish.folder == replace(wish, folder="").home else wish.folder,
    )
