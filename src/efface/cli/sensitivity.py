"""``efface sensitivity``: which concepts an erasure harms, or will harm."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from efface.cli.opening import Jobs, OfModel, Opening, Ray, crew, opened
from efface.cli.terminal import Json, Place, Text, makeable, parsed, show
from efface.concepts import Concept, check, few, parse
from efface.edits.edit import Edit
from efface.errors import UserError, escaped, pick
from efface.evaluation.answers import Sensitivity, read
from efface.evaluation.bound import Forecast, forecast
from efface.evaluation.parts import Desk, Part, Share, here, kept
from efface.evaluation.references import erased_by
from efface.evaluation.sensitivity import (
    INSTRUMENTS,
    PROXIES,
    Look,
    Moved,
    agreement,
    suggested,
    text_states,
)
from efface.evaluation.tasks import every
from efface.models import DiffusionModel
from efface.models.identity import identity
from efface.names import one
from efface.reporting.figures import sensitivity as figure
from efface.scores import Score
from efface.settings import Range, to_json
from efface.storage import VERSION, cache_folder, make_folder, write_text
from efface.vocabularies import load as load_vocabulary
from efface.vocabulary import Vocabulary

MANY = 2000
"""Words above which nobody waits for the prediction instrument unasked."""


@dataclass(frozen=True)
class Options:
    """Of which edit, by which instruments, over which words."""

    run: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")
    ] = ""
    """A run's folder or an edit file. Without one, name what you mean to erase by --concept: a
    cheap proxy edit then says what will be harmed."""
    concept: tuple[str, ...] = ()
    """What is to be erased (again for more)."""
    anchor: Text = ""
    """What it is to be steered to. Default: the null prompt."""
    proxy: Annotated[str, tyro.conf.arg(metavar="{steps,closed-form}")] = "steps"
    """The edit that stands for the real one before it exists: steps (ten updates), or
    closed-form."""
    instrument: tuple[str, ...] = ()
    """prediction, closed-form or picture (again for more); the first one ranks. Default:
    prediction and closed-form where the edit allows it; for thousands of words closed-form
    alone."""
    vocabulary: str = "auto"
    """Which words: auto, names, tags, nouns, styles, people, tokens, the path of a word list, or
    "words: fox, sky"."""
    latents: Annotated[int, Range(1, 1000)] = 8
    """prediction: latents that all words share, 1 to 1,000."""
    pictures: Annotated[int, Range(1, 10_000)] = 4
    """picture: pictures of each word, 1 to 10,000, before and after; seeds from 0 on."""
    clip: Text = ""
    """picture: a CLIP by path or hub id. Default: the shipped one, for the shipped model only."""
    top: Annotated[int, Range(1, 10**6)] = 20
    """Words in the table, 1 to 1,000,000."""
    jobs: Jobs = 1
    ray: Ray = None
    opening: OfModel = Opening()
    out: Place = None
    """Folder of sensitivity.json and sensitivity.svg. Default: the run's folder."""
    json: Json = False
    """Print the result as JSON."""


def command(args: list[str]) -> int:
    """``efface sensitivity [RUN]``."""
    o = parsed(Options, args, "efface sensitivity")
    for name in o.instrument:
        pick(INSTRUMENTS, name, "instrument")
    pick(PROXIES, o.proxy, "proxy")
    crew(o.jobs, o.ray)
    if o.clip and "picture" not in o.instrument:
        raise UserError("--clip is for --instrument picture alone: leave it out, or add that.")
    out = o.out or (Path(o.run) if o.run and Path(o.run).is_dir() else None)
    if out is not None:
        makeable(out)
    model, edit, concepts = looked_at(o)
    words = load_vocabulary(o.vocabulary, model, concepts).without(concepts, model.tokenizer)
    words = words.pool(model, concepts[0], 0, 0, "nearest")
    if len(words) < 3:
        raise UserError(
            f"the vocabulary ({words.source}) holds {len(words)} other words; 3 or more."
        )
    share = sharing(o, model, edit)
    names = instruments(o, model, edit, len(words))
    found = [looked(name, o, model, edit, words, share) for name in names]
    ahead = forecast(model, concepts, words.words)
    told = summary(o, edit, concepts, found, ahead) | {"question": asked(o, names, words)}
    drawn = None
    if out is not None:
        svg = figure(found[0], similarity(model, concepts, words), named(concepts), o.top)
        usual = instruments(replace(o, instrument=()), model, edit, len(words))
        drawn = keep(out, told, svg, plain=told["question"] == asked(Options(), usual, words))
    if o.json:
        print(json.dumps(told, indent=1))
        return 0
    tell(found, told, o.top)
    if ahead is not None:
        print(ahead.said)
    if drawn is not None:
        print(f"\n{drawn}")
    return 0


def looked_at(o: Options) -> tuple[DiffusionModel, Edit, list[Concept]]:
    """The model, the edit or its proxy, and what it erases.

    Raises:
        UserError: neither a run nor a concept, or both; concepts that contradict each other; or a
            run that erased nothing.
    """
    if o.run:
        if o.concept or o.anchor:
            raise UserError("give either a run, or --concept to look ahead; not both.")
        edit = Edit.load(Path(o.run))
        concepts = erased_by(edit)
        model = opened(o.opening, edit)
        edit.check(model)
        return model, edit, concepts
    if not o.concept:
        raise UserError(
            "name a run, or what you mean to erase: efface sensitivity --concept church."
        )
    anchor = one(o.anchor, "anchor")
    given = [parse(c) for c in o.concept]
    given = [replace(c, anchor=c.anchor or anchor) for c in given]
    check(given)  # before a model is opened, whose tokenizer has the last word
    model = opened(o.opening)
    concepts = list(check(given, tokenizer=model.tokenizer)[0])
    return model, PROXIES[o.proxy]().erase(model, concepts), concepts


def instruments(o: Options, model: DiffusionModel, edit: Edit, words: int) -> Sequence[str]:
    """Those asked for; else the two that need no pictures, where they apply."""
    if o.instrument:
        return tuple(dict.fromkeys(o.instrument))
    if edit.gates or not any(n in edit.weights for n in model.text_maps()):
        return ("prediction",)
    return ("closed-form",) if words > MANY else ("prediction", "closed-form")


def looked(
    name: str, o: Options, model: DiffusionModel, edit: Edit, words: Vocabulary, share: Share
) -> Moved:
    """What one instrument says."""
    home = Path(o.run) if o.run and Path(o.run).is_dir() else None
    look = Look(model, edit, words.words, o.latents, o.pictures, home, o.clip, share)
    return INSTRUMENTS[name](look)


def sharing(o: Options, model: DiffusionModel, edit: Edit) -> Share:
    """Who does the work, which goes on where it was killed."""
    workers = crew(o.jobs, o.ray).for_a(model.device)
    device = str(model.device)
    desk = Desk(model.name, o.opening.dtype, device, o.opening.size, replace(edit, base=None))
    alone = here(model, edit)

    def share(parts: Sequence[Part]) -> Iterable[tuple[Part, Tensor]]:
        if workers.alone or len(parts) < 2:
            return alone(parts)
        return every(workers, desk, parts, "parts of the instruments")

    def folder() -> Path:
        told = [VERSION, identity(model), edit.digest, device, torch.get_num_threads()]
        name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        return cache_folder() / "parts" / name

    return kept(share, folder)


def named(concepts: Sequence[Concept]) -> str:
    """The erased concepts in words."""
    return escaped(few([c.name for c in concepts]))


@torch.no_grad()
def similarity(
    model: DiffusionModel, concepts: Sequence[Concept], words: Vocabulary
) -> list[float]:
    """The largest cosine of each word's text state to an erased concept's."""
    mine = text_states(model, [c.name for c in concepts]).float().flatten(1)
    others = text_states(model, words.words, cache_folder()).float().flatten(1)
    near = (
        torch.nn.functional.normalize(others, dim=1) @ torch.nn.functional.normalize(mine, dim=1).T
    )
    found: list[float] = near.amax(1).tolist()
    return found


def summary(
    o: Options,
    edit: Edit,
    concepts: Sequence[Concept],
    found: Sequence[Moved],
    ahead: Forecast | None,
) -> dict[str, Any]:
    """All of it, as JSON."""
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    return {
        "erased": [c.name for c in concepts],
        "edit": edit.digest,
        "method": edit.meta["method"] if o.run else f"proxy {o.proxy}",
        "before_the_edit": not o.run,
        "instruments": [m.to_json() for m in found],
        "agreement": {
            f"{a.instrument} / {b.instrument}": agreement(a, b).to_json() for a, b in pairs
        },
        "keep": suggested(found),
        "forecast": ahead and to_json(ahead),
    }


def asked(o: Options, names: Sequence[str], words: Vocabulary) -> dict[str, Any]:
    """What is asked of an edit: all that decides the answer but the edit, and the usual left out.

    Args:
        names: of the instruments.
    """
    listed = hashlib.sha256(json.dumps(words.words).encode()).hexdigest()[:16]
    of = {
        "latents": o.latents if o.latents != Options.latents and "prediction" in names else 0,
        "pictures": o.pictures if o.pictures != Options.pictures and "picture" in names else 0,
        "clip": o.clip,
        "dtype": "" if o.opening.dtype == "fp32" else o.opening.dtype,
        "size": o.opening.size,
        "words": "" if o.vocabulary == "auto" else listed,
    }
    return {"instruments": list(names), **{k: v for k, v in of.items() if v}}


def keep(out: Path, told: dict[str, Any], svg: str, plain: bool) -> Path:
    """Write the result and its figure; those of other questions, or of another edit, stay.

    Args:
        plain: it is the question that is asked where nothing is said.

    Returns:
        The figure's path.
    """
    make_folder(out)
    question, more = told["question"], []
    if not plain:
        said = json.dumps(question, sort_keys=True)
        own = [hashlib.sha256(said.encode()).hexdigest()[:8]] if len(question) > 1 else []
        more = [*question["instruments"], *own]
    path = out / f"{'-'.join(['sensitivity', *more])}.json"
    if of_another(path, told["edit"]):
        path = path.with_name(f"{path.stem}-{told['edit']}.json")
    write_text(path, json.dumps(told, indent=1) + "\n")
    write_text(path.with_suffix(".svg"), svg)
    return path.with_suffix(".svg")


def of_another(path: Path, edit: str) -> bool:
    """Whether a result is there, and is about another edit."""
    try:
        return bool(read(Sensitivity, path, "sensitivity").get("edit", edit) != edit)
    except UserError:  # none, or a damaged one
        return False


def tell(found: Sequence[Moved], told: dict[str, Any], top: int) -> None:
    """Table and words on stdout."""
    first, rest = found[0], found[1:]
    place = [{m.words[w]: k for k, w in enumerate(m.order(), 1)} for m in rest]
    plain = first.few  # too few draws for an interval

    def harm(i: int) -> str:
        return f"{float(first.harm[i]):.2f}" if plain else first.score(i).said(2)

    rows = [
        [str(k), first.words[i], harm(i), *(str(p[first.words[i]]) for p in place)]
        for k, i in enumerate(first.order()[:top], 1)
    ]
    unit = first.unit if plain else f"{first.unit} [95 %]"
    show(rows, ["rank", "word", unit, *(f"rank by {m.instrument}" for m in rest)])
    print()
    for m in found:
        stable = m.stability()
        if stable is not None:
            print(f"rank stability of {m.instrument}: {stable.said(2)}, {stable.n} words")
    for names, s in told["agreement"].items():
        print(f"agreement {names}: {Score(**s).said(2)}")
    when = "will be" if told["before_the_edit"] else "is"
    flags = " ".join(f"--keep {shlex.quote(w)}" for w in told["keep"])
    if told["keep"]:
        worst = escaped(", ".join(told["keep"]))
        print(f"Harmed most {when}: {worst}. To protect them: {escaped(flags)}")
