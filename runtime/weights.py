"""Maps groups into tensors without a copy.

A group comes as a descriptor (memfd or unlinked file) and is mapped private and writable: torch insists on writable
memory, nothing is ever written, so the pages stay the page cache's. torch keeps the mapping alive as long as a tensor
lives. What is copied: tensors cut over several groups, weights whose precision isn't the session's, and those that the
model's class fuses (experts, query-key-value). A group of which little is still used after that is let go, and its rest
copied too: else a layer of experts would lie in memory twice.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from math import prod

import torch

from protocol import limits
from protocol.errors import BadInput
from runtime.interface import TensorPlace

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_ALIGNED = 64


def map_groups(fds: Sequence[int], lengths: Sequence[int]) -> list[mmap.mmap | None]:
    """One mapping per group (None for an empty one); `BadInput` when a descriptor holds less than announced."""
    if len(fds) != len(lengths):
        raise BadInput(f"load_stage: {len(fds)} descriptors came for {len(lengths)} groups")
    return [_map(fd, length, number) for number, (fd, length) in enumerate(zip(fds, lengths, strict=True))]


def _map(fd: int, length: int, number: int) -> mmap.mmap | None:
    held = os.fstat(fd).st_size
    if not 0 <= length <= min(limits.MAX_GROUP, held):
        raise BadInput(f"load_stage: group {number} announces {length} bytes, its descriptor holds {held}")
    if length == 0:
        return None
    return mmap.mmap(fd, length, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)


def build_tensors(groups: Sequence[mmap.mmap | None], places: Sequence[TensorPlace]) -> dict[str, torch.Tensor]:
    """Tensors by name; `BadInput` names the tensor whose dtype, shape, offset or cuts don't fit."""
    cuts: dict[str, list[TensorPlace]] = {}
    for place in places:
        cuts.setdefault(place.name, []).append(place)
    return {name: _tensor(groups, sorted(of_one, key=lambda place: place.part)) for name, of_one in cuts.items()}


def _tensor(groups: Sequence[mmap.mmap | None], cuts: list[TensorPlace]) -> torch.Tensor:
    head = cuts[0]
    dtype = DTYPES.get(head.dtype)
    if dtype is None:
        raise BadInput(f"tensor {head.name!r} has dtype {head.dtype[:16]!r}, which isn't supported")
    if [cut.part for cut in cuts] != list(range(len(cuts))):
        raise BadInput(f"tensor {head.name!r}: its cuts are {[cut.part for cut in cuts]}, some are missing or doubled")
    _check_shape(head, sum(cut.length for cut in cuts), dtype.itemsize)
    if head.length == 0 and len(cuts) == 1:
        return torch.empty(head.shape, dtype=dtype)
    raw = [_bytes(groups, cut, dtype.itemsize) for cut in cuts]
    joined = raw[0] if len(raw) == 1 else torch.cat(raw)
    return joined.view(dtype).view(head.shape)


def _check_shape(place: TensorPlace, length: int, width: int) -> None:
    if len(place.shape) > limits.MAX_RANK or any(side < 0 for side in place.shape):
        raise BadInput(f"tensor {place.name!r} has the impossible shape {place.shape[:9]}")
    if prod(place.shape) * width != length:
        raise BadInput(f"tensor {place.name!r}: {length} bytes for shape {place.shape} of {place.dtype}")


def _bytes(groups: Sequence[mmap.mmap | None], cut: TensorPlace, width: int) -> torch.Tensor:
    mapping = groups[cut.group] if 0 <= cut.group < len(groups) else None
    if mapping is None or cut.at < 0 or cut.length <= 0 or cut.at + cut.length > len(mapping):
        raise BadInput(f"tensor {cut.name!r}: bytes {cut.at}..{cut.at + cut.length} lie outside of group {cut.group}")
    if cut.at % _ALIGNED or cut.length % width:
        raise BadInput(f"tensor {cut.name!r} begins at {cut.at} of its group, not at a multiple of {_ALIGNED}")
    return torch.frombuffer(mapping, dtype=torch.uint8, count=cut.length, offset=cut.at)


def check_stored(tensors: dict[str, torch.Tensor]) -> None:
    """`BadInput` for weights that mean nothing without scales of their own: cast as they are, they would give a wrong reply."""
    for name, tensor in tensors.items():
        if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            raise BadInput(f"tensor {name!r} is stored in 8-bit floats, which can't be run", hint="publish the model in bf16, fp16 or fp32")


def let_go(model: torch.nn.Module, groups: Sequence[mmap.mmap | None]) -> None:
    """Copies what `model` still uses of each group that it uses less than half of, so that the group's memory is freed."""
    used: dict[int, list[tuple[torch.nn.Module, str, torch.Tensor]]] = {}
    ranges = [(_address(group), len(group)) if group is not None else (0, 0) for group in groups]
    for module in model.modules():
        for name, held in module.named_parameters(recurse=False):
            at = -1 if held.is_meta else held.data_ptr()
            number = next((index for index, (start, size) in enumerate(ranges) if start <= at < start + size), None)
            if number is not None:
                used.setdefault(number, []).append((module, name, held))
    for number, users in used.items():
        if sum({held.data_ptr(): held.nbytes for _module, _name, held in users}.values()) * 2 < ranges[number][1]:
            copies: dict[int, torch.nn.Parameter] = {}
            for module, name, held in users:
                copies.setdefault(id(held), torch.nn.Parameter(held.detach().clone(), requires_grad=False))
                module._parameters[name] = copies[id(held)]


def _address(group: mmap.mmap) -> int:
    return int(torch.frombuffer(group, dtype=torch.uint8, count=1).data_ptr())


def check_finite(tensors: dict[str, torch.Tensor]) -> None:
    """`BadInput` names the first tensor with a NaN or infinity in it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
            raise BadInput(f"tensor {name!r} holds values that are not numbers", hint="the published weights are broken")
