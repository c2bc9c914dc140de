"""``efface score``: ESR and PSR of an edit beside the unedited model's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from efface.cli.opening import OfModel, Opening, opened
from efface.cli.runfolder import slug
from efface.cli.terminal import Json, Place, Text, parsed, show
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.evaluate import evaluate, judge_for, own_protocol, pictures, sampler_of
from efface.evaluation.measure import measure, wanted_of
from efface.evaluation.metrics import psr_difference, table
from efface.evaluation.protocols import Protocol
from efface.evaluation.protocols import load as load_protocol
from efface.models import DiffusionModel
from efface.scores import Score
from efface.settings import Range
from efface.storage import cache_folder, write_text


@dataclass(frozen=True)
class Options:
    """What is scored, and how."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = "unedited"
    """A run's folder, an edit file, or ``unedited`` for the base model."""
    opening: OfModel = Opening()
    pictures: Annotated[int, Range(1, 10_000)] = 4
    """Pictures of each concept, 1 to 10000; seeds from 0 on."""
    concept: tuple[str, ...] = ()
    """Score only these preserved concepts (again for more). Default: all that the judge knows."""
    steps: Annotated[
        int | None, Range(1, 10_000), tyro.conf.arg(metavar="INT", help_behavior_hint="")
    ] = None
    """Sampling steps, 1 to 10000. Default: the protocol's, or the model's."""
    protocol: Text = ""
    """A shipped protocol, or a JSON file; one whose prompts come from a file needs --prompts.
    Default: the one in the model's folder, or emoji-objects."""
    prompts: Place = None
    """A CSV of prompts and seeds, or a wheel or zip file that holds the protocol's."""
    limit: Annotated[int, Range(0), tyro.conf.arg(help_behavior_hint="")] = 0
    """Only so many prompts of the file, the first, 0 or more. 0, the default: all."""
    clip: Text = ""
    """A CLIP for the CLIP score of a protocol with --prompts, by path or hub id. Default: the
    shipped tiny one, for emoji."""
    json: Json = False
    """Print the result as JSON."""


FROM_FILE = ("prompts", "limit", "clip")
"""Options of protocols whose prompts come from a file."""
OF_JUDGE = ("pictures", "concept", "steps")
"""Options of the others."""


def command(args: list[str]) -> int:
    """``efface score RUN``."""
    o = parsed(Options, args, "efface score")
    edit = None if o.run == "unedited" else Edit.load(Path(o.run))
    asked = load_protocol(o.protocol) if o.protocol else None
    if asked is not None:  # before the model is opened
        check_options(o, asked)
    model = opened(o.opening, edit)
    own = protocol_for(model)
    protocol = asked or own
    check_options(o, protocol)
    if edit is not None:
        edit.check(model)  # before anything is drawn
    other = protocol.source or protocol.digest != own.digest
    where = question(o.opening, o.steps, protocol.name if other else "")
    folder = folder_of(o.run, edit, where)
    if protocol.source:
        return measured(o, model, edit, protocol, folder, where)
    erased = [c["name"] for c in edit.meta["concepts"]] if edit else []
    found = scored(model, edit, erased, o.concept, o.pictures, o.steps, folder, protocol)
    if o.concept:
        where += f"-of-{slug(o.concept)}"
    keep(o.run, edit, where, found)
    if o.json:
        print(json.dumps({k: v for k, v in found.items() if k != "concepts"}, indent=1))
        return 0
    print_scores(found)
    return 0


def protocol_for(model: DiffusionModel) -> Protocol:
    """The model's own protocol."""
    return own_protocol(model)


def check_options(o: Options, protocol: Protocol) -> None:
    """Refuse options that nothing would read.

    Raises:
        UserError: names the option; or --prompts is missing.
    """
    if protocol.source and o.prompts is None:
        raise UserError(
            f"the protocol {protocol.name!r} reads its prompts from a file "
            f"({protocol.source['file']}): give --prompts FILE."
        )
    plain = {f.name: f.default for f in fields(o)}
    for name in OF_JUDGE if protocol.source else FROM_FILE:
        if getattr(o, name) != plain[name]:
            kind = "reads its prompts from" if protocol.source else "reads no prompts from"
            raise UserError(
                f"--{name} does nothing here: the protocol {protocol.name!r} {kind} a file; "
                "leave it out."
            )


def question(o: Opening, steps: int | None, protocol: str) -> str:
    """What sets these pictures and scores apart from a run's plain ones, for file names; or "".

    Scores of different questions stand side by side.
    """
    parts = [slug([protocol])] if protocol else []
    parts += [o.dtype] if o.dtype != "fp32" else []
    parts += [f"{o.size}px"] if o.size else []
    parts += [f"{steps}steps"] if steps else []
    return "".join(f"-{p}" for p in parts)


def keep(run: str, edit: Edit | None, where: str, found: dict[str, Any]) -> None:
    """Write scores into the run's folder, if it is one."""
    if edit and Path(run).is_dir():
        write_text(Path(run) / f"scores{where}.json", json.dumps(found, indent=1) + "\n")


def measured(
    o: Options,
    model: DiffusionModel,
    edit: Edit | None,
    protocol: Protocol,
    folder: Path | None,
    where: str,
) -> int:
    """Score by a protocol whose prompts come from a file."""
    assert o.prompts is not None
    wanted = wanted_of(protocol, o.prompts, o.limit)
    scores = measure(model, edit, folder, protocol, wanted, o.clip)
    told = {
        "protocol": f"{protocol.name} {protocol.digest}",
        "prompts": len(wanted),
        "scores": {k: s.to_json() for k, s in scores.items()},
    }
    if o.limit:
        where += f"-first-{o.limit}"
    keep(o.run, edit, where, told)
    print(json.dumps(told, indent=1)) if o.json else show(
        [[k, str(s), str(s.n)] for k, s in scores.items()], [protocol.name, "score [95 %]", "n"]
    )
    return 0


def folder_of(run: str, edit: Edit | None, where: str = "") -> Path | None:
    """Where the edit's pictures go.

    Args:
        where: of :func:`question`.
    """
    if edit is None:
        return None
    path = Path(run)
    own = path / "samples" if run and path.is_dir() else cache_folder() / "edits" / edit.digest
    return own.with_name(own.name + where)


def scored(
    model: DiffusionModel,
    edit: Edit | None,
    erased: Sequence[str],
    only: Sequence[str],
    n: int,
    steps: int | None,
    folder: Path | None,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Scores of an edit beside the unedited model's, as JSON.

    Args:
        only: the preserved concepts; none: the protocol's.
        n: pictures of each prompt.
        protocol: None: the model's own.
    """
    protocol = protocol or own_protocol(model)
    judge = judge_for(model, protocol)
    for c in (*erased, *only):
        judge.label(c, protocol.head, protocol.labels)
    others = only or protocol.others(erased, judge.concept_names)
    concepts = list(dict.fromkeys([*erased, *others]))
    if edit:  # a synonym of what is erased is no preserved concept
        also = {s for c in edit.meta["concepts"] for s in c["synonyms"]}
        concepts = [c for c in concepts if c not in also]
    wanted, near = pictures(protocol, concepts, range(n)), protocol.near(erased)
    base = evaluate(model, None, None, wanted, judge, protocol, steps)
    result: dict[str, Any] = {
        "protocol": f"{protocol.name} {protocol.digest}",
        "judge": f"{judge.version} {judge.sha256}",
        "pictures": n,
        "sampler": sampler_of(model, protocol, steps),
        "erased": list(erased),
        "unedited": {k: s.to_json() for k, s in table(base, erased, near).items()},
    }
    if edit:
        seen = evaluate(model, edit, folder, wanted, judge, protocol, steps)
        result["edited"] = {k: s.to_json() for k, s in table(seen, erased, near).items()}
        others = [c for c in concepts if c not in set(erased)]
        result["difference"] = {
            f"PSR-{k}": psr_difference(seen, base, others, k).to_json() for k in (1, 5)
        }
        result["concepts"] = {
            c: {"unedited": base.of([c]).packed(), "edited": seen.of([c]).packed()}
            for c in concepts
        }
    return result


def print_scores(found: dict[str, Any]) -> None:
    """Scores as a table."""
    edited = found.get("edited", found["unedited"])
    rows = []
    for k, v in edited.items():
        s, row = Score(**v), [k]
        row += [str(s), str(Score(**found["unedited"][k])) if "edited" in found else ""]
        d = found.get("difference", {}).get(k)
        rows.append([*row, str(Score(**d)) if d else "", str(s.n)])
    show(
        rows,
        [
            "percent [95 %]",
            "edited" if "edited" in found else "unedited",
            "unedited",
            "difference",
            "n",
        ],
    )
