"""What each compression saves and costs, on one thread: `python -m bench.compression [FILE]...`.

Normal numbers of every width, and 8 MiB out of the middle of each file given (`FILE:2` for elements of 2 bytes). Segments as for k = 4.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np

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


def main() -> None:
    for what, element, data in samples(sys.argv[1:]):
        auto, fast = (compression.choose(data[: 1 << 20], element, fast) for fast in (False, True))
        print(f"{what}: auto takes {auto}, fast takes {fast}")
        for name in COMPRESSIONS:
            if name == "raw" or (name.startswith("planes") and name[6] != str(element)):
                continue
            share, inward, outward = measure(name, data)
            print(f"  {name:13} {share:.3f} of the size, {inward / 1e6:6.0f} MB/s in, {outward / 1e6:6.0f} MB/s out", flush=True)


if __name__ == "__main__":
    main()
