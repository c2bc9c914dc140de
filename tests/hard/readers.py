"""Every reader of files, given anything: what it reads, or one line that says why not."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from efface import concepts, vocabularies
from efface.cli import runfolder
from efface.concepts import Concept
from efface.edits.edit import FORMAT, Edit, seal
from efface.edits.kept import Kept, getters
from efface.edits.ledger import Ledger
from efface.errors import UserError
from efface.evaluation import answers, protocols
from efface.evaluation.judges.emoji import EmojiJudge, JudgeConfig
from efface.evaluation.samples import Samples, load_image, read_log
from efface.methods import METHODS
from efface.models import weight_files
from efface.models.files import configs, tensors
from efface.models.files.stored import hash_tensors
from efface.settings import from_json, to_json
from efface.training import runs
from hard.places import Result

SCORE = {"value": 95.0, "low": 90.0, "high": None, "n": 20, "counts": "pictures", "over": "x"}
SOURCE = protocols.Protocol(
    "x", source={"file": "p.csv", "prompt": "prompt", "seed": "seed", "concept": "concept"}
)


class Reader(NamedTuple):
    """A reader of one kind of file."""

    name: str
    """Of the file, in a folder of its own."""
    good: bytes
    read: Callable[[Path], object]


def plain(value: Any) -> bytes:
    """JSON."""
    return json.dumps(value, indent=1).encode()


def picture() -> bytes:
    """A PNG."""
    out = BytesIO()
    Image.new("RGB", (3, 2), "red").save(out, "PNG")
    return out.getvalue()


def zipped() -> bytes:
    """A zip file with a CSV in it."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("a/p.csv", "prompt,seed,concept\na,1,b\n")
    return out.getvalue()


def edit(about: bytes) -> bytes:
    """An edit file with any metadata, as whole as one of ours."""
    weights, text = {"a": torch.zeros(2)}, about.decode("utf8", "replace")
    digest = Edit(weights).digest
    meta = {"format": FORMAT, "digest": digest, "meta": text, "seal": seal(digest, text)}
    return save(weights, meta)


def rewrapped(path: Path) -> object:
    """An edit whose metadata is what the file holds."""
    whole = path.with_name("edit.safetensors")
    whole.write_bytes(edit(path.read_bytes()))
    found = Edit.load(whole)
    return [Concept(c["name"], c["anchor"]) for c in found.meta.get("concepts", ())]


def judge() -> dict[str, bytes]:
    """The files of a small judge."""
    with TemporaryDirectory() as place:
        EmojiJudge(JudgeConfig(("a", "b"), ("c",), (4,), (1,), "x-1")).save(Path(place))
        return {p.name: p.read_bytes() for p in Path(place).iterdir()}


def judged(path: Path) -> object:
    """A judge of which one file is given."""
    for name in set(JUDGE) - {path.name}:
        path.with_name(name).write_bytes(JUDGE[name])
    return EmojiJudge.load(path.parent)


JUDGE = judge()
ABOUT = {"base": "x", "edit": "", "sampler": "S", "steps": 2, "guidance": 1.0, "size": "8x8"}
ROW = {"prompt": "a", "seed": 1, "concept": "b", "batch": 0, "of": 1}
ERASED = {"name": "a", "anchor": "b", "kind": "object", "synonyms": ["c"]}
META = {"method": "uce", "model": "x", "base": "y", "concepts": [ERASED], "cost": {"forward": 1}}
LEDGER = {
    "base": "x",
    "now": "y",
    "erasures": [{"edit": "d", "concepts": ["c"], "method": "uce", "when": "w", "scores": None}],
    "files": {"unet/x.safetensors": {"state": "edited", "now": "h", "later": ""}},
}
MOVED = {"instrument": "p", "unit": "x", "words": {"a": 1.0}, "intervals": {"a": SCORE}}
CELL = {"protocol": "x 1", "split": "1", "method": "uce", "seed": 0, "erased": ["a"]}
INDEX = {"metadata": {}, "weight_map": {"a": "x-00001-of-00001.safetensors"}}
SHAPES = {"a": torch.zeros(2, 3)}


def readers() -> dict[str, Reader]:
    """Every kind of file that efface reads."""
    found = {
        "edit": Reader("edit.safetensors", edit(plain(META)), Edit.load),
        "metadata of an edit": Reader("about", plain(META), rewrapped),
        "safetensors header": Reader("x.safetensors", save(SHAPES), tensors.header),
        "checkpoint": Reader(runs.CHECKPOINT, save(SHAPES, {"run": "x"}), runs.opened),
        "base values": Reader(
            f"erasures/{Kept.NAME}",
            save(SHAPES, {"base": "x", "hash": hash_tensors(getters(SHAPES))}),
            lambda p: Kept.check(p.parents[1], "x"),
        ),
        "ledger": Reader("erasures.json", plain(LEDGER), lambda p: Ledger.read(p.parent)),
        "run.json": Reader(
            runfolder.RECORD,
            plain({"run": {"method": "x"}, "command": ["efface"], "seconds": 1.0}),
            lambda p: runfolder.record(p.parent),
        ),
        "scores.json": Reader(
            "scores.json",
            plain({"protocol": "x", "edited": {"ESR-1": SCORE}, "erased": ["a"]}),
            lambda p: runfolder.scores_of(p.parent, Edit({})),
        ),
        "sensitivity.json": Reader(
            "sensitivity.json",
            plain({"instruments": [MOVED], "agreement": {"a / b": SCORE}}),
            lambda p: answers.read(answers.Sensitivity, p, "sensitivity"),
        ),
        "cell of the benchmark": Reader(
            "x-1-uce-0.json",
            plain({**CELL, "hits": {"a": [[1], [0]]}, "scores": {"ESR-1": SCORE}}),
            lambda p: answers.read(answers.Cell, p, "result"),
        ),
        "samples.json": Reader(
            "samples.json",
            plain({**ABOUT, "dtype": "float32", "model": "m"}),
            lambda p: ((p.parent / "samples.jsonl").touch(), Samples.open(p.parent)),
        ),
        "samples.jsonl": Reader("samples.jsonl", json.dumps(ROW).encode() + b"\n", read_log),
        "picture": Reader("x.png", picture(), load_image),
        "protocol": Reader(
            "x.json",
            plain({"splits": {"1": ["a"]}, "template": "a {}", "metrics": ["esr"]}),
            lambda p: protocols.load(str(p)).prompts("a"),
        ),
        "prompts, CSV": Reader("p.csv", b"prompt,seed,concept\na,1,b\n", SOURCE.listed),
        "prompts, zip": Reader("p.zip", zipped(), SOURCE.listed),
        "concepts, lines": Reader("c.txt", "a -> b | c\né\n".encode(), concepts.read),
        "concepts, JSON": Reader("c.json", plain([ERASED, "x -> y"]), concepts.read),
        "word list": Reader("w.txt", b"a\nb # c\n", vocabularies.from_file),
        "concepts.json": Reader(
            "concepts.json",
            plain({"concepts": [{"name": "a", "tags": ["b"]}]}),
            lambda p: (
                vocabularies.brought(p.parent, "m", "names"),
                vocabularies.brought(p.parent, "m", "tags"),
            ),
        ),
        **{f"judge: {name}": Reader(name, data, judged) for name, data in JUDGE.items()},
        "index of shards": Reader(
            "diffusion_pytorch_model.safetensors.index.json",
            plain(INDEX),
            lambda p: (
                p.with_name(INDEX["weight_map"]["a"]).touch(),
                weight_files(p.parent),
            ),
        ),
        "scheduler": Reader(
            "scheduler_config.json",
            plain({"_class_name": "DDIMScheduler", "beta_start": 0.1, "beta_end": 0.2}).replace(
                b"}", b',"beta_schedule": "linear"}'
            ),
            lambda p: configs.open_scheduler(p.parent),
        ),
    }
    for name, cls in METHODS.items():
        found[f"settings of {name}"] = Reader(
            "x.json",
            plain(to_json(cls())),
            lambda p, c=cls: from_json(c, configs.read_json(p, "x")),
        )
    return found


READERS = readers()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=8,
)
"""Any JSON, with what is none (NaN, infinity)."""


@st.composite
def files(draw: st.DrawFn, good: bytes) -> bytes:
    """Any bytes, any JSON, or a good file with something else in it."""
    how = draw(st.sampled_from(("bytes", "json", "node", "node", "cut", "flip", "insert")))
    if how == "bytes":
        return draw(st.binary(max_size=200))
    if how == "json":
        return json.dumps(draw(JSON)).encode("utf8", "surrogatepass")
    if how == "node":
        try:
            told = json.loads(good)
        except ValueError:
            how = "flip"
        else:
            return json.dumps(draw(changed(told))).encode("utf8", "surrogatepass")
    at = draw(st.integers(0, len(good)))
    if how == "cut":
        return good[:at]
    some = draw(st.binary(min_size=1, max_size=4))
    return good[:at] + some + good[at + (len(some) if how == "flip" else 0) :]


@st.composite
def changed(draw: st.DrawFn, told: Any) -> Any:
    """A JSON value in which one part is another, missing, or more."""
    if not isinstance(told, (dict, list)) or not told or draw(st.integers(0, 3)) == 0:
        return draw(JSON)
    keys = list(told) if isinstance(told, dict) else list(range(len(told)))
    key = draw(st.sampled_from(keys))
    out: Any = dict(told) if isinstance(told, dict) else list(told)
    how = draw(st.sampled_from(("inside", "inside", "missing", "more")))
    if how == "missing":
        del out[key]
    elif how == "inside":
        out[key] = draw(changed(told[key]))
    elif isinstance(out, dict):
        out[draw(st.text(max_size=8))] = draw(JSON)
    else:
        out.append(draw(JSON))
    return out


def refused(reader: Reader, data: bytes, place: Path) -> bool:
    """Whether a reader refuses a file; in one line, as all must."""
    path = place / reader.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        reader.read(path)
    except UserError as e:
        if "\n" in str(e):
            raise ValueError(f"two lines: {e}") from None
        return True
    return False


def fuzz(name: str, place: Path, examples: int, seed: int = 0) -> int:
    """Give a reader so many files; gives how many were refused.

    Raises:
        Exception: whatever a reader raises besides UserError.
    """
    reader, no = READERS[name], []

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(files(reader.good))
    def each(data: bytes) -> None:
        if refused(reader, data, place):
            no.append(data)

    path = place / reader.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(reader.good)
    reader.read(path)
    each()
    return len(no)


def campaign(place: Path, seed: int, short: bool) -> Iterator[tuple[str, Result]]:
    """Every reader, 1,000 files each; 30 if ``short``."""
    examples = 30 if short else 1000
    for i, name in enumerate(READERS):
        wrong = []
        try:
            fuzz(name, place / str(i), examples, seed)
        except Exception as e:  # noqa: BLE001 (the campaign tells)
            said = " ".join(f"{type(e).__name__}: {e}".split())
            wrong.append(("traceback", f"{name}: {said[:300]}"))
        yield name, Result(examples, wrong)
