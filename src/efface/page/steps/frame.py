"""What all steps share: the tab's run, the line for errors, and how mistakes get into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr

from efface.errors import LESS, UserError, out_of_memory
from efface.page import markup
from efface.page.desk import Desk
from efface.page.shelf import STRONGEST

REMOVE, RUN, COMPARE, ATTACK, TAKE = range(5)
"""The steps' numbers."""
CLICKS = """
element.addEventListener('click', (e) => {
  const button = e.target.closest('[data-word]');
  if (button) trigger('click', {word: button.dataset.word});
});
"""
"""Tells the word of the button that was clicked."""


@dataclass(frozen=True)
class Frame:
    """What all steps share."""

    desk: Desk
    key: Any
    """The tab's run."""
    line: Any
    """One line, for errors and for what was done."""
    tabs: Any
    every: Any
    """Updates between pictures."""
    runs: Any
    """The list of runs."""


def pictures(kind: str = "") -> Any:
    """A place for pictures whose buttons tell their word."""
    return gr.HTML("", js_on_load=CLICKS, elem_classes=["shown", kind] if kind else ["shown"])


def slider(label: str) -> Any:
    """A slider for the edit's strength."""
    return gr.Slider(0, STRONGEST, value=1, step=0.05, label=label)


def as_typed(field: Any, payload: Any) -> Any:
    """What was typed into a field for a number."""
    return payload


# The desk says what is wrong with a number, in the page's line. Gradio itself would round it
# silently, or end with its own fault where nothing was typed. No subclass: it would write a file
# of types beside this one.
gr.Slider.preprocess = gr.Number.preprocess = as_typed


def told(e: Exception) -> str:
    """What a line says of a mistake of the user, or of memory that ran out.

    Raises:
        Exception: the same, where it is a fault of efface itself.
    """
    if out_of_memory(e):
        return f"out of memory: {LESS}."
    if not isinstance(e, (UserError, OSError)):
        raise e
    if isinstance(e, OSError) and e.strerror:
        return f"{e.strerror}{'' if e.filename is None else f': {str(e.filename)!r}'}."
    return str(e)


def said(f: Callable[..., Any], others: int) -> Callable[..., Any]:
    """The same, for a first output that is the line, with a mistake of the user told in it.

    Args:
        others: how many outputs come after the line; a single one may come by itself.
    """

    @wraps(f)
    def inner(*args: Any) -> Any:
        try:
            found = f(*args)
        except (UserError, OSError, MemoryError, RuntimeError) as e:
            return (markup.line(told(e)), *[gr.skip()] * others)
        return ("", *(found if others > 1 else (found,) if others else ()))

    return inner


def said_each(f: Callable[..., Iterator[str]]) -> Callable[..., Iterator[Any]]:
    """As :func:`said`, for what comes bit by bit."""

    @wraps(f)
    def inner(*args: Any) -> Iterator[Any]:
        try:
            for found in f(*args):
                yield "", found
        except (UserError, OSError, MemoryError, RuntimeError) as e:
            yield markup.line(told(e)), ""

    return inner


def word_of(event: Any) -> str:
    """The word that a button told; "": nobody's."""
    told = getattr(event, "_data", None)
    return str(told.get("word", "")) if isinstance(told, dict) else ""
