"""The bounded books: one record per subject, the highest sequence wins in whatever order they come."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from node.swarm.archive import BUCKETS, Archive, Buckets, Taken, differing, split_marks
from node.swarm.book import MARK, Kept, Outcome, RecordBook, mark_of
from node.swarm.holdings import HoldingBook
from node.swarm.peers import PeerBook
from protocol import limits
from protocol.errors import BadInput, NotFound
from protocol.ids import EncodingId, ModelId, PeerId, digest
from protocol.manifest import Summary
from protocol.records import Card, Held, Holding, NodeRecord, Readers, Revocations, Revoked, seal_record
from protocol.signing import peer_of, seal
from tests.node.swarm.nodes import NOW, card, key_of, model_of


def node_record(sequence: int = 1, expires: int = NOW + 100, address: str = "/ip4/127.0.0.1/tcp/1") -> NodeRecord:
    return NodeRecord(
        sequence=sequence,
        expires=expires,
        boot=bytes(16),
        version="1",
        addresses=[address],
        transfer=[],
        tls=bytes(32),
        lend="both",
    )


def holding(sequence: int, shards: list[int], model: int = 1, encoding: int = 1, expires: int = NOW + 100) -> Holding:
    held = [Held(0, digest(b"encoding %d" % encoding), shards)] if shards else []
    return Holding(sequence=sequence, expires=expires, model=model_of(model), held=held, full=[])


def kept_holding(signer: str, record: Holding) -> Kept[Holding]:
    envelope = repr((signer, record)).encode()
    return Kept(PeerId(signer), record, envelope, mark_of(envelope))


def everyone(_peer: PeerId) -> bool:
    return True


def nobody(_peer: PeerId) -> bool:
    return False


RECORDS = st.builds(
    lambda signer, model, sequence, shards: kept_holding(signer, holding(sequence, sorted(shards), model, model)),
    st.sampled_from("ABC"),
    st.integers(1, 3),
    st.integers(0, 5),
    st.sets(st.integers(0, 5)),
)


@given(st.lists(RECORDS, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(records: list[Kept[Holding]], rng: random.Random) -> None:
    one, other = HoldingBook(), HoldingBook()
    for record in records:
        one.offer(record)
    shuffled = list(records)
    rng.shuffle(shuffled)
    for record in shuffled:
        other.offer(record)
    assert {kept.mark for kept in one.all()} == {kept.mark for kept in other.all()}
    for number in (1, 2, 3):
        encoding = EncodingId(digest(b"encoding %d" % number))
        assert one.holders(encoding, everyone) == other.holders(encoding, everyone)


@given(st.lists(RECORDS, max_size=20))
def test_the_index_says_what_a_search_of_all_records_says(records: list[Kept[Holding]]) -> None:
    book = HoldingBook(total=5, per_peer=2)
    for record in records:
        book.offer(record)
    assert len(book) <= 5
    for number in (1, 2, 3):
        encoding, wanted = EncodingId(digest(b"encoding %d" % number)), {}
        for kept in book.all():
            for held in kept.record.held:
                if held.encoding == encoding:
                    for shard in held.shards:
                        wanted.setdefault(shard, set()).add(kept.signer)
        assert book.holders(encoding, everyone) == {shard: sorted(wanted[shard]) for shard in sorted(wanted)}
        assert {k.signer for k in book.of_model(model_of(number))} == {
            k.signer for k in book.all() if k.record.model == model_of(number) and k.record.held
        }
    book.expire(NOW + 100 + limits.CLOCK_TOLERANCE + 1)
    assert len(book) == 0
    assert book.holders(EncodingId(digest(b"encoding 1")), everyone) == {}


def test_an_unusable_peer_is_not_a_holder() -> None:
    book = HoldingBook()
    book.offer(kept_holding("A", holding(1, [3])))
    assert book.holders(EncodingId(digest(b"encoding 1")), nobody) == {}


def test_a_signer_has_bounded_room_and_a_full_book_keeps_the_pinned() -> None:
    book: RecordBook[str, Holding] = RecordBook(total=2, per_signer=1)
    early, late = kept_holding("A", holding(1, [1], expires=NOW + 1)), kept_holding("B", holding(1, [1], expires=NOW + 9))
    assert book.offer("a", early)[0] is Outcome.NEW
    assert book.offer("a2", kept_holding("A", holding(1, [2])))[0] is Outcome.FULL
    assert book.offer("b", late)[0] is Outcome.NEW
    assert book.offer("c", kept_holding("C", holding(1, [1])))[0] is Outcome.FULL
    outcome, gone = book.offer("d", kept_holding("D", holding(1, [1])), pinned=True)
    assert outcome is Outcome.NEW
    assert gone == [early]
    assert book.offer("e", kept_holding("E", holding(1, [1])), pinned=True)[1] == [late]
    assert book.offer("f", kept_holding("F", holding(1, [1])), pinned=True)[0] is Outcome.FULL


def test_an_older_sequence_and_the_same_bytes_are_no_news() -> None:
    archive = Archive()
    old, new = seal_record(key_of(1), node_record(4)), seal_record(key_of(1), node_record(5))
    assert archive.take(new, NOW, nobody).outcome is Outcome.NEW  # type: ignore[union-attr]
    assert archive.take(old, NOW, nobody).outcome is Outcome.OLDER  # type: ignore[union-attr]
    assert archive.take(new, NOW, nobody).outcome is Outcome.KNOWN  # type: ignore[union-attr]
    assert archive.knows(new)
    assert not archive.knows(old)


def hostile() -> dict[str, bytes]:
    good = seal_record(key_of(1), node_record())
    expired = seal_record(key_of(1), node_record(expires=NOW - limits.CLOCK_TOLERANCE - 1))
    eternal = seal_record(key_of(1), node_record(expires=NOW + limits.NODE_RECORD_LIFETIME + limits.CLOCK_TOLERANCE + 1))
    big_card = card()
    big_card.description = "x" * limits.MAX_CARD
    shards = [Held(group, bytes(32), list(range(256))) for group in range(2_000)]
    many = Holding(sequence=1, expires=NOW + 1, model=model_of(1), held=shards, full=[])
    other = peer_of(key_of(2)).encode()
    return {
        "another signer's name": good.replace(peer_of(key_of(1)).encode(), other),
        "a flipped bit": good[:-1] + bytes([good[-1] ^ 1]),
        "expired": expired,
        "expires too late": eternal,
        "an oversized card": seal(key_of(1), "mf/card/1", big_card),
        "an oversized holding": seal_record(key_of(1), many),
        "a card's body as a node's": seal(key_of(1), "mf/node/1", card()),
        "not msgpack": b"\xc1" * 40,
        "nothing": b"",
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_records_are_refused(name: str) -> None:
    archive = Archive()
    with pytest.raises(BadInput):
        archive.take(hostile()[name], NOW, everyone)
    assert not archive.all_marks()


def test_a_record_of_an_unknown_domain_is_passed_over() -> None:
    assert Archive().take(seal(key_of(1), "mf/later/1", node_record()), NOW, everyone) is None


@given(st.binary(max_size=200))
def test_random_bytes_never_get_in(data: bytes) -> None:
    archive = Archive()
    with contextlib.suppress(BadInput):
        assert archive.take(data, NOW, everyone) is None
    assert not archive.all_marks()


@given(st.sets(st.integers(0, 400), max_size=60), st.sets(st.integers(0, 400), max_size=60))
def test_buckets_that_differ_hold_every_difference(one: set[int], other: set[int]) -> None:
    ours, theirs = ({mark_of(b"%d" % item) for item in items} for items in (one, other))
    kept = Buckets()
    for mark in ours | theirs:
        kept.add(mark)
    for mark in theirs - ours:
        kept.remove(mark)
    buckets = set(differing(kept.sums([]), Buckets().sums(theirs)))
    assert {mark[0] % BUCKETS for mark in ours ^ theirs} == buckets
    assert kept.sums([]) == Buckets().sums(ours)
    assert {mark for bucket in range(BUCKETS) for mark in kept.of(bucket)} == ours
    assert kept.sums(theirs) == Buckets().sums([*ours, *theirs])
    assert set(split_marks(b"".join(sorted(ours)))) == ours
    assert len(kept.sums([])) == BUCKETS * MARK


def test_handshakes_are_remembered_and_expired_nodes_are_not() -> None:
    book = PeerBook()
    record = node_record()
    envelope = seal_record(key_of(1), record)
    peer = peer_of(key_of(1))
    book.offer(Kept(peer, record, envelope, mark_of(envelope)))
    assert book.addresses(peer) == record.addresses
    assert not book.met(peer)
    assert book.meet(peer)
    assert not book.meet(peer)
    assert book.expire(NOW) == []
    assert len(book.expire(NOW + 100 + limits.CLOCK_TOLERANCE + 1)) == 1
    assert book.get(peer) is None
    assert book.met(peer)


def test_an_archive_forgets_the_marks_of_what_it_lost() -> None:
    archive = Archive()
    for number in range(3):
        archive.take(seal_record(key_of(1), card(name=f"n{number}", expires=NOW + number)), NOW, nobody)
    archive.take(seal_record(key_of(1), card(name="n2", sequence=2, expires=NOW + 5)), NOW, nobody)
    assert len(archive.all_marks()) == 3
    assert len(archive.expire(NOW + 2 + limits.CLOCK_TOLERANCE)) == 2
    [mark] = archive.all_marks()
    kept = archive.envelopes([mark, bytes(MARK)], 10_000)
    assert len(kept) == 1
    assert Card is type(archive.catalog.all()[0].record)


def test_revocations_are_the_homes_own_word() -> None:
    """The newest record of a home stands for all before it; another signer's says nothing about its tokens."""
    archive = Archive()
    one, other = key_of(1), key_of(2)

    def said(key: Ed25519PrivateKey, sequence: int, ids: list[bytes], before: int | None = None) -> Taken | None:
        revoked = [Revoked(name, NOW + 60) for name in ids]
        record = Revocations(sequence=sequence, expires=NOW + 3_600, revoked=revoked, before=before)
        return archive.take(seal_record(key, record), NOW, lambda peer: False)

    assert said(one, 2, [b"a" * 16]) is not None
    said(one, 1, [b"b" * 16])
    said(other, 9, [b"c" * 16])
    home = peer_of(one)
    assert archive.revocations.revoked(home, [b"x" * 16, b"a" * 16], NOW)
    assert not archive.revocations.revoked(home, [b"b" * 16, b"c" * 16], NOW)
    said(one, 3, [], before=NOW)
    assert archive.revocations.revoked(home, [b"x" * 16], NOW - 1)
    assert not archive.revocations.revoked(home, [b"a" * 16], NOW)
    archive.expire(NOW + 3_600 + 301)
    assert not archive.revocations.revoked(home, [b"x" * 16], NOW - 1)


def test_readers_are_kept_by_publisher_and_model_and_bounded() -> None:
    archive, one, other = Archive(), key_of(1), key_of(2)

    def told(key: Ed25519PrivateKey, sequence: int, sealed: bytes = b"x", model: bytes = bytes(32)) -> Taken | None:
        record = Readers(sequence=sequence, expires=NOW + 60, model=model, wraps=[bytes(80)] if sealed else [], sealed=sealed)
        return archive.take(seal_record(key, record), NOW, lambda peer: False)

    for key, sequence in ((one, 2), (one, 1), (other, 1)):
        told(key, sequence)
    assert sorted(kept.record.sequence for kept in archive.readers.all()) == [1, 2]
    assert archive.sequence_of("readers", peer_of(one), ModelId(bytes(32))) == 2
    with pytest.raises(BadInput):
        told(one, 3, bytes(limits.MAX_READERS_RECORD))
    told(one, 4, b"")
    assert len(archive.expire(NOW + 61 + limits.CLOCK_TOLERANCE)) == 2


def test_a_withdrawn_card_names_nothing_and_keeps_older_ones_away() -> None:
    archive, key = Archive(), key_of(1)
    fields = {"label": "ann", "name": "demo", "version": "1", "model": bytes(32), "size": 1, "parameters": 1, "created": NOW}

    def told(sequence: int, **more: Any) -> None:
        card = Card(sequence=sequence, expires=NOW + 60, summary=Summary(model_type="llama"), **(fields | more))
        archive.take(seal_record(key, card), NOW, lambda peer: False)

    told(1)
    assert archive.catalog.resolve("ann/demo", PeerId("me"), lambda peer: False) == bytes(32)
    told(3, withdrawn=True)
    told(2)
    with pytest.raises(NotFound):
        archive.catalog.resolve("ann/demo", PeerId("me"), lambda peer: False)
    assert archive.catalog.live() == []
    assert len(archive.catalog.all()) == 1
    with pytest.raises(BadInput):
        told(4, withdrawn=False)
