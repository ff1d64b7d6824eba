"""Weights come back out of the packed order as they were rounded, and many rows through them agree with the packed kernel."""

from __future__ import annotations

import pytest
import torch

from runtime import linear
from runtime.int4_order import rows_in_block, unpacked
from runtime.linear import GROUP, Int4, round_int4


def matrix(rows: int, width: int) -> torch.Tensor:
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width)) * 0.05).bfloat16()


def known() -> int:
    found = rows_in_block()
    assert found in (32, 64), "torch packs in an order that isn't known: int4 then is multiplied by its own kernel alone"
    return found


@pytest.mark.parametrize(("blocks", "width"), [(1, 32), (3, 64), (5, 96)])
def test_weights_come_back_as_they_were_rounded(blocks: int, width: int) -> None:
    weight = matrix(blocks * known(), width)
    whole, scale, zero = round_int4(weight)
    wide = (whole - 8).view(len(weight), -1, GROUP).float() * scale.float().unsqueeze(-1) + zero.float().unsqueeze(-1)
    made = Int4(weight, None)
    out = torch.empty(width, len(weight), dtype=torch.bfloat16)
    assert torch.equal(unpacked(made._weight, made._scales, known(), out).t(), wide.view(len(weight), width).bfloat16())


@pytest.mark.parametrize("tile", [1, 64 * 64 * 2, 1 << 22])
@pytest.mark.parametrize("bias", [None, torch.ones(320).bfloat16()])
def test_many_rows_are_as_the_packed_kernel_gives_them(monkeypatch: pytest.MonkeyPatch, tile: int, bias: torch.Tensor | None) -> None:
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(linear, "_TILE_INT4", tile)
    undone: list[int] = []
    monkeypatch.setattr(linear, "unpacked", lambda *given: (undone.append(len(given[0])), unpacked(*given))[1])
    known()
    one, x = Int4(matrix(320, 64), bias), matrix(100, 64)
    many = one(x)
    assert sum(undone) == 320
    monkeypatch.setattr(linear, "_MANY_INT4", 101)
    torch.testing.assert_close(many.float(), one(x).float(), atol=5e-4, rtol=0.01)


def test_only_where_it_pays_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: True)
    assert Int4(matrix(320, 64), None)._block == known()
    assert Int4(matrix(336, 64), None)._block is None
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: False)
    assert Int4(matrix(320, 64), None)._block is None
