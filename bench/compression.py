"""What each compression saves and costs, on one thread: `python -m bench.compression [FILE]...`.

Normal numbers of every width, and 8 MiB out of the middle of each file given (`FILE:2` for elements of 2 bytes). Segments as for k = 4.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.bars import Bar
from erasure import compression
from protocol import limits
from protocol.encoding import COMPRESSIONS, segment_plain

SIZE = 8 * limits.MIB
ROUNDS = 3


def samples(files: list[str]) -> Iterator[tuple[str, int, bytes]]:
    """(name, bytes of an element, bytes)."""
    numbers = np.random.default_rng(1).normal(0, 0.02, SIZE // 2).astype("<f4")
    halves = (numbers.view("<u4") >> 16).astype("<u2")
    yield "bf16, normal", 2, halves.tobytes()
    yield "fp16, normal", 2, numbers.astype("<f2").tobytes()
    yield "fp32, normal", 4, numbers[: SIZE // 4].tobytes()
    yield "fp32 that was bf16", 4, (halves[: SIZE // 4].astype("<u4") << 16).tobytes()
    for name in files:
        path, _, element = name.partition(":")
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - SIZE) // 2 // 8 * 8)
            yield path.rpartition("/")[2], int(element or 1), file.read(SIZE)


def measure(name: str, data: bytes) -> tuple[float, float, float]:
    """Share of the size left; bytes a second in and out."""
    step = segment_plain(4)
    cuts = [data[at : at + step] for at in range(0, len(data), step)]
    out = memoryview(bytearray(step))
    spent = [1e9, 1e9]
    packed: list[bytes] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        packed = [bytes(compression.compress(name, cut)) for cut in cuts]
        spent[0] = min(spent[0], time.perf_counter() - began)
        began = time.perf_counter()
        for cut, stored in zip(cuts, packed, strict=True):
            compression.decompress_into(name, stored, out[: len(cut)])
        spent[1] = min(spent[1], time.perf_counter() - began)
    return sum(map(len, packed)) / len(data), len(data) / spent[0], len(data) / spent[1]


def run(*files: str) -> dict[str, Any]:
    """For each sample what "auto" and "fast" take, and each compression's share of the size and MB/s in and out."""
    found: dict[str, Any] = {"bench": "compression", "samples": {}}
    for what, element, data in samples(list(files)):
        auto, fast = (compression.choose(data[: 1 << 20], element, fast) for fast in (False, True))
        tried: dict[str, list[float]] = {}
        for name in COMPRESSIONS:
            if name != "raw" and not (name.startswith("planes") and name[6] != str(element)):
                share, inward, outward = measure(name, data)
                tried[name] = [round(share, 3), round(inward / 1e6), round(outward / 1e6)]
        found["samples"][what] = {"auto": auto, "fast": fast, "tried": tried}
    return found


def bars(found: dict[str, Any]) -> list[Bar]:
    lines = []
    for what, sample in found["samples"].items():
        for how in ("auto", "fast"):
            share, inward, outward = sample["tried"].get(sample[how], (1.0, 0, 0))
            speeds = f", {inward:.0f} MB/s in, {outward:.0f} out" if inward else ""
            lines.append(Bar(f"compression {how} of {what}: {sample[how]}", "", f"{share:.3f} of the size{speeds}"))
    return lines


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:]), indent=2))
