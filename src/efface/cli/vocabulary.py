"""``efface vocabulary``: the candidates for preservation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from efface.cli.opening import OfModel, Opening, opened
from efface.cli.terminal import Json, parsed
from efface.concepts import parse
from efface.errors import escaped
from efface.settings import Range
from efface.vocabularies import load as load_vocabulary


@dataclass(frozen=True)
class Options:
    """Which words."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[WORDS]")] = "auto"
    """auto, names, tags, nouns, styles, people, tokens, a word list file, or "words: fox, sky"."""
    concept: tuple[str, ...] = ()
    """Leave out what asks for this concept, and list the nearest to the first one."""
    nearest: Annotated[int, Range(0)] = 20
    """How many are listed, 0 or more; 0: all."""
    opening: OfModel = Opening()
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface vocabulary``."""
    o = parsed(Options, args, "efface vocabulary")
    concepts = [parse(c) for c in o.concept]
    model = opened(o.opening)
    words = load_vocabulary(o.source, model, concepts).without(concepts, model.tokenizer)
    most = min(o.nearest, len(words)) or len(words)
    if concepts:
        words = words.pool(model, concepts[0], 0, most, "nearest")
    listed = words.words[:most]
    print(json.dumps({"source": words.source, "words": listed}, indent=1)) if o.json else print(
        "\n".join(map(escaped, listed))
    )
    return 0
