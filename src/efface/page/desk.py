"""What the page does, without Gradio: forms and keys in, HTML out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from efface.cli.runfolder import record
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.attacks import ATTACKS
from efface.models import DiffusionModel
from efface.names import clean
from efface.page import ahead, markup, takeaway
from efface.page.jobs import Job, found, holder
from efface.page.markup import PICTURES, Figure, address
from efface.page.places import Places
from efface.page.shelf import STRONGEST, Shelf
from efface.page.wish import Form, Wish, holds, number, split, whole, wish_in, wish_of
from efface.reporting.attacked import sensitive

SEEDS = 4
"""Pictures of a prompt, side by side."""
EVERY = 25
"""Updates between the pictures of a run."""


class Desk:
    """The one desk of a page; what belongs to a tab is given each time."""

    def __init__(self, places: Places) -> None:
        self.places, self.shelf = places, Shelf(places)
        self._wishes: dict[str, Wish] = {}

    def other(self) -> str:
        """What is to be said of another page on the same folder; "": there is none."""
        pid = holder(self.places.own)
        if not pid or pid == os.getpid():
            return ""
        return f"another page (process {pid}) is open on this folder: both show the same runs."

    # -- which run ---------------------------------------------------------------------------

    def know(self, wish: Wish) -> str:
        """Remember a wish; gives its key."""
        self._wishes[wish.key] = wish
        return wish.key

    def wish(self, key: str) -> Wish:
        """The wish of a key.

        Raises:
            UserError: there is none here.
        """
        wish = self._wishes.get(key) or found(self.places, key)
        if wish is None:
            raise UserError(
                "There is no run yet: say what to remove first."
                if not key
                else f"the link {key!r} is of no run in this folder."
            )
        self._wishes[key] = wish
        return wish

    def open(self, folder: str) -> str:
        """The key of a run that is in the start folder already.

        Raises:
            UserError: it is no run of ours, or not to be opened.
        """
        return self.know(wish_in(self.places.run(folder), self.places))

    def shows(self, key: str, folder: str) -> bool:
        """Whether a key is of the run that a folder holds; both empty: of a new one."""
        if not key:
            return not folder
        wish = self.wish(key)
        return folder == wish.home and holds(wish, self.places)

    def job(self, key: str, kind: str) -> Job:
        """A job of a run."""
        return Job(self.places, self.wish(key), kind)

    def edit(self, key: str) -> Edit:
        """The edit of a finished run."""
        return self.shelf.edit(self.wish(key))

    def finished(self, key: str) -> bool:
        """Whether a run has its edit."""
        return bool(key) and self.shelf.finished(self.wish(key))

    def veiled(self, key: str) -> bool:
        """Whether pictures are to be blurred until they are clicked."""
        return bool(key) and sensitive([n for c in self.wish(key).concepts for n in c.names])

    # -- 1: what to remove -------------------------------------------------------------------

    def anchors(self, form: Form) -> str:
        """Suggestions of what the concept may become, each with a picture."""
        wish = wish_of(replace(form, anchor=""), self.places)
        if len(wish.concepts) > 1:
            raise UserError("Several concepts: write “name -> anchor” in their lines.")
        with self.shelf.model(wish.model) as model:
            words = ahead.anchors(model, wish.concepts)
            asked = wish.concepts[0].shown.prompt
            anchored = [replace(wish.concepts[0], anchor=w).shown.instead for w in words]
            shown = self.drawn(model, None, [asked, *anchored], 1)
        own = Figure(wish.names[0], shown[0], "is to become", role="erased")
        some = [Figure(w, p, button="Choose") for w, p in zip(words, shown[1:], strict=True)]
        return markup.figures([own, *some], sensitive(wish.names), "few")

    def look(self, form: Form) -> Iterator[str]:
        """What is known before anything is trained; more of it each time."""
        wish = wish_of(form, self.places)
        yield markup.hint("Opening the model …")
        shown = self.ahead(wish)
        yield shown + markup.hint("Measuring what it will take …")
        with self.shelf.model(wish.model) as model:
            plan = ahead.plan(model, wish, self.places.run(wish.home))
        yield markup.heading("It will take") + markup.plan(plan) + shown

    def ahead(self, wish: Wish) -> str:
        """Who will be hurt, with pictures, and what no edit of the text maps can do."""
        with self.shelf.model(wish.model) as model:
            words = ahead.words_of(model, wish.concepts).words
            victims = ahead.victims(model, wish, words)
            drawn = self.drawn(model, None, [v.word for v in victims], 2)
            limit = ahead.limit(model, wish, words)
        some = [
            Figure(
                v.word,
                pictures,
                "kept" if v.kept else f"{v.harm:.1f} %",
                button="" if v.kept else "Keep",
            )
            for v, pictures in zip(victims, drawn, strict=True)
        ]
        return (
            markup.heading("Likely to be hurt", "Worst first, by a quick stand-in for the edit.")
            + markup.figures(some, sensitive([v.word for v in victims]))
            + f'<p class="fine">{markup.esc(limit)}</p>'
        )

    def drawn(
        self,
        model: DiffusionModel,
        edit: Edit | None,
        prompts: Sequence[str],
        n: int,
        first: int = 0,
    ) -> list[list[str]]:
        """Addresses of pictures, a list a prompt."""
        some = self.shelf.pictures(model, edit, prompts, range(first, first + n))
        return [[address(PICTURES, name) for name in row] for row in some]

    def kept(self, keep: str, word: str) -> str:
        """A keep list with one more word."""
        return ", ".join(dict.fromkeys([*split(keep, "keep"), clean(word, "keep")]))

    # -- 2: run ------------------------------------------------------------------------------

    def train(self, form: Form, every: Any) -> str:
        """Start what a form asks for; gives its key."""
        return self.started(wish_of(form, self.places), every)

    def started(self, wish: Wish, every: Any) -> str:
        """Start a run, or go on with it."""
        n = whole(every, "updates between pictures", 0, 10**7)
        if not holds(wish, self.places):
            raise UserError(
                f"{wish.home!r} holds another run: empty “Run folder” under Settings, for a folder "
                "of its own, or name another one."
            )
        key, job = self.know(wish), Job(self.places, wish, "erase")
        if not self.finished(key) or job.state().phase != "done":
            self.shelf.clear()
            job.start(every=n, also=list(wish.method.keep))
        return key

    def again(self, key: str, every: Any) -> str:
        """Go on with a run that was stopped."""
        return self.started(self.wish(key), every)

    def keep_and_train(self, key: str, word: str, every: Any) -> str:
        """The same run with one more word on its keep list, from the start."""
        return self.started(self.wish(key).keeping(word), every)

    # -- 3: compare --------------------------------------------------------------------------

    def compare(self, key: str, prompt: str, seed: Any, strength: Any) -> str:
        """Base beside edited, on the same seeds."""
        s = number(strength, "the strength", 0, STRONGEST)
        first = whole(seed, "the first seed", 0, 2**31)
        text = clean(prompt, "prompt")
        wish, edit = self.wish(key), self.edit(key)
        text = text or wish.concepts[0].shown.prompt
        with self.shelf.model(wish.model) as model:
            rows = [
                self.drawn(model, e, [text], SEEDS, first)[0]
                for e in (None, edit.scaled(s, model) if s else None)
            ]
        labels = [f"seed {first + i}" for i in range(SEEDS)]
        shown = [
            Figure(text, rows[0], "without the edit", labels),
            Figure(text, rows[1], f"with {s:g} of the edit" if s != 1 else "with the edit", labels),
        ]
        veiled = self.veiled(key) or sensitive([text])
        return markup.figures(shown, veiled, "rows")

    def hurt(self, key: str, strength: Any) -> str:
        """The words that the edit moved most, before and after, to be kept by a click."""
        s = number(strength, "the strength", 0, STRONGEST)
        wish, edit = self.wish(key), self.edit(key)
        moved = record(self.places.run(wish.home)).get("moved_most") or {}
        words = list(moved)[: ahead.SHOWN]
        if not words:
            seen = self.job(key, "erase").watched().get("words", ())
            words = [w["word"] for w in seen if w["role"] == "near"]
        with self.shelf.model(wish.model) as model:
            now = edit.scaled(s, model) if s else None
            before, after = (self.drawn(model, e, words, 1) for e in (None, now))
        shown = [
            Figure(w, [*a, *b], labels=("before", "after"), button="Keep and retrain")
            for w, a, b in zip(words, before, after, strict=True)
        ]
        return markup.figures(shown, self.veiled(key))

    # -- 4: attack ---------------------------------------------------------------------------

    def attack(self, key: str, attacks: Sequence[str], budget: str, most: Any, keep: bool) -> None:
        """Start the attacks, or go on with them.

        Args:
            most: evaluations that each search may spend; 0: by ``budget``.
        """
        self.edit(key)  # refused where there is none
        if not attacks:
            raise UserError("Choose at least one attack.")
        unknown = [a for a in attacks if a not in ATTACKS]
        if unknown:
            raise UserError(f"there is no attack {unknown[0]!r}.")
        n = whole(most, "evaluations", 0, 10**9)
        told = str(n) if n else budget
        self.job(key, "attack").start(attacks=list(attacks), budget=told, keep=bool(keep))

    # -- 5: take away ------------------------------------------------------------------------

    def take(self, key: str, form: str, strength: Any) -> str:
        """Make a file; gives what is to be known of it."""
        s = number(strength, "the strength", 0, STRONGEST)
        home = self.places.run(self.wish(key).home)
        if form == "report" and takeaway.outdated(home, home / takeaway.REPORT):
            self.edit(key)
            self.job(key, "report").start()
            return "The report is being made; it appears here."
        made = takeaway.take(self.places, self.wish(key), self.edit(key), form, s)
        return f"{made.path.name}: {made.said}" if made.said else f"{made.path.name} is ready."

    def stop(self, key: str, kind: str) -> None:
        """Ask a job to stop."""
        self.job(key, kind).stop()
