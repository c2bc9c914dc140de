"""The model card that goes with a merged model."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from efface.concepts import few
from efface.edits.edit import Edit
from efface.errors import escaped
from efface.scores import Score
from efface.storage import VERSION

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
base_model: {front}
tags:
- concept-erasure
- efface
---

# {title} without {concepts}

Made with efface {version} from {model} (hash {base}) by the method {method}{strength}: {weights:,}
weights of the denoiser were changed, so that prompts for {concepts} no longer draw that.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(path)
```
{scores}{attacks}{files}
## Limits

An edit is not a security boundary. The base weights are public, and the difference between them
and these reveals what was erased. Concepts that were not measured may be harmed, and the erased
ones may be reached by other words.

## How it was made

```json
{meta}
```

The licence of the base model holds for this one.
"""


def prose(text: str) -> str:
    """A name for Markdown, in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(escaped(text), quote=False))


def code(text: str) -> str:
    """A name as code in Markdown."""
    text = escaped(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"


def asked(found: Mapping[str, Any]) -> str:
    """Which question scores answer, in words; "": that is not on record."""
    if "concepts" not in found or "pictures" not in found:
        return ""
    n, names = found["pictures"], len(found["concepts"])
    each = f"{n:,} picture{'s' * (n != 1)} of each of {names:,} concepts"
    return f", on {each} (protocol {prose(found.get('protocol', ''))})"


def card(
    edit: Edit,
    found: Mapping[str, Any] | None,
    files: Mapping[str, str] | None = None,
    attacks: str = "",
) -> str:
    """A card with Hugging Face front matter.

    Args:
        found: the ``scores.json`` of the run; None where nothing was measured.
        files: what became of each file that can hold weights.
        attacks: what is said of attacks, in Markdown.
    """
    meta = edit.meta
    if found is None:
        text = "\nNothing was measured on it: `efface score` does.\n"
    else:
        was = found.get("unedited", {})
        rows = [
            f"| {k} | {Score(**v)} | {Score(**was[k]) if k in was else ''} | {Score(**v).drawn} |"
            for k, v in found.get("edited", {}).items()
        ]
        text = "\n".join(
            [
                "",
                "## Measured",
                "",
                f"Percent with 95 % intervals, by the judge {prose(found.get('judge', ''))}"
                f"{asked(found)}. "
                "ESR: pictures without the erased concept, for new pictures of it; PSR: pictures "
                "that still show what they should, for concepts like these.",
                "",
                "| score | edited | unedited | n |",
                "| --- | --- | --- | --- |",
                *rows,
                "",
            ]
        )
    if edit.gates and files is not None:
        text += (
            "\nIts gates, which prompts open, are open for every prompt in these files: more is "
            "changed than by the edit itself.\n"
        )
    told = [
        "| {} | {} |".format(code(name).replace("|", r"\|"), state)
        for name, state in (files or {}).items()
    ]
    head = ["", "## Files", "", "`efface inspect` compares them with this list.", ""]
    table = [*head, "| file | denoiser's weights |", "| --- | --- |", *told, ""] if told else []
    model = str(meta.get("model"))
    return CARD.format(
        front=json.dumps(escaped(model), ensure_ascii=False),
        title=prose(model),
        model=code(model),
        concepts=prose(few([c["name"] for c in meta.get("concepts", ())])),
        version=VERSION,
        base=code(str(meta.get("base"))),
        method=code(str(meta.get("method"))),
        strength="" if edit.strength == 1 else f", at {edit.strength:g} times its strength",
        weights=sum(w.numel() for w in edit.weights.values()),
        scores=text,
        files="\n".join(table),
        attacks=attacks and f"\n{attacks}",
        meta=json.dumps(dict(meta), indent=1),
    )
