"""Weights made smaller where it pays: raw, zstd or LZ4, plain or after byte planes.

The exponent bytes of bf16 and fp32 numbers repeat, their mantissas don't; gathered in planes, zstd finds the first and passes
over the second. A plane layout is byte 0 of every element, then byte 1, ...; bytes beyond the last whole element follow as they are.

LZ4 has no entropy coder, so on weights it finds less; it decompresses faster, and hardly costs where it finds nothing. Measured
(`python -m bench.compression`, segments of 1 MiB, one thread; share of the size left, MB/s in, MB/s out):

    numbers                      zstd             planes-zstd      lz4              planes-lz4
    bf16, normal                 0.78  716  977   0.68  415 1285   1.00 4788 6826   0.85  494 1574
    fp16, normal                 0.92  969 1317   0.84  888 1514   1.00 6136 6065   1.00 3044 3499
    fp32, normal                 0.93  907 1293   0.84  623 1357   1.00 5412 5913   0.93  817 2040
    fp32 that was bf16           0.48  299 1141   0.34  825 1885   0.64  465 1870   0.43  759 1623
    4-bit blocks of a GGUF file  0.96  841 1173         –          1.00 5345 7119         –

So `auto` takes the smallest, which for weights of every width is byte planes and zstd, and LZ4 only where that is as small but for
2 %: runs of zeros, repeated text. `fast` compresses with LZ4 or not at all, and only where it saves a tenth: for disks and links
faster than a gigabyte a second, where zstd would be what a transfer waits for.

Decompression is fed by strangers: a zstd frame must declare exactly the expected length and a window of at most 2^20 before
anything is decompressed; an LZ4 block stops at the expected length. Both must then give exactly that length.
"""

from __future__ import annotations

import threading

import lz4.block
import numpy as np
import zstandard

from protocol.encoding import COMPRESSIONS
from protocol.errors import BadInput
from protocol.limits import ZSTD_WINDOW

Buffer = bytes | bytearray | memoryview

LEVEL = 1
PAYS = 0.96
"""Compression is used where the sample gets smaller than this."""
PAYS_FAST = 0.9
AS_GOOD = 0.02

_PLANES = {"planes2-zstd": 2, "planes4-zstd": 4, "planes2-lz4": 2, "planes4-lz4": 4}
_PLAIN = ("zstd", "lz4")
_local = threading.local()


def compress(compression: str, plain: Buffer) -> Buffer:
    """The stored form; `raw` gives back the same buffer."""
    if compression == "raw":
        return plain
    pack = _lz4 if compression.endswith("lz4") else _zstd
    return pack(plain) if compression in _PLAIN else pack(_to_planes(plain, _width(compression)))


def decompress_into(compression: str, stored: Buffer, out: memoryview) -> None:
    """Fills `out`; `BadInput` unless `stored` is exactly that many bytes in this compression."""
    if compression == "raw":
        if len(stored) != len(out):
            raise BadInput(f"raw bytes: {len(stored)} where {len(out)} were declared")
        out[:] = stored
        return
    unpack = _unlz4_into if compression.endswith("lz4") else _unzstd_into
    if compression in _PLAIN:
        unpack(stored, out)
        return
    width = _width(compression)
    planes = _scratch(len(out))
    unpack(stored, planes)
    _from_planes(planes, width, out)


def choose(sample: Buffer, element: int, fast: bool = False) -> str:
    """What suits `sample` (numbers of `element` bytes): what saves most, raw where nothing pays; see the table above.

    LZ4 is taken where it saves as much as zstd but for 2 % of the sample, or, when `fast`, alone.
    """
    sizes = {name: len(compress(name, sample)) for name in _names(element)} if len(sample) else {}
    quick = {name: size for name, size in sizes.items() if name.endswith("lz4")}
    best, second = (min(found, key=lambda name: found[name], default="raw") for found in (sizes, quick))
    if second != "raw" and (fast or sizes[second] <= sizes[best] + AS_GOOD * len(sample)):
        best = second
    return best if sizes and sizes[best] < (PAYS_FAST if fast else PAYS) * len(sample) else "raw"


def _names(element: int) -> list[str]:
    return [*_PLAIN, *(name for name, width in _PLANES.items() if width == element)]


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


def _zstd(plain: Buffer) -> bytes:
    packed: bytes = _compressor().compress(plain)
    return packed


def _lz4(plain: Buffer) -> bytes:
    packed: bytes = lz4.block.compress(plain, store_size=False)
    return packed


def _unlz4_into(stored: Buffer, out: memoryview) -> None:
    # A block has no header to lie in: the library stops at `uncompressed_size`, and what isn't used up by then is an error.
    try:
        plain = lz4.block.decompress(stored, uncompressed_size=len(out)) if len(out) or len(stored) else b""
    except (lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
        raise BadInput(f"lz4: {str(error)[:120]}") from error
    if len(plain) != len(out):
        raise BadInput(f"lz4: {len(plain)} bytes came out, {len(out)} were declared")
    out[:] = plain


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
