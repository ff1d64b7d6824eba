"""A row and its bytes, both ways."""

from __future__ import annotations

import pytest
import torch

from runtime.row_bytes import RowBytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_there_and_back(dtype: torch.dtype) -> None:
    room = RowBytes(48, dtype)
    row = torch.randn(1, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    raw = room.write(row)
    assert raw == row.view(torch.uint8).numpy().tobytes()
    assert torch.equal(room.read(raw), row)
    other = room.write(-row)
    assert raw != other, "what was written before stays as it was"


def test_of_inference_mode_and_of_a_part_of_a_tensor() -> None:
    room = RowBytes(4, torch.float32)
    with torch.inference_mode():
        rows = torch.arange(16.0).view(4, 4).t()
        raw = room.write(rows[1:2])
    assert room.read(raw).tolist() == [[1.0, 5.0, 9.0, 13.0]]


@pytest.mark.parametrize("size", [0, 15, 17])
def test_another_number_of_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="different structures"):
        RowBytes(4, torch.float32).read(bytes(size))


def test_only_one_row_of_its_kind_fits() -> None:
    room = RowBytes(4, torch.bfloat16)
    assert room.fits(torch.zeros(1, 4, dtype=torch.bfloat16))
    for other in (torch.zeros(1, 4), torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(1, 5, dtype=torch.bfloat16)):
        assert not room.fits(other)
