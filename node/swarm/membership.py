"""This node's part in the swarm: who is there, who answers, what they hold and what models are called.

The parts are pure or small: `archive` keeps the signed records, `exchange` brings two archives together, `connections`
dials, `entrance` knows the ways in, `heartbeat` judges who answers, `trust` knows whose word counts, `holders` what is held by
whom, `own` makes this node's records. Here they are put together and speak for the node as `Swarm`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets as randomness
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from erasure.audit import AuditBook, HeldShard
from node.network.interface import Network
from node.swarm.announce import Announcer
from node.swarm.archive import AnyKept, Archive, kind_of
from node.swarm.book import Outcome
from node.swarm.connections import Connections, Hooks
from node.swarm.door import Door
from node.swarm.entrance import Entrance
from node.swarm.exchange import Exchange, Ours
from node.swarm.heartbeat import Heartbeat
from node.swarm.history import History
from node.swarm.holders import Holders
from node.swarm.interface import CardView, HoldingView, PeerView, ReadersView
from node.swarm.keeper import Keeper
from node.swarm.liveness import Deadlines, Liveness
from node.swarm.measures import Measures
from node.swarm.own import Facts, OwnRecords, SwarmConfig
from node.swarm.spread import Spread
from node.swarm.state import SwarmState
from node.swarm.supervisor import Supervisor
from node.swarm.tickets import make_ticket
from node.swarm.trust import Trust
from node.swarm.wire import Hello
from protocol.errors import BadInput, MfError
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.messages import SWARM_PROTOCOL
from protocol.records import Card, Held, NodeRecord, Repairing, Revoked, Serving

log = logging.getLogger(__name__)

COMPARE = 20.0
_ROUND = 1.0

Listener = Callable[[str, PeerId], None]
"""(kind, whose): "peer" and "holding" and "card" for a new record, "routable" for a peer that began or ceased to answer."""


class Membership:
    """Implements `Swarm`.

    `state` is what `StateFile.load` gave; `save` makes a state durable (None: nothing is kept) and may block: it runs on `save_on`.
    """

    def __init__(
        self,
        key: Ed25519PrivateKey,
        network: Network,
        door: Door,
        config: SwarmConfig,
        state: SwarmState,
        save: Callable[[SwarmState], None] | None = None,
        *,
        rng: random.Random | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        deadlines: Deadlines | None = None,
        save_on: Executor | None = None,
    ) -> None:
        self._key, self._network, self._config = key, network, config
        self._now, self._monotonic = now, monotonic
        self._rng = rng or random.Random(randomness.token_bytes(16))
        self._own = OwnRecords(key, config, Facts(boot=randomness.token_bytes(16)), network.addresses, now)
        self._trust = Trust(self._own.peer, state)
        self._archive = Archive()
        self._archive.peers.meet(self._own.peer)
        self._supervisor = Supervisor()
        history = History.restored(state.began, state.known or (), now())
        self._keeper = Keeper(state, save, self._trust, self._archive, self._own.peer, history, save_on)
        self._listeners: list[Listener] = []
        self._liveness = Liveness(deadlines or Deadlines())
        self._holders = Holders(self._own.peer, self._archive, self._liveness, self._rng, now, monotonic)
        self._measures = Measures(self._archive, self._liveness, history, self._own.facts, self._rng, now, monotonic)
        self._exchange = Exchange(self._archive, self._ours(), self._supervisor)
        self._connections = Connections(network, self._archive.peers, self._liveness, self._hooks(), self._supervisor, monotonic, self._rng)
        self._heartbeat = Heartbeat(self._liveness, self._connections.link, self._routable_changed, self._supervisor, monotonic, self._rng)
        self._spread = Spread(self._exchange, self._connections.links, self._rng)
        self._announcer = Announcer(door, monotonic)
        self._entrance = Entrance(
            network,
            door,
            self._connections,
            self._announcer,
            self._trust,
            self._keeper,
            self._supervisor,
            self._greet_again,
            self.banned,
            now,
        )
        network.serve(SWARM_PROTOCOL, self._exchange.handle)
        network.listen_peers(self._connections.on_peer)

    def _ours(self) -> Ours:
        return Ours(
            own=self._own.peer,
            hello=lambda peer: self._trust.hello(peer, self._own.facts.boot, self._config.version),
            greeted=self._greeted,
            answers=lambda peer: self._heartbeat.answers(peer),
            asked=lambda peer: self._liveness.asked(peer, self._monotonic()),
            news=self._news,
            pinned=self._trust.believed,
            now=self._now,
            monotonic=self._monotonic,
        )

    def _hooks(self) -> Hooks:
        return Hooks(
            heard=self._heard,
            greet=self._exchange.greet,
            sync=self._exchange.sync,
            unwanted=self.banned,
            met=self._met,
            left=self._left,
        )

    @property
    def peer_id(self) -> PeerId:
        return self._own.peer

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def set_data_plane(self, transfer: list[str], tls: bytes) -> None:
        """host:port of the HTTPS data plane and SHA-256 of its certificate; before `start`, or followed by `put_node`."""
        if len(tls) != 32:
            raise BadInput(f"SHA-256 of a certificate has 32 bytes, not {len(tls)}")
        self._own.facts.transfer, self._own.facts.tls = list(transfer), tls

    async def start(self) -> None:
        """After the network's start. Dials the peers known from before in the background."""
        for envelope in self._keeper.saved_cards():
            await self._exchange.take(self._own.peer, [envelope])
        await self._publish(self._own.node(self._archive))
        for peer in self._network.connected():
            self._connections.on_peer(peer, True)
        for work, name in (
            (self._heartbeat.run(), "heartbeat"),
            (self._spread.run(), "spread"),
            (self._announcer.run(), "announcer"),
            (self._rounds(), "rounds"),
            (self._compare(), "comparison"),
            (self._entrance.go_back(), "return to known peers"),
        ):
            self._supervisor.spawn(work, f"swarm {name}")

    async def stop(self) -> None:
        """Ends every task and stream, and saves what has changed; within 2 s."""
        await self._supervisor.stop()
        self._connections.close()
        await self._keeper.stop()

    async def join(self, ticket: str) -> int:
        return await self._entrance.join(ticket)

    def ticket(self) -> str:
        routable = [view for view in self.peers() if view.routable and view.record is not None]
        self._rng.shuffle(routable)
        routable.sort(key=lambda view: not view.member)
        others = [(view.peer, view.addresses) for view in routable]
        cards = [(kept.signer, kept.record) for kept in self._archive.catalog.live()]
        return make_ticket(self._key, (self._own.peer, self._network.addresses()), others, self._trust, cards, self._now())

    def peers(self) -> list[PeerView]:
        connected = self._network.connected()
        known = dict.fromkeys([*(kept.signer for kept in self._archive.peers.all()), *connected])
        return [self._view(peer) for peer in known if peer != self._own.peer]

    def peer(self, peer: PeerId) -> PeerView | None:
        known = self._archive.peers.get(peer) is not None or self._liveness.pulse(peer) is not None
        return self._view(peer) if known else None

    def record(self) -> NodeRecord | None:
        """This node's own NodeRecord, None before `start`."""
        kept = self._archive.peers.get(self._own.peer)
        return kept.record if kept else None

    def trusted(self, peer: PeerId) -> bool:
        return self._trust.trusted(peer)

    def trust(self, peer: PeerId) -> None:
        if self._trust.allow(peer):
            self._keeper.save_now()

    def suspect(self, peer: PeerId, reason: str) -> None:
        self._heartbeat.suspect(peer, reason)

    def holdings(self, model: ModelId) -> list[HoldingView]:
        return self._holders.of_model(model)

    def holders(self, encoding: EncodingId) -> dict[int, list[PeerId]]:
        return self._holders.of(encoding)

    @property
    def audits(self) -> AuditBook:
        return self._holders.audits

    def counted(self, encoding: EncodingId) -> dict[int, list[PeerId]]:
        return self._holders.counted(encoding)

    def vouch(self, held: HeldShard) -> None:
        self._holders.vouch(held)

    def cards(self) -> list[CardView]:
        return [CardView(kept.signer, kept.record) for kept in self._archive.catalog.live()]

    def cards_of(self, publisher: PeerId) -> list[CardView]:
        return [CardView(publisher, kept.record) for kept in self._archive.catalog.of(publisher) if not kept.record.withdrawn]

    def cards_naming(self, model: ModelId) -> list[CardView]:
        return [CardView(kept.signer, kept.record) for kept in self._archive.catalog.naming(model)]

    def card(self, publisher: PeerId, name: str, version: str) -> CardView | None:
        kept = self._archive.catalog.get(publisher, name, version)
        return None if kept is None or kept.record.withdrawn else CardView(publisher, kept.record)

    def models_known(self) -> int:
        return self._archive.catalog.models()

    def publishers(self) -> list[PeerId]:
        return self._archive.catalog.publishers()

    def models_of(self, peer: PeerId) -> list[ModelId]:
        return [ModelId(kept.record.model) for kept in self._archive.holdings.of(peer)]

    def resolve(self, name: str) -> ModelId:
        return self._archive.catalog.resolve(name, self._own.peer, self._trust.believed)

    async def find_model(self, model: ModelId, timeout: float) -> None:
        if not any(view.peer != self._own.peer for view in self.holdings(model)):
            await self._entrance.find(model, timeout)

    async def put_card(self, card: Card) -> None:
        await self._publish(self._own.card(self._archive, card))

    async def put_holding(
        self, model: ModelId, held: list[Held], full: list[int], repairs: Sequence[Repairing] = (), serves: Sequence[Serving] = ()
    ) -> None:
        await self._publish(self._own.holding(self._archive, model, held, full, repairs, serves))
        if held or full or serves:
            self._announcer.add(model)
        else:
            self._announcer.drop(model)

    async def put_node(self, storage_free: int | None, memory: int | None, storage: int | None = None) -> None:
        facts = self._own.facts
        facts.storage_free, facts.memory, facts.storage = storage_free, memory, storage
        await self._publish(self._own.node(self._archive))

    async def put_readers(self, model: ModelId, wraps: Sequence[bytes], sealed: bytes) -> None:
        await self._publish(self._own.readers(self._archive, model, wraps, sealed))

    def readers(self) -> list[ReadersView]:
        return [ReadersView(kept.signer, kept.record) for kept in self._archive.readers.all() if kept.record.wraps]

    async def put_revocations(self, revoked: Sequence[Revoked], before: int | None = None) -> None:
        await self._publish(self._own.revocations(self._archive, revoked, before))

    def revoked(self, home: PeerId, ids: Sequence[bytes], issued: int) -> bool:
        return self._archive.revocations.revoked(home, ids, issued)

    def set_http(self, urls: list[str]) -> None:
        """Where this node's API answers, as others reach it; before `put_node`."""
        self._own.facts.http = list(urls)

    def blame(self, peer: PeerId, shard: str, reason: str) -> None:
        """A verb saw wrong bytes from `peer`; `shard` is `reputation.shard_text`."""
        self._holders.blame(peer, shard, reason)

    def banned(self, peer: PeerId) -> bool:
        return self._holders.banned(peer)

    def set_aside(self, encoding: EncodingId, shard: int, peer: PeerId) -> bool:
        return self._holders.set_aside(encoding, shard, peer)

    def blamed(self) -> list[dict[str, Any]]:
        return self._holders.blamed()

    def _view(self, peer: PeerId) -> PeerView:
        kept, pulse = self._archive.peers.get(peer), self._liveness.pulse(peer)
        silence = self._liveness.silence(peer, self._monotonic())
        return PeerView(
            peer=peer,
            record=kept.record if kept else None,
            addresses=list(kept.record.addresses) if kept else [],
            routable=self._liveness.routable(peer),
            member=self._trust.member(peer),
            rtt=pulse.rtt if pulse else None,
            last_seen=None if silence is None else self._now() - silence,
            availability=self._measures.availability(peer),
            distance=self._measures.distance(peer, pulse.rtt if pulse else None),
            new=self._measures.new(peer),
        )

    async def _publish(self, envelope: bytes) -> None:
        """Keeps and spreads an own record."""
        taken = self._archive.take(envelope, self._now(), lambda peer: True)
        if taken is None or taken.outcome is not Outcome.NEW:
            raise MfError("a record of this node's wasn't kept: its book is full")
        self._news(taken.kept, taken.kind, self._own.peer)

    def _news(self, kept: AnyKept, kind: str, origin: PeerId) -> None:
        """A record that wasn't known: passed on, and told to whoever listens."""
        record = kept.record
        if isinstance(record, NodeRecord) and kept.signer == self._own.peer and origin != self._own.peer:
            if self._own.check_duplicate(record):
                self._supervisor.spawn(self._publish(self._own.node(self._archive)), "own record made anew")
            return
        if self._exchange.shown(kept):
            self._spread.add(kept.mark, origin)
        if kind == "card" and self._trust.believed(kept.signer):
            self._keeper.touch()
        self._tell(kind, kept.signer)

    def _tell(self, kind: str, peer: PeerId) -> None:
        for listener in self._listeners:
            listener(kind, peer)

    def _greeted(self, peer: PeerId, hello: Hello) -> None:
        if self._trust.greeted(peer, hello):
            self._keeper.touch()
            self._supervisor.spawn(self._greet_again(peer), f"greeting of {peer}")
            self._tell("peer", peer)

    async def _greet_again(self, peer: PeerId) -> None:
        """After a secret was learnt on either side, each must show the other what it holds now."""
        try:
            await self._exchange.greet(await self._connections.link(peer, 2.0), 2.0)
        except MfError as error:
            log.debug("greeting %s: %s", peer, error)

    def _met(self, peer: PeerId) -> None:
        kept = self._archive.peers.get(peer)
        if self._archive.peers.meet(peer) and kept is not None:
            self._spread.add(kept.mark, peer)
        self._keeper.touch()
        log.info("connected to %s", peer, extra={"event": "peer_joined", "fields": {"peer": peer}})
        self._tell("peer", peer)

    def _heard(self, peer: PeerId, asked: float, took: float) -> None:
        self._heartbeat.heard(peer, asked, took)
        self._measures.heard(peer)

    def _left(self, peer: PeerId, was_routable: bool, reason: str) -> None:
        if was_routable:
            self._routable_changed(peer, False, reason)
        log.info("%s: %s", peer, reason, extra={"event": "peer_lost", "fields": {"peer": peer, "reason": reason}})
        self._exchange.forget(peer)
        self._tell("peer", peer)

    def _routable_changed(self, peer: PeerId, routable: bool, reason: str) -> None:
        silence = self._liveness.silence(peer, self._monotonic())
        fields = {"peer": peer, "reason": reason, "silence": None if silence is None else round(silence, 2)}
        event = "peer_routable" if routable else "peer_unroutable"
        log.info("%s is %s: %s", peer, "routable" if routable else "not routable", reason, extra={"event": event, "fields": fields})
        self._tell("routable", peer)

    async def _rounds(self) -> None:
        """Each second: dial, renew, forget what has expired, save."""
        while True:
            await asyncio.sleep(_ROUND)
            for kind, signer in {(kind_of(kept), kept.signer) for kept in self._archive.expire(self._now())}:
                self._tell(kind, signer)
            self._measures.look()
            for envelope in self._own.renewals(self._archive):
                await self._publish(envelope)
            self._supervisor.spawn(self._connections.mesh(), "mesh")
            await self._keeper.save_if_touched()

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(COMPARE * self._rng.uniform(0.75, 1.25))
            links = [link for link in self._connections.links() if self._liveness.routable(link.peer)]
            if links:
                link = self._rng.choice(links)
                try:
                    await self._exchange.sync(link)
                except MfError as error:
                    log.debug("comparison with %s: %s", link.peer, error)
