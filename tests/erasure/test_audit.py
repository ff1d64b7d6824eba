"""The policy of audits: what counts, when it is due, how long it may take."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasure.audit import (
    FIRST_WITHIN,
    FRESH,
    MAX_SHOWN,
    OWN_TIME,
    PERIOD,
    RETRY,
    RETRY_MOST,
    RTT_FACTOR,
    RTT_MOST,
    SECOND_AFTER,
    SHOWN,
    STEP_LEAST,
    STEP_MOST,
    STEPS,
    WINDOW,
    AuditBook,
    HeldShard,
    Speeds,
    Verdict,
    steps_to_show,
    together,
    units,
)
from protocol.ids import EncodingId, PeerId, digest
from protocol.limits import MAX_AUDIT_SHOWN, MAX_AUDIT_TARGETS

A, B = PeerId("A"), PeerId("B")
ENCODING = EncodingId(digest(b"e"))
HELD = HeldShard(A, ENCODING, 3)
P, L, M, W, U = Verdict.PASSED, Verdict.LATE, Verdict.MISSING, Verdict.WRONG, Verdict.UNKNOWN


def book_of(verdicts: Sequence[Verdict], now: float = 0.0) -> AuditBook:
    book, rng = AuditBook(), Random(1)
    for verdict in verdicts:
        book.note(HELD, verdict, now, rng)
    return book


@pytest.mark.parametrize(
    ("verdicts", "counts"),
    [
        ([], False), ([P], True), ([L], False), ([U], False), ([M], False), ([W], False),
        ([L, P], False), ([L, P, P], True), ([P, L], True), ([P, L, L], False), ([P, U, U, U], True), ([U, P], True),
        ([P, P, M], False), ([P, P, W], False), ([P, M, P], True), ([L, L, L, L, L, P, P, P], True), ([P] * 9 + [L] * 2, True),
        ([P] * 9 + [L] * 3, False),
    ],
)  # fmt: skip
def test_what_counts(verdicts: list[Verdict], counts: bool) -> None:
    assert book_of(verdicts).counts(HELD, 0.0) is counts


@given(st.lists(st.sampled_from([P, L, M, W, U]), max_size=30))
def test_nothing_counts_that_never_passed_and_unknown_changes_nothing(verdicts: list[Verdict]) -> None:
    book = book_of(verdicts)
    if P not in verdicts:
        assert not book.counts(HELD, 0.0)
    assert book.counts(HELD, 0.0) is book_of([one for one in verdicts if one is not U]).counts(HELD, 0.0)


@given(st.lists(st.sampled_from([P, L]), min_size=WINDOW, max_size=30))
def test_among_the_last_five_the_majority_decides(verdicts: list[Verdict]) -> None:
    last = verdicts[-WINDOW:]
    assert book_of(verdicts).counts(HELD, 0.0) is (last.count(P) > last.count(L))


@given(st.floats(0.0, 0.05), st.integers(0, 1_000))
def test_a_faker_that_is_lucky_one_time_in_twenty_hardly_ever_counts(luck: float, seed: int) -> None:
    rng, book, counted = Random(seed), AuditBook(), 0
    for _ in range(200):
        book.note(HELD, P if rng.random() < luck else L, 0.0, rng)
        counted += book.counts(HELD, 0.0)
    assert counted <= 20


def test_a_pass_is_good_for_three_periods() -> None:
    book = book_of([P], now=100.0)
    assert book.counts(HELD, 100.0 + FRESH * PERIOD)
    assert not book.counts(HELD, 101.0 + FRESH * PERIOD)
    assert not AuditBook().counts(HELD, 0.0)


def test_what_was_put_counts_at_once_until_two_late_answers_or_one_fault() -> None:
    for said, counts in (((), True), ((L,), True), ((L, L), False), ((M,), False), ((W,), False), ((U, U), True)):
        book, rng = AuditBook(), Random(1)
        book.note(HELD, M, 0.0, rng)
        book.vouch(HELD, 0.0, rng)
        for verdict in said:
            book.note(HELD, verdict, 0.0, rng)
        assert book.counts(HELD, 0.0) is counts, said


def test_a_late_first_answer_costs_seconds_and_not_the_wait_of_who_passed() -> None:
    """A machine busy with taking the shards answers late; what it holds counts again soon after it is idle."""
    book, rng, now = book_of([L]), Random(2), 0.0
    while not book.counts(HELD, now) and now < SECOND_AFTER:
        now += 1.0
        for held in book.due([HELD], now, rng):
            book.note(held, P, now, rng)
    assert now <= 4 * RETRY


def test_what_is_new_is_due_within_seconds_and_once() -> None:
    book, rng = AuditBook(), Random(3)
    held = [HeldShard(A, ENCODING, shard) for shard in range(50)]
    assert len(book.due(held, 10.0, rng)) < 50
    assert sorted(one.shard for one in book.due(held, 10.0 + FIRST_WITHIN, rng)) == list(range(50))
    for one in held:
        book.note(one, P, 20.0, rng)
    assert book.due(held, 21.0, rng) == []
    late = book.due(held, 20.0 + 1.25 * SECOND_AFTER, rng)
    assert len(late) == 50
    assert book.due([], 1e9, rng) == [], "what is announced no more isn't audited"


@given(st.lists(st.sampled_from([P, L, M, W, U]), min_size=1, max_size=40), st.integers(1, 256), st.integers(0, 1_000))
def test_the_next_audit_comes_never_at_once_and_never_too_late(verdicts: list[Verdict], holders: int, seed: int) -> None:
    book, rng = AuditBook(), Random(seed)
    for verdict in verdicts:
        book.note(HELD, verdict, 0.0, rng, holders)
    assert book.due([HELD], 0.74 * RETRY, rng) == []
    longest = 4 * PERIOD if verdicts[-1] is P else RETRY_MOST
    assert book.due([HELD], 1.26 * longest, rng) == [HELD]


def test_who_passes_is_asked_less_and_less_and_large_groups_share() -> None:
    def wait(passes: int, holders: int) -> float:
        book, rng = AuditBook(), Random(1)
        for _ in range(passes):
            book.note(HELD, P, 0.0, rng, holders)
        at = 0.0
        while not book.due([HELD], at, rng):
            at += 60.0
        return at

    waits = [wait(passes, 4) for passes in (1, 2, 3)]
    assert waits == sorted(waits)
    assert wait(9, 4) <= 1.25 * PERIOD + 60
    assert wait(9, 30) > 1.5 * wait(9, 4)


def test_the_longest_due_comes_first_and_a_peer_s_shards_are_audited_together() -> None:
    book, rng = AuditBook(), Random(1)
    late, early = HeldShard(A, ENCODING, 1), HeldShard(B, ENCODING, 2)
    book.note(early, L, 0.0, rng)
    book.note(late, L, 50.0, rng)
    assert book.due([late, early], 500.0, rng) == [early, late]
    held = [HeldShard(A, ENCODING, shard) for shard in range(MAX_AUDIT_TARGETS + 1)]
    audits = together([early, *held])
    assert audits == {B: [[early]], A: [held[:-1], held[-1:]]}


def test_what_does_not_count_is_named_with_its_verdict_and_bounded() -> None:
    book, rng = AuditBook(), Random(1)
    for shard, verdict in enumerate([P, L, M, W, U]):
        book.note(HeldShard(A, ENCODING, shard), verdict, 0.0, rng)
    assert [(held.shard, verdict) for held, verdict in book.uncounted(0.0)] == [(1, L), (2, M), (3, W), (4, U)]
    for shard in range(256):
        for peer in (A, B):
            book.note(HeldShard(peer, ENCODING, shard), M, 0.0, rng)
    assert len(book.uncounted(0.0)) == MAX_SHOWN


@given(st.integers(1, MAX_AUDIT_TARGETS), st.integers(0, 1_000))
def test_a_leaf_of_every_shard_is_shown(shards: int, seed: int) -> None:
    chosen = steps_to_show(shards, Random(seed))
    assert {step % shards for step in chosen} == set(range(shards))
    assert chosen == sorted(set(chosen))
    assert max(SHOWN, shards) == len(chosen) <= MAX_AUDIT_SHOWN
    assert all(0 <= step < STEPS for step in chosen)


def test_every_step_is_shown_sometimes() -> None:
    rng = Random(1)
    for shards in (1, 3, MAX_AUDIT_TARGETS):
        assert {step for _ in range(300) for step in steps_to_show(shards, rng)} == set(range(STEPS))


SECONDS = st.floats(0.0, 10.0)


@given(st.lists(SECONDS, max_size=40), SECONDS, st.lists(st.integers(1, 16_448), min_size=1, max_size=MAX_AUDIT_TARGETS))
def test_a_deadline_has_a_floor_and_a_ceiling_whatever_a_peer_shows(taken: list[float], rtt: float, leaves: list[int]) -> None:
    speeds, work = Speeds(), units(leaves)
    for seconds in taken:
        speeds.note(A, seconds, rtt, work)
    trip = RTT_FACTOR * min(rtt, RTT_MOST) + OWN_TIME
    assert trip + work * STEP_LEAST - 1e-9 <= speeds.deadline(A, rtt, work) <= trip + work * STEP_MOST + 1e-9
    assert len(leaves) < work <= len(leaves) + STEPS


def test_who_is_known_is_held_to_its_own_speed_and_one_slow_answer_moves_it_little() -> None:
    speeds, work = Speeds(), units([1_000])
    assert speeds.step(A) == STEP_MOST
    for _ in range(15):
        speeds.note(A, 0.05 + work * 0.004, 0.05, work)
    assert speeds.step(A) == pytest.approx(0.008)
    speeds.note(A, 0.05 + work * 0.018, 0.05, work)
    assert speeds.step(A) == pytest.approx(0.008)
    assert speeds.step(B) == STEP_MOST


def test_shards_read_whole_in_one_go_get_no_more_time_than_that() -> None:
    assert units([1]) == pytest.approx(2 + 1 / 32)
    assert units([256]) == 10.0
    assert units([992]) == units([16_448]) == 1 + STEPS
