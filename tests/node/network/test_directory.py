from __future__ import annotations

import asyncio
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.directory import REANNOUNCE, Directory, model_key
from node.network.host import LibP2PNetwork
from node.network.interface import Network, StreamClosed
from node.network.kad_wire import ADD_PROVIDER, GET_PROVIDERS, Found, KadMessage, decode, encode
from node.network.memory import MemoryHub, MemoryNetwork
from protocol.ids import ModelId
from protocol.messages import KAD_PROTOCOL
from tests.support.virtual_time import run_virtual
from tests.support.wait import until


class Crowd:
    """Nodes of one hub, all joined through the first."""

    def __init__(self, count: int, seed: int = 1, cap: int | None = None) -> None:
        self.rng = random.Random(seed)
        self.hub = MemoryHub(seed)
        self.networks: list[Network] = [
            MemoryNetwork(self.hub, Ed25519PrivateKey.from_private_bytes(self.rng.randbytes(32))) for _ in range(count)
        ]
        self.directories = [Directory(network, random.Random(number), cap=cap) for number, network in enumerate(self.networks)]

    async def join(self) -> None:
        for network in self.networks:
            await network.start()
        ticket = [(self.networks[0].peer_id, self.networks[0].addresses())]
        for directory in self.directories[1:]:
            assert await directory.join(ticket) == 1

    def key(self) -> bytes:
        return model_key(ModelId(self.rng.randbytes(32)))

    async def stop(self) -> None:
        for directory in self.directories:
            await directory.close()
        for network in self.networks:
            await network.stop()


async def _finds_all(directories: list[Directory], owners: dict[bytes, Directory]) -> list[tuple[int, bytes]]:
    missing = []
    for number, directory in enumerate(directories):
        for key, owner in owners.items():
            found = {one.peer for one in await directory.lookup(key)}
            if owner is not directory and owner._network.peer_id not in found:
                missing.append((number, key))
    return missing


def test_sixty_nodes_with_tables_of_eight_find_every_model_after_the_tickets_node_is_gone() -> None:
    async def main() -> None:
        crowd = Crowd(61, cap=8)
        await crowd.join()
        crowd.hub.kill(crowd.networks[0].peer_id)
        living = crowd.directories[1:]
        owners = {crowd.key(): living[6 * number] for number in range(8)}
        copies = await asyncio.gather(*(owner.announce(key) for key, owner in owners.items()))
        assert min(copies) >= 4
        assert max(len(directory.table) for directory in living) <= 8
        assert await _finds_all(living, owners) == []
        await crowd.stop()

    run_virtual(main())


def test_frozen_and_killed_peers_dont_hold_a_lookup_up() -> None:
    async def main() -> None:
        crowd = Crowd(30, seed=2)
        await crowd.join()
        owner = crowd.directories[1]
        keys = [crowd.key() for _ in range(6)]
        for key in keys:
            assert await owner.announce(key) >= 15
        for number in [number for number in range(3, 30) if number % 4]:
            peer = crowd.networks[number].peer_id
            crowd.hub.freeze(peer) if number % 2 else crowd.hub.kill(peer)
        loop = asyncio.get_running_loop()
        for key in keys:
            before = loop.time()
            assert owner._network.peer_id in {one.peer for one in await crowd.directories[2].lookup(key)}
            assert loop.time() - before < 1.0
        await crowd.stop()

    run_virtual(main())


def test_a_model_nobody_announced_is_found_nowhere_and_soon() -> None:
    async def main() -> None:
        crowd = Crowd(12)
        await crowd.join()
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await crowd.directories[3].lookup(crowd.key()) == []
        assert loop.time() - before < 2.1
        await crowd.stop()

    run_virtual(main())


def test_announcements_are_renewed_hourly_until_withdrawn() -> None:
    async def main() -> None:
        crowd = Crowd(6)
        await crowd.join()
        owner, other = crowd.directories[1], crowd.directories[5]
        key = crowd.key()
        await owner.announce(key)
        upkeep = [asyncio.create_task(directory.maintain()) for directory in crowd.directories]
        await asyncio.sleep(4 * REANNOUNCE)
        assert [one.peer for one in await other.lookup(key)] == [owner._network.peer_id]
        owner.withdraw(key)
        await asyncio.sleep(4 * REANNOUNCE)
        assert await other.lookup(key) == []
        for task in upkeep:
            task.cancel()
        await asyncio.gather(*upkeep, return_exceptions=True)
        await crowd.stop()

    run_virtual(main())


def test_nobody_announces_for_another_and_forbidden_addresses_are_not_kept() -> None:
    async def main() -> None:
        crowd = Crowd(3)
        await crowd.join()
        sender, victim, keeper = (network.peer_id for network in crowd.networks)
        key = crowd.key()
        stream = await crowd.networks[0].open(keeper, KAD_PROTOCOL)
        mixed = ["/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"]
        await stream.send(encode(KadMessage(ADD_PROVIDER, key, providers=[Found(sender, mixed)])))
        await stream.send(encode(KadMessage(ADD_PROVIDER, key, providers=[Found(victim, ["/ip4/8.8.8.8/tcp/1"])])))
        await stream.send(encode(KadMessage(GET_PROVIDERS, key)))
        assert decode(await stream.receive(5)).providers == [Found(sender, ["/ip4/127.0.0.1/tcp/1"])]
        await crowd.stop()

    run_virtual(main())


def test_connections_made_for_questions_are_bounded() -> None:
    async def main() -> None:
        crowd = Crowd(25)
        nosy = Directory(crowd.networks[24], random.Random(3), max_connections=5)
        await crowd.join()
        await nosy.join([(network.peer_id, network.addresses()) for network in crowd.networks[:1]])
        dialled = nosy._pool._dialled
        for _ in range(5):
            await nosy.refresh()
            assert len(dialled) <= 5 + 6
        await nosy.close()
        await crowd.stop()

    run_virtual(main())


async def test_over_libp2p_on_loopback() -> None:
    await _real_swarm(6, 2)


@pytest.mark.nightly
async def test_sixty_real_hosts_find_every_model_after_the_tickets_node_is_gone() -> None:
    await _real_swarm(61, 8)


async def _real_swarm(count: int, models: int) -> None:
    rng = random.Random(4)
    networks = [LibP2PNetwork(Ed25519PrivateKey.generate(), ["/ip4/127.0.0.1/tcp/0"]) for _ in range(count)]
    directories = [Directory(network, random.Random(number), cap=8) for number, network in enumerate(networks)]
    for network in networks:
        await network.start()
    for directory in directories[1:]:
        assert await directory.join([(networks[0].peer_id, networks[0].addresses())], timeout=20) == 1
    await directories[0].close()
    await networks[0].stop()
    await until(lambda: all(networks[0].peer_id not in network.connected() for network in networks[1:]), 10, "the ticket's node is gone")
    owners = {model_key(ModelId(rng.randbytes(32))): directories[1 + number] for number in range(models)}
    for key, owner in owners.items():
        assert await owner.announce(key) >= 2
    assert await _finds_all(directories[1:], owners) == []
    for directory in directories[1:]:
        await directory.close()
    await asyncio.gather(*(network.stop() for network in networks[1:]))


def test_a_stream_over_which_nobody_asks_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        crowd = Crowd(2)
        await crowd.join()
        stream = await crowd.networks[1].open(crowd.networks[0].peer_id, KAD_PROTOCOL, 5.0)
        await stream.send(encode(KadMessage(GET_PROVIDERS, crowd.key())))
        await stream.receive(5.0)
        with pytest.raises(StreamClosed):
            await stream.receive(150.0)
        await crowd.stop()

    run_virtual(main())
    assert [record.message for record in caplog.records if "ended" in record.message] == []
