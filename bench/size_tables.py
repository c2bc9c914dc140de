"""The tables of what ``bench/size.py`` and ``bench/gpu.sh`` measured, for ``docs/size.md``.

:func:`put` brings the tables of all benchmarks into their pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any


def put(text: str, mark: str, made: str) -> str:
    """A page with something between ``<!-- mark -->`` and ``<!-- /mark -->``, each on a line.

    Raises:
        ValueError: the page has no such place.
    """
    start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    head, begun, rest = text.partition(start)
    _, ended, tail = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"the page has no place {mark!r}.")
    return f"{head}{start}{made}\n{end}{tail}"


def table(found: Mapping[str, Any]) -> str:
    """The rows of a machine."""
    base = found["rows"].get("diffusers' LoRA step", {})
    lines = [
        f"{found['machine']}: {about(found)}. Medians.",
        "",
        "| | seconds | times a LoRA step | evaluations, forward / backward | peak, GB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found["rows"].items():
        if "failed" in row:
            lines.append(f"| {name} | failed: {row['failed']} | | | |")
            continue
        s = median(row["seconds"])
        times = "" if "seconds" not in base or "concepts" in row else s / median(base["seconds"])
        counts = f"{row['forward']:g} / {row['backward']:g}" if "forward" in row else ""
        peak = "" if row["peak"] is None else f"{row['peak'] / 1e9:.1f}"
        shown = f"{times:.2f}" if times else ""
        lines.append(f"| {name} | {s:.2f} | {shown} | {counts} | {peak} |")
    return "\n".join(lines)


SHOWN = ("diffusers' LoRA step", "ap", "ap, checkpointing", "esd")
"""What has a column of its own in the table of a GPU."""


def gpu_tables(folder: Path) -> str:
    """What ``bench/gpu.sh`` wrote into a folder: the updates, the other rows, whole trainings."""
    every = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    near = {k: v["loss"] for k, v in every.pop("parity")["parity"].items()}
    first = next(iter(every.values()))
    lines = [
        f"{first['machine']}, torch {first['torch']}, by `bench/gpu.sh`. Medians of five updates, "
        "in seconds; AP preserves as many rows as it erases, the batch.",
        "",
        "| | LoRA step | ap | ap, checkpointing | esd | by a LoRA step: ap | checkpointing | "
        "peak, GB: LoRA step | ap | ap's plan | ap, checkpointing | esd | by a LoRA step: ap | "
        "checkpointing |",
        "| --- |" + " ---: |" * 13,
        *(updates(x) for x in every.values() if "ap" in x["rows"]),
    ]
    others: dict[str, dict[str, Any]] = {}
    for found in every.values():
        for name, row in found["rows"].items():
            what = about(found)
            own = what.rpartition(", batch")[0] if "update" in row else what  # their own batches
            others |= {} if name in SHOWN else {f"{name}, {own}": row}
    lines += ["", "| | seconds | peak, GB |", "| --- | ---: | ---: |"]
    for name, row in others.items():
        if "update" not in row and "failed" not in row:
            lines.append(f"| {name} | {median(row['seconds']):.2f} | {row['peak'] / 1e9:.1f} |")
    lines += [
        "",
        "| whole trainings | updates | seconds | before the second update | an update | a scoring "
        "of the candidates | its share | forward / backward | peak, GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(training(name, row) for name, row in others.items() if "update" in row),
    ]
    told = ", ".join(f"{k} {v:.1%}" for k, v in near.items() if v)
    return "\n".join([*lines, "", f"Losses of a short training, from the CPU's in fp32: {told}."])


def updates(found: Mapping[str, Any]) -> str:
    """A file's updates, a row."""
    rows = found["rows"]
    s = {n: median(rows[n]["seconds"]) for n in SHOWN if "seconds" in rows.get(n, {})}
    peak = {n: rows[n]["peak"] / 1e9 for n in s}
    base, us, light, esd = SHOWN

    def beside(x: Mapping[str, float]) -> list[str]:
        return [f"{x[n] / x[base]:.2f}" if base in x and n in x else "" for n in (us, light)]

    plan = rows.get(us, {}).get("plan", 0) / 1e9
    told = [peak.get(base), peak.get(us), plan, peak.get(light), peak.get(esd)]
    cells = [f"{s[n]:.3f}" if n in s else "" for n in SHOWN] + beside(s)
    cells += [f"{x:.1f}" if x else "" for x in told] + beside(peak)
    return f"| {about(found)} | {' | '.join(cells)} |"


def training(name: str, row: Mapping[str, Any]) -> str:
    """A whole training, a row."""
    once = row.get("scoring")
    share = once and once / (once + row["refresh"] * row["update"])
    seen = f"{once:.2f} | {share:.0%}" if once else " | "
    return (
        f"| {name} | {row['updates']} | {row['seconds'][0]:.0f} | {row['before']:.1f} | "
        f"{row['update']:.3f} | {seen} | {row['forward']} / {row['backward']} | "
        f"{row['peak'] / 1e9:.1f} |"
    )


def about(found: Mapping[str, Any]) -> str:
    """The settings of a file, in words."""
    plain = ", without SDPA" if found["attention"] == "plain" else ""
    return (
        f"{found['arch']}, {found['size']} pixels, {found['dtype']}, batch {found['batch']}"
        f"{plain}{', compiled' if found['compile'] else ''}"
    )


def written(text: str, folder: Path) -> str:
    """The page with the tables of the machines that there are."""
    made = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    parts = [table(x) for x in made]
    on_gpus = [gpu_tables(x) for x in sorted(folder.iterdir()) if (x / "parity.json").exists()]
    if not on_gpus:
        parts.append("Not yet measured on a GPU.")
    return put(text, "size", "\n\n".join(parts + on_gpus))
