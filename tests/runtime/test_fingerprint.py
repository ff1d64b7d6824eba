"""Prints of rows: what they keep of a difference, and from when two count as different."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadInput
from protocol.prints import PRINT_BYTES, PRINT_KEY
from runtime.fingerprint import FEWEST, KEY, LEAST_TOKENS, ROW, ROW_BYTES, TOKEN_GAP, Printer, compare, compare_tokens, distances, same_rows

HIDDEN = 576
RNG = np.random.default_rng(3)
PRINTER = Printer(bytes(range(16)), HIDDEN)


def rows(count: int = 64) -> np.ndarray:
    """Like hidden states: a few channels carry most of the size."""
    made = RNG.standard_normal((count, HIDDEN)).astype("<f4")
    made[:, :3] *= 100
    return made


def noisy(base: np.ndarray, part: float) -> np.ndarray:
    noise = RNG.standard_normal(base.shape)
    return (base + part * noise * np.linalg.norm(base, axis=1, keepdims=True) / HIDDEN**0.5).astype("<f4")


def printed(values: np.ndarray) -> bytes:
    return PRINTER.of(values.tobytes(), "fp32")


def test_sizes_are_the_protocols() -> None:
    assert (ROW_BYTES, KEY) == (PRINT_BYTES, PRINT_KEY)
    assert len(printed(rows(5))) == 5 * ROW_BYTES


def test_the_same_key_gives_the_same_prints_another_key_others() -> None:
    base = rows(4)
    assert Printer(bytes(range(16)), HIDDEN).of(base.tobytes(), "fp32") == printed(base)
    assert distances(Printer(bytes(16), HIDDEN).of(base.tobytes(), "fp32"), printed(base)).min() > 0.3


def test_signs_are_pinned() -> None:
    one = np.eye(4, dtype="<f4") * 2
    made = np.frombuffer(Printer(bytes(range(16)), 4).of(one.tobytes(), "fp32"), dtype="<f2").reshape(4, 16)
    assert np.abs(made).tolist() == [[1.0] * 16] * 4
    assert "".join("+" if value > 0 else "-" for value in made[0]) == "+--+++--+--+--++"


@pytest.mark.parametrize("part", [0.01, 0.1, 0.5])
def test_a_distance_is_about_the_relative_difference(part: float) -> None:
    base = rows(400)
    found = distances(printed(base), printed(noisy(base, part)))
    assert np.median(found) == pytest.approx(part, rel=0.25)


def test_bf16_rows_are_read_as_they_travel() -> None:
    base = rows(8)
    short = (base.view("<u4") >> 16).astype("<u2")
    assert distances(PRINTER.of(short.tobytes(), "bf16"), printed(base)).max() < 0.02
    halves = base.astype("<f2")
    assert distances(PRINTER.of(halves.tobytes(), "fp16"), printed(base)).max() < 0.01


def test_one_row_of_many_that_differs_is_seen_as_one() -> None:
    base = rows(100)
    other = base.copy()
    other[7] = noisy(base[7:8], 0.5)[0]
    finding = compare(printed(base), printed(other), "bf16")
    assert (finding.differs, finding.rows, finding.apart) == (False, 100, 1)


@pytest.mark.parametrize(
    ("precision", "part", "differs"),
    [(word, part, part > 0.1) for word in ("bf16", "int8", "int4") for part in (0.02, 0.2)] + [("fp32", 2e-4, False), ("fp32", 0.02, True)],
)
def test_thresholds_are_those_of_the_precision(precision: str, part: float, differs: bool) -> None:
    base = rows(200)
    assert compare(printed(base), printed(noisy(base, part)), precision).differs is differs
    assert ROW["fp32"] < ROW["bf16"]


def test_the_same_bytes_printed_one_by_one_or_together_are_the_same_rows() -> None:
    base = noisy(rows(200), 0.1)
    alone = b"".join(PRINTER.of(base[row : row + 1].tobytes(), "fp32") for row in range(200))
    assert same_rows(alone, printed(base)).differs is False
    other = base.copy()
    other[7] = noisy(base[7:8], 0.02)[0]
    assert (same_rows(alone, printed(other)).differs, same_rows(alone, printed(other)).apart) == (True, 1)


def test_a_cheat_on_every_fifth_row_is_found() -> None:
    base = rows(200)
    other = noisy(base, 0.01)
    other[::5] = noisy(base[::5], 0.3)
    assert compare(printed(base), printed(other), "bf16").differs is True


def test_few_rows_say_nothing() -> None:
    base = rows(FEWEST - 1)
    assert compare(printed(base), printed(rows(FEWEST - 1)), "bf16").differs is None


def test_numbers_that_are_none_differ() -> None:
    base = rows(FEWEST)
    broken = np.frombuffer(printed(base), dtype="<f2").copy()
    broken[:] = np.nan
    assert compare(printed(base), broken.tobytes(), "bf16").differs is True


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_give_a_finding_or_an_error(one: bytes, two: bytes) -> None:
    try:
        assert (distances(one, two) >= 0).all()
    except BadInput:
        assert len(one) != len(two) or len(one) % ROW_BYTES


@pytest.mark.parametrize(("raw", "dtype"), [(b"", "bf16"), (bytes(HIDDEN), "bf16"), (bytes(4 * HIDDEN), "int8")])
def test_what_arent_rows_is_refused(raw: bytes, dtype: str) -> None:
    with pytest.raises(BadInput):
        PRINTER.of(raw, dtype)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(BadInput):
        Printer(bytes(15), HIDDEN)


def test_tokens_of_another_are_found_from_a_few_on() -> None:
    honest = [0.0] * 190 + [0.3] * 10
    assert compare_tokens(honest).differs is False
    assert compare_tokens([*honest[: -LEAST_TOKENS + 1], *[TOKEN_GAP + 1] * (LEAST_TOKENS - 1)]).differs is False
    assert compare_tokens([*honest[:-5], *[TOKEN_GAP + 1] * 5]).differs is True
    assert compare_tokens([float("nan")] * 20).differs is True
    assert compare_tokens([9.0] * (FEWEST - 1)).differs is None
