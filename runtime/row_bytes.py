"""One row of hidden states and its bytes: the same memory, seen from both sides.

A pipeline's token is one row into a stage and one out of it, made and read just when the processor's caches hold another stage's weights. A
tensor made over bytes, or bytes of a tensor by way of numpy, are half a dozen calls of torch whose code isn't there then: 66 and 43
microseconds, where copying into memory that lies ready takes 10.
"""

from __future__ import annotations

import torch


class RowBytes:
    """Room for `width` numbers of `dtype`."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self._row = torch.empty(1, width, dtype=dtype)
        self._bytes = memoryview(self._row.view(torch.uint8).numpy()).cast("B")

    def fits(self, rows: torch.Tensor) -> bool:
        return bool(rows.shape == self._row.shape) and rows.dtype == self._row.dtype

    def read(self, raw: bytes) -> torch.Tensor:
        """[1, width], good until the next `read` or `write`; `ValueError` for another number of bytes."""
        self._bytes[:] = raw
        return self._row

    def write(self, row: torch.Tensor) -> bytes:
        self._row.copy_(row)
        return bytes(self._bytes)
