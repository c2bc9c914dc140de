"""Step 1: what to remove, and what is known of it before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from efface.methods import METHODS
from efface.page import markup
from efface.page.desk import EVERY
from efface.page.steps.frame import RUN, Frame, pictures, said, said_each, word_of
from efface.page.wish import UPDATES, Form, form_of

EMPTY = "Name a concept, and look ahead: who is likely to be hurt, and what it will take."


def fields() -> tuple[list[Any], Any]:
    """The form's fields in the order of :class:`Form`, and the one for pictures of the run."""
    names = gr.Textbox(
        label="What to remove", placeholder="church", lines=1, max_lines=6, elem_id="names"
    )
    synonyms = gr.Textbox(label="Also called", placeholder="chapel, cathedral")
    anchor = gr.Textbox(label="Becomes", placeholder="found by itself", elem_id="anchor")
    keep = gr.Textbox(label="Must survive", placeholder="castle, house", elem_id="keep")
    model = gr.Dropdown(["emoji"], value="emoji", label="Model", allow_custom_value=True)
    with gr.Accordion("Settings", open=False):
        method = gr.Dropdown(
            [(f"{m.label} ({n})", n) for n, m in METHODS.items()], value="ap", label="Method"
        )
        updates = gr.Number(UPDATES, label="Updates", precision=0, elem_id="updates")
        every = gr.Number(EVERY, label="Updates between pictures (0: none)", precision=0)
        seed = gr.Number(0, label="Seed", precision=0)
        folder = gr.Textbox(label="Run folder", placeholder="runs/…")
    return [names, synonyms, anchor, keep, model, method, updates, seed, folder], every


def form(*told: Any) -> Form:
    """What is in the fields; an empty one is what nothing was typed into."""
    return Form(*("" if x is None else x for x in told))


def filled(frame: Frame, key: str) -> list[Any]:
    """The fields' values for a run."""
    wish = form_of(frame.desk.wish(key))
    return [getattr(wish, name) for name in wish.__dataclass_fields__]


def layout() -> dict[str, Any]:
    """The step's parts."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            some, every = fields()
            with gr.Row():
                suggest = gr.Button("Suggest anchors", size="md", min_width=120)
                look = gr.Button("Look ahead", size="md", min_width=120)
            train = gr.Button("Train", variant="primary", elem_id="train")
        with gr.Column(scale=5, min_width=300):
            anchors = pictures()
            ahead = pictures()
            ahead.value = markup.hint(EMPTY)
    return {
        "fields": some,
        "every": every,
        "suggest": suggest,
        "look": look,
        "train": train,
        "anchors": anchors,
        "ahead": ahead,
    }


def wire(frame: Frame, parts: dict[str, Any]) -> None:
    """Tie the step to the desk."""
    desk, some = frame.desk, parts["fields"]
    anchor, keep = some[2], some[3]

    def suggest(*told: Any) -> str:
        return desk.anchors(form(*told))

    def look(*told: Any) -> Iterator[str]:
        yield from desk.look(form(*told))

    def choose(now: str, event: gr.EventData) -> tuple[str, str]:
        return word_of(event) or now, ""

    def hold(now: str, event: gr.EventData) -> str:
        return desk.kept(now, word_of(event)) if word_of(event) else now

    def train(every: Any, *told: Any) -> tuple[str, Any]:
        return desk.train(form(*told), every), gr.Tabs(selected=RUN)

    busy = {"concurrency_id": "model", "concurrency_limit": 1}
    parts["suggest"].click(said(suggest, 1), some, [frame.line, parts["anchors"]], **busy)
    parts["anchors"].click(said(choose, 2), anchor, [frame.line, anchor, parts["anchors"]])
    parts["look"].click(said_each(look), some, [frame.line, parts["ahead"]], **busy)
    parts["ahead"].click(said(hold, 1), keep, [frame.line, keep])
    parts["train"].click(said(train, 2), [frame.every, *some], [frame.line, frame.key, frame.tabs])
