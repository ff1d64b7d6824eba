"""bf16 through fp32: what torch's own kernel gives, to the last bit where that makes each number by itself."""

from __future__ import annotations

import threading
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from runtime import linear, linear_wide
from runtime.linear import make_plain
from runtime.linear_plain import Plain
from runtime.linear_wide import FROM, Wide
from runtime.processor import each_product_alone, multiplies_bf16

OUT, WIDTH = 576, 192


def given(
    rows: int, seed: int = 0, out: int = OUT, width: int = WIDTH, large: float = 100.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations with one channel of large ones, a matrix, a bias."""
    rng = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(shape, generator=rng) for shape in ((rows, width), (out, width), (out,)))
    x[:, 3] *= large
    return x.bfloat16(), (weight * 0.02).bfloat16(), bias.bfloat16()


EXACT = each_product_alone() and not multiplies_bf16()
"""Where it is used. Processors with instructions for bf16 may choose the order of a sum by the size of the whole product."""


def same(got: torch.Tensor, right: torch.Tensor) -> bool:
    """All bits; elsewhere than in use the next one in bf16 is as good."""
    if EXACT:
        return torch.equal(got.view(torch.int16), right.view(torch.int16))
    return torch.allclose(got.float(), right.float(), rtol=2**-7, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("rows", "bias"), list(product([1, FROM - 1, FROM, FROM + 1, 40, 133], [False, True])))
def test_it_is_what_torch_gives(rows: int, bias: bool) -> None:
    for seed, large in ((1, 1.0), (2, 100.0), (3, 10_000.0)):
        x, weight, added = given(rows, seed, large=large)
        own = added if bias else None
        assert same(Wide(weight, own)(x), F.linear(x, weight, own))


@pytest.mark.parametrize(("out", "width"), [(96, 1_536), (1_000, 64), (7, 33)])
def test_other_shapes_in_tiles_of_any_size(out: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = given(50, 4, out, width)
    right = F.linear(x, weight, bias)
    for tile in (1, 5 * width, 1 << 20):
        monkeypatch.setattr(linear_wide, "_TILE", tile)
        assert same(Wide(weight, bias)(x), right)


def test_so_many_numbers_that_fp32_alone_gives_others() -> None:
    """The test of the others: without what is looked after it would fail."""
    x, weight, _ = given(256, 5, 2_048, 576)
    right = F.linear(x, weight)
    assert same(Wide(weight, None)(x), right)
    alone = F.linear(x.float(), weight.float()).bfloat16()
    assert not torch.equal(alone, right) or not EXACT


def test_rows_without_numbers_and_without_anything() -> None:
    x, weight, _ = given(40)
    x[5, 7], x[9, 1], x[11] = float("nan"), float("inf"), 0.0
    got, right = Wide(weight, None)(x), F.linear(x, weight)
    torch.testing.assert_close(got, right, rtol=0 if EXACT else 2**-7, atol=1e-6, equal_nan=True)
    assert bool(got[5].isnan().all())
    assert not got[11].any()


def test_threads_do_not_share_what_they_compute_in() -> None:
    made, wrong = [given(64, seed) for seed in range(4)], list[int]()

    def work(number: int) -> None:
        x, weight, _ = made[number]
        one, right = Wide(weight, None), F.linear(x, weight)
        wrong.extend(number for _ in range(20) if not same(one(x), right))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_inside_and_outside_of_inference() -> None:
    x, weight, _ = given(30)
    one = Wide(weight, None)
    with torch.inference_mode():
        inside = one(x)
    assert torch.equal(one(x), inside)


def test_only_where_bf16_is_multiplied_number_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    _, weight, bias = given(1)
    for multiplies, alone, kind in ((False, True, Wide), (True, True, Plain), (False, False, Plain)):
        monkeypatch.setattr(linear, "multiplies_bf16", lambda multiplies=multiplies: multiplies)
        monkeypatch.setattr(linear, "each_product_alone", lambda alone=alone: alone)
        assert type(make_plain(weight, bias)) is kind
        assert type(make_plain(weight.float(), None)) is Plain
    assert isinstance(multiplies_bf16(), bool)
