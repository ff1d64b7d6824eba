"""This node's own records: made, numbered, renewed at a third of their lifetime.

Sequence numbers are the clock's nanoseconds, so that they rise over restarts without being stored; where the clock has
stepped back they go on from the highest one seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from erasure.coordinates import Coordinate
from node.swarm.archive import MAX_NODE_RECORD, Archive
from node.swarm.holdings import MAX_HOLDING, says_something
from node.swarm.revocations import MAX_REVOCATIONS_RECORD
from protocol import limits
from protocol.errors import TooLarge
from protocol.ids import ModelId, PeerId
from protocol.records import AnyRecord, Card, Held, Holding, NodeRecord, Readers, Repairing, Revocations, Revoked, Serving, seal_record
from protocol.signing import peer_of

log = logging.getLogger(__name__)
_SAY_AGAIN = 60.0


@dataclass(frozen=True)
class SwarmConfig:
    """`label` names this node's owner as a publisher; `machine` tells nodes of one machine apart from others (design §5)."""

    label: str
    lend: str
    version: str
    machine: str | None = None
    operator: str | None = None
    region: str | None = None


@dataclass
class Facts:
    """What the NodeRecord says beside the config; it changes while the node runs."""

    boot: bytes
    transfer: list[str] = field(default_factory=list)
    tls: bytes = bytes(32)
    storage: int | None = None
    storage_free: int | None = None
    memory: int | None = None
    http: list[str] = field(default_factory=list)
    coordinate: Coordinate = field(default_factory=Coordinate)


class OwnRecords:
    """Every method returns the envelope to keep and spread."""

    def __init__(
        self, key: Ed25519PrivateKey, config: SwarmConfig, facts: Facts, addresses: Callable[[], list[str]], now: Callable[[], float]
    ) -> None:
        self.peer: PeerId = peer_of(key)
        self.facts = facts
        self._key = key
        self._config = config
        self._addresses = addresses
        self._now = now
        self._last = 0
        self._since = self._sequence(-1)
        self._said = 0.0

    def node(self, archive: Archive) -> bytes:
        facts = self.facts
        record = NodeRecord(
            sequence=self._sequence(archive.sequence_of("peer", self.peer)),
            expires=int(self._now()) + limits.NODE_RECORD_LIFETIME,
            boot=facts.boot,
            version=self._config.version[:64],
            addresses=[address for address in self._addresses() if len(address) <= limits.MAX_ADDRESS][: limits.MAX_ADDRESSES],
            transfer=facts.transfer[: limits.MAX_ADDRESSES],
            tls=facts.tls,
            lend=self._config.lend,
            storage_free=facts.storage_free,
            memory=facts.memory,
            machine=self._config.machine,
            operator=self._config.operator,
            http=[url for url in facts.http if len(url) <= limits.MAX_ADDRESS][: limits.MAX_ADDRESSES] or None,
            region=self._config.region,
            storage=facts.storage,
            coordinate=facts.coordinate.to_wire() if facts.coordinate != Coordinate() else None,
        )
        return self._sealed(record, MAX_NODE_RECORD)

    def holding(
        self,
        archive: Archive,
        model: ModelId,
        held: list[Held],
        full: list[int],
        repairs: Sequence[Repairing] = (),
        serves: Sequence[Serving] = (),
    ) -> bytes:
        """`TooLarge` when it doesn't fit in one frame."""
        sequence = self._sequence(archive.sequence_of("holding", self.peer, model))
        expires = int(self._now()) + limits.HOLDING_LIFETIME
        record = Holding(
            sequence=sequence,
            expires=expires,
            model=model,
            held=held,
            full=full,
            repairs=list(repairs) or None,
            serves=list(serves) or None,
        )
        return self._sealed(record, MAX_HOLDING)

    def card(self, archive: Archive, card: Card) -> bytes:
        """The card with a sequence number and expiry of now; `TooLarge` over 8 KiB."""
        fields = {name: getattr(card, name) for name in card.__struct_fields__}
        fields["sequence"] = self._sequence(archive.sequence_of("card", self.peer, (card.name, card.version)))
        fields["expires"] = int(self._now()) + limits.CARD_LIFETIME
        return self._sealed(Card(**fields), limits.MAX_CARD)

    def revocations(self, archive: Archive, revoked: Sequence[Revoked], before: int | None) -> bytes:
        """The last 4,096 that can be alive; where there are more, `before` has to stand for the rest."""
        return self._sealed(
            Revocations(
                sequence=self._sequence(archive.sequence_of("revocations", self.peer)),
                expires=int(self._now()) + limits.REVOCATIONS_LIFETIME,
                revoked=list(revoked),
                before=before,
            ),
            MAX_REVOCATIONS_RECORD,
        )

    def readers(self, archive: Archive, model: ModelId, wraps: Sequence[bytes], sealed: bytes) -> bytes:
        """Who may read a private model; without wraps: it is taken back."""
        return self._sealed(
            Readers(
                sequence=self._sequence(archive.sequence_of("readers", self.peer, model)),
                expires=int(self._now()) + limits.READERS_LIFETIME,
                model=model,
                wraps=list(wraps),
                sealed=sealed,
            ),
            limits.MAX_READERS_RECORD,
        )

    def renewals(self, archive: Archive) -> list[bytes]:
        """Own records of which a third of the lifetime has passed, made anew."""
        now = self._now()
        made: list[bytes] = []
        node = archive.peers.get(self.peer)
        if node is None or node.record.expires - now < limits.NODE_RECORD_LIFETIME * 2 / 3:
            made.append(self.node(archive))
        said = archive.revocations.get(self.peer)
        if said is not None and said.record.expires - now < limits.REVOCATIONS_LIFETIME * 2 / 3:
            made.append(self.revocations(archive, [entry for entry in said.record.revoked if entry.until > now], said.record.before))
        for holding in archive.holdings.of(self.peer):
            held = holding.record
            if says_something(held) and held.expires - now < limits.HOLDING_LIFETIME * 2 / 3:
                made.append(self.holding(archive, ModelId(held.model), held.held, held.full, held.repairs or (), held.serves or ()))
        for card in archive.catalog.of(self.peer):
            if not card.record.withdrawn and card.record.expires - now < limits.CARD_LIFETIME * 2 / 3:
                made.append(self.card(archive, card.record))
        for shared in archive.readers.all():
            said_of = shared.record
            if shared.signer == self.peer and said_of.wraps and said_of.expires - now < limits.READERS_LIFETIME * 2 / 3:
                made.append(self.readers(archive, ModelId(said_of.model), said_of.wraps, said_of.sealed))
        return made

    def check_duplicate(self, record: NodeRecord) -> bool:
        """A NodeRecord with this node's signature took the place of ours: True when a second live node made it, and says so.

        True once a minute at most, so that two such nodes don't outbid each other without end.

        A record of this node's life before its restart has a lower number than anything made since.
        """
        if record.boot == self.facts.boot or record.sequence < self._since or self._now() - self._said < _SAY_AGAIN:
            return False
        self._said = self._now()
        log.error(
            "another node runs with this node's identity: stop one of them, or give it a data directory of its own",
            extra={"event": "identity_duplicate", "fields": {"peer": self.peer}},
        )
        return True

    def _sequence(self, known: int) -> int:
        self._last = max(int(self._now() * 1e9), self._last + 1, known + 1)
        return self._last

    def _sealed(self, record: AnyRecord, most: int) -> bytes:
        envelope = seal_record(self._key, record)
        if len(envelope) > most:
            raise TooLarge(f"this node's {type(record).__name__} has {len(envelope)} bytes, at most {most} travel")
        return envelope
