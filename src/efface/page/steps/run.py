"""Step 2: the run, while it goes on."""

from __future__ import annotations

from typing import Any

import gradio as gr

from efface.page.steps.frame import Frame, said


def layout() -> dict[str, Any]:
    """The step's parts."""
    with gr.Row():
        stop = gr.Button("Stop", size="md", min_width=120, scale=0, visible=False, elem_id="stop")
        go = gr.Button("Go on", size="md", min_width=120, scale=0, visible=False, elem_id="go")
    shown = gr.HTML("", elem_classes=["shown"], elem_id="run")
    return {"shown": shown, "stop": stop, "go": go}


def wire(frame: Frame, parts: dict[str, Any]) -> None:
    """Tie the step to the desk."""
    desk = frame.desk
    parts["stop"].click(
        said(lambda key: desk.stop(key, "erase"), 0),
        frame.key,
        [frame.line],
        show_progress="hidden",
    )
    parts["go"].click(
        said(desk.again, 1),
        [frame.key, frame.every],
        [frame.line, frame.key],
        show_progress="hidden",
    )


def buttons(frame: Frame, key: str) -> tuple[Any, Any]:
    """Stop where it runs, Go on where it stands still."""
    phase = frame.desk.job(key, "erase").state().phase if key else ""
    rests = phase in ("stopped", "failed", "new") and not frame.desk.finished(key)
    busy = phase in ("starting", "running")
    return gr.Button(visible=busy), gr.Button(visible=bool(key) and rests)
