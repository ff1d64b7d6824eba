"""Messages of the DHT: the protobuf of libp2p's kad-dht, as js-libp2p and others speak it, with hostile input bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

import base58
from google.protobuf.message import DecodeError
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from node.network.addresses import address_from_bytes, address_to_bytes
from node.network.kad_table import peer_bytes
from protocol import limits
from protocol.errors import BadInput
from protocol.ids import PeerId, public_from_peer

ADD_PROVIDER = int(Message.MessageType.ADD_PROVIDER)
GET_PROVIDERS = int(Message.MessageType.GET_PROVIDERS)
FIND_NODE = int(Message.MessageType.FIND_NODE)
PING = int(Message.MessageType.PING)
_KNOWN = (ADD_PROVIDER, GET_PROVIDERS, FIND_NODE, PING)

MAX_MESSAGE = 64 * limits.KIB
MAX_KEY = 64
MAX_PEERS = 40
_CAN_CONNECT = 2


@dataclass(frozen=True)
class Found:
    """A peer and where it is said to be."""

    peer: PeerId
    addresses: list[str]


@dataclass(frozen=True)
class KadMessage:
    kind: int
    key: bytes = b""
    closer: list[Found] = field(default_factory=list)
    providers: list[Found] = field(default_factory=list)


def encode(message: KadMessage) -> bytes:
    out = Message()
    out.type = message.kind
    out.key = message.key
    for found, entries in ((message.closer, out.closerPeers), (message.providers, out.providerPeers)):
        for one in found[:MAX_PEERS]:
            entry = entries.add()
            entry.id = peer_bytes(one.peer)
            entry.addrs.extend(address_to_bytes(address) for address in one.addresses[: limits.MAX_ADDRESSES])
            entry.connection = _CAN_CONNECT
    return bytes(out.SerializeToString())


def decode(data: bytes) -> KadMessage:
    """A checked message; peers or addresses this node can't use are left out, `BadInput` for what breaks a rule."""
    if len(data) > MAX_MESSAGE:
        raise BadInput(f"kad: a message of {len(data)} bytes, at most {MAX_MESSAGE}")
    message = Message()
    try:
        message.ParseFromString(data)
    except (DecodeError, ValueError) as error:
        raise BadInput(f"kad: not a kad-dht message: {error}") from error
    if message.type not in _KNOWN:
        raise BadInput(f"kad: message type {message.type} isn't served")
    if len(message.key) > MAX_KEY:
        raise BadInput(f"kad: a key of {len(message.key)} bytes, at most {MAX_KEY}")
    if len(message.closerPeers) > MAX_PEERS or len(message.providerPeers) > MAX_PEERS:
        raise BadInput(f"kad: over {MAX_PEERS} peers")
    return KadMessage(message.type, bytes(message.key), _peers(message.closerPeers), _peers(message.providerPeers))


def _peers(entries: list[Message.Peer]) -> list[Found]:
    out = []
    for entry in entries:
        try:
            peer = PeerId(base58.b58encode(bytes(entry.id)[:64]).decode())
            public_from_peer(peer)
        except BadInput:
            continue
        out.append(Found(peer, _addresses(entry.addrs)))
    return out


def _addresses(raw: list[bytes]) -> list[str]:
    out = []
    for data in raw[: limits.MAX_ADDRESSES]:
        try:
            out.append(address_from_bytes(bytes(data)))
        except BadInput:
            continue
    return out
