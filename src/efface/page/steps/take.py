"""Step 5: files for other programs, and the command and the Python that do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from efface.page import markup
from efface.page.steps.frame import Frame, said, slider
from efface.page.takeaway import FORMS


def layout() -> dict[str, Any]:
    """The step's parts."""
    about = gr.HTML("")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            strength = slider("At strength")
            made = {
                name: gr.Button(label, size="md", elem_id=f"take-{name}")
                for name, (label, _) in FORMS.items()
            }
        with gr.Column(scale=5, min_width=300):
            files = gr.HTML("", elem_classes=["shown"], elem_id="files")
            note = gr.HTML("")
            code = gr.HTML("", elem_classes=["shown"])
    return {
        "about": about,
        "strength": strength,
        "made": made,
        "files": files,
        "note": note,
        "code": code,
    }


def wire(frame: Frame, parts: dict[str, Any]) -> None:
    """Tie the step to the desk."""

    def taking(form: str) -> Callable[[str, Any], str]:  # no partial: Gradio reads its types
        def take(key: str, strength: Any) -> str:
            return markup.line(frame.desk.take(key, form, strength), "note")

        return take

    for name, button in parts["made"].items():
        button.click(
            said(taking(name), 1),
            [frame.key, parts["strength"]],
            [frame.line, parts["note"]],
            concurrency_id="model",
            concurrency_limit=1,
        )
