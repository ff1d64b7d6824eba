"""A group of shards at peers of every kind, honest and not, over the in-memory network: what audits are tried on.

The shards are random bytes under an encoding that commits to them: an audit never decodes. A disk is a sum of sleeps, the network the hub's
delays, so that on virtual time a trial takes no time but its hashes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.audit import Auditor
from node.audit_desk import AuditDesk
from node.locate import KnownEncoding
from node.network.interface import Stream
from node.network.memory import MemoryHub, MemoryNetwork
from node.store.interface import ShardInfo, ShardKey
from node.store.memory import MemoryStore
from node.swarm.interface import CardView, HoldingView
from node.transfer.audit_reads import Shown, Walked, show, walk
from protocol import limits
from protocol.audits import Walk
from protocol.encoding import Encoding, Segment, leaf_digests, shard_root
from protocol.ids import EncodingId, ModelId, PeerId, digest
from protocol.messages import AUDIT_PROTOCOL
from protocol.records import Held
from tests.node.verb_fakes import Board, FakeSwarm, node_record

MODEL = ModelId(digest(b"audited model"))
ENCODING = EncodingId(digest(b"audited encoding"))
LEAF_PROTOCOL = "/test/leaf/1"
PIECE = 4 * limits.LEAF
Seek = Callable[[], float]
"""Seconds that the next read waits for the disk."""


def key_of(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(digest(b"audit key %d" % seed))


@dataclass
class Coded:
    """n shards of equal length and the record that commits to them."""

    shards: list[bytes]
    record: Encoding

    @staticmethod
    def of(seed: int, k: int, n: int, pieces: int) -> Coded:
        """Each shard `pieces` pieces of four leaves."""
        return Coded.from_shards([Random(seed + shard).randbytes(pieces * PIECE) for shard in range(n)], k, pieces)

    @staticmethod
    def from_shards(shards: list[bytes], k: int, pieces: int) -> Coded:
        roots = [shard_root(len(shard), leaf_digests(shard)) for shard in shards]
        segments = [Segment(k * PIECE - 64, k * PIECE, bytes(32))] * pieces
        length = sum(segment.plain for segment in segments)
        record = Encoding(
            group=bytes(32), scheme="s1", compression="raw", k=k, n=len(shards), length=length, segments=segments, roots=roots
        )
        return Coded(shards, record)

    def leaf(self, shard: int, number: int) -> bytes:
        return self.shards[shard][number * limits.LEAF : (number + 1) * limits.LEAF]

    def store(self, *held: int) -> MemoryStore:
        """A store that holds these shards."""
        store = MemoryStore(1 << 32)
        for shard in held:
            data = self.shards[shard]
            info = ShardInfo(ShardKey(ENCODING, shard), MODEL, 0, len(data), 0.0, "owner")
            writer = store.put_shard(info, b"".join(leaf_digests(data)), self.record.roots[shard])
            writer.write(data)
            writer.commit()
        return store


class Honest:
    """The transfer process's part in audits, over a store and a disk that takes `seek` a read, `opening` a shard."""

    def __init__(self, store: MemoryStore, seek: Seek = lambda: 0.0, opening: Seek = lambda: 0.0) -> None:
        self.store, self.seek, self.opening = store, seek, opening

    async def audit_walk(self, nonce: bytes, keys: Sequence[ShardKey], steps: int) -> Walked:
        await asyncio.sleep(sum(self.opening() for _ in keys) + sum(self.seek() for _ in range(steps)))
        return walk(self.store, nonce, keys, steps)

    async def audit_show(self, places: Sequence[tuple[ShardKey, int]]) -> Shown:
        await asyncio.sleep(sum(self.seek() for _ in places))
        return show(self.store, places)


class Reading:
    """Gives out whatever `leaf(shard, number)` and `listed(shard)` give."""

    def __init__(self, coded: Coded) -> None:
        self.coded = coded

    async def leaf(self, shard: int, number: int) -> bytes:
        return self.coded.leaf(shard, number)

    async def shown_leaf(self, shard: int, number: int) -> bytes:
        return await self.leaf(shard, number)

    def listed(self, shard: int) -> bytes:
        return b"".join(leaf_digests(self.coded.shards[shard]))

    async def begin(self, keys: Sequence[ShardKey]) -> None:
        """Before the walk."""

    async def audit_walk(self, nonce: bytes, keys: Sequence[ShardKey], steps: int) -> Walked:
        await self.begin(keys)
        lengths = [self.coded.record.shard_length() for _ in keys]
        rule, before, tags = Walk(nonce, lengths, steps), nonce, bytearray()
        for step in range(steps):
            target, number = rule.place(step, before)
            before = rule.tag(before, await self.leaf(keys[target].shard, number))
            tags += before
        return Walked(tags=bytes(tags), missing=[], lengths=lengths, lost=[])

    async def audit_show(self, places: Sequence[tuple[ShardKey, int]]) -> Shown:
        leaves = [await self.shown_leaf(key.shard, number) for key, number in places]
        return Shown(lists=[self.listed(key.shard) for key in dict.fromkeys(key for key, _number in places)], leaves=leaves)


class Noise(Reading):
    """Has the leaf lists and made-up bytes."""

    async def leaf(self, shard: int, number: int) -> bytes:
        return bytes(limits.LEAF)


class OtherShard(Reading):
    """Has another shard in place of the one it announces, leaf list and all."""

    def _other(self, shard: int) -> int:
        return (shard + 1) % len(self.coded.shards)

    async def leaf(self, shard: int, number: int) -> bytes:
        return self.coded.leaf(self._other(shard), number)

    def listed(self, shard: int) -> bytes:
        return super().listed(self._other(shard))


class TagsFirst(Noise):
    """Answers in time with tags of nothing, then fetches what it is to show."""

    async def shown_leaf(self, shard: int, number: int) -> bytes:
        return self.coded.leaf(shard, number)


class Fetching(Reading):
    """Keeps leaf lists alone and fetches each leaf from an accomplice when it must have it."""

    def __init__(self, coded: Coded, stream: Callable[[], Any]) -> None:
        super().__init__(coded)
        self._open = stream
        self._stream: Stream | None = None

    async def ask(self, frame: bytes) -> bytes:
        if self._stream is None:
            self._stream = await self._open()
        await self._stream.send(frame)
        return await self._stream.receive(30.0)

    async def leaf(self, shard: int, number: int) -> bytes:
        return await self.ask(shard.to_bytes(2, "big") + number.to_bytes(4, "big"))


class FetchingAll(Fetching):
    """Fetches the shards whole before it walks: one round trip, and all their bytes over a line of `speed` bytes/s."""

    def __init__(self, coded: Coded, stream: Callable[[], Any], speed: float) -> None:
        super().__init__(coded, stream)
        self._speed = speed

    async def begin(self, keys: Sequence[ShardKey]) -> None:
        await self.ask(bytes(6))
        await asyncio.sleep(sum(len(self.coded.shards[key.shard]) for key in keys) / self._speed)

    async def leaf(self, shard: int, number: int) -> bytes:
        return self.coded.leaf(shard, number)


@dataclass
class World:
    """One auditor (`network`, `swarm`) and peers that each announce one shard. Runs on virtual time."""

    coded: Coded
    seed: int
    stall: float = 0.0
    delay: tuple[float, float] = (0.010, 0.030)
    peers: dict[int, PeerId] = field(default_factory=dict)
    networks: list[MemoryNetwork] = field(default_factory=list)
    board: Board = field(default_factory=Board)

    def __post_init__(self) -> None:
        self.hub = MemoryHub(self.seed, self.delay, self.stall)
        self.network = MemoryNetwork(self.hub, key_of(0))
        self.accomplice = MemoryNetwork(self.hub, key_of(999))
        self.swarm = FakeSwarm(self.network.peer_id, self.board)
        self.rng = Random(self.seed)

    async def start(self) -> World:
        await self.network.start()
        await self.accomplice.start()
        self.accomplice.serve(LEAF_PROTOCOL, self._give)
        self.swarm.clock = asyncio.get_running_loop().time
        # What a fake swarm says of round trips is no measurement.
        self.swarm.peer = lambda peer: None  # type: ignore[method-assign]
        return self

    async def _give(self, stream: Stream) -> None:
        while True:
            asked = await stream.receive(60.0)
            await stream.send(self.coded.leaf(int.from_bytes(asked[:2], "big"), int.from_bytes(asked[2:], "big")))

    async def add(self, shard: int, transfer: Any = None) -> PeerId:
        """A peer that announces the shard; None: it serves no audits."""
        key = key_of(shard + 1)
        network = MemoryNetwork(self.hub, key)
        if transfer is not None:
            network.serve(AUDIT_PROTOCOL, AuditDesk(key, transfer, asyncio.get_running_loop().time).handle)
        await network.start()
        await self.network.dial(network.peer_id, network.addresses())
        self.networks.append(network)
        self.peers[shard] = network.peer_id
        self.board.records[network.peer_id] = node_record()
        self.board.holdings[network.peer_id, MODEL] = HoldingView(network.peer_id, MODEL, [Held(0, ENCODING, [shard])], [])
        return network.peer_id

    def to_accomplice(self, shard: int) -> Callable[[], Any]:
        """Opens the stream by which the peer of a shard fetches leaves; call after `add`."""

        async def stream() -> Stream:
            network = next(one for one in self.networks if one.peer_id == self.peers[shard])
            await network.dial(self.accomplice.peer_id, self.accomplice.addresses())
            return await network.open(self.accomplice.peer_id, LEAF_PROTOCOL)

        return stream

    def auditor(self) -> Auditor:
        known = KnownEncoding(ENCODING, b"", self.network.peer_id, self.coded.record)
        located = SimpleNamespace(encodings={0: [known]})

        async def here(model: ModelId) -> Any:
            return located

        async def refresh(_located: Any) -> None:
            """All is known."""

        async def nothing(model: ModelId | None = None) -> list[ShardInfo]:
            return []

        self.board.cards[:] = [CardView(self.network.peer_id, SimpleNamespace(model=MODEL))]  # type: ignore[arg-type]
        locator: Any = SimpleNamespace(recall=lambda model: None, located_here=here, refresh=refresh)
        transfer: Any = SimpleNamespace(list_shards=nothing)
        clock = asyncio.get_running_loop().time
        return Auditor(self.network, self.swarm, transfer, locator, rng=self.rng, clock=clock)

    async def stop(self) -> None:
        for network in (self.network, self.accomplice, *self.networks):
            await network.stop()
