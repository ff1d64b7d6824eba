"""The code: any k of n, zfec's bytes whoever computes them, bad numbers refused before they reach zfec."""

from __future__ import annotations

import random

import pytest
import zfec
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.code import Code, check_numbers, isal
from protocol.errors import BadInput


@st.composite
def codes(draw: st.DrawFn) -> tuple[int, int, list[bytes], list[int]]:
    k = draw(st.integers(1, 12))
    n = draw(st.integers(k, min(24, 2 * k + 4)))
    length = draw(st.integers(1, 200))
    rng = random.Random(draw(st.integers(0, 2**32)))
    kept = draw(st.permutations(range(n)))[:k]
    return k, n, [rng.randbytes(length) for _ in range(k)], list(kept)


def test_isal_is_used_here() -> None:
    assert isal() is not None


@settings(max_examples=60, deadline=None)
@given(codes())
def test_both_computers_give_zfecs_bytes_both_ways(case: tuple[int, int, list[bytes], list[int]]) -> None:
    k, n, pieces, kept = case
    oracle = list(zfec.Encoder(k, n).encode(tuple(pieces)))
    for accelerated in (True, False):
        code = Code(k, n, accelerated)
        assert [bytes(p) for p in (*pieces, *code.encode(pieces))] == oracle
        assert [bytes(p) for p in code.decode({j: oracle[j] for j in kept})] == pieces


@settings(max_examples=30, deadline=None)
@given(codes(), st.data())
def test_spans_of_pieces_recover_alike(case: tuple[int, int, list[bytes], list[int]], data: st.DataObject) -> None:
    k, n, pieces, kept = case
    code = Code(k, n)
    everything = [*pieces, *code.encode(pieces)]
    at = data.draw(st.integers(0, len(pieces[0]) - 1))
    have = {j: memoryview(everything[j])[at:] for j in kept}
    into = {j: bytearray(len(pieces[0]) - at) for j in range(k) if j not in have}
    code.recover(have, into)
    assert all(into[j] == pieces[j][at:] for j in into)


def test_rooms_of_another_shape_are_refused() -> None:
    pieces = [b"abcd", b"efgh"]
    for parity in ([bytearray(4)], [bytearray(4), bytearray(3)], [bytearray(4)] * 3):
        with pytest.raises(BadInput):
            Code(2, 4).encode_into(pieces, parity)


def test_parity_rows_dont_depend_on_n() -> None:
    pieces = [b"abcd", b"efgh", b"ijkl"]
    assert Code(3, 12).encode(pieces)[:2] == Code(3, 5).encode(pieces)


def test_the_largest_code_works() -> None:
    pieces = [bytes([i]) * 5 for i in range(100)]
    parity = Code(100, 256).encode(pieces)
    have = {100 + j: parity[j] for j in range(100)}
    assert [bytes(p) for p in Code(100, 256).decode(have)] == pieces


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("numbers", [(0, 6), (-1, 0), (0,), ()])
def test_bad_numbers_are_refused(numbers: tuple[int, ...], accelerated: bool) -> None:
    with pytest.raises(BadInput):
        Code(2, 6, accelerated).decode({j: b"xx" for j in numbers})


def test_a_number_given_twice_is_named() -> None:
    with pytest.raises(BadInput, match="piece 3 is given twice"):
        check_numbers([1, 3, 3], 6)


def test_unequal_pieces_are_refused() -> None:
    with pytest.raises(BadInput, match="one length"):
        Code(2, 4).encode([b"ab", b"abc"])
    with pytest.raises(BadInput, match="one length"):
        Code(2, 4).decode({1: b"ab", 2: b"abc"})


@pytest.mark.parametrize(("k", "n"), [(0, 1), (3, 2), (1, 257), (-1, 4)])
def test_impossible_codes_are_refused(k: int, n: int) -> None:
    with pytest.raises(BadInput):
        Code(k, n)


def test_recover_refuses_what_is_there() -> None:
    with pytest.raises(BadInput):
        Code(2, 4).recover({0: b"ab", 2: b"cd"}, {0: bytearray(2)})


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans())
def test_any_columns_are_made_from_any_k_others(data: st.DataObject, accelerated: bool) -> None:
    k, n = data.draw(st.sampled_from([(1, 3), (2, 6), (4, 10), (5, 12)]))
    pieces = [bytes(data.draw(st.binary(min_size=33, max_size=33))) for _ in range(k)]
    code = Code(k, n, accelerated)
    whole = [*pieces, *map(bytes, code.encode(pieces))]
    have = data.draw(st.lists(st.integers(0, n - 1), min_size=k, max_size=k, unique=True))
    make = data.draw(st.sets(st.sampled_from([j for j in range(n) if j not in have]), min_size=1))
    into = {j: bytearray(33) for j in make}
    code.make({j: whole[j] for j in have}, into)
    assert {j: bytes(column) for j, column in into.items()} == {j: whole[j] for j in make}


def test_only_missing_columns_are_made() -> None:
    with pytest.raises(BadInput, match="aren't made again"):
        Code(2, 4).make({0: b"ab", 2: b"cd"}, {2: bytearray(2)})
    with pytest.raises(BadInput):
        Code(2, 4).make({0: b"ab", 2: b"cd"}, {4: bytearray(2)})
