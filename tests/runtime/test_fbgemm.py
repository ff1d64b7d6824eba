"""Matrices in FBGEMM's orders: what they give, and that a row's numbers are its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from runtime import fbgemm, linear, linear_half
from runtime.fbgemm import EIGHT_BITS, SEVEN_BITS, greatest_exact
from runtime.linear import make_head, make_linear
from runtime.linear_half import BLOCK, Half, halved, halves_are_exact
from runtime.linear_int8 import Int8Head, round_int8
from runtime.linear_plain import Plain

OUT, WIDTH = 200, 192


def matrix(seed: int = 0, out: int = OUT, width: int = WIDTH) -> torch.Tensor:
    return (torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * 0.02).bfloat16()


def rows(count: int, width: int = WIDTH) -> torch.Tensor:
    found = torch.randn(count, width, generator=torch.Generator().manual_seed(9))
    found[:, width // 2] *= 100
    return found.bfloat16()


needs = pytest.mark.skipif(not fbgemm.available(), reason="torch has no FBGEMM for this processor")


def same(got: torch.Tensor, right: torch.Tensor) -> bool:
    """All bits where it is used; elsewhere a row's numbers may change with its company, and bf16 isn't stored so."""
    return torch.equal(got, right) if halves_are_exact() else torch.allclose(got.float(), right.float(), rtol=2**-7, atol=1e-4)


@needs
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("out", "width"), [(OUT, WIDTH), (7, 33), (1_000, 1_536), (16, 1)])
def test_fp16_is_rounded_once(out: int, width: int, bias: bool) -> None:
    """As near as a bf16 of the exact sum can be: a neighbour at most, and that seldom."""
    weight, x, added = matrix(1, out, width), rows(67, width), matrix(2, out, 1).flatten() if bias else None
    made = halved(weight, added)
    assert made is not None
    assert made.nbytes == weight.nbytes
    exact = x.double() @ weight.double().t() + (0 if added is None else added.double())
    got = made(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-7, atol=1e-4)
    assert float((got != exact.bfloat16()).float().mean()) < 0.01


@needs
def test_a_heads_results_stay_in_fp32() -> None:
    weight, x, bias = matrix(3), rows(4), matrix(2, OUT, 1).flatten()
    wide = halved(weight, bias, wide=True)
    narrow = halved(weight, bias)
    assert wide is not None
    assert narrow is not None
    assert wide(x).dtype == torch.float32
    assert torch.equal(wide(x).bfloat16(), narrow(x))


@needs
def test_a_row_has_the_same_numbers_in_any_company() -> None:
    made, x = Half(matrix(), None), rows(140)
    alone = torch.cat([made(row) for row in x.split(1)])
    for count in (*range(1, 41), 64, 127, 134, 140):
        assert same(made(x[:count]), alone[:count]), count
        assert same(made(x[140 - count :]), alone[140 - count :]), count


@needs
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int) -> None:
    made, x, before = Half(matrix(4, 960, 576), None), rows(9, 576), torch.get_num_threads()
    right = made(x)
    try:
        torch.set_num_threads(threads)
        assert same(made(x), right)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [70_000.0, float("nan"), float("inf"), -float("inf")])
def test_what_fp16_does_not_hold_stays_bf16(number: float) -> None:
    weight = matrix()
    weight[150, 7] = number
    assert halved(weight, None) is None


def test_a_row_of_nothing_but_tiny_weights_stays_bf16_and_a_tiny_one_among_others_does_not_matter() -> None:
    weight = matrix()
    weight[3, :5] = 1e-9
    weight[4] = 0
    assert halved(weight, None) is not None or not fbgemm.available()
    weight[3] = 1e-7
    assert halved(weight, None) is None


@pytest.mark.parametrize("greatest", [2.0**-8, 65_280.0])
def test_what_is_plainly_held_is_held(greatest: float) -> None:
    weight = torch.rand(OUT, WIDTH, generator=torch.Generator().manual_seed(8)).mul(1e-4).bfloat16()
    weight[:, 0], weight[:, 1] = greatest, 1e-30
    weight[::2] *= -1
    assert linear_half._plainly(weight)
    assert linear_half._holds(weight)
    for spoiled in (float("nan"), -float("inf"), 65_536.0, -65_536.0):
        weight[9, 9] = spoiled
        assert not linear_half._plainly(weight)
        assert not linear_half._holds(weight)
    weight[9] = 2.0**-9
    assert not linear_half._plainly(weight)
    assert linear_half._holds(weight)


@needs
def test_rows_that_are_no_numbers_stay_by_themselves() -> None:
    made, x = Half(matrix(), None), rows(8)
    right = made(x)
    x[2, 5], x[7, 0] = float("nan"), float("inf")
    got = made(x)
    assert bool(got[2].isnan().all())
    assert not bool(got[7].isfinite().any())
    assert torch.equal(got[[0, 1, 3, 4, 5, 6]], right[[0, 1, 3, 4, 5, 6]])


@needs
def test_it_is_what_bf16_is_stored_as_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(linear, "halves_are_exact", lambda: True)
    for faster, kind in ((True, Half), (False, Plain)):
        monkeypatch.setattr(linear, "multiplies_fp16", lambda: faster)  # noqa: B023
        assert isinstance(make_linear(matrix(), None, "bf16"), kind)
        assert isinstance(make_head(matrix(), None, "bf16"), kind)
    monkeypatch.setattr(linear, "multiplies_fp16", lambda: True)
    spoiled = matrix()
    spoiled[0, 0] = 1e5
    assert isinstance(make_linear(spoiled, None, "bf16"), Plain)
    assert type(make_linear(matrix().float(), None, "fp32")) is Plain


def test_a_library_that_multiplies_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    halves_are_exact.cache_clear()
    right = fbgemm.times_fp16
    try:
        monkeypatch.setattr(linear_half.fbgemm, "times_fp16", lambda x, packed: right(x, packed) * 1.1)
        assert not halves_are_exact()
        halves_are_exact.cache_clear()
        # What blocks of one row do, said aloud: a row's numbers change with its company.
        monkeypatch.setattr(linear_half.fbgemm, "times_fp16", lambda x, packed: right(x, packed) * (1 + (len(x) > BLOCK) * 2**-7))
        assert not halves_are_exact()
    finally:
        halves_are_exact.cache_clear()


@needs
@pytest.mark.parametrize("most", [EIGHT_BITS, SEVEN_BITS])
def test_a_head_through_whole_numbers(most: int) -> None:
    if most > (greatest_exact() or 0):
        most = SEVEN_BITS
    weight, x, bias = matrix(5, 1_000, 576), rows(9, 576), matrix(6, 1_000, 1).flatten()
    whole, scale = round_int8(weight)
    right = F.linear(x.double(), whole.double() * scale.double().unsqueeze(1)) + bias.double()
    made = Int8Head(weight, bias, most)
    got = made(x)
    assert got.dtype == torch.float32
    assert float((got - right).norm() / right.norm()) < (3e-4 if most == EIGHT_BITS else 1e-3)
    assert torch.equal(got, torch.cat([made(row) for row in x.split(1)]))


@needs
def test_seven_bits_are_kept_by_every_processor() -> None:
    assert greatest_exact() in (SEVEN_BITS, EIGHT_BITS)
    worst = fbgemm.pack_int8(torch.full((16, 576), -127, dtype=torch.int8), torch.ones(16))
    out = fbgemm.times_int8(torch.full((3, 576), float(SEVEN_BITS)), worst, SEVEN_BITS)
    assert bool((out == -127 * SEVEN_BITS * 576).all())


@needs
def test_the_engine_that_torch_was_set_to_stays() -> None:
    before = torch.backends.quantized.engine
    fbgemm.pack_fp16(torch.ones(4, 4), None)
    assert torch.backends.quantized.engine == before
