"""Each kernel by itself, against torch in fp32 or fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from runtime.linear import round_int4
from runtime.linear_int8 import round_int8
from runtime.native import fields as f
from runtime.native.crew import address_of, fields, put
from runtime.native.stored import stored

products = pytest.importorskip("runtime.native.products")
rows = pytest.importorskip("runtime.native.rows")
shorten = pytest.importorskip("runtime.native.shorten")


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def short(x: torch.Tensor) -> torch.Tensor:
    """Rows as `shorten` lays them out."""
    each = shorten.shortened_bytes(x.shape[1])
    out = torch.zeros(len(x), each, dtype=torch.uint8)
    for number, row in enumerate(x):
        shorten.shorten(row.data_ptr(), x.shape[1], out[number].data_ptr())
    return out


def multiplied(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> torch.Tensor:
    made = stored(weight, bias, precision)
    matrix = fields(f.MATRIX_FIELDS)
    put(matrix, 0, made.fields())
    given = x if made.kind == f.BF16 else short(x)
    out = torch.full((len(x), len(weight)), float("nan"))
    products.multiply(given.data_ptr(), len(x), address_of(matrix), out.data_ptr(), len(weight), 0, len(weight))
    return out


def kept(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """What the stored weights stand for."""
    if precision == "int8":
        whole, scale = round_int8(weight)
        return whole.double() * scale.double().unsqueeze(1)
    if precision == "int4":
        whole, scale, zero = round_int4(weight)
        groups = (whole - 8).view(len(weight), -1, 32).double() * scale.double().unsqueeze(-1) + zero.double().unsqueeze(-1)
        return groups.view(weight.shape)
    return weight.double()


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize(("columns", "width"), [(64, 32), (192, 576), (128, 1536)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_matrix(precision: str, columns: int, width: int, biased: bool) -> None:
    weight, bias = randn(columns, width, seed=2).bfloat16(), randn(columns, seed=3).bfloat16() if biased else None
    x = randn(101, width) * torch.logspace(-3, 3, 101).unsqueeze(1)
    found = multiplied(x, weight, bias, precision)
    right = x.double() @ kept(weight, precision).t() + (0 if bias is None else bias.double())
    size = right.norm(dim=1, keepdim=True)
    assert float(((found - right) / size).abs().max()) < 2e-5
    for number in (0, 1, 47, 48, 100):  # whatever block of rows they were made in
        assert torch.equal(multiplied(x[number : number + 1], weight, bias, precision)[0], found[number])


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_seen_in_every_result(precision: str, wrong: float) -> None:
    x = randn(4, 64)
    x[2, 17] = wrong
    found = multiplied(x, randn(64, 64).bfloat16(), None, precision)
    assert not found[2].isfinite().any()
    assert found[[0, 1, 3]].isfinite().all()


def test_a_row_of_noughts_and_one_of_the_smallest_numbers() -> None:
    x = torch.stack((torch.zeros(64), torch.full((64,), 1e-40)))
    assert multiplied(x, randn(64, 64).bfloat16(), None, "int8").abs().max() == 0


def test_sums_of_the_widest_row_fit() -> None:
    """All at their greatest, of one sign."""
    x, weight = torch.full((3, 32_768), 5.0), torch.full((4, 32_768), 1.0).bfloat16()
    assert torch.allclose(multiplied(x, weight, None, "int8"), torch.full((3, 4), 5.0 * 32_768), rtol=1e-3)


def test_norm() -> None:
    x, weight, out = randn(200, seed=4), randn(200, seed=5), torch.empty(200)
    rows.norm(x.data_ptr(), weight.data_ptr(), 1e-5, 200, out.data_ptr())
    torch.testing.assert_close(out, F.rms_norm(x, (200,), weight, 1e-5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("act", "right"), [(f.SILU, F.silu), (f.GELU_TANH, lambda x: F.gelu(x, approximate="tanh"))])
def test_gate(act: int, right: Any) -> None:
    gates, ups = torch.linspace(-120, 120, 1024), randn(1024)
    out = torch.empty(1024)
    rows.gate(act, gates.data_ptr(), ups.data_ptr(), 0, 1024, out.data_ptr())
    torch.testing.assert_close(out, right(gates.double()).float() * ups, rtol=2e-6, atol=1e-6)


def seen(q: torch.Tensor, kv: torch.Tensor, position: int, window: int, cap: float) -> torch.Tensor:
    """A row at `position` with `q` [heads, width] over `kv` [2, kv_heads, room, width]."""
    heads, width = q.shape
    stage, layer, placed = fields(f.STAGE_FIELDS), fields(f.LAYER_FIELDS), fields(f.PLACE_FIELDS)
    stage[f.HEAD_DIM], stage[f.HEADS], stage[f.KV_HEADS] = width, heads, kv.shape[1]
    scale = torch.tensor([width**-0.5, cap]).view(torch.int32)
    stage[f.SCALE], stage[f.SOFTCAP], layer[f.WINDOW] = int(scale[0]), int(scale[1]), window
    put(placed, 0, [kv.data_ptr(), 0, 2 * kv.stride(0), kv.shape[2], position])
    scores, out = torch.empty(kv.shape[2] + 8), torch.empty(heads, width)
    for head in range(heads):
        one = (q[head].data_ptr(), address_of(placed), scores.data_ptr(), out[head].data_ptr())
        rows.attend(address_of(stage), address_of(layer), 0, head, *one)
    return out


@pytest.mark.parametrize("width", [16, 64, 72, 128])
@pytest.mark.parametrize("window", [0, 1, 13])
@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_attention(width: int, window: int, cap: float) -> None:
    q, kv = 3 * randn(6, width), randn(2, 2, 64, width, seed=6).bfloat16()
    for position in (0, 1, 7, 8, 30, 63):
        least = max(0, position + 1 - window) if window else 0
        keys, values = (one[:, least : position + 1].double().repeat_interleave(3, 0) for one in kv)
        scores = (keys @ q.double().unsqueeze(2)).squeeze(2) * width**-0.5
        scores = torch.tanh(scores / cap) * cap if cap else scores
        right = (scores.softmax(1).unsqueeze(1) @ values).squeeze(1)
        torch.testing.assert_close(seen(q, kv, position, window, cap), right.float(), rtol=3e-5, atol=3e-5)


def test_a_key_that_is_no_number_is_seen() -> None:
    q, kv = randn(2, 16), randn(2, 1, 64, 16).bfloat16()
    kv[0, 0, 5, 3] = float("nan")
    assert not seen(q, kv, 9, 0, 0.0).isfinite().any()
    assert seen(q, kv, 4, 0, 0.0).isfinite().all()


def test_the_sources_are_all_in_the_name_of_the_image() -> None:
    """A change of any makes another image."""
    from runtime.native import kernels

    folder = Path(kernels.__file__).parent
    others = {"__init__", "build", "kernels", "crew", "company", "stored", "runner"}
    assert {path.stem for path in folder.glob("*.py")} - others == set(kernels._SOURCES)
