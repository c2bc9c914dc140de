"""What is given to the command line that it must refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from efface.cli.main import ABOUT
from efface.cli.opening import Opening
from efface.methods import METHODS
from efface.settings import ranges
from hard.places import SETTINGS


class Case(NamedTuple):
    """A command line that must be refused."""

    args: tuple[str, ...]
    named: str = ""
    """What the line must name; "": it is not looked for."""
    spoil: Callable[[Path], object] | None = None
    """What is done to the folder before."""
    fine: bool = False
    """Whether it may be accepted."""


NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e20", "100000000000000000000", "x", "", "1,5", "½")
CONCEPTS = {
    "": "empty",
    " ": "empty",
    "a\nb": "control",
    "a\x1bb": "control",
    "\x01": "control",
    "a" * 10_000: "10,000",
    "church, bomb": "comma",
    "church -> castle -> wolf": "cannot read",
    "church | a | b": "cannot read",
    "church -> Church": "own anchor",
    "->": "",
    "| x": "",
    "\u200b": "",
    "\ud800": "",
}
TWO = (
    ("church -> castle", "church -> wolf"),
    ("church", "Church -> wolf"),
    ("church -> bomb", "bomb"),
    ("church | chapel", "chapel"),
)
GOOD = ("\U0001f469\u200d\U0001f4bb" * 20, "<script>", "$x$", "a" * 300, "naïve café", "教会")
"""Odd names that are names."""
OPEN = ("--model", "MODEL", "--device", "cpu")
ERASE = {
    name: ("erase", name, "coat", *OPEN, "--out", "new", "--no-picture", *flags)
    for name, flags in SETTINGS.items()
}
BASES: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "--out", "new"),
    "score": ("score", "run", "--pictures", "1"),
    "report": ("report", "run", "--pictures", "1"),
    "sensitivity": ("sensitivity", "run", "--latents", "2"),
    "study": ("study", "search", *OPEN, "--out", "new", "--work", "new"),
    "bench": (
        *("bench", "MODEL/protocol.json", "--model", "MODEL", "--method", "uce", "--seeds", "1"),
        *("--out", "new", "--work", "new"),
    ),
    "generate": ("generate", "--prompt", "a coat", "--out", "new", *OPEN, "--steps", "2"),
    "inspect": ("inspect", "run"),
    "merge": ("merge", "run", "new"),
    "lora": ("lora", "run", "new.safetensors"),
    "apply": ("apply", "run", "folder"),
    "remove": ("remove", "folder"),
    "combine": ("combine", "run", "run", "--out", "new.safetensors"),
    "diff": ("diff", "MODEL", "folder", "--out", "new.safetensors"),
    "vocabulary": ("vocabulary", "names", *OPEN),
    "models": ("models",),
    "methods": ("methods",),
}
"""Commands that do something, to which one bad thing is done."""
FIELDS = {n: getattr(import_module(f"efface.cli.{n}"), "Options", None) for n in ABOUT}


def numbers() -> Iterator[Case]:
    """Every number of every command and method, with everything that it cannot be."""
    for name, base in BASES.items():
        cls = FIELDS[name]
        yield from of_class(base, "", cls)
        if isinstance(getattr(cls, "opening", None), Opening):
            yield from of_class(base, "", Opening)
    for name, base in ERASE.items():
        method = METHODS[name]()
        yield from of_class(base, "", type(method))
        for f in fields(method):
            part = getattr(method, f.name)
            if is_dataclass(part) and not isinstance(part, type):
                yield from of_class(base, f"{f.name}.", type(part))


def of_class(base: tuple[str, ...], prefix: str, cls: Any) -> Iterator[Case]:
    """Bad values of a dataclass's numbers, as options of a command."""
    for name, allowed in ranges(cls).items():
        flag = f"--{prefix}{name}".replace("_", "-")
        whole = "int" in str(get_type_hints(cls)[name])
        for value in NUMBERS:
            try:
                good = (int if whole else float)(value) in allowed
            except ValueError:
                good = False
            if not good:
                yield Case((*base, f"{flag}={value}"), name)


def places() -> Iterator[Case]:
    """Everything that a command reads or writes, with everything that is no such thing."""
    reads = {
        **{f"{n} run": (*BASES[n], "run") for n in ("score", "report", "sensitivity", "inspect")},
        **{f"{n} run": (*BASES[n], "run") for n in ("merge", "lora", "apply", "combine")},
        "generate --edit": (*BASES["generate"], "--edit", "run"),
        "remove": (*BASES["remove"], "folder"),
        "apply to": (*BASES["apply"], "folder"),
        "diff": (*BASES["diff"], "folder"),
        "--model": (*BASES["generate"], "MODEL"),
        "--protocol": (*BASES["score"], "--protocol", "p.json", "p.json"),
        "--prompts": (*BASES["score"], "--protocol", "coco", "--prompts", "p.csv", "p.csv"),
        "--clip": (*BASES["sensitivity"], "--instrument", "picture", "--clip", "?", "?"),
        "--concepts-file": (*ERASE["uce"], "--concepts-file", "p.txt", "p.txt"),
        "--vocabulary": (*ERASE["speed"], "names"),
        "words": (*BASES["vocabulary"], "names"),
        "bench": (*BASES["bench"], "MODEL/protocol.json"),
    }
    for *given, old in reads.values():
        for bad in MISSING:
            usual = (bad == "" and old in ("MODEL", "p.json")) or (bad == "file" and old == "names")
            args = tuple(bad if a == old else a for a in given)
            yield Case(args, spoil=unreadable, fine=usual)
    for name, base in {**BASES, "erase": ERASE["uce"]}.items():
        for old in {"new", "new.safetensors"} & set(base):
            keeps = name in ("demo", "study", "bench")  # in a folder that is there already
            for bad in ("file/below", "file", "a" * 300, "full")[: 3 if keeps else 4]:
                yield Case(tuple(bad if a == old else a for a in base), spoil=unreadable)
        if name == "sensitivity" or name == "report":
            for bad in ("file/below", "folder/" + "a" * 300, "folder")[: 2 + (name == "report")]:
                yield Case((*base, "--out", bad), spoil=unreadable)


MISSING = ("no/such/thing", "empty", "binary", "file", "a" * 300, "file/below", "\x01", "\n", "")
"""Paths of what is not there, or is something else."""


def unreadable(place: Path) -> None:
    """Things that are nothing of ours."""
    (place / "empty").mkdir()
    (place / "full").mkdir()
    (place / "full" / "holiday.jpg").write_bytes(b"\xff\xd8")
    (place / "binary").write_bytes(bytes(range(256)) * 8)
    (place / "file").write_text("[")


def names() -> Iterator[Case]:
    """Names that are none, and names that only look so."""
    for text, told in CONCEPTS.items():
        yield Case(("erase", "uce", "--concept", text, *ERASE["uce"][3:]), told)
        yield Case((*BASES["vocabulary"], "--concept", text), told)
        yield Case(("sensitivity", "--concept", text, *OPEN), told)
    for pair in TWO:
        yield Case(("erase", "uce", *pair, *ERASE["uce"][3:]))
    for flag, text in (("--keep", "Coat"), ("--keep", "a\x1bb"), ("--anchor", "coat")):
        yield Case((*ERASE["uce"], flag, text))
    for text in GOOD:
        yield Case(("erase", "uce", text, *ERASE["uce"][3:]), fine=True)
        yield Case((*BASES["generate"], "--prompt", text), fine=True)
    flags = ("--dtype", "--device", "--group", "--vocabulary", "--preset", "--quantise", "--log")
    for flag in flags:
        for text in ("", "x", "../x", "\x01", "é" * 200):
            base = ERASE["ap" if flag == "--preset" else "speed"]
            fine = text == "" and flag in ("--quantise", "--log")
            yield Case((*base, f"{flag}={text}"), fine=fine)
    for base, flag in (
        (BASES["lora"], "--form"),
        (BASES["combine"], "--how"),
        (BASES["sensitivity"], "--instrument"),
        (BASES["score"], "--concept"),
        (BASES["bench"], "--method"),
        (BASES["bench"], "--split"),
        (BASES["remove"], ""),
    ):
        for text in ("", "x", "\x01", "é" * 200):
            yield Case((*base, f"{flag}={text}" if flag else text), fine=not flag and not text)
    for base in BASES.values():
        yield Case((*base, "--no-such-option"), "no-such-option")
        yield Case((*base, "left", "over", "words"))
    for args in (
        ("x",),
        ("",),
        ("\x01",),
        ("erase", "\x1b"),
        ("--print-completion", ""),
    ):
        yield Case(args)


RUN = ("erase", "uce", "coat", "--out", "run", "--no-picture", *OPEN)
DAMAGE: dict[str, tuple[tuple[str, ...], ...]] = {
    "run/run.json": (("report", "run", "--pictures", "1"), RUN),
    "run/edit.safetensors": (BASES["inspect"], BASES["merge"], BASES["score"], RUN),
    "run/scores.json": (BASES["inspect"], BASES["merge"], BASES["apply"]),
    "run/scores-x.json": (BASES["report"],),
    "run/sensitivity.json": (BASES["report"],),
    "run/samples/samples.jsonl": (BASES["score"],),
    "run/samples/samples.json": (BASES["score"],),
    "run/samples/PNG": (BASES["score"], BASES["report"]),
    "folder/erasures.json": (BASES["remove"], ("inspect", "folder"), BASES["apply"]),
    "folder/erasures/base.safetensors": (BASES["remove"],),
    "folder/model_index.json": (
        BASES["remove"],
        ("generate", "--prompt", "x", "--model", "folder"),
    ),
    "folder/unet/config.json": (("vocabulary", "--model", "folder"),),
    "folder/vae/config.json": (("vocabulary", "--model", "folder"),),
    "folder/scheduler/scheduler_config.json": (("vocabulary", "--model", "folder"),),
    "folder/text_encoder/config.json": (("vocabulary", "--model", "folder"),),
    "folder/tokenizer/tokenizer.json": (("vocabulary", "--model", "folder"),),
    "folder/tokenizer/tokenizer_config.json": (("vocabulary", "--model", "folder"),),
    "folder/unet/diffusion_pytorch_model.safetensors": (
        ("vocabulary", "--model", "folder"),
        BASES["apply"],
        ("inspect", "folder"),
    ),
    "folder/concepts.json": (("vocabulary", "names", "--model", "folder"),),
    "folder/protocol.json": (("score", "--model", "folder", "--pictures", "1"),),
    "folder/judge/judge.json": (("score", "--model", "folder", "--pictures", "1"),),
    "folder/judge/judge.safetensors": (("score", "--model", "folder", "--pictures", "1"),),
    "p.csv": ((*BASES["score"], "--protocol", "q.json", "--prompts", "p.csv"),),
    "p.zip": ((*BASES["score"], "--protocol", "q.json", "--prompts", "p.zip"),),
    "c.json": ((*ERASE["uce"], "--concepts-file", "c.json"),),
    "c.txt": ((*ERASE["uce"], "--concepts-file", "c.txt"),),
    "w.txt": ((*ERASE["speed"][:-1], "w.txt"), ("vocabulary", "w.txt", *OPEN)),
}
"""Files, and commands that read them."""


def flipped(data: bytes, at: int) -> bytes:
    """Bytes, one of them another."""
    return data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :]


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda x: b"",
    "cut": lambda x: x[: len(x) // 2],
    "binary": lambda x: bytes(range(128, 256)) * 8,
    "null": lambda x: b"null",
    "list": lambda x: b"[1]",
    "empty object": lambda x: b"{}",
    "strange object": lambda x: (
        b'{"run": 1, "command": 2, "scores": 3, "instruments": 4, "now": 5}'
    ),
    "deep": lambda x: b"[" * 100_000,
    "long number": lambda x: b'{"a": ' + b"1" * 5000 + b"}",
    "a flipped byte": lambda x: flipped(x, len(x) // 2),
}
"""How a file is damaged."""
MEANINGFUL: dict[str, tuple[str, ...]] = {
    "folder/unet/diffusion_pytorch_model.safetensors": ("a flipped byte",),  # other weights
    "folder/protocol.json": ("empty object",),  # all by default
    "c.txt": ("cut", "null"),  # names
    "w.txt": ("cut", "null", "list", "empty object", "strange object"),  # words
}
"""What is another file rather than a damaged one."""
