"""A device that isn't there: tensors "elsewhere" are kept in ordinary memory, and refuse to meet tensors that aren't there.

What a graphics processor would refuse is refused: an operation over tensors of both places, `.numpy()`. What it would compute is computed
by the CPU, so that results can be compared. It stands for the rules of devices, not for their arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

KIND = "elsewhere"
NAME = f"{KIND}:0"
_known = False
_CROSSING = {"aten::_to_copy", "aten::copy_", "aten::to"}


class There(torch.Tensor):  # type: ignore[misc]
    """A tensor on the device, `inner` what it holds."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> There:
        with torch.inference_mode(False):  # torch counts versions of those made within, and finds none
            made: There = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=NAME
            )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Maker(TorchDispatchMode):  # type: ignore[misc]
    """Sends what is made for the device there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, leaves = func._schema.name, tree_leaves((args, kwargs))
    given = [one for one in leaves if isinstance(one, torch.Tensor)]
    asked = [one for one in leaves if isinstance(one, torch.device)]
    there = any(isinstance(one, There) for one in given)
    goes = asked[0].type == KIND if asked else there
    if there and name not in _CROSSING and any(not isinstance(one, There) and one.dim() for one in given):
        raise RuntimeError(f"{name}: tensors on {NAME} and on the CPU")
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if func._schema.is_mutable and name.endswith("_"):
        return args[0]
    if isinstance(target := kwargs.get("out"), There):
        return target
    return tree_map(_wrapped, out) if goes else out


def _inner(one: Any) -> Any:
    if isinstance(one, torch.device) and one.type == KIND:
        return torch.device("cpu")
    return one.inner if isinstance(one, There) else one


def _wrapped(one: Any) -> Any:
    return There(one) if isinstance(one, torch.Tensor) and not isinstance(one, There) else one


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """The device. torch knows it from the first time on until the process ends, so this is for processes of their own."""
    global _known
    if not _known:
        _setup_privateuseone_for_python_backend(KIND)
        _known = True
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # what is made of a list is made here first
    try:
        with _Maker():
            yield torch.device(NAME)
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
