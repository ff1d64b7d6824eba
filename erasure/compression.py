"""Weights made smaller where it pays: raw, zstd, or byte planes and zstd.

The exponent bytes of bf16 and fp32 numbers repeat, their mantissas don't; gathered in planes, zstd finds the first and passes
over the second. A plane layout is byte 0 of every element, then byte 1, ...; bytes beyond the last whole element follow as they are.

Decompression is fed by strangers: the frame must declare exactly the expected length and a window of at most 2^20 before
anything is decompressed, and must then give exactly that length.
"""

from __future__ import annotations

import threading

import numpy as np
import zstandard

from protocol.encoding import COMPRESSIONS
from protocol.errors import BadInput
from protocol.limits import ZSTD_WINDOW

Buffer = bytes | bytearray | memoryview

LEVEL = 1
PAYS = 0.96
"""Compression is used where the sample gets smaller than this."""

_PLANES = {"planes2-zstd": 2, "planes4-zstd": 4}
_local = threading.local()


def compress(compression: str, plain: Buffer) -> Buffer:
    """The stored form; `raw` gives back the same buffer."""
    if compression == "raw":
        return plain
    if compression == "zstd":
        return _compressor().compress(plain)
    return _compressor().compress(_to_planes(plain, _width(compression)))


def decompress_into(compression: str, stored: Buffer, out: memoryview) -> None:
    """Fills `out`; `BadInput` unless `stored` is exactly that many bytes in this compression."""
    if compression == "raw":
        if len(stored) != len(out):
            raise BadInput(f"raw bytes: {len(stored)} where {len(out)} were declared")
        out[:] = stored
    elif compression == "zstd":
        _unzstd_into(stored, out)
    else:
        width = _width(compression)
        planes = _scratch(len(out))
        _unzstd_into(stored, planes)
        _from_planes(planes, width, out)


def choose(sample: Buffer, element: int) -> str:
    """The compression that saves most of `sample` (numbers of `element` bytes), raw where none saves more than 4 %."""
    tried = ["zstd"] + [name for name, width in _PLANES.items() if width == element]
    sizes = {name: len(compress(name, sample)) for name in tried} if len(sample) else {}
    best = min(sizes, key=lambda name: sizes[name], default="raw")
    return best if sizes and sizes[best] < PAYS * len(sample) else "raw"


def _width(compression: str) -> int:
    if compression not in _PLANES:
        raise BadInput(f"unknown compression {compression[:16]!r}: this version knows {', '.join(COMPRESSIONS)}")
    return _PLANES[compression]


def _compressor() -> zstandard.ZstdCompressor:
    # A context serves one thread at a time; making one per segment costs more than small segments do.
    if not hasattr(_local, "compressor"):
        parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, window_log=ZSTD_WINDOW.bit_length() - 1)
        _local.compressor = zstandard.ZstdCompressor(compression_params=parameters)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _scratch(length: int) -> memoryview:
    """Room of this thread's, overwritten by its next call: fresh memory costs more than filling it."""
    if len(getattr(_local, "planes", b"")) < length:
        _local.planes = bytearray(length)
    return memoryview(_local.planes)[:length]


def _unzstd_into(stored: Buffer, out: memoryview) -> None:
    try:
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != len(out):
            raise BadInput(f"zstd: the frame doesn't declare the expected {len(out)} bytes")
        if frame.window_size > ZSTD_WINDOW:
            raise BadInput(f"zstd: a window of {frame.window_size} bytes, at most {ZSTD_WINDOW}")
        reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).stream_reader(stored, read_across_frames=True)
        done = 0
        while done < len(out) and (got := reader.readinto(out[done:])):
            done += got
        if done != len(out) or reader.read(1):
            raise BadInput(f"zstd: not exactly the {len(out)} bytes declared")
    except zstandard.ZstdError as error:
        raise BadInput(f"zstd: {error}") from error


def _to_planes(plain: Buffer, width: int) -> bytearray:
    # Arithmetic on whole numbers, which numpy does with vectors: copying single bytes with a stride takes up to ten times as long.
    count = len(plain) // width
    planes = bytearray(len(plain))
    numbers = np.frombuffer(plain, f"<u{width}", count)
    target = np.frombuffer(planes, np.uint8)
    for plane in range(width):
        np.right_shift(numbers, 8 * plane, out=target[plane * count : (plane + 1) * count], casting="unsafe")
    target[count * width :] = np.frombuffer(plain, np.uint8)[count * width :]
    return planes


def _from_planes(planes: Buffer, width: int, out: memoryview) -> None:
    count = len(out) // width
    source = np.frombuffer(planes, np.uint8)
    numbers = np.frombuffer(out, f"<u{width}", count)
    high = source[(width - 1) * count : width * count]
    np.multiply(high, 256, out=numbers, dtype=numbers.dtype)
    for plane in range(width - 2, -1, -1):
        np.add(numbers, source[plane * count : (plane + 1) * count], out=numbers)
        if plane:
            np.multiply(numbers, 256, out=numbers)
    np.frombuffer(out, np.uint8)[count * width :] = source[count * width : len(out)]
