"""Bytes from outside that are small and would become large, or that lie about themselves: `python -m tests.protocol.bombs NAME`.

Prints the seconds that refusing one took, and by how many bytes it raised the peak memory of this process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import zstandard

from erasure.compression import decompress_into
from protocol import limits
from protocol.errors import BadInput
from protocol.framing import FrameReader, unpack_plain
from protocol.manifest import parse_manifest
from protocol.manifest_check import check_file_name
from protocol.safetensors_header import check_name, header_length, parse_header

Bomb = tuple[bytes, Callable[[bytes], object]]


def _into(length: int) -> Callable[[bytes], object]:
    return lambda stored: decompress_into("zstd", stored, memoryview(bytearray(length)))


def _header(data: bytes) -> object:
    return parse_header(data, 1 << 40)


def _nested(count: int) -> bytes:
    return b"\x91" * count + b"\xc0"


BOMBS: dict[str, Callable[[], Bomb]] = {
    "names: out of the folder": lambda: (b"../../etc/passwd", lambda data: check_file_name(data.decode())),
    "names: a long one": lambda: (b"a/" * 5_000_000, lambda data: check_file_name(data.decode())),
    "names: a tensor's": lambda: (b"..", lambda data: check_name(data.decode())),
    "header: announces 2^63": lambda: (b"\xff" * 7 + b"\x7f", lambda data: header_length(data, 1 << 40)),
    "header: empty arrays": lambda: (b"[" + b"[]," * 3_000_000 + b"[]]", _header),
    "header: deep": lambda: (b'{"a":' * 1_000_000, _header),
    "header: 150,000 tensors": lambda: (
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(150_000)) + b"}",
        _header,
    ),
    "msgpack: nils": lambda: (b"\xdc\xff\xff" + b"\xc0" * 65_535, lambda data: unpack_plain(b"\xdd\x00\x9e\x00\x00" + data * 15, "bomb")),
    "msgpack: announces 2^32": lambda: (b"\xdd\xff\xff\xff\xff", lambda data: unpack_plain(data, "bomb")),
    "msgpack: a map of 2^32": lambda: (b"\xdf\xff\xff\xff\xff", lambda data: unpack_plain(data, "bomb")),
    "msgpack: deep": lambda: (_nested(900_000), lambda data: unpack_plain(data, "bomb")),
    "msgpack: a frame of 2^35": lambda: (b"\xff\xff\xff\xff\x7f", _frame),
    "manifest: 60 MB of empty arrays": lambda: (b"\x81\xa5files\xdd\x03\x93\x87\x00" + b"\x90" * 60_000_000, parse_manifest),
    "manifest: 60 MB of fields": lambda: (b"\xdf\x00\x80\x00\x00" + b"\xa1a\xc0" * 100_000, lambda data: parse_manifest(data * 200)),
    "zstd: 64 MiB of zeros": lambda: (zstandard.ZstdCompressor().compress(bytes(64 * limits.MIB)), _into(limits.MIB)),
    "zstd: a window of 2^27": lambda: (
        zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compress(bytes(8 * limits.MIB)),
        _into(8 * limits.MIB),
    ),
    "zstd: frame after frame": lambda: (zstandard.ZstdCompressor().compress(bytes(limits.MIB)) * 200, _into(limits.MIB)),
}


def _frame(data: bytes) -> object:
    reader = FrameReader()
    reader.feed(data)
    return reader.next_frame()


def main(name: str) -> None:
    data, take = BOMBS[name]()
    # The peak of the making is let go: only what goes beyond it counts, beginning at what is held now.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, began = _high_water(), time.process_time()
    try:
        take(data)
    except BadInput as error:
        print(json.dumps({"seconds": time.process_time() - began, "bytes": _high_water() - before, "said": str(error)[:100]}))


def _high_water() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * limits.KIB for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1])
