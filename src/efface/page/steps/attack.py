"""Step 4: what brings the concept back, channel by channel, beside controls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from efface.evaluation.attacks import ATTACKS, CHANNELS
from efface.page.steps.frame import Frame, said

FIRST = ("rephrase", "completion")
"""Attacks that are chosen at the beginning: the quick ones."""


def choices() -> list[tuple[str, str]]:
    """The attacks by their channels, from the outside in."""
    order = {c: i for i, c in enumerate(CHANNELS)}
    some = sorted(ATTACKS.items(), key=lambda x: order.get(x[1].channel, len(order)))
    return [(f"{name} ({attack.channel})", name) for name, attack in some]


def layout() -> dict[str, Any]:
    """The step's parts."""
    about = gr.HTML("")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            some = [c for c in choices() if c[1] in FIRST]
            attacks = gr.CheckboxGroup(
                choices(), value=[c[1] for c in some], label="Attacks (channel)"
            )
            budget = gr.Radio(["small", "full"], value="small", label="Budget")
            most = gr.Number(0, label="Evaluations of a search (0: by the budget)", precision=0)
            keep = gr.Checkbox(False, label="Keep and show what is found")
            start = gr.Button("Attack", variant="primary", elem_id="attack")
            stop = gr.Button("Stop attacking", size="sm", visible=False)
        with gr.Column(scale=5, min_width=300):
            shown = gr.HTML("", elem_classes=["shown"])
    return {
        "about": about,
        "attacks": attacks,
        "budget": budget,
        "most": most,
        "keep": keep,
        "start": start,
        "stop": stop,
        "shown": shown,
    }


def wire(frame: Frame, parts: dict[str, Any]) -> None:
    """Tie the step to the desk."""
    asked = [frame.key, parts["attacks"], parts["budget"], parts["most"], parts["keep"]]
    parts["start"].click(said(frame.desk.attack, 0), asked, [frame.line])
    parts["stop"].click(
        said(lambda key: frame.desk.stop(key, "attack"), 0), frame.key, [frame.line]
    )
