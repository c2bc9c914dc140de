"""Step 3: base beside edited, at any strength, and who was hurt."""

from __future__ import annotations

from typing import Any

import gradio as gr

from efface.page import markup
from efface.page.steps.frame import RUN, Frame, pictures, said, slider, word_of

EMPTY = "Type a prompt, or draw the concept itself."


def layout() -> dict[str, Any]:
    """The step's parts."""
    about = gr.HTML("")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(label="Prompt", placeholder="the concept", elem_id="prompt")
            strength, at = slider("Strength"), gr.State(1)
            seed = gr.Number(0, label="First seed", precision=0)
            draw = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Row():
                hurt = gr.Button("Who was hurt", size="md", min_width=120, elem_id="hurt")
                measure = gr.Button("Measure", size="md", min_width=120)
            stop = gr.Button("Stop measuring", size="sm", visible=False)
        with gr.Column(scale=5, min_width=300):
            shown = pictures()
            shown.value = markup.hint(EMPTY)
            curve = gr.HTML("")
            victims = pictures()
    return {
        "about": about,
        "prompt": prompt,
        "strength": strength,
        "at": at,
        "seed": seed,
        "draw": draw,
        "hurt": hurt,
        "measure": measure,
        "stop": stop,
        "shown": shown,
        "curve": curve,
        "victims": victims,
    }


def wire(frame: Frame, parts: dict[str, Any]) -> None:
    """Tie the step to the desk."""
    desk, key = frame.desk, frame.key
    asked = [key, parts["prompt"], parts["seed"], parts["strength"]]

    def again(own: str, every: Any, event: gr.EventData) -> tuple[str, Any, str]:
        word = word_of(event)
        if not word:
            return own, gr.skip(), gr.skip()
        return desk.keep_and_train(own, word, every), gr.Tabs(selected=RUN), ""

    def let_go(own: str, prompt: str, seed: Any, strength: Any, before: Any) -> Any:
        if strength == before:  # who leaves the field lets go of it as well, says Gradio
            return [gr.skip()] * 3
        return [*said(desk.compare, 1)(own, prompt, seed, strength), strength]

    def measure(own: str) -> None:
        desk.edit(own)
        desk.job(own, "measure").start()

    busy = {"concurrency_id": "model", "concurrency_limit": 1}
    out = [frame.line, parts["shown"]]
    parts["draw"].click(said(desk.compare, 1), asked, out, **busy)
    parts["prompt"].submit(said(desk.compare, 1), asked, out, **busy)
    parts["strength"].release(
        let_go,
        [*asked, parts["at"]],
        [*out, parts["at"]],
        trigger_mode="always_last",  # where it stands when a picture is done
        **busy,
    )
    parts["hurt"].click(
        said(desk.hurt, 1), [key, parts["strength"]], [frame.line, parts["victims"]], **busy
    )
    parts["measure"].click(said(measure, 0), key, [frame.line])
    parts["stop"].click(said(lambda own: desk.stop(own, "measure"), 0), key, [frame.line])
    parts["victims"].click(
        said(again, 3), [key, frame.every], [frame.line, key, frame.tabs, parts["victims"]]
    )
