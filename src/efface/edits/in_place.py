"""An edit put into a model folder, in place, and taken out again bit for bit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.edits.combine import agree, ingredients
from efface.edits.contents import KEPT, Contents, contents
from efface.edits.contents import LEDGER as NAME
from efface.edits.edit import Edit
from efface.edits.kept import Kept, hash_file
from efface.edits.ledger import EDITED, Erasure, Filed, Ledger, compare, states
from efface.errors import UserError
from efface.models import family_of, hash_stored
from efface.storage import locked, sweep

OURS = re.compile(r"(base|[0-9a-f]{16})\.safetensors")
"""The files that are kept beside the ledger."""


def opened(folder: Path) -> tuple[Contents, Ledger]:
    """A diffusers folder and its ledger; a broken-off change is finished.

    Raises:
        UserError: no such folder, or weights that something else has changed since.
    """
    found, here = Ledger.read(folder), contents(folder)
    for place in {folder, *((folder / name).parent for name in (*here.own, *here.alike))}:
        sweep(place)
    if found is None:
        own = hash_stored(folder / here.part)
        clear(folder, own)
        return here, Ledger(own, own)
    if found.removable and (not found.now or not found.erasures):
        return here, settle(folder, here, found)
    compare(folder, here, found)
    if found.removable:
        clear(folder, found.base, used(found))
    return here, found


def apply(
    folder: Path, edit: Edit, scores: Mapping[str, Any] | None = None, strength: float = 1.0
) -> Ledger:
    """Put an edit into a diffusers folder, in place; :func:`remove` takes it out bit for bit.

    Every file with the denoiser's weights is edited: other precisions and shards as well. Several
    edits add up. A change that is killed is finished by the next command, and an edit that is there
    already stays.

    Args:
        scores: what was measured of the edit, for the ledger.
        strength: how much of the edit; 1: all of it.

    Raises:
        UserError: an edit of another base or architecture, one that is there at another strength, a
            file that cannot be edited, values that the stored precision cannot hold, or a folder
            that cannot be written.
    """
    edit.sane("the edit")
    family_of(folder)  # before anything is written there
    with locked(folder):
        here, ledger = opened(folder)
        removable(folder, ledger, "combine the edits and merge them into the base model")
        own_folders(folder, here)
        kept = Kept(folder, here, ledger.base)
        if strength != 1:
            kept.add(edit.weights)
            edit = edit.scaled_on(kept.base_values(), strength, "float32")
        if any(e.edit == edit.digest for e in ledger.erasures):
            return ledger
        there = edits_of(folder, ledger)
        applicable(folder, here, ledger, edit, there)
        kept.add(edit.weights)
        entry = Erasure.of(edit, scores)
        removed = tuple(d for d in ledger.removed if d != edit.digest)
        later = replace(ledger, erasures=(*ledger.erasures, entry), removed=removed)
        later = planned(folder, here, later, kept, [*there, edit])
        kept.tell()
        kept.save()
        edit.save(folder / KEPT / f"{edit.digest}.safetensors")
        later.write(folder)
        return settle(folder, here, later, {k: f.now for k, f in later.files.items()})


def removable(folder: Path, ledger: Ledger, instead: str) -> None:
    """Refuse a folder that was merged."""
    if not ledger.removable:
        raise UserError(
            f"{str(folder)!r} was written with its edits in it, without the base model's values: "
            f"{instead}."
        )


def own_folders(folder: Path, here: Contents) -> None:
    """Refuse a folder whose denoiser lies elsewhere, where other models may use it.

    Links of single files are replaced, as those of the hub's cache.

    Raises:
        UserError: names the link, and where it leads.
    """
    home = folder.resolve()
    for place in sorted({(folder / name).parent for name in (*here.own, *here.alike)}):
        where = place.resolve()
        if not where.is_relative_to(home):
            raise UserError(
                f"{str(place)!r} is a link to {str(where)!r}, outside of the folder: other models "
                "that use it would be changed as well. Copy it here first, or use efface merge, "
                "which leaves it alone."
            )


def applicable(
    folder: Path, here: Contents, ledger: Ledger, edit: Edit, there: Sequence[Edit]
) -> None:
    """Refuse an edit that cannot be put into a folder.

    Args:
        there: the edits that are in it.

    Raises:
        UserError: another base, gates, the same at another strength or in a combined edit, concepts
            that contradict those in the folder, or files that hold the denoiser in another form.
    """
    whole = edit.whole
    for e in ledger.erasures:
        if (e.whole or e.edit) == whole and e.edit != edit.digest:
            raise UserError(
                f"this edit is in {str(folder)!r} already, at strength {e.strength:g}: take it out "
                f"first (efface remove {shlex.quote(str(folder))} {e.edit})."
            )
    for other in there:
        if twice := ingredients(other) & ingredients(edit):
            way = f"efface remove {shlex.quote(str(folder))} {other.digest}"
            raise UserError(
                f"{sorted(twice)[0]} would be in {str(folder)!r} twice, by itself or in a combined "
                f"edit: take that out first ({way})."
            )
    agree([*there, edit])
    base = edit.meta.get("base")
    if base and base == ledger.now != ledger.base:
        raise UserError(
            f"the edit was made on {str(folder)!r} with what is erased there already, and does not "
            "stand without that: write a model with both (efface merge), or take those edits out, "
            "make this one on the base model, and apply all."
        )
    if base and base != ledger.base:
        raise UserError(
            f"the edit was made for {edit.meta.get('model', 'another model')!r} (hash {base}); "
            f"{str(folder)!r} has hash {ledger.base}: apply it to the model it was made for."
        )
    if edit.gates:
        raise UserError(
            "this edit has gates that each prompt opens in its own way, which stored weights "
            "cannot do: make it with --no-gated, or use it with efface generate."
        )
    if here.foreign:
        raise UserError(
            f"{', '.join(map(repr, here.foreign))} in {str(folder)!r} would go on drawing what is "
            "erased: the denoiser in a form that cannot be edited, a file that cannot be looked "
            "into, or a model with edits of its own. Take it out of the folder, or use efface "
            "merge, which leaves it out."
        )


def planned(
    folder: Path, here: Contents, ledger: Ledger, kept: Kept, edits: Sequence[Edit]
) -> Ledger:
    """A ledger of a change that is about to be made: each file's hash before and after.

    Raises:
        UserError: values that the stored precision cannot hold.
    """
    after, files = kept.with_changes(edits), {}
    for name, f in states(here, [*here.own, *here.alike]).items():
        if f.state == EDITED:
            had = ledger.files.get(name)
            now = had.now if had else hash_file(folder / name)
            f = Filed(EDITED, now, hash_file(folder / name, after[name]))
        files[name] = f
    return replace(ledger, now="", files=files)


def settle(
    folder: Path, here: Contents, ledger: Ledger, now: Mapping[str, str] | None = None
) -> Ledger:
    """Make the weights what the ledger says, and note that they are.

    Args:
        now: hash of each file, in a change that has just been planned; None: looked at again.
    """
    now, again = now or compare(folder, here, ledger), now is None
    if not ledger.now:
        kept = Kept(folder, here, ledger.base)
        later = {k: f.later for k, f in ledger.files.items()}
        kept.put(edits_of(folder, ledger), now, later, again)
        files = {k: Filed(f.state, f.later) for k, f in ledger.files.items()}
        ledger = replace(ledger, now=hash_stored(folder / here.part), files=files)
        ledger.write(folder)
    clear(folder, ledger.base, used(ledger))
    if not ledger.erasures:
        (folder / NAME).unlink(missing_ok=True)
    return ledger


def used(ledger: Ledger) -> list[str]:
    """The files beside a ledger: its edits, and the base's values that they stand on."""
    edits = [f"{e.edit}.safetensors" for e in ledger.erasures]
    return [Kept.NAME, *edits] if edits else []


def clear(folder: Path, base: str, stay: Sequence[str] = ()) -> None:
    """Delete what is kept beside the ledger, but for what stays.

    Raises:
        UserError: kept values of another base than ``base``, which may be somebody's only copy.
    """
    keep = folder / KEPT
    if not keep.is_dir():
        return
    Kept.check(folder, base)
    sweep(keep)
    for path in sorted(keep.iterdir()):
        if path.name not in stay and OURS.fullmatch(path.name):
            path.unlink()
    if not stay:
        with suppress(OSError):  # something else lies in it
            keep.rmdir()


def remove(folder: Path, which: str = "") -> Ledger:
    """Take an edit out of a folder that it was applied to, or all of them.

    Where it, or everything, was taken out already, that is all.

    Args:
        which: digest of the edit, or the beginning of one; "": all.

    Raises:
        UserError: no such edit, or a folder that cannot be written.
    """
    family_of(folder)
    with locked(folder):
        here, ledger = opened(folder)
        removable(folder, ledger, "use the base model itself")
        gone = [e for e in ledger.erasures if e.edit.startswith(which)]
        if not gone and (not ledger.erasures or any(d.startswith(which) for d in ledger.removed)):
            return ledger
        if not gone or (which and len(gone) > 1):
            known = ", ".join(f"{e.edit} ({', '.join(e.concepts)})" for e in ledger.erasures)
            what = "no edit" if not gone else "more than one edit"
            raise UserError(f"{what} in {str(folder)!r} is called {which!r}; there are: {known}.")
        left = tuple(e for e in ledger.erasures if e not in gone)
        removed = tuple(sorted({*ledger.removed, *(e.edit for e in gone)}))
        later = replace(ledger, erasures=left, removed=removed)
        kept = Kept(folder, here, ledger.base)
        later = planned(folder, here, later, kept, edits_of(folder, later))
        later.write(folder)
        return settle(folder, here, later, {k: f.now for k, f in later.files.items()})


def edits_of(folder: Path, ledger: Ledger) -> list[Edit]:
    """The edits that are in a folder."""
    return [Edit.load(folder / KEPT / f"{e.edit}.safetensors") for e in ledger.erasures]
