"""Any k of n: the code of a group's pieces.

zfec defines the code (systematic Vandermonde over GF(2^8)): whatever computes it must give zfec's bytes. ISA-L does so
20 to 50 times faster when it is fed zfec's own matrix, which is what zfec's encoder returns for the identity. So the
matrix is always read from zfec, ISA-L multiplies when it is there and has agreed with zfec on a probe, and zfec itself is
the fallback and the oracle of the tests.

Rejected: pyeclib's own API (its backends use other matrices and add headers), ISA-L's `gf_gen_cauchy1_matrix` (other bytes).

The code works on each byte column by itself, so `recover` may be given any equal spans of the pieces, not only whole ones.
Share numbers are checked first: zfec loops for ever on a duplicate and returns wrong bytes for a number beyond n.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import zfec

from protocol.errors import BadInput
from protocol.limits import MAX_SHARDS

Buffer = bytes | bytearray | memoryview
log = logging.getLogger(__name__)


class Code:
    """k of n over equal-length buffers. Safe for use from several threads; the arithmetic releases the GIL under ISA-L.

    `accelerated=None` takes ISA-L when it works here, False takes zfec.
    """

    def __init__(self, k: int, n: int, accelerated: bool | None = None) -> None:
        if not 1 <= k <= n <= MAX_SHARDS:
            raise BadInput(f"a code needs 1 <= k <= n <= {MAX_SHARDS}, not k {k} and n {n}")
        self.k = k
        self.n = n
        self._isal = isal() if accelerated is not False else None

    def encode(self, pieces: Sequence[Buffer]) -> list[bytearray]:
        """The n - k parity pieces of k data pieces."""
        length = _one_length(pieces)
        parity = [bytearray(length) for _ in range(self.n - self.k)]
        self.encode_into(pieces, parity)
        return parity

    def encode_into(self, pieces: Sequence[Buffer], parity: Sequence[bytearray | memoryview]) -> None:
        """The same into buffers that the caller has: fresh ones cost more in page faults than the arithmetic."""
        if len(pieces) != self.k or len(parity) != self.n - self.k:
            raise BadInput(f"encoding takes {self.k} pieces and room for {self.n - self.k}, not {len(pieces)} and {len(parity)}")
        _one_length([*pieces, *parity])
        if parity:
            self._multiply(_PARITY, tuple(range(self.k, self.n)), pieces, parity)

    def decode(self, have: Mapping[int, Buffer]) -> list[Buffer]:
        """The k data pieces from any k or more pieces by number; data pieces given come back as they are, uncopied."""
        used = self._choose(have)
        length = _one_length([have[j] for j in used])
        missing = {j: bytearray(length) for j in range(self.k) if j not in have}
        self.recover(have, missing)
        return [have[j] if j in have else missing[j] for j in range(self.k)]

    def recover(self, have: Mapping[int, Buffer], into: Mapping[int, bytearray | memoryview]) -> None:
        """Computes the data pieces numbered in `into` and writes them there; all buffers of one length."""
        used = self._choose(have)
        if any(not 0 <= j < self.k or j in have for j in into):
            raise BadInput(f"only missing data pieces are recovered, not {sorted(into)}")
        if not into:
            return
        _one_length([*(have[j] for j in used), *into.values()])
        self._multiply(used, tuple(sorted(into)), [have[j] for j in used], [into[j] for j in sorted(into)])

    def make(self, have: Mapping[int, Buffer], into: Mapping[int, bytearray | memoryview]) -> None:
        """Computes the pieces numbered in `into`, data and parity, from any k others and writes them there; all buffers of one length."""
        used = self._choose(have)
        check_numbers(into, self.n)
        if any(j in have for j in into):
            raise BadInput(f"pieces that are there aren't made again: {sorted(into.keys() & have.keys())}")
        length = _one_length([*(have[j] for j in used), *into.values()])
        parity = tuple(sorted(j for j in into if j >= self.k))
        wanted = range(self.k) if parity else [j for j in into if j < self.k]
        data = {j: into[j] if j in into else bytearray(length) for j in wanted if j not in have}
        self.recover(have, data)
        if parity:
            pieces = [have[j] if j in have else data[j] for j in range(self.k)]
            self._multiply(_PARITY, parity, pieces, [into[j] for j in parity])

    def _choose(self, have: Mapping[int, Buffer]) -> tuple[int, ...]:
        check_numbers(have, self.n)
        if len(have) < self.k:
            raise BadInput(f"decoding takes {self.k} pieces, {len(have)} given")
        return tuple(sorted(have)[: self.k])

    def _multiply(
        self, used: tuple[int, ...], rows: tuple[int, ...], inputs: Sequence[Buffer], outputs: Sequence[bytearray | memoryview]
    ) -> None:
        if not len(outputs[0]):
            return
        if self._isal is not None:
            self._isal.multiply(_tables(self._isal, self.k, used, rows), inputs, outputs)
        elif used == _PARITY:
            _copy(zfec.Encoder(self.k, self.n).encode(tuple(map(bytes, inputs)), rows), outputs)
        else:
            # zfec wants fresh lists: it reorders the ones it is given.
            data = zfec.Decoder(self.k, self.n).decode([bytes(piece) for piece in inputs], list(used))
            _copy([data[j] for j in rows], outputs)


_PARITY: tuple[int, ...] = ()
"""Stands for "the inputs are the data pieces", where the rows asked for are parity."""


def check_numbers(numbers: Iterable[int], n: int) -> None:
    """Refuses a number out of range or given twice, naming it."""
    seen: set[int] = set()
    for number in numbers:
        if not 0 <= number < n:
            raise BadInput(f"there is no piece {number} of {n}")
        if number in seen:
            raise BadInput(f"piece {number} is given twice")
        seen.add(number)


def _one_length(buffers: Sequence[Buffer]) -> int:
    lengths = {len(buffer) for buffer in buffers}
    if len(lengths) != 1:
        raise BadInput(f"pieces must have one length, these have {sorted(lengths)}")
    return lengths.pop()


def _copy(results: Sequence[bytes], outputs: Sequence[bytearray | memoryview]) -> None:
    for result, output in zip(results, outputs, strict=True):
        output[:] = result


@lru_cache(maxsize=64)
def generator(k: int) -> tuple[bytes, ...]:
    """zfec's parity rows k .. 255 for this k (they don't depend on n), read from its encoder."""
    if k == MAX_SHARDS:
        return ()
    identity = tuple(bytes(i == j for j in range(k)) for i in range(k))
    return tuple(map(bytes, zfec.Encoder(k, MAX_SHARDS).encode(identity, tuple(range(k, MAX_SHARDS)))))


def _row(k: int, number: int) -> bytes:
    return bytes(number == j for j in range(k)) if number < k else generator(k)[number - k]


@lru_cache(maxsize=512)
def _tables(library: Isal, k: int, used: tuple[int, ...], rows: tuple[int, ...]) -> bytes:
    if used == _PARITY:
        matrix = b"".join(_row(k, row) for row in rows)
    else:
        inverse = library.invert(b"".join(_row(k, number) for number in used), k)
        matrix = b"".join(inverse[row * k : row * k + k] for row in rows)
    return library.tables(matrix, k, len(rows))


class Isal:
    """The three functions of libisal that are needed."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer = ctypes.c_void_p
        self._encode = library.ec_encode_data
        self._encode.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, pointer, pointer]
        self._encode.restype = None
        self._init = library.ec_init_tables
        self._init.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p]
        self._init.restype = None
        self._invert = library.gf_invert_matrix
        self._invert.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
        self._invert.restype = ctypes.c_int

    def tables(self, matrix: bytes, columns: int, rows: int) -> bytes:
        out = ctypes.create_string_buffer(32 * columns * rows)
        self._init(columns, rows, matrix, out)
        return out.raw

    def invert(self, matrix: bytes, size: int) -> bytes:
        # The function overwrites its input, so it gets a copy of its own.
        out = ctypes.create_string_buffer(size * size)
        if self._invert(ctypes.create_string_buffer(matrix, size * size), out, size) != 0:
            raise BadInput("these pieces don't determine the data")
        return out.raw

    def multiply(self, tables: bytes, inputs: Sequence[Buffer], outputs: Sequence[bytearray | memoryview]) -> None:
        arrays = [np.frombuffer(buffer, np.uint8) for buffer in (*inputs, *outputs)]  # they keep the buffers alive and in place
        addresses = [array.__array_interface__["data"][0] for array in arrays]
        sources = (ctypes.c_void_p * len(inputs))(*addresses[: len(inputs)])
        targets = (ctypes.c_void_p * len(outputs))(*addresses[len(inputs) :])
        self._encode(len(inputs[0]), len(inputs), len(outputs), tables, sources, targets)


@lru_cache(maxsize=1)
def isal() -> Isal | None:
    """ISA-L, if it is here and gives zfec's bytes."""
    for path in _candidates():
        try:
            library = Isal(ctypes.CDLL(path))
        except (OSError, AttributeError) as error:
            log.debug("libisal at %s can't be used: %s", path, error)
            continue
        if _agrees(library):
            return library
        log.warning("libisal at %s computes other bytes than zfec: not used", path)
    return None


def _candidates() -> list[str]:
    # pyeclib isn't imported, only found: its wheel carries the library beside it.
    spec = importlib.util.find_spec("pyeclib")
    beside = sorted(Path(spec.origin).parent.parent.glob("pyeclib.libs/libisal*")) if spec and spec.origin else []
    system = ctypes.util.find_library("isal")
    return [str(path) for path in beside] + ([system] if system else [])


def _agrees(library: Isal) -> bool:
    k, n = 3, 6
    pieces = [bytes((7 * i + 31 * j) % 256 for j in range(67)) for i in range(k)]
    parity = [bytearray(67) for _ in range(n - k)]
    library.multiply(_tables(library, k, _PARITY, tuple(range(k, n))), pieces, parity)
    if [bytes(piece) for piece in parity] != list(zfec.Encoder(k, n).encode(tuple(pieces), tuple(range(k, n)))):
        return False
    data = [bytearray(67)]
    library.multiply(_tables(library, k, (1, 2, 4), (0,)), [pieces[1], pieces[2], parity[1]], data)
    return bytes(data[0]) == pieces[0]
