"""Numbers that are none are found wherever they lie, in rows short and long."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.finite import SHORT, all_finite

KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=96))
def test_as_torch_says_of_any_bytes(dtype: str, raw: bytes) -> None:
    raw = raw[: len(raw) // 4 * 4]
    right = not raw or bool(torch.frombuffer(bytearray(raw), dtype=KINDS[dtype]).isfinite().all())
    assert all_finite(raw, dtype) == right
    assert all_finite(memoryview(raw), dtype) == right


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("size", [64, SHORT, 4 * SHORT])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_one_among_many(dtype: str, size: int, wrong: float) -> None:
    row = torch.randn(size // KINDS[dtype].itemsize).to(KINDS[dtype])
    row[3] = torch.finfo(KINDS[dtype]).max
    row[4] = torch.finfo(KINDS[dtype]).min
    assert all_finite(row.view(torch.uint8).numpy().tobytes(), dtype)
    for at in (0, 9, len(row) - 1):
        spoilt = row.clone()
        spoilt[at] = wrong
        assert not all_finite(spoilt.view(torch.uint8).numpy().tobytes(), dtype)
