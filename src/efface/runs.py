"""Where a run keeps what it needs to go on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.edit import write
from efface.errors import UserError


@dataclass(frozen=True)
class Run:
    """Where a run keeps what it needs to go on after a kill, and how it works."""

    folder: Path | None = None
    """Holds the checkpoint; None: nothing is kept."""
    on_step: Callable[[int, dict[str, float]], None] | None = None
    """Called after every update with (update, {"loss": …})."""
    progress: bool = True
    """Show a bar on stderr."""
    checkpointing: bool = False
    """Compute activations again for the gradient instead of keeping them: less memory, more time,
    the same weights."""
    adam8bit: bool = False
    """Keep Adam's moments in 8 bits (bitsandbytes): a quarter of their memory."""

    def part(
        self, i: int, about: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors of a run's ``i``-th part, kept until :meth:`forget` once they are made.

        Args:
            about: what makes the run this run.

        Raises:
            UserError: a part of another run is in the folder, or a damaged one.
        """
        if self.folder is None:
            return make()
        path, said = self.folder / f"part-{i}.safetensors", json.dumps(about, sort_keys=True)
        if not path.exists():
            made = make()
            write(path, lambda p: save_file(made, p, {"run": said}))
            return made
        tensors, meta = opened(path)
        if meta.get("run") != said:
            raise foreign(self.folder)
        return tensors

    def forget(self, parts: int) -> None:
        """Delete what :meth:`part` kept."""
        for i in range(parts if self.folder else 0):
            (self.folder / f"part-{i}.safetensors").unlink(missing_ok=True)  # type: ignore[operator]


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of an unfinished run's file.

    Raises:
        UserError: it is damaged.
    """
    try:
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise UserError(
            f"the checkpoint {str(path)!r} is damaged ({e}); delete it to start afresh."
        ) from None


def foreign(folder: Path) -> UserError:
    """A run of other settings is in the folder."""
    return UserError(
        f"{str(folder)!r} holds an unfinished run with other settings; "
        "give another --out, or delete it to start afresh."
    )
