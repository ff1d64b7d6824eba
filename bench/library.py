"""The storage path without network: parity beside zfec, coding and assembling files beside `cp`.

`python -m bench.library [MIB] [ROUNDS] [FOLDER]...`: per folder (default /dev/shm and the temporary one), one group of MIB, raw, (10, 15),
with n and with 2n roots; medians, turn about with `cp` of the same file, whose time is the 1. Nothing is synced on either side.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zfec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.bars import Bar
from erasure.cipher import PUBLIC_SECRET
from erasure.code import Code
from node.transfer.encode import encode_group
from node.transfer.fetch_assemble import Assembler, Workroom
from node.transfer.fetch_board import Shape
from node.transfer.jobs import Encoded, EncodeGroup, SourceSpan
from node.transfer.sink import Sink
from node.transfer.slots import LABEL, Slot
from node.transfer.staging import StagedShard, Staging
from node.transfer.windows import WINDOW
from protocol import limits
from protocol.encoding import leaf_digests, parse_encoding

K, N = 10, 15
PIECE = 256 * limits.KIB
MIB = limits.MIB


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(found: list[float]) -> float:
    return statistics.median(found)


def parity(rounds: int) -> dict[str, Any]:
    """GB of data coded a second, by the code as shipped and by zfec."""
    data = [os.urandom(PIECE) for _ in range(K)]
    code, oracle = Code(K, N), zfec.Encoder(K, N)
    ours: list[float] = []
    theirs: list[float] = []
    room = [bytearray(PIECE) for _ in range(N - K)]
    for _ in range(rounds):
        ours.append(timed(lambda: [code.encode_into(data, room) for _ in range(64)]) / 64)
        theirs.append(timed(lambda: [oracle.encode(tuple(data), tuple(range(K, N))) for _ in range(4)]) / 4)
    size = K * PIECE / 1e9
    return {
        "ours_gb_s": round(size / median(ours), 2),
        "zfec_gb_s": round(size / median(theirs), 2),
        "times": round(median(theirs) / median(ours), 1),
    }


class Library:
    """One group in a file of `folder`, to be coded into a staging folder beside it and put together again."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.source, self.copy, self.out = folder / "group", folder / "copy", folder / "assembled"
        self._staging = Staging(folder / "staging")
        self._key = Ed25519PrivateKey.generate()
        self._executor = ThreadPoolExecutor(os.cpu_count() or 2)
        self._workroom = Workroom()
        block = os.urandom(16 * MIB)
        with self.source.open("wb") as file:
            for number in range(size // len(block)):
                file.write(number.to_bytes(8, "big") + block[8:])

    def cp(self) -> None:
        self.copy.unlink(missing_ok=True)
        subprocess.run(["cp", "--reflink=never", str(self.source), str(self.copy)], check=True)

    def encode(self, roots: int) -> Encoded:
        job = EncodeGroup(
            model=bytes(32),
            group=0,
            group_id=bytes(32),
            length=self.size,
            spans=[SourceSpan(0, 0, self.size)],
            k=K,
            n=N,
            compression="raw",
            element=2,
            n_max=roots,
        )
        with self.source.open("rb") as file:
            return asyncio.run(encode_group(job, [file.fileno()], self._staging, self._key, self._executor))

    def drop(self, done: Encoded) -> None:
        self._staging.drop(done.encoding)

    def assemble(self, done: Encoded, shards: list[int]) -> None:
        """From k staged shards: every leaf checked, pieces recovered, opened, written."""
        record = parse_encoding(done.envelope)[1]
        shape = Shape.of(done.encoding, record)
        staged = {shard: self._staging.open(done.encoding, shard) for shard in shards}
        files = {shard: os.open(found.path, os.O_RDONLY) for shard, found in staged.items()}
        self.out.unlink(missing_ok=True)
        out = os.open(self.out, os.O_RDWR | os.O_CREAT)
        assembler = Assembler(record, shape, Sink.whole(out), self._workroom, PUBLIC_SECRET)
        pool = [Slot(number, memoryview(bytearray(WINDOW)), memoryview(bytearray(LABEL))) for number in range(6 * K)]

        def read(window: int) -> dict[int, Slot]:
            return {shard: _window(files[shard], staged[shard], window, shape, pool.pop()) for shard in shards}

        def write(window: int, got: dict[int, Slot]) -> None:
            pool.extend(assembler.window(window, got, [pool.pop() for shard in range(K) if shard not in got]))

        with ThreadPoolExecutor(1) as reading:
            coming = reading.submit(read, 0)
            for window in range(shape.windows):
                got = coming.result()
                if window + 1 < shape.windows:
                    coming = reading.submit(read, window + 1)
                write(window, got)
        assembler.end()
        for fd in (*files.values(), out):
            os.close(fd)

    def check(self) -> None:
        subprocess.run(["cmp", str(self.source), str(self.out)], check=True)


def _window(fd: int, shard: StagedShard, window: int, shape: Shape, slot: Slot) -> Slot:
    view = slot.view[: shape.window_length(window)]
    assert os.preadv(fd, [view], window * WINDOW) == len(view)
    first = 32 * window * limits.WINDOW_LEAVES
    assert b"".join(leaf_digests(view)) == shard.leaves[first : first + 32 * limits.WINDOW_LEAVES]
    return slot


def files(folder: Path, size: int, rounds: int) -> dict[str, Any]:
    library = Library(folder, size)
    seconds: dict[str, list[float]] = {}

    def note(name: str, took: float) -> None:
        seconds.setdefault(name, []).append(took)

    for _ in range(rounds):
        note("cp", timed(library.cp))
        for name, roots in (("encode", N), ("encode_2n_roots", 2 * N)):
            began = time.perf_counter()
            done = library.encode(roots)
            note(name, time.perf_counter() - began)
            if roots == N:
                note("cp", timed(library.cp))
                note("assemble_one_missing", timed(lambda done=done: library.assemble(done, [*range(1, K), K])))  # type: ignore[misc]
                library.check()
                note("assemble_all_parity", timed(lambda done=done: library.assemble(done, list(range(N - K, N)))))  # type: ignore[misc]
                library.check()
            library.drop(done)
    medians = {name: median(found) for name, found in seconds.items()}
    return {
        "seconds": {name: round(took, 3) for name, took in medians.items()},
        "ratio_to_cp": {name: round(medians["cp"] / took, 2) for name, took in medians.items() if name != "cp"},
    }


def run(mebibytes: int = 1024, rounds: int = 5, folders: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"bench": "library", "mib": mebibytes, "rounds": rounds, "k": K, "n": N, "parity": parity(rounds), "files": {}}
    for place in folders or ["/dev/shm", tempfile.gettempdir()]:
        folder = Path(tempfile.mkdtemp(prefix="mf-library-", dir=place))
        try:
            found["files"][place] = files(folder, mebibytes * MIB, rounds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


ASKED = {
    "encode": {"shm": 0.40, "": 0.20},
    "encode_2n_roots": {"shm": 0.28},
    "assemble_one_missing": {"": 0.80},
    "assemble_all_parity": {"": 0.60},
}


def bars(found: dict[str, Any]) -> list[Bar]:
    lines = [Bar(f"parity ({K}, {N}) of 256 KiB pieces, by zfec", "≥ 15 ×", f"{found['parity']['times']:.1f} ×")]
    for place, measured in found["files"].items():
        for name, ratio in measured["ratio_to_cp"].items():
            asked = ASKED[name].get("shm" if place.startswith("/dev/shm") else "", ASKED[name].get(""))
            what = f"{name.replace('_', ' ')}, {found['mib']} MiB in {place}, cp's time by its"
            lines.append(Bar(what, f"≥ {asked:.2f}" if asked else "", f"{ratio:.2f}"))
    return lines


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:3]]
    print(json.dumps(run(*numbers, folders=sys.argv[3:] or None), indent=2))
