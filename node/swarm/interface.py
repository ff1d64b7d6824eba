"""What the verbs (publish, locate, assemble, generate, maintain) know of the swarm. Implemented by `node/swarm/membership.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from erasure.audit import AuditBook, HeldShard
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.records import Card, Held, NodeRecord, Readers, Repairing, Revoked, Serving


@dataclass(frozen=True)
class PeerView:
    """A peer as this node sees it now. `rtt` seconds, own measurement; `last_seen` Unix seconds.

    `member` proved the private swarm's secret. `availability` is the share of time up, own measurement, None until it is known;
    `distance` seconds of round trip, measured or else foretold by coordinates; `new`: known for less than a day.

    `routable`: answers within the liveness deadlines (design §4, two clocks); only routable peers are asked for anything.
    """

    peer: PeerId
    record: NodeRecord | None
    addresses: list[str]
    routable: bool
    member: bool
    rtt: float | None
    last_seen: float | None
    availability: float | None = None
    distance: float | None = None
    new: bool = False


@dataclass(frozen=True)
class HoldingView:
    peer: PeerId
    model: ModelId
    held: list[Held]
    full: list[int]
    repairs: Sequence[Repairing] = ()
    serves: Sequence[Serving] = ()


@dataclass(frozen=True)
class ReadersView:
    publisher: PeerId
    record: Readers


@dataclass(frozen=True)
class CardView:
    """`publisher` is the signer of the card."""

    publisher: PeerId
    card: Card


class Swarm(Protocol):
    @property
    def audits(self) -> AuditBook:
        """What audits by this node have shown; times by the monotonic clock."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def join(self, ticket: str) -> int:
        """Dials the ticket's peers, pulls records; returns peers reached. `Unavailable` when none was; `BadInput` for a bad ticket."""

    def ticket(self) -> str:
        """A fresh ticket to this node and up to 7 routable peers."""

    def peers(self) -> list[PeerView]: ...

    def peer(self, peer: PeerId) -> PeerView | None: ...

    def trusted(self, peer: PeerId) -> bool:
        """Member of the private swarm, on the owner's allow-list, or this node itself."""

    def trust(self, peer: PeerId) -> None:
        """Adds to the allow-list, durably."""

    def suspect(self, peer: PeerId, reason: str) -> None:
        """A verb saw a missed deadline: an immediate probe decides; not routable meanwhile."""

    def holdings(self, model: ModelId) -> list[HoldingView]:
        """Of routable peers and of this node itself."""

    def holders(self, encoding: EncodingId) -> dict[int, list[PeerId]]:
        """shard number -> routable peers that announce it (this node included)."""

    def counted(self, encoding: EncodingId) -> dict[int, list[PeerId]]:
        """Of the holders those that passed an audit lately or whose shard lies at this node: what durability is counted from."""

    def vouch(self, held: HeldShard) -> None:
        """This node has just put the shard there, and it was acknowledged as durable: it counts at once."""

    def cards(self) -> list[CardView]:
        """All of them: a hundred thousand, where the swarm is large."""

    def cards_of(self, publisher: PeerId) -> list[CardView]: ...

    def cards_naming(self, model: ModelId) -> list[CardView]:
        """Cards of this model, by name and publisher."""

    def card(self, publisher: PeerId, name: str, version: str) -> CardView | None: ...

    def models_known(self) -> int:
        """How many models have a card."""

    def publishers(self) -> list[PeerId]:
        """Whoever has a card, or had one that he took back."""

    def models_of(self, peer: PeerId) -> list[ModelId]:
        """Models of which this peer says that it holds something, or no more does."""

    def resolve(self, name: str) -> ModelId:
        """A model id, `name`, `name@version`, `label/name`, `label/name@version`, `label~fingerprint/…`.

        `NotFound` with `details["candidates"]`.
        """

    async def find_model(self, model: ModelId, timeout: float) -> None:
        """Looks the model up in the DHT when no routable holder is known, dials who is found and pulls their records."""

    async def put_card(self, card: Card) -> None:
        """Signs, keeps and spreads a card of this node's."""

    async def put_holding(
        self, model: ModelId, held: list[Held], full: list[int], repairs: Sequence[Repairing] = (), serves: Sequence[Serving] = ()
    ) -> None:
        """Signs, keeps and spreads this node's holding of a model (empty: withdraws it) and announces the model on the DHT."""

    async def put_revocations(self, revoked: Sequence[Revoked], before: int | None = None) -> None:
        """Signs, keeps and spreads all that this node has revoked of its own tokens and that could still be alive."""

    async def put_readers(self, model: ModelId, wraps: Sequence[bytes], sealed: bytes) -> None:
        """Signs, keeps and spreads who may read a private model of this node's; without wraps it is taken back."""

    def readers(self) -> list[ReadersView]:
        """Of private models anybody publishes."""

    def revoked(self, home: PeerId, ids: Sequence[bytes], issued: int) -> bool:
        """Whether `home` has said that it revoked any of these links, or all it issued before a time later than `issued`."""

    def blame(self, peer: PeerId, shard: str, reason: str) -> None:
        """A verb saw wrong bytes from `peer`; bans follow design §5."""

    def banned(self, peer: PeerId) -> bool: ...

    def set_aside(self, encoding: EncodingId, shard: int, peer: PeerId) -> bool:
        """Whether this peer's copy of the shard was found bad lately."""

    def blamed(self) -> list[dict[str, Any]]:
        """[{"peer_id", "shard", "reason", "at"}], newest last."""

    async def put_node(self, storage_free: int | None, memory: int | None, storage: int | None = None) -> None:
        """Refreshes and spreads this node's NodeRecord. `storage` is all that is lent, `storage_free` what is left of it."""
