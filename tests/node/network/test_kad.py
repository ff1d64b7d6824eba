"""The pure parts of the directory: table, provider store, wire."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from node.network import kad_wire
from node.network.kad_table import Table, peer_bytes, position
from node.network.kad_wire import Found, KadMessage, decode, encode
from node.network.provider_store import PER_KEY, PER_SUBNET, ProviderStore
from protocol.errors import BadInput
from protocol.ids import PeerId, peer_from_public
from protocol.limits import PROVIDER_LIFETIME

WHERE = ["/ip4/8.8.8.8/tcp/4840"]
KEY = b"\x12\x20" + bytes(32)


def _peers(count: int, seed: int = 1) -> list[PeerId]:
    rng = random.Random(seed)
    return [peer_from_public(rng.randbytes(32)) for _ in range(count)]


def _table(cap: int | None = None, k: int = 20) -> Table:
    # a seed that no test draws: a table leaves its own node out
    return Table(_peers(1, seed=2**40)[0], random.Random(5), k, cap)


@given(st.integers(0, 2**32), st.integers(1, 120))
def test_the_closest_are_the_closest_by_xor(seed: int, count: int) -> None:
    table = _table(k=200)
    peers = _peers(count, seed)
    for peer in peers:
        table.seen(peer, WHERE, 0)
    place = position(b"somewhere")
    wanted = sorted(peers, key=lambda peer: position(peer_bytes(peer)) ^ place)[:20]
    assert [contact.peer for contact in table.closest(place)] == wanted


def test_one_miss_makes_suspect_a_word_clears_a_second_evicts() -> None:
    table, (peer,) = _table(), _peers(1)
    table.seen(peer, WHERE, 0)
    table.missed(peer)
    assert table.closest(0) == []
    assert [contact.peer for contact in table.suspects()] == [peer]
    table.seen(peer, [], 1)
    assert [contact.addresses for contact in table.closest(0)] == [WHERE]
    table.missed(peer)
    table.missed(peer)
    assert len(table) == 0
    table.missed(peer)


def test_a_full_bucket_keeps_the_old_unless_one_is_suspect() -> None:
    table, peers = _table(k=2), _peers(200)
    for peer in peers:
        table.seen(peer, WHERE, 0)
    before = {contact.peer for contact in table.contacts()}
    for peer in _peers(200, seed=2):
        table.seen(peer, WHERE, 1)
    assert before <= {contact.peer for contact in table.contacts()}
    assert len(table) < 2 * 12


def test_the_cap_holds_and_this_node_is_no_contact_of_its_own() -> None:
    table = _table(cap=8)
    for peer in _peers(300):
        table.seen(peer, WHERE, 0)
        assert len(table) <= 8
    own = _peers(1, seed=2**40)[0]
    table.seen(own, WHERE, 0)
    assert table.get(own) is None
    distances = {256 - (contact.place ^ position(peer_bytes(own))).bit_length() for contact in table.contacts()}
    assert len(distances) >= 3


def test_records_expire_after_their_lifetime() -> None:
    store, (peer,) = ProviderStore(random.Random(1)), _peers(1)
    assert store.add(KEY, peer, WHERE, 0)
    assert [provider.peer for provider in store.get(KEY, PROVIDER_LIFETIME - 1)] == [peer]
    assert store.get(KEY, PROVIDER_LIFETIME) == []
    store.expire(PROVIDER_LIFETIME)
    assert len(store) == 0


def test_two_of_a_public_subnet_and_twenty_in_all_replaced_at_random() -> None:
    kept_last = 0
    for seed in range(40):
        store, peers = ProviderStore(random.Random(seed)), _peers(30)
        for number, peer in enumerate(peers):
            store.add(KEY, peer, [f"/ip4/8.8.8.{number + 1}/tcp/1"], 0)
        kept = {provider.peer for provider in store.get(KEY, 0)}
        assert len(kept) == PER_SUBNET
        kept_last += bool(kept & set(peers[15:]))
    assert 15 < kept_last < 40
    store = ProviderStore(random.Random(1))
    for number, peer in enumerate(_peers(200)):
        store.add(KEY, peer, [f"/ip4/8.8.{number}.1/tcp/1"], 0)
    assert len(store.get(KEY, 0, 1_000)) == PER_KEY
    assert len(store.get(KEY, 0, 3)) == 3


def test_private_addresses_are_no_subnet() -> None:
    store = ProviderStore(random.Random(1))
    for peer in _peers(5):
        assert store.add(KEY, peer, ["/ip4/127.0.0.1/tcp/1"], 0)
    assert len(store.get(KEY, 0)) == 5


def test_a_sender_and_the_keys_are_bounded() -> None:
    store, (peer, other) = ProviderStore(random.Random(1), max_keys=10, per_minute=20), _peers(2)
    kept = [store.add(b"%d" % number, peer, WHERE, 0) for number in range(21)]
    assert kept == [True] * 20 + [False]
    assert len(store) == 10
    assert store.add(b"other", other, WHERE, 0)
    assert store.add(b"later", peer, WHERE, 61)


KINDS = [kad_wire.ADD_PROVIDER, kad_wire.GET_PROVIDERS, kad_wire.FIND_NODE, kad_wire.PING]


@given(
    st.sampled_from(KINDS),
    st.binary(max_size=64),
    st.integers(0, 20),
)
def test_a_message_survives_the_wire(kind: int, key: bytes, count: int) -> None:
    found = [Found(peer, WHERE) for peer in _peers(count)]
    message = KadMessage(kind, key, found, found[:2])
    assert decode(encode(message)) == message


def test_the_wire_is_that_of_libp2p() -> None:
    message = Message()
    message.ParseFromString(encode(KadMessage(kad_wire.FIND_NODE, b"k", [Found(_peers(1)[0], WHERE)])))
    assert (message.type, message.key, message.closerPeers[0].addrs[0].hex()) == (Message.MessageType.FIND_NODE, b"k", "04080808080612e8")


@given(st.binary(max_size=400))
def test_hostile_bytes_are_bad_input_never_another_fault(data: bytes) -> None:
    try:
        decode(data)
    except BadInput:
        return


def test_each_bound_of_a_message_one_past_it() -> None:
    with pytest.raises(BadInput, match="bytes"):
        decode(bytes(kad_wire.MAX_MESSAGE + 1))
    with pytest.raises(BadInput, match="key"):
        decode(encode(KadMessage(kad_wire.PING, bytes(kad_wire.MAX_KEY + 1))))
    crowd = Message()
    crowd.type = kad_wire.FIND_NODE
    for _ in range(kad_wire.MAX_PEERS + 1):
        crowd.closerPeers.add()
    with pytest.raises(BadInput, match="peers"):
        decode(crowd.SerializeToString())
    value = Message()
    value.type = Message.MessageType.PUT_VALUE
    with pytest.raises(BadInput, match="type"):
        decode(value.SerializeToString())


def test_peers_and_addresses_nobody_can_use_are_left_out() -> None:
    message = Message()
    message.type = kad_wire.FIND_NODE
    message.closerPeers.add().id = b"nonsense"
    good = message.closerPeers.add()
    good.id = peer_bytes(_peers(1)[0])
    good.addrs.extend([b"nonsense", bytes.fromhex("04080808080612e8")])
    assert decode(message.SerializeToString()).closer == [Found(_peers(1)[0], WHERE)]
