"""Which earlier session a prompt goes on from: exactly as far as the tokens are the same, within one scope, for a while, few."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from node.kept_prefixes import DENSE, KEPT, KEPT_SECONDS, STRIDE, WORTH, KeptPrefixes
from protocol.messages import StageSpec

SCOPE = (bytes(32), "bf16", "me")
ROUTE = [StageSpec("a", 0, 3), StageSpec("b", 3, 6)]
LONG = [(31 * at) % 97 for at in range(200)]


def kept(*histories: list[int]) -> KeptPrefixes:
    made = KeptPrefixes(bytes(32))
    for number, tokens in enumerate(histories):
        made.keep(SCOPE, bytes([number] * 16), ROUTE, tokens, 0.0)
    return made


def test_a_turn_goes_on_behind_the_one_before() -> None:
    found = kept(LONG).find(SCOPE, [*LONG, 5, 6, 7], 1.0)
    assert found is not None
    assert (found.session, list(found.stages), found.positions) == (bytes(16), ROUTE, 200)


def test_the_last_token_is_always_computed() -> None:
    found = kept(LONG).find(SCOPE, LONG[:100], 1.0)
    assert found is not None
    assert found.positions == 99


def test_the_session_with_the_most_in_common_and_of_equals_the_latest() -> None:
    found = kept(LONG[:50], LONG[:150], [*LONG[:60], 1, 2, 3], LONG[:150]).find(SCOPE, LONG, 1.0)
    assert found is not None
    assert (found.session[0], found.positions) == (3, 150)


@given(st.integers(0, 199), st.integers(0, 60))
def test_exactly_as_far_as_they_are_the_same(at: int, more: int) -> None:
    found = kept(LONG).find(SCOPE, [*LONG[:at], 1_000, *LONG[:more]], 1.0)
    assert (found.positions if found is not None else 0) == (at if at >= WORTH else 0)


def test_far_out_to_the_stride_below() -> None:
    tokens = [at % 97 for at in range(DENSE + 1_000)]
    for at in (DENSE - 1, DENSE, DENSE + 1, DENSE + STRIDE - 1, DENSE + STRIDE, DENSE + 777):
        found = kept(tokens).find(SCOPE, [*tokens[:at], 1_000, 2, 3], 1.0)
        assert found is not None
        assert found.positions == (at if at <= DENSE else at - (at - DENSE) % STRIDE)


def test_other_models_precisions_and_readers_have_nothing_in_common() -> None:
    made = kept(LONG)
    for scope in ((bytes([1] * 32), "bf16", "me"), (bytes(32), "fp32", "me"), (bytes(32), "bf16", "you"), (bytes(32), "bf16", "")):
        assert made.find(scope, [*LONG, 5], 1.0) is None
    digests = [one.digests for one in kept(LONG)._kept.values()]
    made.keep((bytes(32), "bf16", "you"), bytes([9] * 16), ROUTE, LONG, 0.0)
    assert not set(made._kept[bytes([9] * 16)].digests) & set(digests[0])
    other = KeptPrefixes(bytes([1] * 32))
    other.keep(SCOPE, bytes(16), ROUTE, LONG, 0.0)
    assert not set(other._kept[bytes(16)].digests) & set(digests[0])


def test_what_is_short_old_forgotten_or_too_much_is_gone() -> None:
    made = kept(LONG[: WORTH - 1])
    assert len(made) == 0
    made = kept(LONG)
    assert made.find(SCOPE, [*LONG, 5], KEPT_SECONDS) is None
    assert len(made) == 0
    made = kept(LONG)
    made.forget(bytes(16))
    made.forget(bytes(16))
    assert made.find(SCOPE, [*LONG, 5], 1.0) is None
    for number in range(KEPT + 5):
        made.keep(SCOPE, number.to_bytes(16, "big"), ROUTE, LONG, float(number))
    assert len(made) == KEPT


def test_no_token_stays() -> None:
    made = kept(LONG)
    [one] = made._kept.values()
    assert all(len(digest) == 16 for digest in one.digests)
    assert all(before != after for before, after in pairwise(one.digests))
