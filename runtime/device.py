"""The processor that a worker computes on, and what of a model goes there.

One rule keeps all else as it is: a model's weights and its sequences' memory lie on the device, whatever goes in and comes out of a runner
lies in ordinary memory. Hidden states travel from node to node anyway, and what follows a pass (choice of tokens, prints, tests against
what others claim) is numpy's. Rejected: choosing tokens on the device, which would make a seed mean another reply on each kind of it.

CUDA and MPS go by the same code as the CPU, and were never tried on such hardware: `tests/runtime/test_device.py` runs it on a stand-in
that refuses to mix devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from protocol.errors import BadInput

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Device:
    """`name` as torch says it; `memory` bytes that it has, None where that isn't told."""

    name: str
    memory: int | None = None


def found() -> list[Device]:
    """What this machine has, the best first; the CPU is always there."""
    devices = []
    if torch.cuda.is_available():
        devices += [Device(f"cuda:{at}", torch.cuda.get_device_properties(at).total_memory) for at in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(Device("mps", int(torch.mps.recommended_max_memory())))
    return [*devices, Device("cpu")]


def choose(asked: str, devices: Sequence[Device]) -> Device:
    """Of `devices`, best first, the one that is meant; `BadInput` says which there are."""
    if asked == "auto":
        return devices[0]
    for device in devices:
        if asked == device.name or (asked == "cuda" and device.name.startswith("cuda:")):
            return device
    raise BadInput(
        f"device {asked[:16]!r} isn't here; this machine has {', '.join(device.name for device in devices)}",
        hint="--device auto takes the best there is",
    )


def take(asked: str) -> Device:
    """Chooses, and has the driver open what it needs, which a worker in its sandbox can't any more; `memory` is what is free there."""
    device = choose(asked, found())
    if not device.name.startswith("cuda"):
        return device
    torch.zeros(1, device=device.name)
    return Device(device.name, int(torch.cuda.mem_get_info(device.name)[0]))


def place(model: nn.Module, device: torch.device) -> None:
    """Moves the weights that are there, the tied ones once; what lies on the meta device stays."""
    if device.type != "cpu":
        model._apply(lambda held: held if held.is_meta else held.to(device))


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of `model` lie."""
    held = chain(model.parameters(), model.buffers())
    return next((one.device for one in held if not one.is_meta), CPU)
