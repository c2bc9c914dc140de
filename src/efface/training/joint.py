"""Closed-form edits of one base model, solved again for the concepts of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from efface.concepts import Concept
from efface.edits.combine import about, called, combinable
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.models import DiffusionModel
from efface.settings import from_json
from efface.training.erasure import Method
from efface.training.runs import Run


def jointly(
    model: DiffusionModel, edits: Sequence[Edit], methods: Mapping[str, type[Method]]
) -> Edit:
    """One solve for the concepts of all edits, which were made with the same settings.

    Args:
        methods: what there is, by name.

    Raises:
        UserError: edits by methods that are no closed form, with different settings, or of another
            strength than 1.
    """
    combinable(edits)
    for edit in edits:
        edit.check(model)
        if edit.strength != 1:
            raise UserError(
                f"the edit of {called(edit)} is at strength {edit.strength:g}, and what is solved "
                "again is whole: combine them by their sum."
            )
    used = {str(e.meta.get("method")) for e in edits}
    closed = [n for n, m in methods.items() if m.closed_form]
    if len(used) > 1 or not used <= set(closed):
        raise UserError(
            f"edits by {', '.join(sorted(used))} cannot be solved together: that needs one of "
            f"{', '.join(closed)}, the same for all; combine them by their sum."
        )
    settings = [e.meta.get("config") for e in edits]
    if any(s != settings[0] for s in settings):
        raise UserError("the edits were made with different settings: combine them by their sum.")
    method = from_json(methods[used.pop()], settings[0] or {})
    concepts = [from_json(Concept, c) for e in edits for c in e.meta.get("concepts", ())]
    solved = method.erase(model, concepts, Run(progress=False))
    return Edit(solved.weights, {**solved.meta, **about(model, edits, "joint")}, solved.gates)
