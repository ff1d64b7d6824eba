"""Blame: a bad shard is set aside, three or a repeat ban, bans double and decay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.swarm.budget import TokenBucket
from node.swarm.reputation import BAN, DECAY, LONGEST_BAN, MAX_SHOWN, REPEAT_AFTER, SET_ASIDE, Reputation, shard_text
from protocol.ids import EncodingId, PeerId, digest

A = PeerId("A")
ENCODING = EncodingId(digest(b"e"))


def test_one_bad_shard_is_set_aside_and_no_more() -> None:
    book = Reputation()
    assert not book.blame(A, shard_text(ENCODING, 3), "leaf 7", 100.0)
    assert not book.blame(A, shard_text(ENCODING, 3), "leaf 8", 101.0)
    assert book.set_aside(ENCODING, 3, A, 101.0)
    assert not book.set_aside(ENCODING, 4, A, 101.0)
    assert not book.set_aside(ENCODING, 3, PeerId("B"), 101.0)
    assert not book.set_aside(ENCODING, 3, A, 102.0 + SET_ASIDE)
    assert not book.banned(A, 101.0)
    assert book.blamed()[0] == {"peer_id": A, "shard": shard_text(ENCODING, 3), "reason": "leaf 7", "at": 100.0}


def test_three_shards_or_a_repeat_ban_for_an_hour() -> None:
    book = Reputation()
    assert [book.blame(A, name, "noise", 100.0) for name in "abc"] == [False, False, True]
    assert book.banned(A, 100.0 + BAN - 1)
    assert not book.banned(A, 100.0 + BAN)
    other = Reputation()
    other.blame(A, "a", "noise", 100.0)
    assert other.blame(A, "a", "noise", 100.0 + REPEAT_AFTER)


def test_bans_double_and_quiet_days_halve_them() -> None:
    book, now, lengths = Reputation(), 1_000.0, []
    for _ in range(4):
        for name in "abc":
            book.blame(A, name, "noise", now)
        start = now
        while book.banned(A, now):
            now += BAN / 4
        lengths.append(round((now - start) / BAN))
    assert lengths == [1, 2, 4, 8]
    now += 10 * DECAY
    for name in "abc":
        book.blame(A, name, "noise", now)
    assert book.banned(A, now + BAN - 1)
    assert not book.banned(A, now + BAN + 1)


@given(st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("abcde"), st.floats(0, 10_000)), max_size=60))
def test_no_ban_is_without_end_and_the_list_is_bounded(events: list[tuple[str, str, float]]) -> None:
    book, now = Reputation(), 0.0
    for peer, shard, wait in events * 6:
        now += wait
        book.blame(PeerId(peer), shard, "x" * 1_000, now)
    assert not book.banned(A, now + LONGEST_BAN)
    assert len(book.blamed()) <= MAX_SHOWN


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 10)), max_size=50))
def test_a_bucket_never_gives_more_than_its_rate(takes: list[tuple[float, int]]) -> None:
    bucket, now, given_out = TokenBucket(5, 10, 0.0), 0.0, 0
    for wait, count in takes:
        now += wait
        given_out += count if bucket.take(count, now) else 0
        assert given_out <= 10 + 5 * now + 1e-6
