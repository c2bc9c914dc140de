"""Does erasing under one kind of recall hold against attacks of another kind?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.evaluation.attacks import Attack, Attacked
from efface.evaluation.attacks.completion import Completion
from efface.evaluation.attacks.img2img import Img2Img
from efface.evaluation.attacks.inversion import Inversion
from efface.evaluation.attacks.relearn import Relearn
from efface.evaluation.attacks.rephrase import Rephrase
from efface.evaluation.attacks.states import TextStates
from efface.evaluation.references import References
from efface.evaluation.trial import Court, Row, tried
from efface.evaluation.verdicts import scored
from efface.methods.twofold import Twofold
from efface.reporting.figures import panels, svg
from efface.scores import Score, concept_rate
from efface.settings import checked, read_json, to_json
from efface.storage import write_text
from efface.studies.lab import Lab
from efface.training import Method
from efface.training.recall import Recall

UNEDITED = "(unedited)"
NOTHING = "nothing (AP)"
OFF = Recall(states=False, tokens=False, latents=False)
TRAINED: Mapping[str, Recall] = {
    NOTHING: OFF,
    "text states": replace(OFF, states=True),
    "token vector": replace(OFF, tokens=True),
    "latent": replace(OFF, latents=True),
    "all three": Recall(),
}
"""What is erased under besides the name."""
TESTED: Sequence[Attack] = (
    Rephrase(),
    Inversion(),
    TextStates(),
    Completion(),
    Img2Img(),
    Relearn(),
)
"""With the settings of ``efface attack``, a channel each."""
DRAWN, KEPT = "its name", "other names"
"""Columns without an attack."""


def run(
    lab: Lab,
    updates: int = 400,
    seeds: int = 1,
    split: str = "1",
    attacks: Sequence[Attack] = TESTED,
    redraws: int = 4,
    gone: int = 20,
    method: Twofold = Twofold(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Train under each kind of recall, attack by every channel; a cell is kept once it is known.

    Args:
        split: whose concepts are erased, all at once: 4 for development, 1 for the result.
        redraws: pictures of everything that an attack finds.
        gone: pictures of each erased name without an attack, per seed.
    """
    erased = list(lab.protocol.erased(split))
    tested = {a.name: {"channel": a.channel, "at": a.headline} for a in attacks}
    rows, edits = [], []
    for train, recall in TRAINED.items():
        for seed in range(seeds):
            one = replace(method, recall=recall, updates=updates, seed=seed)
            edit = lab.edit(one, [Concept(n) for n in erased])
            edits.append(edit)
            if train == NOTHING and not seed:  # the concepts as an edit names them, and no edit
                rows.append(measured(lab, edit, None, one, attacks, redraws, gone) | {"seed": 0})
            found = measured(lab, edit, edit, one, attacks, redraws, gone)
            rows.append({**found, "train": train, "seed": seed, "cost": edit.meta["cost"]})
    about = {"split": split, "erased": erased, "updates": updates, "seeds": seeds}
    return {**lab.about(edits), **about, "redraws": redraws, "tests": tested, "rows": rows}


def measured(
    lab: Lab,
    record: Edit,
    edit: Edit | None,
    method: Method,
    attacks: Sequence[Attack],
    redraws: int,
    gone: int,
) -> dict[str, Any]:
    """All cells of an edit.

    Args:
        record: says what was erased.
        edit: what is attacked; None: the unedited model.
    """
    names = [c["name"] for c in record.meta["concepts"]]
    others = [n for n in lab.names if n not in names]
    seed = getattr(method, "seed", 0)
    plain = {
        DRAWN: lab.seen(edit, names, gone, gone * seed).packed()[0],
        KEPT: lab.seen(edit, others, 1, seed).packed()[0],
    }
    cells = {a.name: cell(lab, record, edit, a, redraws) for a in attacks}
    return {"train": UNEDITED, "names": names, "plain": plain, "cells": cells}


def cell(
    lab: Lab, record: Edit, edit: Edit | None, attack: Attack, redraws: int
) -> list[dict[str, Any]]:
    """The rows of one attack on every erased concept, from its file or made and put there."""
    about = {
        "edit": edit.digest if edit else "",
        "erased": list(record.meta["concepts"]),
        "base": lab.model.base,
        "judge": f"{lab.judge.version} {lab.judge.sha256}",
        "protocol": lab.protocol.digest,
        "attack": [attack.name, to_json(attack)],
        "redraws": redraws,
    }
    path = lab.place(f"attack-{attack.name}", about) / "cell.json"
    if not path.exists():
        court = Court(lab.judge, lab.protocol, range(1_000_000, 1_000_000 + redraws))
        references = References(lab.model, record, court, lab.names)
        rows = [
            replace(row, artefact={})
            for concept in references.concepts
            for row in tried(attack, given(lab, edit, references, concept, attack), court)
        ]
        write_text(path, json.dumps([asdict(r) for r in rows]) + "\n")
    found: list[dict[str, Any]] = read_json(path, "cell of the study")
    return found


def given(
    lab: Lab, edit: Edit | None, references: References, concept: Concept, attack: Attack
) -> Attacked:
    """What an attack is given."""
    pictures = None
    if "pictures" in attack.needs:
        pictures = references.pictures(concept, attack.wanted())
    return Attacked(
        lab.model,
        edit,
        concept,
        prompts=references.prompts(concept),
        pictures=pictures,
        words=lab.names,
        guidance=lab.protocol.guidance,
        steps=lab.protocol.steps,
    )


def score(found: Mapping[str, Any], train: str, test: str) -> Score | None:
    """Percent of pictures that show the erased concept (of other names: what they ask for)."""
    mine = [r for r in found["rows"] if r["train"] == train]
    if test in (DRAWN, KEPT):
        n = len(found["erased"]) if test == DRAWN else 0
        hits = [h for r in mine for h in r["plain"][test]]
        per = len(hits) // len(mine) // n if n else 1
        each = len(hits) // len(mine)
        which = torch.arange(each) // per
        runs = [(0, r["seed"]) for r in mine for _ in range(each)]
        return concept_rate(torch.tensor(hits), which.repeat(len(mine)), torch.tensor(runs))
    rows = [checked(Row, x, "a cell") for r in mine for x in r["cells"][test]]
    at = found["tests"][test]["at"]
    return scored([r for r in rows if r.at == at or not at])


def values(found: Mapping[str, Any]) -> dict[tuple[str, str], Score | None]:
    """Every cell of the table."""
    trained = list(dict.fromkeys(r["train"] for r in found["rows"]))
    tests = [DRAWN, *found["tests"], KEPT]
    return {(a, b): score(found, a, b) for a in trained for b in tests}


def figure(found: Mapping[str, Any]) -> str:
    """The cross table, the darker the more is shown."""
    cells = values(found)
    trained, tests = (list(dict.fromkeys(k[i] for k in cells)) for i in (0, 1))
    numbers = [[s.value if (s := cells[a, b]) else float("nan") for b in tests] for a in trained]
    drawing, (axes,) = panels(1.2 * len(tests) + 2.5, 0.5 * len(trained) + 1.2)
    axes.imshow(numbers, vmin=0, vmax=100, cmap="Reds", aspect="auto")
    axes.set_xticks(range(len(tests)), [headed(found, b) for b in tests], rotation=20)
    axes.set_yticks(range(len(trained)), trained)
    axes.set_ylabel("erased under")
    axes.grid(False)
    for i, row in enumerate(numbers):
        for j, x in enumerate(row):
            said = "–" if x != x else f"{x:.0f}"
            axes.text(j, i, said, ha="center", va="center", color="white" if x > 60 else "black")
    return svg(drawing)


def headed(found: Mapping[str, Any], test: str) -> str:
    """What heads a column."""
    about = found["tests"].get(test)
    if about is None:
        return test
    return f"{test}@{about['at']}" if about["at"] else test


def words(found: Mapping[str, Any]) -> str:
    """The result in words, and as a table."""
    cells = values(found)
    trained, tests = (list(dict.fromkeys(k[i] for k in cells)) for i in (0, 1))
    head = ["erased under", *(headed(found, b) for b in tests)]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for a in trained:
        told = [str(s) if (s := cells[a, b]) else "–" for b in tests]
        lines.append(f"| {' | '.join([a, *told])} |")
    seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
    return (
        f"{', '.join(found['erased'])} (split {found['split']}) erased at once, "
        f"{found['updates']} updates, {seeds}; percent of pictures that show the erased concept, "
        f"{found['redraws']} of everything that an attack found, and of other names what they ask "
        f"for. {compared(found, cells)}\n\n" + "\n".join(lines)
    )


def compared(found: Mapping[str, Any], cells: Mapping[tuple[str, str], Score | None]) -> str:
    """What each kind of recall changed: in its own channel, and in those it never saw."""
    said = []
    for train in TRAINED:
        if train == NOTHING:
            continue
        change = {
            test: s.value - base.value
            for test in found["tests"]
            if (s := cells[train, test]) and (base := cells[NOTHING, test])
        }
        own = [x for t, x in change.items() if found["tests"][t]["channel"] == train]
        rest = [x for t, x in change.items() if found["tests"][t]["channel"] != train]
        parts = []
        if own:
            parts.append(f"{sum(own) / len(own):+.1f} points in its own channel")
        if rest:
            where = "in the mean of the others" if own else "in the mean of all"
            parts.append(f"{sum(rest) / len(rest):+.1f} {where}")
        said.append(f"{train}: {' and '.join(parts)}")
    return f"Against AP, erased under {'; '.join(said)} (less is better)."
