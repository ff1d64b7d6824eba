"""What nodes say of themselves and of models: signed, expiring, sequence-numbered.

Of two records by one signer about one subject the higher sequence number wins; times are Unix seconds
and tolerate five minutes. Records are exchanged as the envelopes they were signed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import limits
from protocol.config_summary import check_summary
from protocol.errors import BadInput
from protocol.framing import Record
from protocol.ids import PeerId
from protocol.manifest import Summary
from protocol.signing import open_sealed, seal

NODE_DOMAIN = "mf/node/1"
HOLDING_DOMAIN = "mf/holding/1"
CARD_DOMAIN = "mf/card/1"
REVOCATIONS_DOMAIN = "mf/revocations/1"
READERS_DOMAIN = "mf/readers/1"

LEND = ("none", "storage", "compute", "both")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
"""A publisher's label, a model's name, a version."""


class NodeRecord(Record):
    """A node of the swarm: where it is reached and what it lends. The subject is the signer.

    `addresses` are libp2p multiaddrs without /p2p; `transfer` is host:port of its HTTPS data plane, whose
    certificate has SHA-256 `tls`; `memory` and `storage` are bytes lent, None where not lent, `storage_free` what is left of them;
    `coordinate` is the node's place among others (erasure/coordinates.py), in microseconds;
    `http` are the URLs its API answers at, where others reach them.
    """

    sequence: int
    expires: int
    boot: bytes
    version: str
    addresses: list[str]
    transfer: list[str]
    tls: bytes
    lend: str
    storage_free: int | None = None
    memory: int | None = None
    machine: str | None = None
    operator: str | None = None
    http: list[str] | None = None
    region: str | None = None
    storage: int | None = None
    coordinate: list[int] | None = None


class Held(msgspec.Struct, array_like=True, frozen=True):
    """Shard numbers held of one encoding (32-byte id) of group number `group` of the model."""

    group: int
    encoding: bytes
    shards: list[int]


class Repairing(msgspec.Struct, array_like=True, frozen=True):
    """The signer makes missing shards of this encoding anew, until `expires` (Unix seconds): others needn't."""

    encoding: bytes
    expires: int


class Serving(msgspec.Struct, array_like=True, frozen=True):
    """The signer runs layers [first, end) at `precision` for others; not `loaded`: it is about to, so that nobody else need.

    `layer_us` microseconds that a token takes in one of them, by its own measurement; None: not measured.
    """

    first: int
    end: int
    precision: str
    loaded: bool
    layer_us: int | None = None


class Holding(Record):
    """Which shards of a model the signer has; `full` lists group numbers it has all of. Subject: (signer, model)."""

    sequence: int
    expires: int
    model: bytes
    held: list[Held]
    full: list[int]
    repairs: list[Repairing] | None = None
    serves: list[Serving] | None = None


class Card(Record):
    """A publisher's name for a model: `label/name@version`. Subject: (signer, name, version).

    `withdrawn`: the name means nothing any more; the record stays for its lifetime, so that no older one takes its place. `updated`: when
    what it says was changed last, or another model put under the name; absent: it says what it said at first.
    """

    sequence: int
    expires: int
    label: str
    name: str
    version: str
    model: bytes
    size: int
    parameters: int
    created: int
    summary: Summary
    license: str | None = None
    description: str | None = None
    withdrawn: bool | None = None
    updated: int | None = None

    def full_name(self) -> str:
        return f"{self.label}/{self.name}@{self.version}"


class Revoked(msgspec.Struct, array_like=True, frozen=True):
    """A token's link of the signer's that is refused from now on; the entry is kept `until` the link would have expired."""

    id: bytes
    until: int


class Revocations(Record):
    """What the signer has revoked, of keys and tokens whose home it is. Subject: the signer.

    `before`: every link it issued before that time is refused too; set when there are more than a record holds.
    """

    sequence: int
    expires: int
    revoked: list[Revoked]
    before: int | None = None


class Readers(Record):
    """Who may read a private model of the signer's: its secret wrapped to each reader's key, in no order and with decoys, and sealed under
    it what is said of the model (protocol/private.py). Subject: (signer, model). Empty: it was taken back.
    """

    sequence: int
    expires: int
    model: bytes
    wraps: list[bytes]
    sealed: bytes


AnyRecord = NodeRecord | Holding | Card | Revocations | Readers
R = TypeVar("R", NodeRecord, Holding, Card, Revocations, Readers)
_DOMAINS: dict[type, str] = {
    NodeRecord: NODE_DOMAIN,
    Holding: HOLDING_DOMAIN,
    Card: CARD_DOMAIN,
    Revocations: REVOCATIONS_DOMAIN,
    Readers: READERS_DOMAIN,
}
_LIFETIMES: dict[type, int] = {
    NodeRecord: limits.NODE_RECORD_LIFETIME,
    Holding: limits.HOLDING_LIFETIME,
    Card: limits.CARD_LIFETIME,
    Revocations: limits.REVOCATIONS_LIFETIME,
    Readers: limits.READERS_LIFETIME,
}


def seal_record(key: Ed25519PrivateKey, record: AnyRecord) -> bytes:
    """The signed envelope; `BadInput` for a card over its 8 KiB."""
    data = seal(key, _DOMAINS[type(record)], record)
    if isinstance(record, Card) and len(data) > limits.MAX_CARD:
        raise BadInput(f"Card: {len(data)} bytes, at most {limits.MAX_CARD}", hint="a shorter description")
    return data


def open_record(data: bytes, kind: type[R], now: float) -> tuple[PeerId, R]:
    """Signer and checked record; `BadInput` where the signature, a field or the expiry doesn't hold."""
    limit = limits.MAX_CARD if kind is Card else limits.MAX_FRAME
    signer, record = open_sealed(data, _DOMAINS[kind], kind, limit)
    _check_times(record, now)
    check: Callable[[R], None] = _CHECKS[kind]
    check(record)
    return signer, record


def _check_times(record: AnyRecord, now: float) -> None:
    name = type(record).__name__
    if record.sequence < 0 or record.sequence >= 1 << 63:
        raise BadInput(f"{name}: sequence out of range")
    if record.expires < now - limits.CLOCK_TOLERANCE:
        raise BadInput(f"{name}: expired")
    if record.expires > now + _LIFETIMES[type(record)] + limits.CLOCK_TOLERANCE:
        raise BadInput(f"{name}: expires later than its lifetime allows")


def _check_node(record: NodeRecord) -> None:
    if len(record.boot) != 16 or len(record.tls) != 32:
        raise BadInput("NodeRecord: boot has 16 bytes and tls 32")
    if record.lend not in LEND:
        raise BadInput(f"NodeRecord: lend is one of {', '.join(LEND)}")
    for text in (record.version, record.machine or "", record.operator or "", record.region or ""):
        if len(text) > limits.MAX_LABEL:
            raise BadInput(f"NodeRecord: version, machine, operator and region have at most {limits.MAX_LABEL} characters")
    for field in (record.addresses, record.transfer, record.http or []):
        if len(field) > limits.MAX_ADDRESSES or any(len(item) > limits.MAX_ADDRESS for item in field):
            raise BadInput("NodeRecord: at most 16 addresses of 256 characters")
    if record.coordinate is not None:
        _check_coordinate(record.coordinate)
    for figure in (record.storage, record.storage_free, record.memory):
        if figure is not None and not 0 <= figure < 1 << 63:
            raise BadInput("NodeRecord: a size is out of range")


def _check_coordinate(wire: list[int]) -> None:
    far, worst = limits.COORDINATE_FARTHEST, limits.COORDINATE_WORST_ERROR
    lowest, highest = (-far, -far, 0, 0), (far, far, far, worst)
    if len(wire) != 4 or not all(low <= number <= high for low, number, high in zip(lowest, wire, highest, strict=True)):
        raise BadInput("NodeRecord: coordinate has four numbers: x, y, height (at most 60 s) and error (at most 1.5), in millionths")


def _check_holding(record: Holding) -> None:
    if len(record.model) != 32:
        raise BadInput("Holding: model has 32 bytes")
    for held in record.held:
        if not 0 <= held.group < limits.MAX_GROUPS or len(held.encoding) != 32:
            raise BadInput("Holding: a held entry has a bad group or encoding")
        if len(set(held.shards)) != len(held.shards) or not all(0 <= j < limits.MAX_SHARDS for j in held.shards):
            raise BadInput("Holding: shard numbers are distinct and below 256")
    if not all(0 <= group < limits.MAX_GROUPS for group in record.full):
        raise BadInput("Holding: full lists group numbers")
    repairs = record.repairs or []
    if len(repairs) > limits.MAX_REPAIRS:
        raise BadInput(f"Holding: {len(repairs)} repairs, at most {limits.MAX_REPAIRS} at once")
    if any(len(repair.encoding) != 32 or not 0 <= repair.expires < 1 << 63 for repair in repairs):
        raise BadInput("Holding: a repair has an encoding id of 32 bytes and a time")
    _check_serves(record.serves or [])


def _check_serves(serves: list[Serving]) -> None:
    if len(serves) > limits.MAX_SERVED:
        raise BadInput(f"Holding: {len(serves)} ranges of layers, at most {limits.MAX_SERVED} are served at once")
    for span in serves:
        if not 0 <= span.first < span.end <= limits.MAX_LAYERS or len(span.precision) > 16:
            raise BadInput("Holding: a range of layers served is out of range")
        if span.layer_us is not None and not 0 < span.layer_us <= limits.MAX_LAYER_US:
            raise BadInput("Holding: the time a layer takes is out of range")


def _check_card(record: Card) -> None:
    if len(record.model) != 32:
        raise BadInput("Card: model has 32 bytes")
    for field in (record.label, record.name, record.version):
        if not NAME.match(field):
            raise BadInput(f"Card: {field[:96]!r} isn't a name (letters, digits, . _ -; at most 96)")
    if not (0 <= record.size < 1 << 63 and 0 <= record.parameters < 1 << 63):
        raise BadInput("Card: a size is out of range")
    if not (0 <= record.created <= limits.LATEST and 0 <= (record.updated or 0) <= limits.LATEST):
        raise BadInput("Card: a time is out of range")
    if record.withdrawn is False:
        raise BadInput("Card: withdrawn is true or left out")
    check_summary(record.summary)


def _check_revocations(record: Revocations) -> None:
    if len(record.revoked) > limits.MAX_REVOCATIONS:
        raise BadInput(f"Revocations: {len(record.revoked)} ids, at most {limits.MAX_REVOCATIONS}")
    if not all(len(entry.id) == 16 and 0 <= entry.until < 1 << 53 for entry in record.revoked):
        raise BadInput("Revocations: an id has 16 bytes and a time")
    if record.before is not None and not 0 <= record.before < 1 << 53:
        raise BadInput("Revocations: before is a time")


def _check_readers(record: Readers) -> None:
    if len(record.model) != 32:
        raise BadInput("Readers: model has 32 bytes")
    if len(record.wraps) > limits.MAX_READERS or any(len(wrapped) != 80 for wrapped in record.wraps):
        raise BadInput(f"Readers: at most {limits.MAX_READERS} wraps of 80 bytes")
    if bool(record.wraps) != bool(record.sealed):
        raise BadInput("Readers: wraps and what they open, or neither")


_CHECKS: dict[type, Callable[..., None]] = {
    NodeRecord: _check_node,
    Holding: _check_holding,
    Card: _check_card,
    Revocations: _check_revocations,
    Readers: _check_readers,
}
