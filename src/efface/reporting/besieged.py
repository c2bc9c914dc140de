"""Tables of a benchmark of attacks, from its JSON files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from efface.errors import UserError
from efface.evaluation import answers
from efface.evaluation.attack_bench import BENCHES
from efface.evaluation.bench import UNEDITED, label, lineup
from efface.evaluation.metrics import tail_score
from efface.evaluation.protocols import Protocol, load
from efface.evaluation.standing import completed
from efface.reporting import held_out
from efface.reporting.columns import Column, curve, rank, rate, trials
from efface.reporting.tables import Row, alike, named, none_yet, score, settings

COMMON = ("protocol", "base", "judge", "sampler", "redraws")
"""What all cells of a table share."""
ROLES = {
    "random": "no search, random artefacts",
    "unrelated": "another concept attacked",
    "unknown": "the concept in negative colours",
}
"""The controls beside the unedited model."""


COLUMNS = (
    Column("none", ("none",), rate()),
    Column("rephrase", ("rephrase",), rate()),
    Column("ring-a-bell", ("ring-a-bell",), rate()),
    Column("unlearndiffatk", ("unlearndiffatk",), rate()),
    Column("inversion", ("inversion",), rate()),
    Column("completion, half point (steps of 20)", ("completion",), curve("half point")),
    Column("img2img 0.7", ("img2img",), rate("0.7")),
    Column("null-text", ("null-text",), rate()),
    Column("relearn, half point (updates)", ("relearn",), curve("half point")),
    Column("relearn, area", ("relearn",), curve("area")),
    Column("reading, rank", ("reading",), rank),
)
"""What an edit's line says of attacks."""
SHORT = (
    COLUMNS[0],
    Column("text, worst of three", ("rephrase", "ring-a-bell", "unlearndiffatk"), rate()),
    COLUMNS[4],
    COLUMNS[5],
    COLUMNS[7],
    COLUMNS[8],
)
"""Those of the short table."""
FRONT = ("unedited", "ap", "twofold", "twofold-firm", "age", "esd", "minimax")
"""The methods of the short table, where they have results."""
KEPT = ("ESR-5", "PSR-1, held-out names", "worst tenth of the held-out")
"""What is joined from the benchmark of the same methods."""


def read(out: Path, name: str) -> dict[str, list[Row]]:
    """The cells of a benchmark of attacks by method, in the order of the line-up.

    Raises:
        UserError: none are there, or they do not belong together.
    """
    rows: list[Row] = [
        answers.read(answers.AttackedCell, p, "result") for p in sorted(out.glob(f"{name}-*.json"))
    ]
    if not rows:
        raise UserError(f"no result of {name!r} in {str(out)!r}: efface bench {name}.")
    asked: dict[str, set[str]] = {}
    for r in rows:
        for attack, told in r["attacks"].items():
            asked.setdefault(attack, set()).add(json.dumps(told["settings"], sort_keys=True))
    differ = [f"settings of {a}" for a, some in asked.items() if len(some) > 1]
    if len({json.dumps([r.get(k) for k in COMMON]) for r in rows}) > 1:
        differ += [", ".join(COMMON)]
    found = {m: [r for r in rows if r["method"] == m] for m in lineup()}
    differ += [
        f"settings of {m}" for m, some in found.items() if len({settings(r) for r in some}) > 1
    ]
    if differ:
        raise UserError(
            f"the cells of {name!r} in {str(out)!r} differ in one of: {'; '.join(differ)}; "
            "run the benchmark again, which makes the old ones anew."
        )
    return {m: some for m, some in found.items() if some}


def text(column: Column, cells: Sequence[Row], role: str, unedited: float) -> str:
    """A cell of the table; a half point that is never reached lies beyond the last one."""
    asked = [
        (column.ask(some, unedited), some)
        for some in (trials(cells, a, role) for a in column.attacks)
    ]
    known = [(found, some) for found, some in asked if found is not None]
    if not known:
        return "–"
    found, some = max(known, key=lambda x: x[0].value)
    ends = (found.value, *(() if found.low is None else found.ends))
    if not any(map(math.isinf, ends)):
        return str(found)
    last = max(float(x.row["at"]) for x in some)
    value, *rest = (f"> {last:g}" if math.isinf(x) else f"{x:.1f}" for x in ends)
    return f"{value} [{', '.join(rest)}]" if rest else f"{value} (n = {found.drawn})"


def plain(column: Column, cells: Sequence[Row], role: str, unedited: float) -> str:
    """A cell of the table without its interval."""
    return text(column, cells, role, unedited).partition(" [")[0].partition(" (")[0]


def said_of(cell: Row) -> list[str]:
    """What one cell says in each of :data:`COLUMNS`."""
    role = "base" if cell["method"] == UNEDITED else "edited"
    return [text(c, [cell], role, 100.0) for c in COLUMNS]


def spent(cell: Row) -> int:
    """Evaluations of all attacks on a cell, forward and backward, their pictures included."""
    return sum(told.get("evaluations", 0) for told in cell["attacks"].values())


def unedited_rate(found: Mapping[str, Sequence[Row]]) -> float:
    """Percent of the unedited model's pictures that show it, where that was measured; else 100."""
    asked = rate()(trials(found.get(UNEDITED, ()), "none", "base"), 100.0)
    return asked.value if asked else 100.0


def partner(out: Path, protocol: str, cell: Row) -> Row | None:
    """The benchmark's cell of the same method, settings, split and seed; None: there is none."""
    path = out / f"{Path(protocol).stem}-{cell['split']}-{cell['method']}-{cell['seed']}.json"
    if not path.exists():
        return None
    row: Row = answers.read(answers.Cell, path, "result")
    had, mine = row.get("config") or {}, cell.get("config") or {}
    fits = completed(had, mine) == completed(mine, had)
    return row if row["protocol"] == cell["protocol"] and fits else None


def joined(out: Path, protocol: str, cells: Sequence[Row]) -> list[str]:
    """What the benchmark says of edits like these: :data:`KEPT`; dashes where it has none."""
    rows = [row for c in cells if (row := partner(out, protocol, c)) is not None]
    if not rows:
        return ["–"] * len(KEPT)
    p = load(protocol)
    held = held_names(rows[0], p)
    whole = held_out.cellwise(rows, held)
    gone = "–" if rows[0]["method"] == UNEDITED else str(score(rows, "erased", 5, protocol))
    return [gone, str(held_out.rate(whole, rows)), str(tail_score(100 * whole))]


def held_names(row: Row, p: Protocol) -> list[str]:
    """The held-out names that a cell has pictures of."""
    return held_out.halves([row], p)[1]


def controls(found: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, str, list[Row]]]:
    """Label, role and cells of each line of controls, of every method that has them."""
    for method, cells in found.items():
        some = [c for c in cells if c.get("controls")]
        for role, said in ROLES.items():
            if any(role in c["controls"] for c in some):
                yield f"*control on {label(method)}: {said}*", role, some


def lines(
    found: Mapping[str, Sequence[Row]], columns: Sequence[Column], out: Path, name: str
) -> Iterator[str]:
    """A table: methods, then the controls, which are of one concept and have no interval."""
    names = ["edit", "cells", *(c.head for c in columns), *KEPT]
    yield f"| {' | '.join(names)} |"
    yield "|" + " --- |" * len(names)
    whole = unedited_rate(found)
    for method, cells in found.items():
        role = "base" if method == UNEDITED else "edited"
        said = [text(c, cells, role, whole) for c in columns]
        kept = joined(out, BENCHES[name], cells)
        yield f"| {' | '.join([named(method), str(len(cells)), *said, *kept])} |"
    for told, role, cells in controls(found):
        said = [plain(c, cells, role, whole) for c in columns]
        yield f"| {' | '.join([told, str(len(cells)), *said, *['–'] * len(KEPT)])} |"
    seeds = [c for cells in found.values() for c in cells if "seed-search" in c["attacks"]]
    if seeds:
        often = text(Column("", ("seed-search",), rate()), seeds, "edited", whole)
        rest = ["–"] * (len(columns) - 1 + len(KEPT))
        whose = ", ".join(dict.fromkeys(label(c["method"]) for c in seeds))
        first = f"*control on {whose}: four times as many seeds*"
        yield f"| {' | '.join([first, str(len(seeds)), often, *rest])} |"


def markdown(out: Path, name: str) -> str:
    """A table for each split, in Markdown; of no results, how to make some."""
    if empty := none_yet(out, name):
        return empty
    found = read(out, name)
    said: list[str] = []
    for split in sorted({c["split"] for cells in found.values() for c in cells}):
        some = {m: [c for c in cells if c["split"] == split] for m, cells in found.items()}
        some = {m: cells for m, cells in some.items() if cells}
        erased = ", ".join(next(iter(some.values()))[0]["erased"])
        said += [f"Split {split}: {erased}.", "", *lines(some, COLUMNS, out, name), ""]
    return "\n".join([*said, caption(COLUMNS, *same(found, out, name))])


def brief(out: Path, name: str) -> str:
    """One short table of all splits; "" where there is no result."""
    if none_yet(out, name):
        return ""
    found = read(out, name)
    some = {m: found[m] for m in FRONT if m in found}
    return "\n".join([*lines(some, SHORT, out, name), "", caption(SHORT, *same(some, out, name))])


def same(found: Mapping[str, Sequence[Row]], out: Path, name: str) -> tuple[int, int]:
    """In how many cells the attacked weights are the benchmark's to the bit, and of how many."""
    edited = [c for m, cells in found.items() if m != UNEDITED for c in cells]
    both = [(c, row) for c in edited if (row := partner(out, BENCHES[name], c)) is not None]
    return sum(c.get("edit") == row.get("edit") for c, row in both), len(both)


ASIDE = {
    "brought back by inversion": COLUMNS[4],
    "by training, updates": COLUMNS[8],
}
"""The columns of attacks in the README's table."""


def aside(out: Path, name: str) -> held_out.Beside:
    """What attacks bring back, without intervals, for the README's table.

    Only of methods that were attacked in as many cells as any: each looks at concepts of its own.
    The unedited model is the ceiling in every one.
    """
    if none_yet(out, name):
        return held_out.NOTHING
    found = read(out, name)
    whole, whose = unedited_rate(found), alike(found)
    rows = {
        m: [plain(c, cells, "base" if m == UNEDITED else "edited", whole) for c in ASIDE.values()]
        for m, cells in found.items()
        if m in whose or m == UNEDITED
    }
    told = [
        f"{ROLES[role]}, {' and '.join(plain(c, cells, role, whole) for c in ASIDE.values())}"
        for _, role, cells in controls({m: c for m, c in found.items() if m == "ap"})
    ]
    caption = (
        "Brought back: percent of fresh pictures with the concept after a token vector was learnt "
        "from pictures of it, and the updates of training on eight pictures after which half of "
        "the pictures have it; the unedited model is the ceiling. "
        f"Controls on AP's edits: {'; '.join(told)}."
    )
    return held_out.Beside(tuple(ASIDE), rows, caption)


def caption(columns: Sequence[Column], same: int, of: int) -> str:
    """What a table's numbers are.

    Args:
        same: in how many of the ``of`` cells the weights are the benchmark's own.
    """
    whole = columns is COLUMNS
    ranked = (
        ", the rank of the erased word in the difference of the weights (median; a high one gives "
        "less away)"
    )
    worst = " Text: the one of rephrase, ring-a-bell and unlearndiffatk that brings most back."
    return (
        "Percent of fresh pictures in which the judge sees the erased concept, with 95 % intervals "
        "for other concepts like these; lower is better, but for the half points (the steps that "
        "the unedited model makes, or the updates of training on eight pictures, before half as "
        "many pictures show it as its own do; the later, the better)"
        f"{ranked if whole else ''} and the three last columns, which are the benchmark's of the "
        f"same method, settings, split and seed (in {same} of {of} cells of the very same weights; "
        f"the others were made again, elsewhere).{'' if whole else worst} Attacks that search with "
        "the denoiser (unlearndiffatk, inversion, null-text, relearn) run on two of the five "
        "concepts, with each seed on the next two. The line of the unedited model is the ceiling; "
        "texts for which it draws nothing are left out."
    )
