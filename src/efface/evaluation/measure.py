"""Protocols whose prompts come from a file: what their metrics say of an edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.evaluate import unedited_folder
from efface.evaluation.metrics import clip_score, cmmd, drift, exposed, fid, kid, lpips_distance
from efface.evaluation.metrics import nudity as nude
from efface.evaluation.metrics.clip import load as load_clip
from efface.evaluation.metrics.perceptual import network
from efface.evaluation.protocols import Protocol
from efface.evaluation.samples import Samples, Wanted, generate
from efface.models import DiffusionModel
from efface.scores import Score

DISTANCES = {"fid": fid, "kid": kid, "cmmd": cmmd}


def wanted_of(protocol: Protocol, prompts: Path, limit: int = 0) -> list[Wanted]:
    """The pictures of a prompt file; several a prompt take the seeds that follow its own.

    Args:
        limit: only so many prompts, the first; 0: all.
    """
    rows = protocol.listed(prompts)
    n = protocol.pictures["erased"]
    return [
        Wanted(r.prompt, r.seed + i, r.concept)
        for r in (rows[:limit] if limit else rows)
        for i in range(n)
    ]


def measure(
    model: DiffusionModel,
    edit: Edit | None,
    folder: Path | None,
    protocol: Protocol,
    wanted: Sequence[Wanted],
    clip: str = "",
    found: Any = None,
    lpips: Any = None,
) -> dict[str, Score]:
    """Every metric of the protocol, by its full name.

    Names hold what they depend on: the CLIP, the threshold, whether the prompts ask for what is
    erased (by the prompt file's concepts) or not.

    Args:
        edit: None: the unedited model; distances to itself are left out.
        folder: for the edit's pictures.
        clip: path or hub id of a CLIP; "": the shipped one.
        found: detectors of nudity; None: the installed ones.
        lpips: network of LPIPS; None: the installed one.
    """
    base_folder = unedited_folder(model, protocol)
    options = {"steps": protocol.steps, "guidance": protocol.guidance}
    base = generate(model, wanted, base_folder, None, **options)  # type: ignore[arg-type]
    own = base
    if edit is not None:
        if folder is None:
            raise UserError("an edit's pictures need a folder.")
        own = generate(model, wanted, folder, edit, **options)  # type: ignore[arg-type]
    erased = {c["name"] for c in edit.meta.get("concepts", ())} if edit else set()
    scores: dict[str, Score] = {}
    if "nudity" in protocol.metrics:
        raw = nude.look([own.folder / w.file for w in own.rows], own.folder / "nudity.jsonl", found)
        scores |= {f"NER-{t:g}": exposed(raw, t) for t in nude.TAUS}
    for name, rows in groups(own, erased).items():
        images, before = (pictures(s, rows) for s in (own, base))
        prompts = [own.rows[i].prompt for i in rows]
        if "clip" in protocol.metrics:
            judge = load_clip(clip)
            scores[f"CLIP score{name} ({judge.name})"] = clip_score(images, prompts, judge)
        if edit is not None:
            scores |= {k + name: v for k, v in moved(protocol, images, before, prompts, lpips)}
    if edit is not None and set(DISTANCES) & set(protocol.metrics):
        judge = load_clip(clip)
        x, y = (judge.pictures(s.images()) for s in (own, base))
        for metric, ask in DISTANCES.items():
            if metric in protocol.metrics:
                scores[f"{metric.upper()} to the unedited ({judge.name})"] = ask(x, y)
    return scores


def groups(samples: Samples, erased: set[str]) -> dict[str, list[int]]:
    """Rows by whether they ask for what is erased, by a suffix for the names."""
    asks = [i for i, w in enumerate(samples.rows) if w.concept and w.concept in erased]
    rest = [i for i in range(len(samples.rows)) if i not in set(asks)]
    if not asks:
        return {"": rest}
    return {", erased": asks} | ({", retained": rest} if rest else {})


def pictures(samples: Samples, rows: Sequence[int]) -> Tensor:
    """Some pictures of a set."""
    some = Samples(samples.folder, tuple(samples.rows[i] for i in rows), samples.settings)
    return some.images()


def moved(
    protocol: Protocol, images: Tensor, before: Tensor, prompts: Sequence[str], lpips: Any
) -> list[tuple[str, Score]]:
    """Distances to the unedited picture of the same prompt and seed."""
    result = []
    if "drift" in protocol.metrics:
        result.append(("drift", drift(images, before, list(prompts))))
    if "lpips" in protocol.metrics:
        net = lpips or network()
        result.append(("LPIPS", lpips_distance(images, before, prompts, net)))
    return result
