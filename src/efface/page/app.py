"""The page itself: its frame, its five steps, and what keeps them up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from efface.errors import UserError
from efface.page import markup, views
from efface.page.desk import Desk
from efface.page.steps import attack, compare, remove, run, take
from efface.page.steps.frame import ATTACK, COMPARE, REMOVE, RUN, TAKE, Frame, said, told

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js")
NAMES = {
    REMOVE: "1 Remove",
    RUN: "2 Run",
    COMPARE: "3 Compare",
    ATTACK: "4 Attack",
    TAKE: "5 Take away",
}
STEPS = {REMOVE: remove, RUN: run, COMPARE: compare, ATTACK: attack, TAKE: take}
MODEL = 4
"""Which field of the form is the model."""
PACE = 2.0
"""Seconds between looks at what jobs have done."""
WHERE = "watch('value', () => window.effaceRun && window.effaceRun(element));"
"""Puts the run into the address of the tab."""


def theme() -> Any:
    """Calm colours, and the fonts that the reader's system has."""
    plain = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    found = gr.themes.Base(primary_hue="slate", neutral_hue="slate", font=plain, font_mono=mono)
    return found.set(
        button_primary_background_fill="#1f3d5c",
        button_primary_background_fill_hover="#2a5178",
        button_primary_background_fill_dark="#35618f",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        block_label_text_color="#374151",
        block_title_text_color="#374151",
        block_info_text_color="#4b5563",
        body_text_color_subdued="#4b5563",
        slider_color="#35618f",
        slider_color_dark="#7fa8d1",
    )


def page(desk: Desk) -> Any:
    """All of it."""
    with gr.Blocks(title="efface", analytics_enabled=False) as found:
        key, seen = gr.State(""), gr.State("")
        with gr.Row(elem_id="head"):
            gr.HTML(f"<h1>efface</h1><p>{markup.esc(desk.places.start)}</p>")
            runs = gr.Dropdown([("new", "")], value="", label="Run", elem_id="runs")
        where = gr.HTML("", js_on_load=WHERE, elem_id="where")
        line = gr.HTML("", elem_id="line")
        parts: dict[int, dict[str, Any]] = {}
        with gr.Tabs(elem_id="steps") as tabs:
            for number, step in STEPS.items():
                with gr.Tab(NAMES[number], id=number):
                    parts[number] = step.layout()
        frame = Frame(desk, key, line, tabs, parts[REMOVE]["every"], runs)
        for number, step in STEPS.items():
            step.wire(frame, parts[number])
        keep_up(frame, parts, seen, where)
        begin(found, frame, parts)
    return found


def keep_up(frame: Frame, parts: dict[int, dict[str, Any]], seen: Any, where: Any) -> None:
    """Show what jobs have done, as soon as there is something else to see."""
    third, fourth, fifth = parts[COMPARE], parts[ATTACK], parts[TAKE]
    outputs = [
        *(frame.runs, where, parts[RUN]["shown"], parts[RUN]["stop"], parts[RUN]["go"]),
        *(third["about"], fourth["about"], fifth["about"], third["curve"], third["stop"]),
        *(fourth["shown"], fourth["stop"], fifth["files"]),
        fifth["code"],
    ]

    def poll(key: str, before: str, show: bool) -> list[Any]:
        try:
            now = f"{views.sign(frame.desk, key)}\n{show}\n"
            if now == before:
                return [gr.skip()] * (2 + len(outputs))
            return [gr.skip(), now, *shown(frame, key, show)]
        except (UserError, OSError) as e:
            return [markup.line(told(e)), *[gr.skip()] * (1 + len(outputs))]

    asked = [frame.key, seen, fourth["keep"]]
    gr.on(
        [gr.Timer(PACE).tick, frame.key.change],
        poll,
        asked,
        [frame.line, seen, *outputs],
        show_progress="hidden",
        concurrency_limit=None,
    )
    frame.key.change(
        lambda: (markup.hint(compare.EMPTY), "", ""),  # what was drawn is of the run before
        None,
        [third["shown"], third["victims"], fifth["note"]],
        show_progress="hidden",
    )


def shown(frame: Frame, key: str, show: bool) -> list[Any]:
    """All that depends on a run, in the order of the outputs."""
    desk = frame.desk
    measuring, attacking = (
        bool(key) and desk.job(key, kind).state().busy for kind in ("measure", "attack")
    )
    home = desk.wish(key).home if key else ""
    some = dict.fromkeys(["", home, *desk.places.runs()])
    return [
        gr.Dropdown(choices=[(r or "new", r) for r in some], value=home),
        markup.hidden(key),
        views.run(desk, key),
        *run.buttons(frame, key),
        *[views.summary(desk, key)] * 3,
        views.strengths(desk, key),
        gr.Button(visible=measuring),
        views.attacks(desk, key, show),
        gr.Button(visible=attacking),
        views.taken(desk, key),
        views.same(desk, key),
    ]


def begin(found: Any, frame: Frame, parts: dict[int, dict[str, Any]]) -> None:
    """Open the run that the address names, and any that is chosen."""
    desk, fields = frame.desk, parts[REMOVE]["fields"]
    outputs = [frame.line, frame.key, *fields, frame.tabs]

    def opened(key: str) -> list[Any]:
        if not key:
            return [key, *[gr.skip()] * len(fields), gr.Tabs(selected=REMOVE)]
        return [key, *remove.filled(frame, key), gr.Tabs(selected=RUN)]

    def load(request: gr.Request) -> list[Any]:
        key = request.query_params.get("run", "")
        if key:
            desk.know(desk.wish(key))
        some = opened(key)
        model = some[1 + MODEL] if key else desk.places.first
        some[1 + MODEL] = gr.Dropdown(choices=desk.places.known(), value=model)
        return some

    def chosen(folder: str, key: str) -> Any:
        if desk.shows(key, folder):  # who leaves the list chooses as well, says Gradio
            return [gr.skip()] * len(outputs)
        return said(lambda: opened(desk.open(folder) if folder else ""), len(outputs) - 1)()

    def load_told(request: gr.Request) -> Any:
        line, *rest = said(load, len(outputs) - 1)(request)
        return [line or markup.line(desk.other(), "note"), *rest]

    found.load(load_told, None, outputs)
    frame.runs.input(chosen, [frame.runs, frame.key], outputs)
