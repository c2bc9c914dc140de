"""What an erasure costs, in evaluations of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Counter:
    """Evaluations of the denoiser, counted where they happen: a sample through it is one."""

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    """What earlier processes of a resumed run took."""

    def see(self, n: int, out: Tensor) -> None:
        """Count ``n`` samples that gave ``out``, and again when a gradient comes back."""
        self.forward += n
        self.watch(n, out)

    def watch(self, n: int, out: Tensor) -> None:
        """Count ``n`` samples again when a gradient comes back to ``out``.

        For a loss that is made of something else than the denoiser's output.
        """
        if out.requires_grad:
            out.register_hook(lambda _: self._see_back(n))

    def _see_back(self, n: int) -> None:
        self.backward += n

    def since(self, before: Counter) -> Counter:
        """What has been counted after ``before``."""
        return Counter(
            self.forward - before.forward,
            self.backward - before.backward,
            self.seconds - before.seconds,
        )

    def add(self, more: Counter) -> None:
        """Count what was counted elsewhere."""
        self.forward += more.forward
        self.backward += more.backward
        self.seconds += more.seconds

    def copy(self) -> Counter:
        """The count as it stands."""
        return Counter(self.forward, self.backward, self.seconds)
