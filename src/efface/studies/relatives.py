"""Who is hurt when one concept goes: its relatives, unrelated concepts, or any?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from efface.concepts import Concept
from efface.methods.esd import ESD
from efface.reporting.figures import OTHER, panels, svg
from efface.scores import Score, grouped_mean, paired_difference
from efface.seeds import generator
from efface.studies.lab import Lab
from efface.studies.similarity import cosines

ERASED = ("church", "wolf", "beer mug")
GROUPS = ("related", "unrelated", "random")


def run(
    lab: Lab, erased: tuple[str, ...] = ERASED, updates: int = 60, n: int = 8
) -> dict[str, Any]:
    """ESD without preservation, one concept at a time; what three groups of concepts lose.

    Source: arXiv:2410.15618, figure 1a.
    """
    edits, rows = [], []
    for name in erased:
        edit = lab.edit(ESD(updates=updates), [Concept(name)])
        edits.append(edit)
        related = lab.protocol.near([name])
        others = [w for w in lab.names if w != name and w not in related]
        near = cosines(lab.model, [name], others)[0].abs()
        unrelated = [others[i] for i in near.argsort()[: len(related)].tolist()]
        g = generator(0, "relatives")
        some = torch.randperm(len(others), generator=g)[: 2 * len(related)].tolist()
        for group, words in zip(
            GROUPS, (related, unrelated, [others[i] for i in some]), strict=True
        ):
            lost = lab.lost(edit, words, n)
            before, after = (lab.seen(e, words, n) for e in (None, edit))
            for i, word in enumerate(lost.words):
                rows.append(
                    {
                        "erased": name,
                        "group": group,
                        "word": word,
                        "clip": [round(float(x), 3) for x in lost.draws[:, i]],
                        "before": before.of([word]).packed()[0],
                        "after": after.of([word]).packed()[0],
                    }
                )
    return {**lab.about(edits), "pictures": n, "updates": updates, "rows": rows}


def groups(found: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """What each group lost, with intervals over concepts like these."""
    result = {}
    for group in GROUPS:
        rows = [r for r in found["rows"] if r["group"] == group]
        which = torch.tensor([i for i, r in enumerate(rows) for _ in r["clip"]])
        flat = {
            k: torch.tensor([x for r in rows for x in r[k]], dtype=torch.float64)
            for k in ("clip", "before", "after")
        }
        result[group] = {
            "judge": paired_difference(flat["before"], flat["after"], which),
            "clip": grouped_mean(flat["clip"], which, "concepts"),
        }
    return result


def figure(found: Mapping[str, Any]) -> str:
    """Two panels: points of recognition, and of CLIP score, that each group lost."""
    told = groups(found)
    drawing, axes = panels(8, 3.2, 2)
    names = {"judge": "points of recognition lost", "clip": "points of CLIP score lost"}
    for ax, (key, label) in zip(axes, names.items(), strict=True):
        s = [told[g][key] for g in GROUPS]
        ax.bar(GROUPS, [x.value for x in s], color=OTHER)
        ax.vlines(range(len(s)), *zip(*(x.ends for x in s), strict=True), color="#111")
        ax.set_ylabel(label)
    return svg(drawing)


def words(found: Mapping[str, Any]) -> str:
    """The result in words."""
    told = groups(found)
    erased = list(dict.fromkeys(r["erased"] for r in found["rows"]))
    parts = [
        f"{g} ones {told[g]['judge']} points of recognition and {told[g]['clip'].said(2)} of "
        "CLIP score"
        for g in GROUPS
    ]
    return (
        f"Each of {', '.join(erased)} was erased alone by ESD, {found['updates']} updates, nothing "
        f"preserved. Other concepts lost, with {found['pictures']} pictures each: "
        f"{'; '.join(parts)}."
    )
