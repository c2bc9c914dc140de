"""The report: one self-contained HTML page about one or more runs."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.concepts import few
from efface.edits.edit import Edit
from efface.errors import escaped
from efface.evaluation.bound import Forecast
from efface.evaluation.protocols import Protocol
from efface.evaluation.samples import Wanted
from efface.reporting.attacked import sensitive
from efface.reporting.figures import strength_curve
from efface.scores import Score
from efface.settings import from_json
from efface.storage import ASSETS, VERSION

TEMPLATE = ASSETS / "report.html.j2"
SOME = 20
"""Erased concepts of which pictures are shown."""
SHOWN = 4
"""Pictures of a concept in a grid."""


def percent(hits: Sequence[int]) -> float:
    """Mean of 0 and 1, in percent."""
    return 100 * sum(hits) / len(hits)


def hurt(concepts: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Names in order of how much their recognition fell, most first."""
    fall = {
        n: percent(concepts[n]["unedited"][0]) - percent(concepts[n]["edited"][0]) for n in names
    }
    return sorted(names, key=lambda n: (-fall[n], n))


def summary(found: Mapping[str, Any], erased: Sequence[str], others: Sequence[str]) -> list[str]:
    """The result in words."""

    def of(side: str, key: str) -> Score:
        return Score(**found[side][key])

    def share(s: Score, unit: str = "%") -> str:
        return str(s).replace(" ", f" {unit} ", 1)

    gone, was = of("edited", "ESR-1"), of("unedited", "ESR-1")
    lines = [
        f"Erased: {few(erased)}. Of {gone.n} pictures that ask for it, the judge does not "
        f"name it in {share(gone)}; without the edit in {share(was)}."
    ]
    if others:
        kept, before = of("edited", "PSR-1"), of("unedited", "PSR-1")
        change, concepts = Score(**found["difference"]["PSR-1"]), found["concepts"]
        pictures = sum(len(concepts[n]["edited"][0]) for n in others)
        lines.append(
            f"Of {pictures} pictures of {len(others)} other concepts, {share(kept)} still show "
            f"what they should; without the edit {share(before)}: a change of "
            f"{share(change, 'points')}."
        )
        worst = [
            n
            for n in hurt(concepts, others)[:5]
            if percent(concepts[n]["edited"][0]) < percent(concepts[n]["unedited"][0])
        ]
        lines.append(
            f"Hurt most: {', '.join(worst)}." if worst else "No other concept is recognised less."
        )
    return lines


def run_part(
    title: str,
    edit: Edit,
    found: Mapping[str, Any],
    folders: tuple[Path, Path],
    protocol: Protocol,
    commands: Sequence[str],
    others_found: Sequence[Mapping[str, Any]] = (),
    sensitivity: Sequence[tuple[Mapping[str, Any], Path]] = (),
    curve: Mapping[float, Mapping[str, Score]] | None = None,
    attacks: Sequence[Mapping[str, Any]] = (),
    ahead: str = "",
) -> dict[str, Any]:
    """What the page says of one run.

    Args:
        found: of ``efface score``.
        folders: of the unedited pictures, and of the edited ones.
        others_found: of ``efface score --protocol``.
        sensitivity: of ``efface sensitivity``, each with its figure.
        curve: scores by the edit's strength.
        attacks: of :func:`efface.reporting.attacked.attacked`.
        ahead: what no edit could do, in a line (:mod:`efface.evaluation.bound`).
    """
    concepts, erased = found["concepts"], list(found["erased"])
    others = [n for n in concepts if n not in erased]
    near = [n for n in protocol.near(erased) if n in concepts]
    order = hurt(concepts, others)
    moved = [n for n in order if concepts[n]["edited"][0] != concepts[n]["unedited"][0]]
    worst = [n for n in moved if n not in near][:6]
    fine = [n for n in reversed(order) if n not in near and n not in worst][:6]

    def shown(name: str) -> dict[str, Any]:
        wanted = [
            Wanted(p, s, name)
            for p in protocol.prompts(name)
            for s in range(min(SHOWN, found["pictures"]))
        ][:SHOWN]
        was, now = (percent(concepts[name][k][0]) for k in ("unedited", "edited"))
        return figure(name, f"{was:.0f} → {now:.0f} % named", wanted, folders)

    blocks = [("Erased", erased[:SOME]), ("Neighbours, worst hurt first", hurt(concepts, near)[:6])]
    blocks += [("Worst hurt of all others", worst), ("Least touched", fine)]
    return {
        **whatever(title, edit, commands, others_found, sensitivity, attacks),
        "summary": [*summary(found, erased, others), *([ahead] if ahead else [])],
        "scores": scores(found),
        "blocks": [
            {"title": t, "figures": [shown(n) for n in names]} for t, names in blocks if names
        ],
        "bars": [
            {
                "name": n,
                "erased": n in erased,
                "before": percent(concepts[n]["unedited"][0]),
                "after": percent(concepts[n]["edited"][0]),
            }
            for n in (*erased, *moved[:40])
        ],
        "unchanged": len(others) - len(moved),
        "strengths": strengths(curve) if curve else None,
        "protocol": f"{protocol.name} {protocol.digest}, {found['pictures']} "
        f"picture{'s' * (found['pictures'] != 1)} a concept, {found['sampler']}",
        "judge": found["judge"],
    }


def unjudged(
    title: str,
    edit: Edit,
    blocks: Mapping[str, Mapping[str, str]],
    seeds: int,
    folders: tuple[Path, Path],
    sampler: str,
    commands: Sequence[str],
    others_found: Sequence[Mapping[str, Any]] = (),
    sensitivity: Sequence[tuple[Mapping[str, Any], Path]] = (),
    attacks: Sequence[Mapping[str, Any]] = (),
    ahead: str = "",
) -> dict[str, Any]:
    """What the page says of a run whose model no judge scores: pictures, and what else is known.

    Args:
        blocks: prompts by the title that they stand under, each with what is said of it.
        seeds: pictures of each.
        sampler: how they are drawn, in words.
        folders, commands, others_found, sensitivity, attacks, ahead: as of :func:`run_part`.
    """
    erased = few([c["name"] for c in edit.meta["concepts"]])
    said = (
        f"Erased: {erased}. No judge names what this model draws, so there is no ESR and no PSR: "
        "look at the pictures, the same seeds before and after. A folder that brings a protocol "
        "and a judge is scored."
    )
    return {
        **whatever(title, edit, commands, others_found, sensitivity, attacks),
        "summary": [said, *([ahead] if ahead else [])],
        "scores": {},
        "blocks": [
            {
                "title": t,
                "figures": [
                    figure(p, note, [Wanted(p, s, p) for s in range(seeds)], folders)
                    for p, note in prompts.items()
                ],
            }
            for t, prompts in blocks.items()
            if prompts
        ],
        "protocol": f"none, {seeds} picture{'s' * (seeds != 1)} a prompt, {sampler}",
        "judge": "none",
    }


def figure(
    name: str, note: str, wanted: Sequence[Wanted], folders: tuple[Path, Path]
) -> dict[str, Any]:
    """Pictures of a concept, before and after."""
    before, after = ([encoded(f / w.file) for w in wanted] for f in folders)
    blurred = sensitive([name])
    return {"name": name, "note": note, "blurred": blurred, "before": before, "after": after}


def whatever(
    title: str,
    edit: Edit,
    commands: Sequence[str],
    others_found: Sequence[Mapping[str, Any]],
    sensitivity: Sequence[tuple[Mapping[str, Any], Path]],
    attacks: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the page says of every run, see :func:`run_part`."""
    cost = edit.meta["cost"]
    took = f"{edit.spent['seconds']:.0f} s, " if "seconds" in edit.spent else ""
    return {
        "title": title,
        "cost": f"{took}{cost['forward']:,} forward and {cost['backward']:,} "
        f"backward evaluations of the network; "
        f"{sum(w.numel() for w in edit.weights.values()):,} weights changed.",
        "commands": list(commands),
        "extra": [extra(x) for x in others_found],
        "attacks": list(attacks),
        "sensitivity": [{"said": sensed(s), "figure": encoded(path)} for s, path in sensitivity],
        "model": edit.meta["model"],
        "base": edit.meta["base"],
        "digest": edit.digest,
    }


SHOWN_SCORES = ("ESR-1", "ESR-5", "PSR-1", "PSR-5")
"""Columns of the strengths' table, of those that were measured."""


def strengths(curve: Mapping[float, Mapping[str, Score]]) -> dict[str, Any]:
    """The scores by strength, as a table and as a figure."""
    names = [k for k in SHOWN_SCORES if all(k in scores for scores in curve.values())]
    rows = [{"s": f"{s:g}", "scores": [str(found[k]) for k in names]} for s, found in curve.items()]
    figure = base64.b64encode(strength_curve(curve).encode()).decode()
    return {"names": names, "rows": rows, "figure": figure}


def sensed(found: Mapping[str, Any]) -> str:
    """What the instruments say, in words."""
    first, lines = found["instruments"][0], []
    worst = [f"{w} ({Score(**s).said(2)})" for w, s in list(first["intervals"].items())[:8]]
    lines.append(
        f"By {first['instrument']}, of {len(first['words'])} words these moved most, "
        f"in {first['unit']}: {', '.join(worst)}."
    )
    for m in found["instruments"]:
        if m.get("stability"):
            lines.append(f"Rank stability of {m['instrument']}: {Score(**m['stability']).said(2)}.")
    lines += [
        f"Agreement {k}: {Score(**v).said(2)}." for k, v in found.get("agreement", {}).items()
    ]
    if found.get("forecast"):
        lines.append(from_json(Forecast, found["forecast"]).said)
    return " ".join(lines)


def extra(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of another protocol's scores; a curve of NER apart."""
    rows = [{"name": k, "said": str(Score(**v)), **v} for k, v in found["scores"].items()]
    return {
        "protocol": found["protocol"],
        "prompts": found.get("prompts", 0),
        "curve": [r for r in rows if r["name"].startswith("NER-")],
        "scores": [r for r in rows if not r["name"].startswith("NER-")],
    }


def scores(found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Scores as the table has them."""
    return {
        k: {
            "edited": str(Score(**v)),
            "unedited": str(Score(**found["unedited"][k])) if k in found["unedited"] else "",
            "difference": str(Score(**found["difference"][k])) if k in found["difference"] else "",
            "n": Score(**v).drawn,
        }
        for k, v in found["edited"].items()
    }


def encoded(path: Path) -> str:
    """A picture file for a data address."""
    return base64.b64encode(path.read_bytes()).decode()


def seen(value: Any) -> Any:
    """What the page shows of a value: nothing in a text hides."""
    return escaped(value) if type(value) is str else value  # not what is markup already


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """The whole page; it needs nothing from outside."""
    from jinja2 import Environment

    env = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=seen)
    return env.from_string(TEMPLATE.read_text(encoding="utf8")).render(
        runs=runs, version=VERSION, date=datetime.date.today().isoformat()
    )
