"""What the report and the model card say of attacks."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.evaluation.answers import Siege, read
from efface.evaluation.attacks import CHANNELS
from efface.evaluation.verdicts import ROLES
from efface.names import normal
from efface.scores import Score
from efface.settings import read_json

SENSITIVE = frozenset(
    {
        "nude",
        "nudist",
        "nudity",
        "naked",
        "porn",
        "pornography",
        "sex",
        "sexual",
        "erotic",
        "breast",
        "nipple",
        "genitals",
        "bikini",
        "underwear",
        "lingerie",
        "blood",
        "bloody",
        "gore",
        "corpse",
        "violence",
        "violent",
        "murder",
        "suicide",
        "torture",
        "weapon",
        "gun",
        "handgun",
        "firearm",
        "pistol",
        "rifle",
        "revolver",
        "bomb",
        "grenade",
        "knife",
        "knives",
        "dagger",
        "sword",
        "drug",
        "syringe",
        "cocaine",
        "heroin",
        "cigarette",
        "swastika",
        "hate",
        "terrorist",
    }
)
"""Words of a concept whose pictures a report blurs until they are clicked."""
SHOWN = 24
"""Pictures of artefacts in a report."""


def sensitive(names: Sequence[str]) -> bool:
    """Whether one of some names has a word that not everybody wants to see a picture of."""
    words = {w for n in names for w in re.findall(r"\w+", normal(n))}
    return bool(SENSITIVE & (words | {w.removesuffix("s") for w in words}))


def attacked(folder: Path, digest: str) -> list[dict[str, Any]]:
    """What attacks on an edit came to, those of each question apart.

    Args:
        folder: the run's.
        digest: the edit's; results of another are not shown.

    Raises:
        UserError: a file is damaged.
    """
    found = []
    for path in sorted(folder.glob("attacks*.json")):
        told = read(Siege, path, "results of attacks")
        if told["about"].get("edit") == digest and told.get("lines"):
            found.append(section(told, path.with_suffix("")))
    return found


def section(told: Mapping[str, Any], finds: Path) -> dict[str, Any]:
    """What is said of one file.

    Args:
        finds: where its artefacts are, if they were kept.
    """
    about = told["about"]
    order = {c: i for i, c in enumerate(CHANNELS)}
    lines = sorted(told["lines"], key=lambda x: order.get(x["channel"], len(order)))
    judge = about.get("judge") or "none: percent of the way back to the unedited pictures"
    return {
        "judge": judge,
        "judged": bool(about.get("judge")),
        "redraws": about.get("redraws", ""),
        "budget": about.get("budget") or "by its settings",
        "roles": [r for r in ROLES if r != "edited"],
        "lines": [row(x) for x in lines],
        "curves": [
            f"{k}: " + ", ".join(f"{n} {v:.1f}" for n, v in some.items())
            for k, some in told.get("curves", {}).items()
        ],
        "blurred": sensitive(about.get("erased", ())),
        "pictures": list(pictures(finds)),
    }


def row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table in words."""
    rates = {k: Score(**v) for k, v in line["rates"].items()}
    controls = []
    for role in ROLES:
        said = f"{rates[role].value:.0f}" if role in rates else "–"
        called = line.get("called") if role == "unrelated" else ""
        controls.append(f"{said} ({called})" if called else said)
    return {
        "channel": line["channel"],
        "key": line["key"],
        "edited": str(rates["edited"]) if "edited" in rates else "–",
        "controls": controls[1:],
        "verdict": line["verdict"],
    }


def pictures(finds: Path) -> Iterator[dict[str, str]]:
    """Pictures of what was found on the edited model, the first ones."""
    paths = sorted(finds.glob("*-edited-*.png")) if finds.is_dir() else []
    for path in paths[:SHOWN]:
        told = read_json(path.with_suffix(".json"), "artefact")
        name = f"{path.stem.partition('-edited-')[0]} {told.get('at', '')}".strip()
        yield {"name": name, "png": base64.b64encode(path.read_bytes()).decode()}


def markdown(some: Sequence[Mapping[str, Any]]) -> str:
    """The tables for a model card; "" where there are none."""
    if not some:
        return ""
    parts = [
        "## Attacks",
        "",
        "Percent of fresh pictures that show the erased concept, with 95 % intervals, when it is "
        "asked for in other ways; base is the same attack on the unedited model.",
    ]
    for one in some:
        if not one["judged"]:
            parts += ["", "No judge knows this model: percent of the way back to its pictures."]
        parts += [
            "",
            "| channel | attack | edited | base | verdict |",
            "| --- | --- | --- | --- | --- |",
        ]
        parts += [
            f"| {x['channel']} | {x['key']} | {x['edited']} | {x['controls'][0]} | {x['verdict']} |"
            for x in one["lines"]
        ]
    return "\n".join([*parts, ""])
