"""The model card that goes with a merged model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from efface.edits.edit import Edit
from efface.scores import Score
from efface.storage import VERSION

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
base_model: {model}
tags:
- concept-erasure
- efface
---

# {model} without {concepts}

Made with efface {version} from `{model}` (hash `{base}`) by the method `{method}`: {weights:,}
weights of the denoiser were changed, so that prompts for {concepts} no longer draw that.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(path)
```
{scores}{files}
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


def card(
    edit: Edit, found: Mapping[str, Any] | None, files: Mapping[str, str] | None = None
) -> str:
    """A card with Hugging Face front matter.

    Args:
        found: the ``scores.json`` of the run; None where nothing was measured.
        files: what became of each file that can hold weights.
    """
    meta = edit.meta
    if found is None:
        text = "\nNothing was measured on it: `efface score` does.\n"
    else:
        rows = [
            f"| {k} | {Score(**v)} | {Score(**found['unedited'][k])} | {Score(**v).drawn} |"
            for k, v in found["edited"].items()
        ]
        text = "\n".join(
            [
                "",
                "## Measured",
                "",
                f"Percent with 95 % intervals, by the judge {found['judge']}. ESR: pictures "
                "without the erased concept, for new pictures of it; PSR: pictures that still "
                "show what they should, for concepts like these.",
                "",
                "| score | edited | unedited | n |",
                "| --- | --- | --- | --- |",
                *rows,
                "",
            ]
        )
    told = [f"| `{name}` | {state} |" for name, state in (files or {}).items()]
    head = ["", "## Files", "", "`efface inspect` compares them with this list.", ""]
    table = [*head, "| file | denoiser's weights |", "| --- | --- |", *told, ""] if told else []
    return CARD.format(
        model=meta.get("model"),
        concepts=", ".join(c["name"] for c in meta.get("concepts", ())),
        version=VERSION,
        base=meta.get("base"),
        method=meta.get("method"),
        weights=sum(w.numel() for w in edit.weights.values()),
        scores=text,
        files="\n".join(table),
        meta=json.dumps(dict(meta), indent=1),
    )
