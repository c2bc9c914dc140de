"""Stage 1: render the drawings to ``build/data.npz`` (64x64 RGB) and ``build/concepts.json``.

Needs Node's ``npm`` for the icon packages (pinned in package.json). Takes about half a minute.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from typing import Any

import numpy as np
import resvg_py
from common import ASSETS, BUILD, HELD_OUT, HERE, JUDGE_ONLY, SIZE, STYLES, WORDS, stage
from PIL import Image
from tqdm import tqdm

GROUPS = {3: "animals", 4: "food", 5: "travel", 6: "activities", 7: "objects"}


def wanted() -> list[str]:
    """The concept names of concepts.txt, in order."""
    lines = (HERE / "concepts.txt").read_text(encoding="utf8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def ascii_label(label: str) -> str:
    return label.replace("’", "'").replace("“", '"').replace("”", '"')


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("'", "")).strip("-")


class IconSet:
    """One npm icon package: finds a drawing by code point or by one of its names."""

    def __init__(self, name: str) -> None:
        folder = HERE / "node_modules" / "@iconify-json" / name
        self.data = json.loads((folder / "icons.json").read_text(encoding="utf8"))
        self.by_char: dict[str, str] = json.loads(
            (folder / "chars.json").read_text(encoding="utf8")
        )
        self.names = set(self.data["icons"]) | set(self.data.get("aliases", {}))

    def find(self, hexcode: str, names: list[str]) -> str | None:
        """The icon's name in this set, or None where the set has no such drawing."""
        code = hexcode.lower().replace("-fe0f", "")
        if code in self.by_char:
            return self.by_char[code]
        return next((n + end for n in names for end in ("", "-1") if n + end in self.names), None)

    def svg(self, name: str) -> str:
        icon: dict[str, Any] = {}
        while name not in self.data["icons"]:  # an alias points at its parent
            alias = self.data["aliases"][name]
            icon = {**alias, **icon}
            name = alias["parent"]
        icon = {**self.data["icons"][name], **icon}
        box = [
            icon.get(k, self.data.get(k, d))
            for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        ]
        view = " ".join(map(str, box))
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{icon["body"]}</svg>'


def render(svg: str) -> np.ndarray:
    """An SVG text as (SIZE, SIZE, 3) uint8 on white."""
    big = Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE)))
    )
    big = big.convert("RGBA")
    white = Image.new("RGBA", big.size, "white")
    flat = Image.alpha_composite(white, big).convert("RGB")
    inner = SIZE - 4  # a margin, so that small shifts cut nothing off
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(flat.resize((inner, inner), Image.Resampling.LANCZOS), (2, 2))
    return np.asarray(canvas)


def main() -> None:
    with stage("data") as report:
        if not (HERE / "node_modules").exists():
            subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=HERE,
                check=True,
            )
        base = HERE / "node_modules" / "emojibase-data" / "en"
        emoji = {
            ascii_label(e["label"]): e
            for e in json.loads((base / "data.json").read_text(encoding="utf8"))
        }
        codes = json.loads((base / "shortcodes" / "emojibase.json").read_text(encoding="utf8"))
        sets = {s: IconSet(s) for s in (*STYLES, *JUDGE_ONLY, HELD_OUT)}
        concepts, images, concept_of, style_of = [], [], [], []
        for name in tqdm(wanted(), desc="render"):
            e = emoji[name]
            short = codes.get(e["hexcode"], [])
            short = [short] if isinstance(short, str) else short
            names = [slug(name), *(s.find(e["hexcode"], []) or slug(name) for s in sets.values())]
            names += [s.replace("_", "-") for s in short]
            names += [n.replace("-", "") for n in names]
            for i, icons in enumerate(sets.values()):
                found = icons.find(e["hexcode"], names)
                if found is not None:
                    images.append(render(icons.svg(found)))
                    concept_of.append(len(concepts))
                    style_of.append(i)
            concepts.append(
                {"name": name, "group": GROUPS[e["group"]], "tags": sorted(set(e["tags"]))}
            )
        np.savez_compressed(
            BUILD / "data.npz",
            images=np.stack(images),
            concept=np.array(concept_of, np.int16),
            style=np.array(style_of, np.int8),
        )
        found = {"styles": list(sets), "style_names": list(WORDS.values()), "concepts": concepts}
        about = json.dumps(found, indent=1) + "\n"
        (BUILD / "concepts.json").write_text(about)
        ASSETS.mkdir(parents=True, exist_ok=True)
        (ASSETS / "concepts.json").write_text(about)
        counts = np.bincount(style_of, minlength=len(sets))
        report["concepts"] = len(concepts)
        report["drawings"] = {s: int(n) for s, n in zip(sets, counts, strict=True)}


if __name__ == "__main__":
    main()
