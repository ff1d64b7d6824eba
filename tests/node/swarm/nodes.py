"""A swarm of in-memory nodes for tests: keys from a seed, a fake door, time as the loop keeps it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.memory import MemoryHub, MemoryNetwork
from node.swarm.liveness import Deadlines
from node.swarm.membership import Membership
from node.swarm.own import SwarmConfig
from node.swarm.state import SwarmState, fresh_state
from protocol.ids import ModelId, PeerId, digest
from protocol.manifest import Summary
from protocol.records import Card

NOW = 1_790_000_000


def key_of(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(digest(b"key %d" % seed))


def model_of(seed: int) -> ModelId:
    return ModelId(digest(b"model %d" % seed))


def card(name: str = "smol", version: str = "1", label: str = "ann", model: int = 1, **fields: int) -> Card:
    return Card(
        sequence=fields.get("sequence", 1),
        expires=fields.get("expires", NOW + 3_600),
        label=label,
        name=name,
        version=version,
        model=model_of(model),
        size=1,
        parameters=1,
        created=fields.get("created", NOW),
        summary=Summary(model_type="llama"),
    )


@dataclass
class FakeFound:
    peer: PeerId
    addresses: list[str]


@dataclass
class FakeDht:
    """What all fake doors share."""

    providers: dict[bytes, dict[PeerId, list[str]]] = field(default_factory=dict)


class FakeDoor:
    def __init__(self, dht: FakeDht, network: MemoryNetwork) -> None:
        self._dht = dht
        self._network = network
        self.entered: list[PeerId] = []

    async def join(self, peers: list[tuple[PeerId, list[str]]]) -> None:
        self.entered += [peer for peer, _addresses in peers]

    async def announce(self, key: bytes) -> int:
        await asyncio.sleep(0.01)
        self._dht.providers.setdefault(key, {})[self._network.peer_id] = self._network.addresses()
        return 1

    def withdraw(self, key: bytes) -> None:
        self._dht.providers.get(key, {}).pop(self._network.peer_id, None)

    async def lookup(self, key: bytes, timeout: float) -> list[FakeFound]:
        await asyncio.sleep(0.01)
        return [FakeFound(peer, addresses) for peer, addresses in self._dht.providers.get(key, {}).items()]


class AtOnce(Executor):
    """Runs what it is given at once: a thread would live in another time than the loop's."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except OSError as error:
            future.set_exception(error)
        return future


class Node:
    """One node; `saved` is what its last save would have left on disk."""

    def __init__(self, swarm: Nodes, seed: int, state: SwarmState | None = None) -> None:
        self.network = MemoryNetwork(swarm.hub, key_of(seed))
        self.door = FakeDoor(swarm.dht, self.network)
        self.saved: SwarmState | None = None
        self.membership = Membership(
            key_of(seed),
            self.network,
            self.door,
            SwarmConfig(label=f"owner{seed}", lend="both", version="0.1.0"),
            state or fresh_state(digest(b"secret %d" % seed)),
            self._save,
            rng=random.Random(seed),
            monotonic=lambda: asyncio.get_running_loop().time(),
            deadlines=swarm.deadlines,
            save_on=AtOnce(),
        )

    def _save(self, state: SwarmState) -> None:
        self.saved = state

    @property
    def peer(self) -> PeerId:
        return self.membership.peer_id

    async def start(self) -> Node:
        await self.network.start()
        await self.membership.start()
        return self

    async def stop(self) -> None:
        await self.membership.stop()
        await self.network.stop()


class Nodes:
    """`async with Nodes() as nodes`: every node started is stopped at the end."""

    def __init__(self, seed: int = 1, stall: float = 0.0, deadlines: Deadlines | None = None) -> None:
        self.hub = MemoryHub(seed, stall=stall)
        self.dht = FakeDht()
        self.deadlines = deadlines
        self._nodes: list[Node] = []
        self._next = 0

    async def __aenter__(self) -> Nodes:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await asyncio.gather(*(node.stop() for node in self._nodes))

    async def node(self, seed: int | None = None, state: SwarmState | None = None) -> Node:
        self._next += 1
        made = Node(self, self._next if seed is None else seed, state)
        self._nodes.append(made)
        return await made.start()

    async def swarm(self, count: int) -> list[Node]:
        """`count` nodes in one private swarm, all joined by the first one's ticket."""
        nodes = [await self.node() for _ in range(count)]
        for node in nodes[1:]:
            await node.membership.join(nodes[0].membership.ticket())
        return nodes


def routable(node: Node) -> set[PeerId]:
    return {view.peer for view in node.membership.peers() if view.routable}
