"""A small swarm for the verbs: real codes and real grants over the in-memory network, with no process, no disk and no torch.

`FakeTransfer` is the transfer process's typed surface over a `MemoryStore`; what it "sends" goes straight into the other's store,
but only under a grant that opens there. `FakeSwarm` knows at once what every living node announces.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from erasure.audit import AuditBook, HeldShard
from erasure.cipher import PUBLIC_SECRET
from erasure.code import Code
from erasure.placement import Candidate
from erasure.segment import decode_segment, encode_segment, segment_spans
from node.assemble import Assembler
from node.assembled_cache import AssembledCache
from node.audit import Auditor
from node.audit_desk import AuditDesk
from node.blobs import BlobServer
from node.block_list import BlockList
from node.callbacks import NodeCallbacks
from node.channel import ChannelClosed
from node.convert_gguf import GgufConverter
from node.fetch import Fetcher
from node.grant_book import GrantBook
from node.grant_desk import DeskConfig, GrantDesk
from node.keep_holdings import HoldingKeeper
from node.locate import Locator
from node.network.memory import MemoryHub, MemoryNetwork
from node.place import Placer
from node.placement_view import PlacementView
from node.publish import Publisher, PublishRequest
from node.put_desk import PutDesk
from node.report import Reporter
from node.reuse import Reuser
from node.store.interface import ShardInfo, ShardKey, Space
from node.store.keeping import by_model
from node.store.leases import DAY
from node.store.memory import MemoryStore
from node.swarm.interface import CardView, HoldingView, PeerView, ReadersView
from node.transfer.audit_reads import Shown, Walked, show, walk
from node.transfer.encode import SpanReader, choose_compression
from node.transfer.jobs import Encoded, EncodeGroup, Fetched, FetchGroup, KeepShard, PushShard, RebuildShards
from node.transfer.sink import Sink
from node.unfinished import Unfinished
from protocol import limits
from protocol.encoding import PRIVATE_SCHEME, SCHEME, Encoding, encoding_id, leaf_digests, parse_encoding, seal_encoding, shard_root
from protocol.errors import MfError, NotFound, StorageFull, Unavailable
from protocol.grants import open_grant
from protocol.ids import EncodingId, ModelId, PeerId, encoding_text, model_from
from protocol.messages import AUDIT_PROTOCOL, BLOB_PROTOCOL, GRANT_PROTOCOL
from protocol.records import Card, Held, NodeRecord, Readers, Repairing, Serving
from tests.support.synthetic import llama_config, llama_shapes, write_safetensors

QUOTA = 64 * limits.MIB


class InlineExecutor(Executor):
    """Runs at once in the caller's thread: no thread for virtual time to wait on."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # boundary: the future carries it
            done.set_exception(error)
        return done


class FakeTransfer:
    """`plane` finds the others by PeerID. `lie` decodes to other bytes than were given, as a dishonest publisher's encoder would."""

    def __init__(self, key: Ed25519PrivateKey, peer: PeerId, plane: dict[PeerId, FakeTransfer], quota: int) -> None:
        self.store = MemoryStore(quota)
        self.callbacks: Any = None
        self.staged: dict[bytes, list[bytes]] = {}
        self.pushed: list[tuple[bytes, int, str]] = []
        self.encoded: list[int] = []
        self.rebuilt: list[tuple[bytes, list[int]]] = []
        self.fetches = 0
        self.refuse: MfError | None = None
        self.takes = asyncio.Event()
        """Cleared: a shard pushed here hangs."""
        self.takes.set()
        self.lie = False
        self.dies_at: set[tuple[str, int]] = set()
        """("encode" | "push", calls until then): there the process dies once, with all that is staged, and is started again."""
        self.life: object = object()
        self._calls: Counter[str] = Counter()
        self._key, self._peer, self._plane = key, peer, plane
        self._expected: dict[ShardKey, tuple[ModelId, int, str]] = {}
        plane[peer] = self

    def alive(self, life: object) -> bool:
        return self.life is life

    def _staged_shard(self, encoding: bytes, shard: int) -> bytes:
        if encoding not in self.staged:
            raise NotFound("isn't staged here")
        return self.staged[encoding][shard]

    def _called(self, what: str) -> None:
        self._calls[what] += 1
        if (what, self._calls[what]) in self.dies_at:
            self.life = object()
            self.staged.clear()
            raise ChannelClosed("the transfer process is gone")

    async def put_blob(self, data: bytes) -> bytes:
        return self.store.put_blob(data)

    async def has_blob(self, blob: bytes) -> bool:
        return await self.get_blob(blob) is not None

    async def get_blob(self, blob: bytes) -> bytes | None:
        return self.store.get_blob(blob)

    async def add_model(self, model: ModelId, blobs: Sequence[bytes]) -> None:
        self.store.add_model(model, blobs)

    async def share(self, model: ModelId, encodings: Sequence[EncodingId]) -> None:
        self.store.share(model, encodings)
        if self.callbacks is not None:
            await self.callbacks.shards_gone(model)

    async def models(self) -> dict[ModelId, list[bytes]]:
        return self.store.models()

    async def list_shards(self, model: ModelId | None = None) -> list[ShardInfo]:
        return self.store.list_shards(model)

    async def has_shard(self, key: ShardKey) -> bool:
        return self.store.has(key)

    async def drop_shard(self, key: ShardKey, reason: str) -> None:
        self.store.drop_shard(key, reason)

    async def shard_lengths(self, keys: Sequence[ShardKey]) -> list[int | None]:
        lying = {info.key: info.bytes for info in self.store.list_shards()}
        return [lying.get(key) for key in keys]

    async def take_back(self, key: ShardKey, owner: str) -> bool:
        info = next((info for info in self.store.list_shards() if info.key == key and info.owner == owner), None)
        awaited = self._expected.pop(key, None)
        if info is not None:
            self.store.drop_shard(key, "taken back")
        if info is None and awaited is None:
            return False
        model = info.model if info is not None else awaited[0] if awaited else None
        assert model is not None
        self.store.prune([key.encoding, model])
        await self.callbacks.shards_gone(model)
        return True

    async def pin(self, model: ModelId, keep: bool) -> None:
        (self.store.pin if keep else self.store.unpin)(model)

    async def pins(self) -> set[ModelId]:
        return self.store.pins()

    async def renew(self, keys: Sequence[ShardKey], owner: str) -> int:
        mine = [info.key for info in self.store.list_shards() if info.key in keys and info.owner == owner]
        self.store.renew(mine, time.time() + 2 * DAY)
        return len(mine)

    async def forget(self, model: ModelId) -> int:
        freed = self.store.forget(model)
        await self.callbacks.shards_gone(model)
        return freed

    async def space(self) -> Space:
        return self.store.space()

    async def audit_walk(self, nonce: bytes, keys: Sequence[ShardKey], steps: int) -> Walked:
        walked = walk(self.store, nonce, keys, steps)
        for model in walked.lost:
            await self.callbacks.shards_gone(ModelId(model))
        return walked

    async def audit_show(self, places: Sequence[tuple[ShardKey, int]]) -> Shown:
        return show(self.store, places)

    async def expect_put(self, key: ShardKey, model: ModelId, group: int, owner: str) -> None:
        self._expected[key] = (model, group, owner)

    async def encode_group(self, job: EncodeGroup, fds: Sequence[int]) -> Encoded:
        self.encoded.append(job.group)
        self._called("encode")
        reader = SpanReader(job.spans, fds, job.length)
        compressed, code = choose_compression(job, reader), Code(job.k, max(job.n, job.n_max))
        shards, segments = [bytearray() for _ in range(code.n)], []
        scheme = SCHEME if job.secret is None else PRIVATE_SCHEME
        for index, (offset, length) in enumerate(segment_spans(job.k, job.length)):
            plain = reader.read(offset, length)
            if self.lie:
                plain[-1] ^= 1
            segment, pieces = encode_segment(plain, index, compressed, job.secret or PUBLIC_SECRET, code, None, scheme, job.group_id)
            segments.append(segment)
            for shard, piece in zip(shards, pieces, strict=True):
                shard += piece
        roots = [shard_root(len(shard), leaf_digests(bytes(shard))) for shard in shards]
        record = Encoding(
            group=job.group_id, scheme=scheme, compression=compressed, k=job.k, n=job.n, length=job.length, segments=segments, roots=roots
        )
        same = job.like is not None and parse_encoding(job.like)[1] == record
        envelope = job.like if same and job.like is not None else seal_encoding(self._key, record)
        name = encoding_id(envelope)
        staged = job.stage or range(job.n)
        self.staged[name] = [bytes(shard) if number in staged else b"" for number, shard in enumerate(shards)]
        length = record.shard_length()
        return Encoded(envelope=envelope, encoding=name, shard_bytes=length, stored_bytes=length * job.n)

    async def push_shard(self, job: PushShard) -> None:
        self._called("push")
        other = self._plane[PeerId(job.peer)]
        if other.refuse is not None:
            raise other.refuse
        await other.takes.wait()
        grant = open_grant(job.grant, PeerId(job.peer), time.time())
        assert (grant.verb, grant.client, grant.shards) == ("put", self._peer, [job.shard])
        key = ShardKey(EncodingId(job.encoding), job.shard)
        model, group, owner = other._expected.pop(key)
        self.pushed.append((job.encoding, job.shard, job.peer))
        await other._take(key, model, group, owner, self._outgoing(job, key))

    def _outgoing(self, job: PushShard, key: ShardKey) -> bytes:
        if not job.held:
            return self._staged_shard(job.encoding, job.shard)
        reader = self.store.open_shard(key)
        if reader is None:
            raise NotFound("isn't held here")
        return reader.read(0, reader.length)

    async def keep_shard(self, job: KeepShard) -> None:
        if self.refuse is not None:
            raise self.refuse
        key = ShardKey(EncodingId(job.encoding), job.shard)
        await self._take(key, ModelId(job.model), job.group, self._peer, self._staged_shard(job.encoding, job.shard))

    async def _take(self, key: ShardKey, model: ModelId, group: int, owner: str, data: bytes) -> None:
        envelope = self.store.get_blob(key.encoding)
        assert envelope is not None, "the envelope comes first"
        info = ShardInfo(key, model, group, len(data), time.time(), owner)
        writer = self.store.put_shard(info, b"".join(leaf_digests(data)), parse_encoding(envelope)[1].roots[key.shard])
        writer.write(data)
        writer.commit()
        if self.callbacks is not None:
            await self.callbacks.shard_stored(info)

    async def fetch_group(self, job: FetchGroup, *fds: int) -> Fetched:
        self.fetches += 1
        record, encoding = parse_encoding(job.envelope)[1], encoding_id(job.envelope)
        got: dict[int, bytes] = {}
        asked: list[str] = []
        for source in job.sources:
            if len(got) < record.k and source.shard not in got:
                asked.append(source.peer)
                data = await self._read(source.peer, encoding, source.shard, record)
                if data is not None:
                    got[source.shard] = data
        if len(got) < record.k:
            missing = record.k - len(got)
            raise Unavailable(f"{len(got)} of {record.k} shards could be read", details={"missing": missing, "asked": asked})
        sink = Sink(job.spans, fds) if job.spans is not None else Sink.whole(fds[0], job.offset)
        self._decode(record, got, sink, job.secret)
        return Fetched(bytes=sum(map(len, got.values())), seconds=0.1, asked=asked, speeds=dict.fromkeys(asked, 1e6))

    async def rebuild_shards(self, job: RebuildShards) -> Fetched:
        record, encoding = parse_encoding(job.envelope)[1], encoding_id(job.envelope)
        got: dict[int, bytes] = {}
        for source in job.sources:
            if len(got) < record.k and source.shard not in (*got, *job.make):
                data = await self._read(source.peer, encoding, source.shard, record)
                if data is not None:
                    got[source.shard] = data
        if len(got) < record.k:
            raise Unavailable(f"{len(got)} of {record.k} shards could be read")
        made = {shard: bytearray(record.shard_length()) for shard in job.make}
        Code(record.k, len(record.roots)).make(got, made)
        staged = self.staged.setdefault(encoding, [b""] * len(record.roots))
        for shard, column in made.items():
            staged[shard] = bytes(column)
        self.rebuilt.append((encoding, sorted(made)))
        return Fetched(bytes=sum(map(len, got.values())), seconds=0.1, asked=[], speeds={})

    async def _read(self, peer: str, encoding: EncodingId, shard: int, record: Encoding) -> bytes | None:
        try:
            access = await self.callbacks.need_grant(peer, encoding, [shard])
        except MfError:
            return None
        open_grant(access.grant, PeerId(peer), time.time())
        reader = self._plane[PeerId(peer)].store.open_shard(ShardKey(encoding, shard))
        if reader is None:
            return None
        data = reader.read(0, reader.length)
        if shard_root(len(data), leaf_digests(data)) != record.roots[shard]:
            await self.callbacks.leaf_fault(peer, encoding, shard, "leaf 0 has other bytes", None)
            return None
        return data

    def _decode(self, record: Encoding, shards: dict[int, bytes], sink: Sink, secret: bytes | None) -> None:
        at = offset = 0
        for index, segment in enumerate(record.segments):
            size, plain = record.piece_length(index), bytearray(segment.plain)
            pieces = {shard: data[at : at + size] for shard, data in shards.items()}
            decode_segment(record, index, pieces, memoryview(plain), secret or PUBLIC_SECRET)
            sink.write(memoryview(plain), offset)
            at, offset = at + size, offset + segment.plain

    async def list_staged(self) -> dict[EncodingId, list[int]]:
        return {EncodingId(name): list(range(len(shards))) for name, shards in self.staged.items()}

    async def drop_staged(self, encoding: EncodingId) -> None:
        self.staged.pop(encoding, None)


@dataclass
class Board:
    """What everybody announces: the swarm's records as if gossip took no time."""

    records: dict[PeerId, NodeRecord] = field(default_factory=dict)
    holdings: dict[tuple[PeerId, ModelId], HoldingView] = field(default_factory=dict)
    cards: list[CardView] = field(default_factory=list)
    readers: list[ReadersView] = field(default_factory=list)
    away: set[PeerId] = field(default_factory=set)
    told: list[tuple[PeerId, ModelId]] = field(default_factory=list)


class FakeSwarm:
    def __init__(self, me: PeerId, board: Board) -> None:
        self.me, self.board = me, board
        self.trusts: set[PeerId] = {me}
        self.trust_all = True
        self.bans: set[PeerId] = set()
        self.blames: list[dict[str, Any]] = []
        self.suspects: list[PeerId] = []
        self.looked_up: list[ModelId] = []
        self.rtts: dict[PeerId, float] = {}
        self.audits = AuditBook()
        self.clock, self.rng = time.monotonic, Random(1)

    def _usable(self, peer: PeerId) -> bool:
        return peer not in self.board.away and peer not in self.bans

    def peers(self) -> list[PeerView]:
        return [self.view(peer) for peer in self.board.records if peer != self.me]

    def view(self, peer: PeerId) -> PeerView:
        routable = peer not in self.board.away
        return PeerView(
            peer, self.board.records.get(peer), ["/ip4/127.0.0.1/tcp/1"], routable, False, self.rtts.get(peer, 0.01), time.time()
        )

    def peer(self, peer: PeerId) -> PeerView | None:
        return self.view(peer) if peer in self.board.records else None

    def trusted(self, peer: PeerId) -> bool:
        return self.trust_all or peer in self.trusts

    def trust(self, peer: PeerId) -> None:
        self.trusts.add(peer)

    def suspect(self, peer: PeerId, reason: str) -> None:
        self.suspects.append(peer)

    def holdings(self, model: ModelId) -> list[HoldingView]:
        return [view for (peer, named), view in self.board.holdings.items() if named == model and self._usable(peer)]

    def holders(self, encoding: EncodingId) -> dict[int, list[PeerId]]:
        found: dict[int, set[PeerId]] = {}
        for (peer, _model), view in self.board.holdings.items():
            for held in view.held:
                if held.encoding == encoding and self._usable(peer):
                    for shard in held.shards:
                        found.setdefault(shard, set()).add(peer)
        return {shard: sorted(peers) for shard, peers in found.items()}

    def counted(self, encoding: EncodingId) -> dict[int, list[PeerId]]:
        now, found = self.clock(), {}
        for shard, peers in self.holders(encoding).items():
            if good := [peer for peer in peers if peer == self.me or self.audits.counts(HeldShard(peer, encoding, shard), now)]:
                found[shard] = good
        return found

    def vouch(self, held: HeldShard) -> None:
        self.audits.vouch(held, self.clock(), self.rng)

    def cards(self) -> list[CardView]:
        return list(self.board.cards)

    def cards_of(self, publisher: PeerId) -> list[CardView]:
        return [view for view in self.cards() if view.publisher == publisher]

    def cards_naming(self, model: ModelId) -> list[CardView]:
        return [view for view in self.cards() if view.card.model == model]

    def card(self, publisher: PeerId, name: str, version: str) -> CardView | None:
        return next((view for view in self.cards_of(publisher) if (view.card.name, view.card.version) == (name, version)), None)

    def models_known(self) -> int:
        return len({view.card.model for view in self.board.cards})

    def publishers(self) -> list[PeerId]:
        return list(dict.fromkeys(view.publisher for view in self.board.cards))

    def models_of(self, peer: PeerId) -> list[ModelId]:
        return [model for holder, model in self.board.holdings if holder == peer]

    def resolve(self, name: str) -> ModelId:
        if name.startswith("mfm1"):
            return model_from(name)
        for view in self.board.cards:
            if name in (view.card.name, view.card.full_name()):
                return ModelId(view.card.model)
        raise NotFound(f"no model is known by the name {name!r}", details={"candidates": []})

    async def find_model(self, model: ModelId, timeout: float) -> None:
        self.looked_up.append(model)

    async def put_card(self, card: Card) -> None:
        self.board.cards.append(CardView(self.me, card))

    async def put_readers(self, model: ModelId, wraps: Sequence[bytes], sealed: bytes) -> None:
        others = [view for view in self.board.readers if (view.publisher, view.record.model) != (self.me, model)]
        record = Readers(sequence=time.time_ns(), expires=1, model=model, wraps=list(wraps), sealed=sealed)
        self.board.readers = [*others, ReadersView(self.me, record)]

    def readers(self) -> list[ReadersView]:
        return [view for view in self.board.readers if view.record.wraps]

    async def put_holding(
        self, model: ModelId, held: list[Held], full: list[int], repairs: Sequence[Repairing] = (), serves: Sequence[Serving] = ()
    ) -> None:
        self.board.told.append((self.me, model))
        if held or full or serves:
            self.board.holdings[self.me, model] = HoldingView(self.me, model, held, full, repairs, serves)
        else:
            self.board.holdings.pop((self.me, model), None)

    def blame(self, peer: PeerId, shard: str, reason: str) -> None:
        self.blames.append({"peer_id": peer, "shard": shard, "reason": reason, "at": 0.0})

    def blamed(self) -> list[dict[str, Any]]:
        return self.blames

    def banned(self, peer: PeerId) -> bool:
        return peer in self.bans

    def set_aside(self, encoding: EncodingId, shard: int, peer: PeerId) -> bool:
        return any(blame["peer_id"] == peer and blame["shard"].startswith(encoding_text(encoding)) for blame in self.blames)

    def ticket(self) -> str:
        return "mft1x"

    async def join(self, ticket: str) -> int:
        return 1


def node_record(**changes: Any) -> NodeRecord:
    fields: dict[str, Any] = {
        "sequence": 1,
        "expires": int(time.time()) + 3600,
        "boot": bytes(16),
        "version": "1",
        "addresses": [],
        "transfer": [],
        "tls": bytes(32),
        "lend": "both",
        "storage_free": 1 << 30,
        "memory": 1 << 30,
    }
    return NodeRecord(**(fields | changes))


class VerbNode:
    """One node's verbs, put together as node/node.py does."""

    def __init__(self, swarm: VerbSwarm, scratch: Path, quota: int = QUOTA, lend: str = "both") -> None:
        self.key = Ed25519PrivateKey.generate()
        self.network = MemoryNetwork(swarm.hub, self.key)
        self.peer = self.network.peer_id
        self.swarm = FakeSwarm(self.peer, swarm.board)
        self.transfer = FakeTransfer(self.key, self.peer, swarm.plane, quota)
        swarm.board.records[self.peer] = node_record(lend=lend)
        self.callbacks = NodeCallbacks(self.swarm)
        self.transfer.callbacks = self.callbacks
        known: Any = self.transfer
        executor = InlineExecutor()
        self.locator = Locator(self.network, self.swarm, known, executor)
        config = DeskConfig(urls=["https://127.0.0.1:1"], tls=bytes(32))
        self.blocks = BlockList(scratch / self.peer)
        self.puts = PutDesk(self.network, self.swarm, known, lend in ("storage", "both"), self.blocks)
        self.desk = GrantDesk(self.key, self.network, self.swarm, known, config, self.puts)
        self.book = GrantBook(self.network, self.swarm, self.desk)
        self.assembler = Assembler(self.swarm, known, self.book, executor, scratch)
        self.assembled = AssembledCache(self.assembler, self.locator, executor, scratch / self.peer, QUOTA)
        self.keeper = HoldingKeeper(self.swarm, known, self.locator, self.assembled.whole)
        self.callbacks.connect(self.book, self.keeper, lambda: None)
        me = Candidate(self.peer, f"node {self.peer}", 1e9)
        self.view = PlacementView(me, self.swarm)
        self.reuser = Reuser(self.peer, self.swarm, known, self.book, self.locator, self.assembler)
        self.placer = Placer(self.view, self.swarm, known, self.book, self.reuser)
        self.unfinished = Unfinished()
        converter = GgufConverter(scratch)
        self.publisher = Publisher(self.swarm, known, self.locator, self.placer, self.reuser, converter, self.unfinished, executor, "alice")
        self.fetcher = Fetcher(self.swarm, self.locator, self.assembler, executor)
        self.reporter = Reporter(self.peer, "1", self.swarm, known, self.locator, self.placer, self.unfinished)
        self.network.serve(BLOB_PROTOCOL, BlobServer(known).handle)
        self.network.serve(GRANT_PROTOCOL, self.desk.handle)
        self.auditor = Auditor(self.network, self.swarm, known, self.locator)
        self.network.serve(AUDIT_PROTOCOL, AuditDesk(self.key, known, time.monotonic).handle)

    async def tell(self) -> None:
        """Announces what lies here now, without waiting for the keeper."""
        models = set(by_model(self.transfer.store.list_shards(), self.transfer.store.models()))
        announced = {model for peer, model in self.swarm.board.holdings if peer == self.peer}
        await self.keeper.tell(models | announced)

    async def publish(self, path: Path, **options: Any) -> dict[str, Any]:
        return await self.publisher.publish(PublishRequest(path=path, **options), quiet)


@dataclass
class VerbSwarm:
    hub: MemoryHub = field(default_factory=lambda: MemoryHub(7, delay=(0.0, 0.001), stall=0.0))
    board: Board = field(default_factory=Board)
    plane: dict[PeerId, FakeTransfer] = field(default_factory=dict)
    nodes: list[VerbNode] = field(default_factory=list)

    async def add(self, scratch: Path, **options: Any) -> VerbNode:
        node = VerbNode(self, scratch, **options)
        await node.network.start()
        for other in [other for other in self.nodes if other.network.addresses()]:
            await node.network.dial(other.peer, other.network.addresses())
        self.nodes.append(node)
        return node

    async def tell(self) -> None:
        for node in self.nodes:
            await node.tell()

    def leave(self, node: VerbNode) -> None:
        """Gone without a word."""
        self.board.away.add(node.peer)
        self.hub.kill(node.peer)

    def change(self, node: VerbNode, **changes: Any) -> None:
        """Another NodeRecord of this node's."""
        self.board.records[node.peer] = msgspec.structs.replace(self.board.records[node.peer], **changes)


@asynccontextmanager
async def verb_swarm(count: int, scratch: Path) -> AsyncIterator[VerbSwarm]:
    """`count` connected nodes that all lend and trust one another."""
    made = VerbSwarm()
    for _ in range(count):
        await made.add(scratch)
    try:
        yield made
    finally:
        for node in made.nodes:
            await node.network.stop()


async def quiet(event: dict[str, Any]) -> None:
    """Nobody watches the progress."""


def small_model(path: Path, seed: int = 0, layers: int = 3, tied: bool = False) -> Path:
    """A folder with some 100 KB of weights: embed, layers, head and two small files."""
    path.mkdir(parents=True, exist_ok=True)
    config = llama_config(32, layers, 300, 2, inner=64, tied=tied)
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    write_safetensors(path / "model.safetensors", llama_shapes(config), seed)
    return path


def merged_model(path: Path) -> Path:
    """As small_model, its last two layers alike, as self-merged models have them."""
    folder = small_model(path)
    data = bytearray((folder / "model.safetensors").read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name, entry in header.items():
        if ".layers.2." in name:
            (to, end), (start, _) = entry["data_offsets"], header[name.replace(".2.", ".1.")]["data_offsets"]
            data[8 + size + to : 8 + size + end] = data[8 + size + start : 8 + size + start + end - to]
    (folder / "model.safetensors").write_bytes(data)
    return folder


def full(message: str = "the disk is full") -> StorageFull:
    return StorageFull(message)
