"""Fragments of HTML; whatever somebody typed, or a model is called, is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from efface.cli.plan import size, span
from efface.errors import escaped
from efface.page.jobs import State
from efface.reporting.attacked import row as cells
from efface.reporting.attacked import sensitive

PICTURES, LIVE, TAKE = "/efface/picture", "/efface/live", "/efface/take"
"""Where the page serves files."""


class Figure(NamedTuple):
    """One word with its pictures."""

    word: str
    pictures: Sequence[str]
    """Addresses, side by side."""
    note: str = ""
    labels: Sequence[str] = ()
    """What stands under each picture."""
    button: str = ""
    """Of a button under it; "": there is none."""
    role: str = ""
    """A class of CSS."""


def esc(text: object) -> str:
    """A text in which nothing is markup, and nothing hides."""
    return html.escape(escaped(str(text)), quote=True)


def address(home: str, *names: str) -> str:
    """The address of a file that the page serves."""
    return "/".join([home, *(quote(n, safe="") for n in names)])


def line(text: str, kind: str = "error") -> str:
    """One line that cannot be overlooked; "" for none."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="line {kind}" role="{role}">{esc(text)}</p>' if text else ""


def hint(text: str) -> str:
    """What stands where there is nothing yet."""
    return f'<p class="hint">{esc(text)}</p>'


def hidden(key: str) -> str:
    """Tells the page's script which run this tab is about."""
    return f'<span data-run="{esc(key)}" hidden></span>'


def heading(text: str, more: str = "") -> str:
    """A heading, with a line under it."""
    head = f"<h2>{esc(text)}</h2>" if text else ""
    return head + (f'<p class="under">{esc(more)}</p>' if more else "")


def figures(some: Iterable[Figure], veiled: bool = False, kind: str = "") -> str:
    """Words with their pictures.

    Args:
        veiled: all pictures are blurred until they are clicked; those of a word that not everybody
            wants to see are in any case.
        kind: a class of CSS.
    """
    found = "".join(figure(f, veiled or sensitive([f.word])) for f in some)
    return f'<div class="figures {kind}">{found}</div>' if found else ""


def figure(f: Figure, veiled: bool) -> str:
    """A word with its pictures."""
    parts = []
    for i, source in enumerate(f.pictures):
        label = f.labels[i] if i < len(f.labels) else ""
        alt = esc(f"{f.word}, {label}" if label else f.word)
        shown = f'<img src="{esc(source)}" alt="{alt}">'
        if veiled:
            shown = f'<button class="veil" aria-label="Show: {alt}">{shown}</button>'
        under = f'<span class="label">{esc(label)}</span>' if label else ""
        parts.append(f'<div class="picture">{shown}{under}</div>')
    note = f' <span class="note">{esc(f.note)}</span>' if f.note else ""
    button = (
        f'<button class="small" data-word="{esc(f.word)}" '
        f'aria-label="{esc(f.button)}: {esc(f.word)}">{esc(f.button)}</button>'
        if f.button
        else ""
    )
    return (
        f'<figure class="{esc(f.role)}"><div class="pictures">{"".join(parts)}</div>'
        f"<figcaption><span><b>{esc(f.word)}</b>{note}</span>{button}</figcaption></figure>"
    )


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and what they are."""
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in rows)
        + "</dl>"
    )


def plan(told: Mapping[str, Any]) -> str:
    """What an erasure will take."""
    if told["state"] == "finished":
        return facts([("Time", "none: this run is finished")])
    memory, s = told["memory"], told["seconds"]
    counts = told["evaluations"]
    n = counts["forward"]
    rows = [
        ("Time", f"about {span(s['total'])}"),
        ("Memory", f"about {size(memory['total'])}"),
        ("Evaluations", f"{n:,}"),
    ]
    if told["updates"]:
        rows.insert(1, ("Updates", f"{told['updates']:,}"))
    return facts(rows)


def bar(state: State) -> str:
    """How far a job is."""
    if state.phase == "failed":
        return line(state.said)
    told = state.said
    if state.update and state.updates and state.busy:
        told += f": {state.update:,} of {state.updates:,}"
    if state.left is not None and state.busy and state.left >= 1:
        told += f", about {span(state.left)} left"
    shown = ""
    if state.updates:
        part = 100 * min(1.0, state.update / state.updates)
        shown = (
            f'<div class="bar" role="progressbar" aria-label="progress" aria-valuenow="{part:.0f}" '
            f'aria-valuemin="0" aria-valuemax="100"><i style="width:{part:.1f}%"></i></div>'
        )
    return f'<div class="progress {esc(state.phase)}"><p>{esc(told)}</p>{shown}</div>'


def chart(
    title: str, points: Sequence[tuple[float, float]], unit: str, top: float, colour: str, x: str
) -> str:
    """A small curve.

    Args:
        top: the largest value of the axis.
        colour: a class of CSS.
        x: what runs to the right.
    """
    wide, high, left, low = 320.0, 150.0, 42.0, 26.0
    most = max((a for a, _ in points), default=1.0) or 1.0
    top = top or 1.0

    def at(a: float, b: float) -> tuple[float, float]:
        return left + (wide - left - 10) * a / most, 10 + (high - low - 10) * (1 - b / top)

    dots = [at(a, b) for a, b in points]
    path = "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in dots) if dots else ""
    y0, y1 = at(0, 0)[1], at(0, top)[1]
    last = f"{points[-1][1]:.3g}" if points else "–"
    marks = "".join(f'<circle cx="{u:.1f}" cy="{v:.1f}" r="3"/>' for u, v in dots)
    return (
        f'<figure class="chart {esc(colour)}"><figcaption><b>{esc(title)}</b> '
        f'<span class="note">{last} {esc(unit)}</span></figcaption>'
        f'<svg viewBox="0 0 {wide:g} {high:g}" role="img" aria-label="{esc(title)}: now {last} '
        f'{esc(unit)}">'
        f'<path class="axis" d="M{left} {y1:.1f}V{y0:.1f}H{wide - 10}"/>'
        f'<text x="{left - 6}" y="{y1 + 4:.1f}" class="end">{top:.3g}</text>'
        f'<text x="{left - 6}" y="{y0:.1f}" class="end">0</text>'
        f'<text x="{wide - 10}" y="{high - 8}" class="end">{most:g} {esc(x)}</text>'
        f'<path class="curve" d="{path}"/>{marks}</svg></figure>'
    )


def verdicts(lines: Sequence[Mapping[str, Any]], roles: Sequence[str], judged: bool) -> str:
    """The table of attacks.

    Args:
        judged: a judge says what the pictures show; else it is how far they came back.
    """
    head = "".join(f'<th scope="col">{esc(r)}</th>' for r in roles)
    unit = "shown, % [95 %]" if judged else "% of the way back"
    body = []
    for x in lines:
        told = cells(x)
        word, _, why = str(told["verdict"]).partition(" (")
        note = f' <span class="note">{esc(why.removesuffix(")"))}</span>' if why else ""
        controls = "".join(f"<td>{esc(c)}</td>" for c in told["controls"])
        body.append(
            f'<tr><td>{esc(told["channel"])}</td><th scope="row">{esc(told["key"])}</th>'
            f'<td class="why"><span class="verdict {esc(word)}">{esc(word)}</span>{note}</td>'
            f"<td>{esc(told['edited'])}</td>{controls}</tr>"
        )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Verdicts"><table><thead><tr>'
        '<th scope="col">channel</th><th scope="col">attack</th>'
        f'<th scope="col">verdict</th><th scope="col">{unit}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def code(title: str, text: str) -> str:
    """A text to be copied."""
    return (
        f'<div class="code"><div><b>{esc(title)}</b>'
        f'<button class="small" data-copy aria-label="Copy: {esc(title)}">Copy</button></div>'
        f'<pre tabindex="0" aria-label="{esc(title)}" role="region">'
        f"{html.escape(text)}</pre></div>"
    )


def files(some: Sequence[tuple[str, str, int, str]]) -> str:
    """Files to take away: name, address, bytes, and what is to be known."""
    rows = [
        f'<li><a href="{esc(where)}" download>{esc(name)}</a> '
        f'<span class="note">{size(n)}{", " + esc(said) if said else ""}</span></li>'
        for name, where, n, said in some
    ]
    return f'<ul class="files">{"".join(rows)}</ul>' if rows else ""
