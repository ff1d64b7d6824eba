"""Stored forms of a matrix: right, the same whenever they are made, a row's result its own."""

from __future__ import annotations

import pytest
import torch

from runtime import linear, linear_int8
from runtime.linear import make_head, make_linear, round_int4
from runtime.linear_int8 import round_int8
from runtime.linear_wide import Wide

OUT, WIDTH = 96, 128


def matrix(seed: int = 0) -> torch.Tensor:
    return (torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.02).bfloat16()


def rows(count: int) -> torch.Tensor:
    found = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(9))
    found[:, 3] *= 100  # one large value among small ones, as real activations have
    return found.bfloat16()


def whole_int4(weight: torch.Tensor) -> torch.Tensor:
    whole, scale, zero = round_int4(weight)
    parts = (whole.view(OUT, -1, linear.GROUP) - 8) * scale.float().unsqueeze(-1) + zero.float().unsqueeze(-1)
    return parts.view(OUT, WIDTH)


def stored(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """What the precision makes of the weights, in fp32."""
    if precision == "int4":
        return whole_int4(weight)
    if precision == "int8":
        whole, scale = round_int8(weight)
        return whole.float() * scale.unsqueeze(1)
    return weight.float()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5, 33])
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_multiplies_by_what_is_stored(precision: str, count: int, bias: bool) -> None:
    weight, x = matrix(), rows(count)
    added = torch.randn(OUT).bfloat16() if bias else None
    right = x.float() @ stored(weight, precision).T + (0 if added is None else added.float())
    got = make_linear(weight, added, precision)(x)
    assert got.dtype == torch.bfloat16
    assert float((got.float() - right).norm() / right.norm()) < 0.006


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_head_has_8_bits_or_more(precision: str) -> None:
    weight, x = matrix(), rows(3)
    right = x.float() @ stored(weight, "bf16" if precision == "bf16" else "int8").T
    got = make_head(weight, None, precision)(x).float()
    assert float((got - right).norm() / right.norm()) < 0.004


@pytest.mark.parametrize("exact", [True, False])
def test_int8_without_exact_products(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_int8, "whole_products_are_exact", lambda: exact)
    monkeypatch.setattr(linear_int8, "multiplies_whole_numbers", lambda: True)
    monkeypatch.setattr(linear, "greatest_exact", lambda: None)
    weight, x = matrix(), rows(9)
    right = x.float() @ stored(weight, "int8").T
    for made in (make_linear(weight, None, "int8"), make_head(weight, None, "int8")):
        assert float((made(x).float() - right).norm() / right.norm()) < 0.006


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_row_does_not_depend_on_its_neighbours(precision: str) -> None:
    made, x = make_linear(matrix(), None, precision), rows(20)
    assert torch.equal(made(x)[4:12], made(x[4:12]))


def test_int8_where_it_is_multiplied_one_by_one_takes_each_row_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("multiplies_bf16", "multiplies_whole_numbers"):
        monkeypatch.setattr(linear_int8, name, lambda: False)
    monkeypatch.setattr(linear, "greatest_exact", lambda: None)
    x = rows(70)
    for made in (make_linear(matrix(), None, "int8"), make_head(matrix(), None, "int8")):
        assert torch.equal(made(x), torch.cat([made(x[at : at + 1]) for at in range(len(x))]))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_same_weights_are_stored_the_same(precision: str) -> None:
    one, other = (make_linear(matrix(), None, precision)(rows(6)) for _ in range(2))
    assert torch.equal(one, other)
    rounding = round_int8 if precision == "int8" else round_int4
    assert all(torch.equal(a, b) for a, b in zip(rounding(matrix()), rounding(matrix()), strict=True))


def test_int4_keeps_what_was_made_of_4_bits() -> None:
    steps = torch.randint(0, 16, (OUT, WIDTH // 32, 32), generator=torch.Generator().manual_seed(1))
    steps[..., 0], steps[..., 1] = 0, 15
    weight = (steps.float() * 0.0078125 - 0.0625).view(OUT, WIDTH).bfloat16()
    torch.testing.assert_close(whole_int4(weight), weight.float(), rtol=0, atol=1e-6)


def test_rows_of_equal_or_no_weights() -> None:
    weight = torch.zeros(OUT, WIDTH).bfloat16()
    weight[1] = 0.5
    for precision in ("int8", "int4"):
        got = make_linear(weight, None, precision)(torch.ones(5, WIDTH).bfloat16()).float()
        torch.testing.assert_close(got[:, 1], torch.full((5,), 64.0), rtol=0.01, atol=0)
        assert float(got[:, 2:].abs().max()) < 1e-3


def test_a_matrix_that_the_4_bit_kernel_does_not_take_is_stored_in_8() -> None:
    weight = matrix()[:, :72]
    assert make_linear(weight.contiguous(), None, "int4").nbytes == make_linear(weight.contiguous(), None, "int8").nbytes


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 16), ("int8", 8), ("int4", 5)])
def test_bytes_held(precision: str, bits: int) -> None:
    made = make_linear(matrix(), None, precision)
    beside = 4 * OUT if precision == "int8" or isinstance(made, Wide) else 0
    assert made.nbytes == OUT * WIDTH * bits // 8 + beside
