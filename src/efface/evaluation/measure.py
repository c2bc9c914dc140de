"""What a protocol's metrics say of pictures; each says what it needs, and is asked for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from efface.edits.edit import Edit
from efface.errors import UserError, pick
from efface.evaluation.clip import check_known
from efface.evaluation.evaluate import drawn, judge_for
from efface.evaluation.judges import Judge
from efface.evaluation.metrics import METRICS, Given, Metric
from efface.evaluation.protocols import Protocol
from efface.evaluation.samples import Wanted
from efface.models import DiffusionModel
from efface.names import among
from efface.scores import Score


def wanted_of(protocol: Protocol, prompts: Path, limit: int = 0) -> list[Wanted]:
    """The pictures of a prompt file; several a prompt take the seeds that follow its own.

    Args:
        limit: only so many prompts, the first; 0: all.

    Raises:
        UserError: the file does not fit the protocol, or a limit below 0.
    """
    if limit < 0:
        raise UserError(f"got {limit} for the limit of prompts; 0 is all of them.")
    rows = protocol.listed(prompts)
    n = protocol.pictures["erased"]
    return [
        Wanted(r.prompt, r.seed + i, r.concept)
        for r in (rows[:limit] if limit else rows)
        for i in range(n)
    ]


def erased_in(edit: Edit | None, wanted: Sequence[Wanted]) -> list[str]:
    """What of some pictures' concepts an edit erased, as the pictures have it spelt.

    That is also what the edit knows as a synonym: a file of prompts may ask for a concept by any
    of its names.
    """
    concepts = edit.meta.get("concepts", ()) if edit is not None else ()
    names = [n for c in concepts for n in (c["name"], *c.get("synonyms", ()))]
    return list(among(dict.fromkeys(w.concept for w in wanted if w.concept), names))


@dataclass(frozen=True)
class Asked:
    """What is asked, of whatever pictures."""

    protocol: Protocol
    wanted: Sequence[Wanted]
    judge: Judge | None = None
    erased: Sequence[str] = ()
    tools: Mapping[str, Any] = field(default_factory=dict)
    """Of :class:`~efface.evaluation.metrics.Given`."""


def both(
    model: DiffusionModel,
    edit: Edit | None,
    folder: Path | None,
    asked: Asked,
    steps: int | None = None,
    progress: bool = True,
) -> tuple[Given, Given | None]:
    """Make (or find) the unedited pictures and the edit's; second None: there is no edit.

    Args:
        folder: for the edit's pictures.
        steps: sampling steps; None: the protocol's.

    Raises:
        UserError: something that a metric needs is missing; said before any picture is made.
    """
    check(model, asked)
    if edit is not None and folder is None:
        raise UserError("an edit's pictures need a folder.")
    p, wanted, kept = asked.protocol, asked.wanted, dict[str, Any]()
    base = drawn(model, None, None, wanted, p, steps, progress)
    before = Given(base, p, None, asked.erased, asked.judge, asked.tools, kept)
    if edit is None:
        return before, None
    own = drawn(model, edit, folder, wanted, p, steps, progress)
    return before, Given(own, p, base, asked.erased, asked.judge, asked.tools, kept)


def measure(
    model: DiffusionModel,
    edit: Edit | None,
    folder: Path | None,
    protocol: Protocol,
    wanted: Sequence[Wanted],
    tools: Mapping[str, Any] | None = None,
) -> dict[str, Score]:
    """Every score of the protocol by its full name, of the edit, or of the unedited model.

    Args:
        folder: as in :func:`both`.
        tools: of :class:`~efface.evaluation.metrics.Given`.

    Raises:
        UserError: as :func:`both`.
    """
    erased = erased_in(edit, wanted)
    asked = Asked(protocol, wanted, judge_of(model, protocol), erased, tools or {})
    before, after = both(model, edit, folder, asked)
    return answers(after or before)


def answers(given: Given) -> dict[str, Score]:
    """What the protocol's metrics say, by full name; those of pairs where there are pairs."""
    found: dict[str, Score] = {}
    for metric in chosen(given.protocol):
        if given.base is not None or "pairs" not in metric.needs:
            found |= metric().measure(given)
    return found


def chosen(protocol: Protocol) -> list[type[Metric]]:
    """The metrics of a protocol.

    Raises:
        UserError: an unknown one.
    """
    return [pick(METRICS, name, "metric") for name in dict.fromkeys(protocol.metrics)]


def judge_of(model: DiffusionModel, protocol: Protocol) -> Judge | None:
    """The protocol's judge; None where it names none, or no metric needs one.

    Raises:
        UserError: an unknown judge, or one that is not installed.
    """
    wanted = any("judge" in m.needs for m in chosen(protocol))
    return judge_for(model, protocol) if wanted and protocol.judge else None


def check(model: DiffusionModel, asked: Asked) -> None:
    """Refuse what a metric of the protocol could not answer.

    Raises:
        UserError: names the metric and what it lacks.
    """
    if not asked.wanted:
        raise UserError(f"the protocol {asked.protocol.name!r} asks for no picture here.")
    for metric in chosen(asked.protocol):
        for need in sorted(metric.needs - {"pairs"}):
            why = lacking(need, metric, model, asked)
            if why:
                raise UserError(f"the metric {metric.name!r} {why}")
        if len(asked.wanted) < metric.least:
            raise UserError(
                f"the metric {metric.name!r} takes at least {metric.least} pictures; here are "
                f"{len(asked.wanted)}."
            )


def lacking(need: str, metric: type[Metric], model: DiffusionModel, asked: Asked) -> str:
    """What is missing of a need, in words; "" where nothing is.

    Raises:
        UserError: no CLIP that knows the model's pictures.
    """
    if need == "clip":
        check_known(model, asked.tools.get("clip", ""))
    elif need == "judge":
        if asked.judge is None:
            return f"needs a judge; the protocol {asked.protocol.name!r} names none."
        if any(not w.concept for w in asked.wanted):
            return "needs the concept of each picture; the prompts say none."
    elif need == "prompts":
        if any(not w.prompt.strip() for w in asked.wanted):
            return "needs a text for each picture; a prompt is empty."
    elif need not in asked.tools and find_spec(need.partition(".")[0]) is None:
        how = f": {metric.install}" if metric.install else ""
        return f"needs the package {need!r}, which is not installed{how}."
    return ""
