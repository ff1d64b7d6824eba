"""Room for sequences: never more than there is, never a slot twice, leftovers always yield."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol.errors import Busy
from runtime.kv_pool import KEPT_SECONDS, MAX_SEQUENCES, WORTH, KVPool

PROMPT = list(range(100))


def pool(kept: int = 8) -> tuple[KVPool, list[tuple[str, int]]]:
    dropped: list[tuple[str, int]] = []
    return KVPool(lambda stage, slot: dropped.append((stage, slot)), kept), dropped


def test_what_begins_alike_takes_the_slot_over() -> None:
    made, dropped = pool()
    first = made.reserve("a", "s", 100, 1_000, "me", PROMPT)
    assert first.reused == 0
    made.release("a", "me", [*PROMPT, 7, 8], 90)
    assert (made.used, made.left) == (0, 90)
    again = made.reserve("b", "s", 200, 1_000, "me", [*PROMPT[:60], 99, 99])
    assert (again.slot, again.reused) == (first.slot, 60)
    assert (made.used, made.left, dropped) == (200, 0, [])


def test_the_last_token_is_always_computed() -> None:
    made, _dropped = pool()
    made.reserve("a", "s", 100, 1_000, "me", PROMPT)
    made.release("a", "me", PROMPT, 90)
    assert made.reserve("b", "s", 100, 1_000, "me", PROMPT[:50]).reused == 49


@pytest.mark.parametrize(
    ("stage", "owner", "tokens"),
    [("t", "me", PROMPT), ("s", "you", PROMPT), ("s", None, PROMPT), ("s", "me", [5, *PROMPT]), ("s", "me", PROMPT[: WORTH - 1])],
)
def test_another_stage_account_or_beginning_reuses_nothing(stage: str, owner: str | None, tokens: list[int]) -> None:
    made, _dropped = pool()
    made.reserve("a", "s", 100, 1_000, "me", PROMPT)
    made.release("a", "me", PROMPT, 90)
    assert made.reserve("b", stage, 100, 1_000, owner, tokens).reused == 0


def test_leftovers_yield_the_longest_unused_first_and_are_few() -> None:
    made, dropped = pool(kept=3)
    for name in "abcd":
        made.reserve(name, "s", 100, 1_000)
    for name in "abcd":
        made.release(name, "me", [ord(name), *PROMPT], 100)
    assert dropped == [("s", 0)]
    made.reserve("e", "s", 850, 1_000)
    assert dropped == [("s", 0), ("s", 1), ("s", 2)]
    made.forget_stage("s")
    assert dropped[-1] == ("s", 3)


def test_nothing_is_kept_where_nobody_is_named_or_reuse_is_off() -> None:
    made, dropped = pool()
    made.reserve("a", "s", 100, 1_000)
    made.release("a")
    other, dropped_there = pool(kept=0)
    other.reserve("a", "s", 100, 1_000, "me", PROMPT)
    other.release("a", "me", PROMPT, 90)
    assert dropped == dropped_there == [("s", 0)]


def test_a_full_pool_is_busy_and_says_so() -> None:
    made, _dropped = pool()
    made.reserve("a", "s", 600, 1_000)
    with pytest.raises(Busy, match="0 MB needed") as raised:
        made.reserve("b", "s", 500, 1_000)
    assert raised.value.details["retry_after"] > 0
    assert len(made) == 1
    for number in range(MAX_SEQUENCES - 1):
        made.reserve(f"n{number}", "s", 0, 1_000)
    with pytest.raises(Busy, match=f"{MAX_SEQUENCES} sequences"):
        made.reserve("one more", "s", 0, 1_000)


def test_what_is_left_under_a_name_is_for_who_can_name_it() -> None:
    made, dropped = pool()
    first = made.reserve("a", "s", 100, 1_000)
    made.leave("a", "me", "first", 60, 90)
    assert made.of("s") == (0, 90)
    for stage, owner, name in (("t", "me", "first"), ("s", "you", "first"), ("s", "me", "second"), ("s", None, "first")):
        assert made.reserve("b", stage, 10, 1_000, owner, after=name, positions=60).reused == 0
        made.release("b")
    assert made.reserve("b", "s", 10, 1_000, "me", PROMPT).reused == 0  # nor by tokens
    again = made.reserve("c", "s", 100, 1_000, "me", after="first", positions=50)
    assert (again.slot, again.reused, made.left) == (first.slot, 50, 0)
    assert ("s", first.slot) not in dropped
    made.leave("c", "me", "first", 55, 90)
    assert made.reserve("d", "s", 100, 1_000, "me", after="first", positions=99).reused == 55


def test_leftovers_go_after_a_while() -> None:
    made, dropped = pool()
    for name in "abc":
        made.reserve(name, "s", 100, 1_000)
    made.leave("a", "me", "first", 60, 90, now=10.0)
    made.release("b", "me", PROMPT, 90, now=20.0)
    made.expire(10.0 + KEPT_SECONDS - 0.1)
    assert dropped == []
    made.expire(10.0 + KEPT_SECONDS)
    assert dropped == [("s", 0)]
    assert made.reserve("d", "s", 100, 1_000, "me", PROMPT, now=20.0 + KEPT_SECONDS).reused == 0
    assert dropped == [("s", 0), ("s", 1)]


def test_one_entry_has_half_of_the_places_at_most() -> None:
    made, dropped = pool(kept=6)
    for number in range(9):
        made.reserve(f"n{number}", "s", 10, 1_000)
    made.leave("n0", "other", "first", 60, 10)
    made.release("n1", "me", PROMPT, 10)
    for number in range(2, 9):
        made.leave(f"n{number}", "me", f"{number}", 60, 10)
    assert dropped == [("s", 2), ("s", 3), ("s", 4), ("s", 5)]
    assert made.left == 50


class Pool(RuleBasedStateMachine):
    """Capacity changes as stages come and go; what is promised stays promised."""

    @initialize(capacity=st.integers(0, 2_000))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: set[tuple[str, int]] = set()
        self.pool = KVPool(lambda stage, slot: self.held.discard((stage, slot)), 4)
        self.running: dict[str, tuple[str, int, int]] = {}

    @rule(
        session=st.integers(0, 30).map(str),
        stage=st.sampled_from("ab"),
        size=st.integers(0, 900),
        owner=st.sampled_from([None, "me", "you"]),
        first=st.integers(0, 3),
    )
    def reserve(self, session: str, stage: str, size: int, owner: str | None, first: int) -> None:
        if session in self.running:
            return
        used = sum(size for _stage, _slot, size in self.running.values())
        try:
            place = self.pool.reserve(session, stage, size, self.capacity, owner, [first, *PROMPT])
        except Busy:
            assert used + size > self.capacity
            return
        assert used + size <= self.capacity
        assert all((stage, place.slot) != (other, slot) for other, slot, _size in self.running.values())
        assert bool(place.reused) == ((stage, place.slot) in self.held)
        self.held.add((stage, place.slot))
        self.running[session] = (stage, place.slot, size)

    @rule(
        session=st.integers(0, 30).map(str), owner=st.sampled_from([None, "me", "you"]), first=st.integers(0, 3), size=st.integers(0, 900)
    )
    def release(self, session: str, owner: str | None, first: int, size: int) -> None:
        place = self.pool.release(session, owner, [first, *PROMPT], size)
        assert (place is not None) == (session in self.running)
        self.running.pop(session, None)

    @rule(room=st.integers(0, 2_000))
    def shrink(self, room: int) -> None:
        self.pool.shrink(room)
        assert self.pool.left <= room

    @invariant()
    def promises_hold(self) -> None:
        if hasattr(self, "running"):
            assert self.pool.used == sum(size for _stage, _slot, size in self.running.values())
            assert len(self.pool) == len(self.running)
            assert all((stage, slot) in self.held for stage, slot, _size in self.running.values())


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
