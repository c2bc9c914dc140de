"""What several studies share: the same erasure with one thing varied, scored alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efface.concepts import Concept
from efface.reporting.figures import OTHER, OURS, panels, svg
from efface.scores import Score, concept_rate, paired_difference
from efface.studies.lab import Lab
from efface.training import Tuning

ERASED = ("church", "wolf", "beer mug")


@dataclass(frozen=True)
class Choice:
    """One value of what is varied."""

    label: str
    method: Any
    """None: the unedited model."""
    pool: tuple[str, ...] = ()
    """Words that may be preserved; empty: the method's own vocabulary."""


def run(
    lab: Lab,
    choices: Callable[[int], Sequence[Choice]],
    seeds: int,
    erased: Sequence[str] = ERASED,
    gone: int = 20,
    kept: int = 1,
    others: Sequence[str] = (),
) -> dict[str, Any]:
    """Erase, and judge pictures, for every choice and seed.

    Args:
        choices: of a seed.
        gone: pictures of each erased concept and seed.
        kept: pictures of each other concept and seed.
        others: those; none: all that the judge knows.
    """
    rows, edits = [], []
    others = list(others) or [n for n in lab.names if n not in erased]
    for seed in range(seeds):
        for c in choices(seed):
            edit = None
            if c.method is not None:
                method = seeded(c.method, seed)
                edit = lab.edit(method, [Concept(e, pool=c.pool) for e in erased])
            sees = {
                "gone": lab.seen(edit, erased, gone, gone * seed).packed(),
                "kept": lab.seen(edit, others, kept, kept * seed).packed(),
            }
            cost = edit.meta["cost"] if edit else {"forward": 0, "backward": 0}
            rows.append({"label": c.label, "seed": seed, **sees, "cost": cost})
            edits += [edit] if edit else []
    return {
        **lab.about(edits),
        "erased": list(erased),
        "others": others,
        "near": list(lab.protocol.near(erased)),
        "rows": rows,
    }


def seeded(method: Any, seed: int) -> Any:
    """A method with another seed; a closed form has none."""
    if not isinstance(method, Tuning):
        return method
    return replace(method, seed=seed)


def labels(found: Mapping[str, Any]) -> list[str]:
    """The choices in order."""
    return list(dict.fromkeys(r["label"] for r in found["rows"]))


class Hits(NamedTuple):
    """A choice's hits, picture by picture."""

    hits: Tensor
    """(N,) bool."""
    concepts: Tensor
    """An integer a concept, (N,)."""
    runs: Tensor
    """The split, which is one, and the training seed, (N, 2)."""


def hits(found: Mapping[str, Any], label: str, kind: str, k: int = 1) -> Hits:
    """Hits of a choice over all seeds.

    Args:
        kind: gone, kept or near.
    """
    names = found["erased"] if kind == "gone" else found["others"]
    flat: list[int] = []
    which: list[int] = []
    runs: list[tuple[int, int]] = []
    for r in sorted(found["rows"], key=lambda r: r["seed"]):
        if r["label"] == label:
            own = r["gone" if kind == "gone" else "kept"][0 if k == 1 else 1]
            per = len(own) // len(names)
            for i, name in enumerate(names):
                if kind != "near" or name in found["near"]:
                    flat += own[i * per : (i + 1) * per]
                    which += [i] * per
                    runs += [(0, r["seed"])] * per
    return Hits(torch.tensor(flat, dtype=torch.bool), torch.tensor(which), torch.tensor(runs))


def score(found: Mapping[str, Any], label: str, kind: str, k: int = 1) -> Score:
    """ESR-k (``gone``) or PSR-k (``kept``, ``near``) of a choice."""
    h = hits(found, label, kind, k)
    return concept_rate(~h.hits if kind == "gone" else h.hits, h.concepts, h.runs)


def difference(found: Mapping[str, Any], a: str, b: str, kind: str = "kept") -> Score:
    """PSR-1 (ESR-1 for ``gone``) of choice ``a`` minus that of ``b``, paired by picture."""
    x, y = (hits(found, label, kind) for label in ((b, a) if kind == "gone" else (a, b)))
    return paired_difference(x.hits, y.hits, x.concepts, x.runs)


def table(found: Mapping[str, Any], what: str) -> str:
    """All choices, in Markdown."""
    columns = {"ESR-1": ("gone", 1), "ESR-5": ("gone", 5), "PSR-1": ("kept", 1)}
    if found["near"]:
        columns["PSR-1 of neighbours"] = ("near", 1)
    head = [what, *columns, "evaluations per run"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for label in labels(found):
        costs = [r["cost"] for r in found["rows"] if r["label"] == label]
        spent = sum(c["forward"] + c["backward"] for c in costs) / len(costs)
        cells = [str(score(found, label, *kind)) for kind in columns.values()]
        lines.append(f"| {' | '.join([label, *cells, f'{spent:,.0f}'])} |")
    return "\n".join(lines)


def figure(found: Mapping[str, Any]) -> str:
    """ESR-1 and PSR-1 of every choice, with intervals."""
    names = labels(found)
    drawing, axes = panels(10, 0.35 * len(names) + 1.2, 2, sharey=True)
    for ax, kind, colour in zip(axes, ("gone", "kept"), (OURS, OTHER), strict=True):
        s = [score(found, n, kind) for n in names]
        ax.plot([x.value for x in s], range(len(s)), "o", color=colour)
        ax.hlines(range(len(s)), *zip(*(x.ends for x in s), strict=True), color=colour)
        ax.set_xlabel("ESR-1, %" if kind == "gone" else "PSR-1, %")
        ax.set_yticks(range(len(s)), names)
    axes[0].invert_yaxis()
    return svg(drawing)


def intro(found: Mapping[str, Any]) -> str:
    """What was done, in words."""
    seeds = len({r["seed"] for r in found["rows"]})
    return (
        f"{', '.join(found['erased'])} erased at once, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}; the judge looked at "
        f"{len(found['rows'][0]['kept'][0])} pictures of {len(found['others'])} other concepts "
        "for each seed."
    )
