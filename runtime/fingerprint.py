"""Did two nodes compute the same rows? Fingerprints of hidden states, and what to make of their differences. Pure; numpy alone.

The problem: a stage can skip a layer, run cheaper weights or another model, and its hidden states look like any others. Running the same
rows again elsewhere shows it, if what honest machines differ by (thread counts, batch shapes, a prefill for many decodes) is told
from what a cheat differs by. Whole states are too much to keep and to send: 64 KB a row and more.

The choice. A row's print is PRINT sums of its values under signs drawn from a key that the session's entry chose: 32 bytes. The
difference of two prints over their size estimates the relative difference of the rows (Johnson and Lindenstrauss), to about a sixth.
Prints are compared row by row: a mean over rows hides what rows show. Measured on a model of 135M (`python -m bench.stage_audit`), the
honest differ by 0.01 to 0.03 in bf16, a text's first row by up to 0.16 (0.23 between llama.cpp's q8_0 and int8), a layer skipped or swapped
or run in 4 bits by 0.1 to 0.5. So a row differs above ROW (of its precision), and a stage is found to have computed something else when at
least PART of the rows do, of at least FEWEST.
Who has thrown the key away can still compare two prints, but can't test a guess of the text against one: so prints may be kept as evidence.

Rejected: the largest values and their places (the same few channels carry them in every row), digests (the honest differ in the last
bits), thresholds on the mean (a layer swapped is lost in it), and rows' norms (a sibling model has them too).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from protocol.errors import BadInput

PRINT = 16
ROW_BYTES = 2 * PRINT
KEY = 16
ROW = {"bf16": 0.07, "fp32": 0.003}
"""In the reference mode and in any other precision: fewer bits of weights cost an honest machine no more than bf16 does, and llama.cpp
beside torch little more (99 of 100 rows by 0.024 at most in bf16, by 0.065 where int8 stands in for q8_0)."""
SPOILED = {"bf16": 0.3, "fp32": 0.01}
"""A single row that differs by more isn't an honest one: honest machines part by 0.23 at most, that at a text's first row. What it does to
later ones (that first row, ten layers of the 135M model): by 0.3 it turns 4 of 1,000 into different ones, by 1 a tenth, by 5 all."""
SAME = 0.002
"""Two prints of the same bytes: sums are rounded to fp16, and machines add in different orders."""
PART = 0.1
FEWEST = 16
"""Rows without which nothing is said."""
TOKEN_GAP = 1.0
"""Logits by which a token lies behind the one the model would give, from which it counts as another's choice."""
TOKEN_PART = 0.015
LEAST_TOKENS = 3
"""Tokens of another's choice without which nothing is said."""

Rows = np.ndarray[tuple[int, int], np.dtype[np.float32]]


class Printer:
    """Makes prints of rows of `hidden` values under one session's `key` (16 bytes)."""

    def __init__(self, key: bytes, hidden: int) -> None:
        if len(key) != KEY:
            raise BadInput(f"a print's key has {KEY} bytes")
        bits = np.unpackbits(np.frombuffer(hashlib.shake_128(b"mf/print/1" + key).digest(-(-PRINT * hidden // 8)), dtype=np.uint8))
        signs = bits[: PRINT * hidden].reshape(PRINT, hidden).astype(np.float32) * 2.0 - 1.0
        self._signs = np.ascontiguousarray(signs.T) / np.float32(hidden) ** 0.5
        self.hidden = hidden

    def of(self, raw: bytes | memoryview, dtype: str) -> bytes:
        """Prints of rows as they travel: ROW_BYTES each, little-endian fp16. `BadInput` where they aren't whole rows."""
        return (self._to_rows(raw, dtype) @ self._signs).clip(-65_000, 65_000).astype("<f2").tobytes()

    def _to_rows(self, raw: bytes | memoryview, dtype: str) -> Rows:
        width = {"bf16": 2, "fp16": 2, "fp32": 4}.get(dtype)
        if width is None or not raw or len(raw) % (width * self.hidden):
            raise BadInput(f"prints: {len(raw)} bytes aren't rows of {self.hidden} values of {dtype[:8]}")
        if dtype == "bf16":
            wide = np.frombuffer(raw, dtype="<u2").astype("<u4") << 16
            return wide.view("<f4").reshape(-1, self.hidden)
        return np.frombuffer(raw, dtype="<f2" if dtype == "fp16" else "<f4").astype(np.float32).reshape(-1, self.hidden)


def distances(prints: bytes, others: bytes) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """For each row the difference of its two prints over their size, 0 for equal ones; `BadInput` where rows don't pair up."""
    if len(prints) != len(others) or len(prints) % ROW_BYTES:
        raise BadInput(f"prints: {len(prints)} bytes beside {len(others)}: not the same rows")
    one = np.frombuffer(prints, dtype="<f2").astype(np.float64).reshape(-1, PRINT)
    two = np.frombuffer(others, dtype="<f2").astype(np.float64).reshape(-1, PRINT)
    size = np.maximum(np.linalg.norm(one, axis=1), np.linalg.norm(two, axis=1))
    apart = np.linalg.norm(one - two, axis=1) / np.maximum(size, 1e-6)
    return np.where(np.isfinite(apart), apart, np.inf)


@dataclass(frozen=True)
class Finding:
    """`differs`: the two computed different things; None: too few rows to say. `rows` compared, `apart` of them, `worst` row."""

    differs: bool | None
    rows: int
    apart: int
    worst: float


def compare(prints: bytes, others: bytes, precision: str) -> Finding:
    """What two statements about the same rows, computed at `precision`, say of each other."""
    return _find(distances(prints, others), ROW[_kind(precision)], PART, 1)


def first_spoiled(prints: bytes, others: bytes, precision: str) -> int | None:
    """Which of the rows is the first that differs by so much that all later ones may differ for it; None: none does."""
    apart = np.flatnonzero(distances(prints, others) > SPOILED[_kind(precision)])
    return int(apart[0]) if len(apart) else None


def _kind(precision: str) -> str:
    return "fp32" if precision == "fp32" else "bf16"


def same_rows(prints: bytes, others: bytes) -> Finding:
    """Whether both are prints of the same bytes; one row is enough to differ."""
    found = distances(prints, others)
    apart = int((found > SAME).sum())
    return Finding(apart > 0, len(found), apart, float(found.max(initial=0.0)))


def compare_tokens(gaps: list[float]) -> Finding:
    """What another's gaps (`token_gap.py`) say of the tokens that were given."""
    found = np.array([np.inf if math.isnan(gap) else gap for gap in gaps], dtype=np.float64)
    return _find(found, TOKEN_GAP, TOKEN_PART, LEAST_TOKENS)


def _find(found: np.ndarray[tuple[int], np.dtype[np.float64]], bound: float, part: float, least: int) -> Finding:
    apart = int((found > bound).sum())
    differs = None if len(found) < FEWEST else apart >= max(least, part * len(found))
    return Finding(differs, len(found), apart, float(found.max(initial=0.0)))
