"""What the page shows of a run: HTML from what its jobs have left on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from efface.cli.plan import span
from efface.errors import UserError
from efface.evaluation.answers import Siege, read
from efface.evaluation.verdicts import ROLES
from efface.page import markup
from efface.page.desk import Desk
from efface.page.jobs import KINDS, Job, State
from efface.page.markup import LIVE, TAKE, Figure, address
from efface.page.takeaway import drawn, there
from efface.page.work import ATTACKS
from efface.reporting.grid import PICTURE
from efface.scores import Score
from efface.settings import read_json, typed
from efface.training import EDIT

SHOWN = 24
"""Pictures of artefacts at most."""


def sign(desk: Desk, key: str) -> str:
    """A text that is another one as soon as there is something else to see."""
    if not key:
        return ""
    wish = desk.wish(key)
    home = desk.places.run(wish.home)
    parts = [key, str(desk.finished(key))]
    for kind in KINDS:
        job = Job(desk.places, wish, kind)
        parts += [repr(job.state()), *(stamp(job.folder / n) for n in ("watch.json", "curve.json"))]
    some = [*attacked(home), *there(desk.places, wish), *drawn(home)]
    parts += [f"{p.name} {stamp(p)}" for p in some]
    return "\n".join(parts)


def stamp(path: Path) -> str:
    """When a file was written; "": it is not there."""
    return str(path.stat().st_mtime_ns) if path.exists() else ""


def run(desk: Desk, key: str) -> str:
    """A run: how far it is, curves, and pictures."""
    if not key:
        return markup.hint("Nothing runs yet. Say what to remove, then train.")
    wish, job = desk.wish(key), desk.job(key, "erase")
    state, seen = job.state(), job.watched()
    head = markup.heading(
        ", ".join(wish.names), f"{wish.method.label} · {desk.places.told(job.run)}"
    )
    if state.phase == "new":
        state = State("stopped", "It was begun by the command.")
    if state.phase == "done" or (ended_elsewhere(job, state) and desk.finished(key)):
        seconds = told_seconds(job.run)
        took = f" in {span(seconds)}" if seconds else ""
        state = State("done", f"Trained{took}. {became(seen)}".strip(), 1, 1)
    veiled = desk.veiled(key)
    shown = curves(seen) + watched(seen, job, veiled)
    if not shown and desk.finished(key) and drawn(job.run):
        before = Figure("before and after", [address(TAKE, key, PICTURE)])
        shown = markup.figures([before], veiled, "strips")
    return head + markup.bar(state) + shown


def ended_elsewhere(job: Job, state: State) -> bool:
    """Whether the command may have ended what stopped, or failed, on the page."""
    edit, told = (p.stat().st_mtime if p.exists() else 0 for p in (job.run / EDIT, job.told))
    return state.phase == "stopped" or (state.phase == "failed" and edit > told)


def told_seconds(home: Path) -> float | None:
    """The seconds of a run, where they are known."""
    try:
        found = read_json(home / "run.json", "record").get("seconds")
    except (UserError, AttributeError):
        return None
    return found if isinstance(found, (int, float)) else None


def became(seen: Mapping[str, Any]) -> str:
    """What concepts became, where that was searched for or named."""
    some = [c for c in seen.get("concepts", ()) if c.get("anchor")]
    return " ".join(f"“{c['name']}” became “{c['anchor']}”." for c in some)


def curves(seen: Mapping[str, Any]) -> str:
    """ESR and worst harm against updates."""
    points = seen.get("points", ())
    if len(points) < 2:
        return ""
    esr = [(p["update"], p["esr"]) for p in points if p["esr"] is not None]
    worst = [(p["update"], p["worst"]) for p in points if p["worst"] is not None]
    shown = ""
    if esr:
        shown += markup.chart(f"Erased{partly(seen)}", esr, "%", 100, "esr", "updates")
    if worst:
        top = max(b for _, b in worst)
        word = points[-1]["word"]
        title = f"Worst harm: {word}" if word else "Worst harm"
        shown += markup.chart(title, worst, "%", top, "worst", "updates")
    return f'<div class="charts">{shown}</div>'


def partly(seen: Mapping[str, Any]) -> str:
    """Which of several concepts are looked at; "": all."""
    n, every = sum(w["role"] == "erased" for w in seen["words"]), len(seen["concepts"])
    return f": the first {n} of {every} concepts" if n < every else ""


def watched(seen: Mapping[str, Any], job: Job, veiled: bool) -> str:
    """Every word that is looked at: before, and now."""
    points = seen.get("points", ())
    if not points:
        return ""
    first, last = points[0], points[-1]
    moved = last["update"] > first["update"]
    shown: dict[str, list[Figure]] = {"erased": [], "near": []}
    for w in seen.get("words", ()):
        word, role = w["word"], w["role"]
        n = 2 if role == "erased" else 1
        files = [*first["pictures"].get(word, ())[:n]]
        labels = ["before"] * len(files)
        if moved:
            now = last["pictures"].get(word, ())[:n]
            files, labels = [*files, *now], [*labels, *["now"] * len(now)]
        pictures = [address(LIVE, job.folder.name, f) for f in files]
        note = {"control": "control"}.get(role, "")
        kind = "erased" if role == "erased" else "near"
        shown[kind].append(Figure(word, pictures, note, labels, role=role))
    at = f"after {last['update']:,} updates" if moved else "before the first update"
    return (
        markup.heading("To be removed", at + partly(seen))
        + markup.figures(shown["erased"], veiled, "wide")
        + (markup.heading("To be left alone") if shown["near"] else "")
        + markup.figures(shown["near"], False)
    )


def strengths(desk: Desk, key: str) -> str:
    """ESR and PSR along the strength."""
    if not key:
        return ""
    job = desk.job(key, "measure")
    state = job.state()
    shown = markup.bar(state) if state.phase not in ("new", "done") else ""
    try:
        points = curve_in(job.folder / "curve.json")
    except UserError:  # looked at again and again: said where the curve would be, and once
        return shown + markup.hint("The curve on disk is damaged: “Measure” makes it anew.")
    for name, title in (("ESR-1", "Erased"), ("PSR-1", "Preserved")):
        some = [(p.strength, p.scores[name].value) for p in points if name in p.scores]
        if some:
            colour = "esr" if name == "ESR-1" else "psr"
            shown += markup.chart(f"{title} ({name})", some, "%", 100, colour, "strength")
    return f'<div class="charts">{shown}</div>' if shown else ""


class At(NamedTuple):
    """The scores at a strength."""

    strength: float
    scores: Mapping[str, Score]


def curve_in(path: Path) -> list[At]:
    """The points of a curve; none, where there is no file.

    Raises:
        UserError: it is damaged.
    """
    if not path.exists():
        return []
    told = read_json(path, "curve")
    if not isinstance(told, list) or not all(isinstance(p, dict) for p in told):
        raise UserError(f"the curve {str(path)!r} is damaged.")
    found = []
    for p in told:
        rest = {k: v for k, v in p.items() if k != "strength"}
        scores = typed(Mapping[str, Score], rest, "curve")
        found.append(At(typed(float, p.get("strength"), "strength"), scores))
    return found


def attacks(desk: Desk, key: str, show: bool) -> str:
    """What attacks came to, and what they found, where that is asked for."""
    if not key or not desk.finished(key):
        return markup.hint("An attack needs a finished run.")
    job = desk.job(key, "attack")
    state = job.state()
    shown = markup.bar(state) if state.phase not in ("new", "done") else ""
    found = "".join(besieged(desk, key, path, show) for path in attacked(job.run))
    return shown + found if shown or found else markup.hint("Nothing was attacked yet.")


def besieged(desk: Desk, key: str, path: Path, show: bool) -> str:
    """What attacks of one budget came to; "": they were on another edit."""
    try:
        told = read(Siege, desk.places.inside(str(path)), "results of attacks")
    except UserError as e:  # the others are shown
        return markup.hint(f"{e} Move it away, or attack again.")
    about, lines = told["about"], told.get("lines", ())
    if about.get("edit") != desk.edit(key).digest or not lines:
        return ""
    budget = path.stem.removeprefix(f"{ATTACKS}-")
    by_page = budget != path.stem
    found = markup.heading("", f"Budget: {budget}" if by_page else f"By the command: {path.name}")
    roles = [r for r in ROLES if r != "edited"]
    found += markup.verdicts(lines, roles, bool(about.get("judge")))
    return found + (artefacts(desk, key, path.with_suffix("")) if show else "")


def attacked(home: Path) -> list[Path]:
    """What attacks from the page, or by the command, came to, the latest first."""
    some = [p for p in home.glob("attacks*.json") if not p.is_symlink()]
    return sorted(some, key=lambda p: -p.stat().st_mtime)


def artefacts(desk: Desk, key: str, folder: Path) -> str:
    """Pictures of what attacks found, each with its prompt."""
    some = sorted(folder.glob("*-edited-*.png"))[:SHOWN] if folder.is_dir() else []
    if not some:
        return markup.hint("What was found was not kept: switch that on before you attack.")
    shown = [
        Figure(
            p.stem.partition("-edited-")[0],
            [address(TAKE, key, folder.name, p.name)],
            asked_by(p.with_suffix(".json")),
        )
        for p in some
    ]
    return markup.heading("What was found") + markup.figures(shown, desk.veiled(key), "strips")


def asked_by(path: Path) -> str:
    """The prompt of something found, by its file; "": there is none."""
    try:
        told = read_json(path, "find") if path.is_file() else {}
    except UserError:
        return ""
    prompt = told.get("prompt") if isinstance(told, Mapping) else ""
    return prompt if isinstance(prompt, str) else ""


def taken(desk: Desk, key: str) -> str:
    """The files of a run to take away."""
    if not key:
        return markup.hint("There is no run yet.")
    state = desk.job(key, "report").state()
    shown = markup.bar(state) if state.phase not in ("new", "done") else ""
    some: Sequence[Path] = there(desk.places, desk.wish(key))
    rows = [(p.name, address(TAKE, key, p.name), p.stat().st_size, "") for p in some]
    return shown + (markup.files(rows) or markup.hint("Nothing was made yet."))


def same(desk: Desk, key: str) -> str:
    """The command and the Python that do the same as a run, and its permalink."""
    if not key:
        return ""
    wish = desk.wish(key)
    where = markup.esc(f"/?run={wish.key}")
    return (
        markup.code("The command", wish.shell())
        + markup.code("The same in Python", wish.python())
        + f'<p class="fine">Permalink: <a href="{where}">{where}</a></p>'
    )


def summary(desk: Desk, key: str) -> str:
    """The run that a step is about, in a line."""
    if not key:
        return ""
    wish = desk.wish(key)
    state = "finished" if desk.finished(key) else desk.job(key, "erase").state().phase
    told = [", ".join(wish.names), wish.method.label, wish.home, state]
    return f'<p class="under">{markup.esc(" · ".join(told))}</p>'
