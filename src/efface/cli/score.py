"""``efface score``: ESR and PSR of an edit beside the unedited model's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from efface.cli.terminal import parsed, show
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.evaluate import evaluate, judge_for, own_protocol, pictures, sampler_of
from efface.evaluation.measure import measure, wanted_of
from efface.evaluation.metrics import psr_difference, table
from efface.evaluation.protocols import Protocol
from efface.evaluation.protocols import load as load_protocol
from efface.models import DiffusionModel, load
from efface.scores import Score
from efface.storage import cache_folder, write_text


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored, and how."""

    run: tyro.conf.Positional[str] = "unedited"
    """A run's folder, an edit file, or ``unedited`` for the base model."""
    model: str = ""
    """The base model; default: the one that the edit was made for."""
    pictures: int = 4
    """Pictures of each concept, seeds 0, 1, …"""
    concept: tuple[str, ...] = ()
    """Score only these preserved concepts (again for more); default: all that the judge knows."""
    steps: int | None = None
    """Sampling steps; default: the model's."""
    protocol: str = ""
    """A shipped protocol, or a JSON file; one whose prompts come from a file needs --prompts.
    Default: the one in the model's folder, or emoji-objects."""
    prompts: Path | None = None
    """A CSV of prompts and seeds, or a wheel or zip file that holds the protocol's."""
    limit: int = 0
    """Only the first so many prompts of the file; 0: all."""
    clip: str = ""
    """A CLIP for the CLIP score, by path or hub id; default: the shipped tiny one, for emoji."""
    json: bool = False
    """Print the result as JSON."""


def score(args: list[str]) -> int:
    """``efface score RUN``."""
    o = parsed(ScoreOptions, args, "efface score")
    if o.pictures < 1:
        raise UserError(f"got {o.pictures} pictures a concept; at least 1 is needed.")
    edit = None if o.run == "unedited" else Edit.load(Path(o.run))
    model = load(o.model or (edit.meta["model"] if edit else "emoji"))
    own = own_protocol(model)
    protocol = load_protocol(o.protocol) if o.protocol else own
    if protocol.source:
        return measured(o, model, edit, protocol)
    erased = [c["name"] for c in edit.meta["concepts"]] if edit else []
    folder, name = folder_of(o.run, edit), "scores.json"
    if folder and protocol.digest != own.digest:
        folder, name = folder.with_name(f"samples-{protocol.name}"), f"scores-{protocol.name}.json"
    found = scored(model, edit, erased, o.concept, o.pictures, o.steps, folder, protocol)
    if edit and Path(o.run).is_dir():
        text = json.dumps(found, indent=1) + "\n"
        write_text(Path(o.run) / name, text)
    if o.json:
        print(json.dumps({k: v for k, v in found.items() if k != "concepts"}, indent=1))
        return 0
    print_scores(found)
    return 0


def measured(o: ScoreOptions, model: DiffusionModel, edit: Edit | None, protocol: Protocol) -> int:
    """Score by a protocol whose prompts come from a file."""
    if o.prompts is None:
        raise UserError(
            f"the protocol {protocol.name!r} reads its prompts from a file "
            f"({protocol.source['file']}): give --prompts FILE."
        )
    wanted = wanted_of(protocol, o.prompts, o.limit)
    folder = folder_of(o.run, edit)
    scores = measure(
        model,
        edit,
        folder and folder.with_name(f"samples-{protocol.name}"),
        protocol,
        wanted,
        o.clip,
    )
    told = {
        "protocol": f"{protocol.name} {protocol.digest}",
        "prompts": len(wanted),
        "scores": {k: s.to_json() for k, s in scores.items()},
    }
    if edit and Path(o.run).is_dir():
        text = json.dumps(told, indent=1) + "\n"
        path = Path(o.run) / f"scores-{protocol.name}.json"
        write_text(path, text)
    print(json.dumps(told, indent=1)) if o.json else show(
        [[k, str(s), str(s.n)] for k, s in scores.items()], [protocol.name, "score [95 %]", "n"]
    )
    return 0


def folder_of(run: str, edit: Edit | None) -> Path | None:
    """Where the edit's pictures go."""
    if edit is None:
        return None
    path = Path(run)
    return path / "samples" if path.is_dir() else cache_folder() / "edits" / edit.digest


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
