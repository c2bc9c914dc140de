"""The small search behind the defaults: a few settings of each method on split 4.

Split 4 is never reported. ``bench/search/METHOD.json`` keeps every setting that was tried, and is
not run again; ``--table`` writes them into ``docs/benchmark.md``. The later methods (:data:`OPEN`)
are searched for where the benchmark is hardest: on names that they were not shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from size_tables import put

from efface.concepts import Concept
from efface.evaluation.evaluate import OBJECTS, evaluate, judge_for, pictures
from efface.evaluation.metrics import esr, psr, worst_tenth_score
from efface.evaluation.metrics.worst import by_concept
from efface.evaluation.protocols import Protocol
from efface.evaluation.protocols import load as load_protocol
from efface.methods.advunlearn import AdvUnlearn
from efface.methods.age import AGE
from efface.methods.ap import AP
from efface.methods.ca import CA
from efface.methods.dp import DP
from efface.methods.esd import ESD
from efface.methods.mace import MACE
from efface.methods.minimax import Minimax
from efface.methods.oce import OCE
from efface.methods.race import RACE
from efface.methods.speed import SPEED
from efface.methods.spm import SPM
from efface.methods.stereo import STEREO
from efface.methods.uce import UCE
from efface.models import load
from efface.scores import Score
from efface.training import Run
from efface.training.search import Exact, Random
from efface.vocabularies import INLINE

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "benchmark.md"
SPLIT, ERASED, PRESERVED = "4", 20, 1
"""Pictures of each erased and of each preserved concept."""
OPEN = (
    *("dp", "oce", "minimax", "uce-open", "race", "stereo", "advunlearn"),
    *("esd-prompts", "ap-prompts"),
)
"""Searched for with some of the names that a method may be shown kept from it, and scored on them:
those that the benchmark holds out are no more for settings than for methods."""
STYLES, STYLE = ("ap-styles",), "twemoji style"
"""Searched for on a style that `emoji-styles` does not erase, with its prompts and pictures."""
HARD, EVERY, FEW, SEVERAL = "emoji-objects-2", 6, 10, 4
"""Their protocol; every so-manyth name is kept from them; pictures of each erased, of each kept."""


def tuned(method: Any, **options: Any) -> Any:
    """A method with some of its tuning changed."""
    return replace(method, **options)


def worst(top: int) -> Exact:
    """AP's own search among the ``top`` worst; 0: all, by their share."""
    return Exact(refresh=60, probes=2, top=top)


def ap(eta: float, preserve: float = 1.0, search: Any = None) -> AP:
    """AP as it was searched: its guidance, λ, and which words it draws."""
    return replace(AP.presets()["away"], eta=eta, preserve=preserve, search=search)


BETWEEN = (
    "Later methods on `emoji-objects-2`, with every sixth of the names that a method may see "
    "kept from them; PSR and the worst tenth are of those, four pictures each, ESR of ten each."
)
"""What stands before the table of :data:`OPEN`."""
STYLED = (
    f"The anchor of a style, and in how many prompts it is erased (0: its bare name): `{STYLE}`, "
    "which `emoji-styles` does not erase, with that benchmark's pictures. A thing was the anchor "
    "while anchors were searched for among things."
)
"""What stands before the table of :data:`STYLES`."""

CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "ap": {
        **{f"eta {eta:g}, top 24": ap(eta, search=worst(24)) for eta in (2, 4)},
        **{f"eta {eta:g}, by share": ap(eta, search=worst(0)) for eta in (2, 4)},
        **{f"eta 2, lambda {x:g}, top 24": ap(2, x, worst(24)) for x in (0.1, 0.03)},
        "eta 2, lambda 0.1, by share": ap(2, 0.1, worst(0)),
    },
    "ap-random": {
        **{f"eta {eta:g}": ap(eta, search=Random()) for eta in (2, 4, 3)},
        **{f"eta 2, lambda {x:g}": ap(2, x, Random()) for x in (0.1, 0.03)},
    },
    "esd": {f"lr {lr:g}": tuned(ESD(), lr=lr) for lr in (1e-5, 3e-5, 1e-4, 3e-4)},
    "uce": {
        f"ridge {r:g}, erase scale {s:g}": UCE(vocabulary="names", ridge=r, erase_scale=s)
        for r, s in ((0.5, 1), (0.1, 1), (0.5, 10), (0.1, 100), (0.5, 100), (0.1, 1000))
    },
    "ca": {f"lr {lr:g}": tuned(CA(), lr=lr) for lr in (3e-5, 5e-5, 1e-4, 3e-4, 1e-3)},
    "age": {
        f"eta {eta:g}, tau {tau:g}": replace(AGE(eta=eta), search=replace(AGE().search, tau=tau))
        for eta, tau in ((1, 0.1), (2, 0.1))
    },
    "lora": {
        f"lr {lr:g}": tuned(ESD.presets()["lora"], lr=lr) for lr in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    },
    "speed": {
        f"maps {m}, null {n:g}, rho {r:g}": SPEED(maps=m, null=n, retain_scale=r)
        for m, n, r in (("v", 0.1, 1), ("kv", 0.1, 1), ("kv", 0.1, 0.05), ("kv", 0.5, 0.05))
    },
    "spm": {
        f"lr {lr:g}, anchoring {a:g}": tuned(SPM(anchoring=a), lr=lr, updates=80)
        for lr, a in ((3e-3, 1000), (3e-3, 10), (1e-2, 10), (3e-3, 1))
    },
    "mace": {
        f"lr {lr:g}, prior {p:g}": tuned(MACE(prior=p), lr=lr, updates=80)
        for lr, p in ((1e-2, 1e-2), (1e-2, 1e-4), (1e-3, 1e-2), (1e-2, 1), (1e-3, 1))
    },
    "uce-open": {
        "searched": UCE(vocabulary="names", ridge=0.1, erase_scale=100.0),
        "searched, rows all": UCE(vocabulary="names", ridge=0.1, erase_scale=100.0, rows="all"),
        **{
            f"searched, diversify {n}": UCE(
                vocabulary="names", ridge=0.1, erase_scale=100.0, diversify=n
            )
            for n in (5, 16)
        },
    },
    "esd-prompts": {
        f"diversify {n}": replace(ESD.presets()["searched"], diversify=n) for n in (0, 5, 16)
    },
    "ap-styles": {
        f"anchor {a or 'null prompt'}, styled {n}": AP(anchor=a, styled=n)
        for a, n in (
            ("egg", 0),
            ("", 0),
            *((f"{x} style", 0) for x in ("flat", "fluent", "noto")),
            ("", 16),
            ("flat style", 16),
            ("flat style", 46),
        )
    }
    | {
        f"anchor flat style, styled {n}, {said}": AP(anchor="flat style", styled=n, **more)
        for n, said, more in (
            (46, "800 updates", {"updates": 800}),
            (46, "eta 3", {"eta": 3.0}),
            (46, "4 erased and 4 preserved rows", {"batch": 4, "preserve_batch": 4}),
            (16, "800 updates", {"updates": 800}),
        )
    },
    "ap-prompts": {f"diversify {n}": AP(diversify=n) for n in (0, 5, 16)},
    "dp": {
        "no vocabulary": DP(),
        **{f"energy {e:g}": DP(vocabulary="names", energy=e) for e in (0.9, 0.97, 0.99, 0.98)},
    },
    "oce": {
        f"{form}, s_e {s_e:g}": OCE(form=form, erase_scale=s_e)
        for form, s_e in (("iterated", 300), ("released", 300), ("iterated", 1000))
    },
    "race": {
        "defaults": RACE(),
        **{f"lr {lr:g}": tuned(RACE(), lr=lr) for lr in (1e-4, 3e-5)},
        "lr 3e-05, anchor auto": RACE(lr=3e-5, anchor="auto"),
    },
    "advunlearn": {
        "defaults": AdvUnlearn(),
        "lr 1e-04": AdvUnlearn(lr=1e-4),
        "anchor auto": AdvUnlearn(anchor="auto"),
        "preserve 0.1": AdvUnlearn(preserve=0.1),
    },
    "stereo": {
        "defaults": STEREO(),
        "guidance 4": STEREO(guidance=4.0),
        "anchor auto": STEREO(anchor="auto"),
        "anchor auto, guidance 4": STEREO(anchor="auto", guidance=4.0),
        "anchor auto, share 0.25": STEREO(anchor="auto", share=0.25),
        "lr 3e-05": STEREO(lr=3e-5),
        "lr 3e-05, anchor auto": STEREO(lr=3e-5, anchor="auto"),
    },
    "minimax": {
        f"rows {rows}, strength {x:g}, diversify {n}": Minimax(rows=rows, strength=x, diversify=n)
        for rows, x, n in (
            ("all", 1, 0),
            ("all", 1.5, 0),
            ("subject", 1, 0),
            ("all", 2, 0),
            ("all", 1.2, 0),
            ("subject", 1.2, 0),
            ("all", 1, 5),
            ("all", 1.2, 5),
            ("subject", 1.2, 5),
            ("all", 1.4, 5),
        )
    }
    | {
        f"rows {rows}, strength {x:g}, diversify {n}, harm {harm}": Minimax(
            rows=rows, strength=x, diversify=n, harm=harm
        )
        for rows, x, n in (("subject", 1.2, 0), ("all", 1, 5), ("all", 1.1, 5))
        for harm in ("states", "drift", "attention")
        if (x, harm) not in ((1.2, "states"), (1, "states"))
    },
}


def tried(name: str) -> dict[str, Any]:
    """What a method's file holds."""
    path = HERE / "search" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def kept_apart(method: Any, protocol: Protocol, known: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The method with the names that it is shown, and those that it is scored on."""
    words = protocol.usable(protocol.erased(SPLIT), known)
    unseen = list(words[::EVERY])
    if not getattr(method, "vocabulary", ""):
        return method, unseen
    rest = ", ".join(w for w in words if w not in unseen)
    return replace(method, vocabulary=f"{INLINE} {rest}"), unseen


def search(name: str) -> None:
    """Try the settings of a method that are not in its file."""
    model = load("emoji")
    other = "emoji-styles" if name in STYLES else OBJECTS
    protocol = load_protocol(HARD if name in OPEN else other)
    judge = judge_for(model, protocol)
    erased = (STYLE,) if name in STYLES else protocol.erased(SPLIT)
    others = list(protocol.others(erased, judge.concept_names))
    drawn = [range(n) for n in ((FEW, SEVERAL) if name in OPEN else (ERASED, PRESERVED))]
    if name in STYLES:
        drawn = [protocol.seeds(kind, 0) for kind in ("erased", "preserved")]
    kind = protocol.kind
    for label, method in CANDIDATES[name].items():
        if label in tried(name):
            continue
        if name in OPEN:
            method, others = kept_apart(method, protocol, judge.concept_names)
        edit = method.erase(model, [Concept(c, kind=kind) for c in erased], Run())
        with tempfile.TemporaryDirectory() as folder:
            gone, kept = (
                evaluate(
                    model, edit, Path(folder), pictures(protocol, names, seeds), judge, protocol
                )
                for names, seeds in zip((erased, others), drawn, strict=True)
            )
        scores = {f"ESR-{k}": esr(gone, erased, k) for k in (1, 5)}
        scores |= {f"PSR-{k}": psr(kept, others, k) for k in (1, 5)}
        if name in OPEN:
            scores["worst tenth"] = worst_tenth_score(100 * by_concept(kept.top1, kept.concepts))
        found = tried(name)
        found[label] = {
            "base": model.base,
            "judge": f"{judge.version} {judge.sha256}",
            "cost": edit.meta["cost"],
            "config": edit.meta["config"],
            "scores": {k: s.to_json() for k, s in scores.items()},
        }
        path = HERE / "search" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(name, label, {k: str(s) for k, s in scores.items()}, flush=True)


def table() -> str:
    """All settings that were tried, in Markdown: the methods of :data:`OPEN` apart."""
    first = part([n for n in CANDIDATES if n not in (*OPEN, *STYLES)])
    return "\n\n".join((first, BETWEEN, part(OPEN), STYLED, part(STYLES)))


def part(names: Sequence[str]) -> str:
    """The settings of some methods."""
    rows = [(n, label, row["scores"]) for n in names for label, row in tried(n).items()]
    head = ["method", "settings", *rows[0][2]]
    lines = [head, ["---"] * len(head)]
    lines += [[n, label, *(str(Score(**s)) for s in scores.values())] for n, label, scores in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_table() -> None:
    """Put the table between its marks in the docs."""
    DOCS.write_text(put(DOCS.read_text(), "search", table()))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(CANDIDATES))
    p.add_argument("--table", action="store_true", help="only write the table of the docs")
    a = p.parse_args()
    for one in a.methods:
        if one not in CANDIDATES:
            sys.exit(f"{one!r}: no such method; there are {', '.join(CANDIDATES)}.")
    for one in () if a.table else a.methods or CANDIDATES:
        search(one)
    write_table()
