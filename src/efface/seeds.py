"""One tree of seeds: every random draw has a name of its own, and no two share their numbers."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

WORDS = slice(24, 24 + 8 * 624)
"""Where the 624 words of the Mersenne twister lie in a CPU generator's state, eight bytes each."""


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A generator of its own for the draw that ``path`` names, on the CPU.

    ``manual_seed`` keeps 32 bits, in which names soon collide, also with the seeds of pictures
    (those are ``manual_seed(seed)``, as diffusers' users expect). Here all 624 words of the state
    come from a hash of the name.

    Args:
        seed: the user's.
        path: what is drawn, and which of it: ``"update", 12, "batch", 3``.

    Source: numpy's SeedSequence; Matsumoto & Nishimura, TOMACS 8 (1998).
    """
    digest = hashlib.sha256(json.dumps([seed, *path]).encode()).digest()
    words = np.random.SeedSequence(list(np.frombuffer(digest, "<u4"))).generate_state(624)
    made = torch.Generator().manual_seed(0)
    state = made.get_state()
    state[WORDS] = torch.from_numpy(words.astype("<u8").view(np.uint8).copy())
    return made.set_state(state)
