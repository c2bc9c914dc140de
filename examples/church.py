# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A church less
#
# A diffusers pipeline, a concept that it shall not draw any more, and what that costs the others.
# The model is the small one that efface ships, so that all of this takes a few minutes on two CPU
# cores; with another folder it is the same lines. Open it in Jupyter (`jupytext --to notebook
# church.py`), in an editor that knows `# %%` cells, or run it: `python examples/church.py`.

# %%
import os

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import efface

UPDATES = int(os.environ.get("EFFACE_UPDATES", "150"))
STEPS = int(os.environ.get("EFFACE_STEPS", "12"))
PICTURES = int(os.environ.get("EFFACE_PICTURES", "4"))

folder = efface.MODELS["emoji"].folder
device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = StableDiffusionPipeline.from_pretrained(folder).to(device)
pipe.set_progress_bar_config(disable=True)


# %%
def drawn(pipe, prompts=("a church", "a castle", "a wolf", "a fox", "a beer mug")):
    """A row of pictures, each prompt from the same noise, by the pipeline alone."""
    noise = [torch.Generator().manual_seed(0) for _ in prompts]
    made = pipe(list(prompts), num_inference_steps=STEPS, guidance_scale=4.0, generator=noise)
    row = Image.new("RGB", (64 * len(prompts), 64))
    for i, picture in enumerate(made.images):
        row.paste(picture, (64 * i, 0))
    return row


before = drawn(pipe)
before

# %% [markdown]
# Churches go, and a wolf becomes a fox; castles are to stay, whatever else the search for the most
# harmed concept finds. The pipeline is taken as it is, and is the same afterwards.

# %%
edit = efface.erase(pipe, ["church", "wolf -> fox"], method="ap", keep=["castle"], updates=UPDATES)

# %% [markdown]
# The edit lies over the pipeline inside the block, as strong as one likes, and is gone behind it.

# %%
with edit.applied(pipe):
    after = drawn(pipe)
with edit.applied(pipe, strength=0.5):
    half = drawn(pipe)
again = drawn(pipe)

sheet = Image.new("RGB", (before.width, 3 * 64))
for i, row in enumerate((before, half, after)):
    sheet.paste(row, (0, 64 * i))
sheet

# %% [markdown]
# An edit is a file of the changed weights, which knows how it was made.

# %%
edit.save("runs/church")
edit = efface.Edit.load("runs/church")
print(edit.meta["method"], [c["name"] for c in edit.meta["concepts"]], edit.meta["cost"])

# %% [markdown]
# What did it cost? The share of pictures that no longer show what was erased (ESR-1), and of those
# that still show what they should (PSR-1), each with its 95 % interval. Named concepts alone make
# it quick; without `concepts` all of the protocol's are drawn.

# %%
scores = efface.score(
    pipe,
    edit,
    protocol="emoji-objects",
    pictures=PICTURES,
    concepts=["castle", "fox", "house", "beer mug", "dog", "sunflower"],
)
print("ESR-1", scores.esr1)
print("PSR-1", scores.psr1, "at least", scores.psr1.low)

# %% [markdown]
# For good: as a LoRA that stock diffusers loads, which leaves a little out, or in the pipeline.

# %%
left_out = edit.save_lora("runs/church/lora.safetensors", rank=64)
print(f"{100 * left_out:.1f} % of the change is not in the LoRA")
pipe = edit.merged_into(pipe)
merged = drawn(pipe)
merged
