"""A device that is not the CPU, on every machine: ``far``, whose tensors are computed on the CPU.

What a GPU refuses is refused there as well: tensors of two devices in one operation, numpy without
``.cpu()``. So a tensor that was left behind is found where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CROSSING = ("_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_")
"""What takes tensors of two devices on a GPU, too."""


class Far(torch.Tensor):
    """A tensor on ``far``; its numbers are ``near``."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        found = torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device="far:0",
        )
        found.near = near
        return found

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near!r})"

    def tolist(self) -> Any:
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        seen = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        if name not in CROSSING and any(not isinstance(x, Far) and x.ndim for x in seen):
            raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
        to = kwargs.get("device")
        out = func(*tree_map(near, args), **tree_map(near, kwargs))
        if name == "_to_copy" and to is not None and to.type == "cpu":
            return out
        if name == "_fused_sdp_choice":
            return 0  # by matrix products; the others are kernels of a device
        if name == "copy_" and not isinstance(args[0], Far):
            return args[0]
        out = tree_map(lambda x: Far(x) if isinstance(x, torch.Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)


def near(x: Any) -> Any:
    """The same on the CPU, where it is computed."""
    if isinstance(x, Far):
        return x.near
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "far" else x


class Module:
    """What torch asks of a device."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        pass


KEPT = []


def register() -> None:
    """Have the device; once a process."""
    if KEPT:
        return
    _setup_privateuseone_for_python_backend("far", Module())
    made = torch.library.Library("aten", "IMPL")
    KEPT.append(made)  # while it lives

    def empty(size: Any, **how: Any) -> Far:
        return Far(torch.empty(size, **{**tree_map(near, how), "pin_memory": None}))

    def strided(size: Any, stride: Any, **how: Any) -> Far:
        return Far(torch.empty_strided(size, stride, **{**tree_map(near, how), "pin_memory": None}))

    def copied(source: Any, to: Any, _: bool = False) -> Any:
        near(to).copy_(near(source))
        return to

    made.impl("_copy_from", copied, "PrivateUse1")
    made.impl("empty.memory_format", empty, "PrivateUse1")
    made.impl("empty_strided", strided, "PrivateUse1")
