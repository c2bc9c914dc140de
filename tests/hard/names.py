"""Hostile names in every place of the report, the figures and the model card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from xml.etree import ElementTree

import yaml

from efface.errors import escaped
from efface.names import clean
from hard.inputs import said
from hard.places import NAMES, Result, clothes

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)' x='",
    "]]>--><svg/onload=alert(1)>",
    "$\\frac{x$ & $y_$",
    "$x^$ and $\\no$",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &#60;i&#62;",
    "a: b # c",
    "`code` **bold** [x](javascript:alert(1))",
    "- item",
    "\u202egnp.exe",
    "null",
    "~",
    "| cell | cell |",
    "emoji \U0001f469\u200d\U0001f4bb",
    "x" * 900,
    "../../etc/passwd",
    "%s %(x)s {0}",
)
"""Names that a careless page would take for something else."""
CODE = re.compile(r"^```.*?^```$|(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL | re.MULTILINE)
"""In Markdown: what is shown as it is."""


class Made(NamedTuple):
    """What the commands made of some names."""

    page: str
    svg: str
    card: str
    model: str


def made(place: Path, names: Sequence[str], folder: str) -> Made:
    """Erase some of the names of a model, look at the others, and write a page, a figure, a card.

    Args:
        folder: name of the model's folder, which is in the card, too.

    Raises:
        AssertionError: a command ended otherwise than well.
    """
    place.mkdir()
    model = clothes(place / folder, names)
    concepts = [{"name": names[0], "anchor": names[9], "synonyms": [names[8]]}]
    concepts += [{"name": names[1]}, {"name": names[4]}]
    (place / "concepts.json").write_text(json.dumps(concepts))
    run, out = str(place / "run"), str(place / "out")
    erase = ("erase", "uce", "--concepts-file", str(place / "concepts.json"), "--out", run)
    with patch.dict(os.environ, {"EFFACE_CACHE": str(place / "cache")}):
        for args in (
            (*erase, "--model", str(model), "--no-picture"),
            ("sensitivity", run, "--latents", "2"),
            ("score", run, "--pictures", "1"),
            ("report", run, "--pictures", "1"),
            ("merge", run, out),
        ):
            found = said(args)
            assert found.code == 0, found
    return Made(
        (place / "run" / "report.html").read_text(encoding="utf8"),
        next((place / "run").glob("sensitivity*.svg")).read_text(encoding="utf8"),
        (place / "out" / "README.md").read_text(encoding="utf8"),
        str(model),
    )


class Parts(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.values: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.add((tag, *(k for k, _ in attrs)))
        self.values += [str(v) for _, v in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.found.add(("comment", data))


def in_page(found: str, plain: str, names: Sequence[str]) -> Iterator[str]:
    """What is wrong with a page beside one of plain names."""
    parts, known = Parts(found), Parts(plain)
    for more in sorted(parts.found - known.found):
        yield f"the page has {more[0]!r} with {more[1:]} from a name"
    if any(v.strip().lower().startswith("javascript:") for v in parts.values):
        yield "the page has a script for an address"
    for n in names:
        if escaped(n) not in parts.text:
            yield f"the page does not show {n[:40]!r} as it is"
    if escaped(found.replace("\n", "")) != found.replace("\n", ""):
        yield "the page holds what cannot be seen"


def in_figure(found: str, plain: str) -> Iterator[str]:
    """What is wrong with a figure beside one of plain names."""
    try:
        tags, known = ({e.tag for e in ElementTree.fromstring(x).iter()} for x in (found, plain))
    except ElementTree.ParseError as e:
        yield f"the figure is no XML: {e}"
        return
    for more in sorted(tags - known):
        yield f"the figure has {more!r} from a name"
    hidden = [c for c in found if c not in "\n\t" and escaped(c) != c]
    if hidden:
        yield f"the figure holds {hidden[0]!a}"


def in_card(found: str, plain: str, model: str) -> Iterator[str]:
    """What is wrong with a card beside one of plain names."""
    (front, body), (known, other) = (x.split("\n---\n", 1) for x in (found, plain))
    try:
        told = yaml.safe_load(front)
    except yaml.YAMLError as e:
        yield f"the card's front matter is no YAML: {' '.join(str(e).split())}"
    else:
        if told != {**yaml.safe_load(known), "base_model": model}:
            yield f"the card's front matter says {told}"
    prose, usual = (CODE.sub("", x) for x in (body, other))
    if re.search(r"<[A-Za-z/!?]", prose):
        yield "the card has an element from a name"
    if re.search(r"(?<!\\)\]\(", prose):
        yield "the card has a link from a name"
    for mark in (r"^#+ ", r"^- ", r"^\|", r"^```"):
        if len(re.findall(mark, prose, re.MULTILINE)) != len(re.findall(mark, usual, re.MULTILINE)):
            yield f"the card has more lines like {mark}"


def campaign(place: Path, seed: int, short: bool) -> Iterator[tuple[str, Result]]:
    """All hostile names at once, beside as many plain ones."""
    names = tuple(dict.fromkeys(clean(n, "name") for n in HOSTILE))
    usual = (*NAMES, *(f"thing {i}" for i in range(len(names) - len(NAMES))))
    plain = made(place / "plain", usual, "model")
    bad = made(place / "hostile", names, "a: b # `c` <i>d</i> $x$ 'e'")
    shown = (*names[:3], names[4])
    for what, wrong in (
        ("report", in_page(bad.page, plain.page, shown)),
        ("figure", in_figure(bad.svg, plain.svg)),
        ("model card", in_card(bad.card, plain.card, bad.model)),
    ):
        yield what, Result(len(names), [("silent", w) for w in wrong])
