from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.memory import MemoryHub, MemoryNetwork
from protocol.errors import DeadlineExceeded, Unavailable
from tests.node.network.conformance import ECHO, NetworkConformance, Pair
from tests.support.virtual_time import run_virtual
from tests.support.wait import until


def _pair(hub: MemoryHub) -> Pair:
    rng = random.Random(7)
    a, b = (MemoryNetwork(hub, Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))) for _ in range(2))
    return Pair(a, b)


class TestMemoryNetwork(NetworkConformance):
    @pytest.fixture
    async def pair(self) -> AsyncIterator[Pair]:
        pair = _pair(MemoryHub(1, delay=(0.0005, 0.001), stall=0))
        await pair.start()
        yield pair
        await pair.stop()


def test_a_frozen_peer_is_silent_until_it_thaws() -> None:
    async def main() -> None:
        hub = MemoryHub(1)
        pair = _pair(hub)
        await pair.start()
        stream = await pair.a.open(pair.b.peer_id, ECHO)
        hub.freeze(pair.b.peer_id)
        await stream.send(b"are you there")
        with pytest.raises(DeadlineExceeded):
            await stream.receive(5)
        with pytest.raises(DeadlineExceeded):
            await pair.a.open(pair.b.peer_id, ECHO, timeout=1)
        assert pair.a.connected() == [pair.b.peer_id]
        hub.thaw(pair.b.peer_id)
        assert await stream.receive(5) == b"are you there"
        await pair.stop()

    run_virtual(main())


def test_a_killed_peer_is_noticed_and_can_be_reached_no_more() -> None:
    async def main() -> None:
        hub = MemoryHub(1)
        pair = _pair(hub)
        await pair.start()
        hub.kill(pair.b.peer_id)
        await until(lambda: pair.a.connected() == [], 1, "the end of the connection")
        with pytest.raises(Unavailable):
            await pair.a.open(pair.b.peer_id, ECHO)
        await pair.a.stop()

    run_virtual(main())


def test_a_partition_parts_and_heals() -> None:
    async def main() -> None:
        hub = MemoryHub(1)
        pair = _pair(hub)
        await pair.start()
        stream = await pair.a.open(pair.b.peer_id, ECHO)
        hub.partition([pair.a.peer_id], [pair.b.peer_id])
        await stream.send(b"x")
        with pytest.raises(DeadlineExceeded):
            await stream.receive(2)
        hub.partition()
        assert await stream.receive(2) == b"x"
        await pair.stop()

    run_virtual(main())


def test_one_seed_gives_one_course_and_delays_are_as_told() -> None:
    async def times(seed: int) -> list[float]:
        hub = MemoryHub(seed)
        pair = _pair(hub)
        await pair.start()
        stream = await pair.a.open(pair.b.peer_id, ECHO)
        loop = asyncio.get_running_loop()
        out = []
        for _ in range(300):
            before = loop.time()
            await stream.send(b"x")
            await stream.receive(10)
            out.append(loop.time() - before)
        await pair.stop()
        return out

    first, again, other = (run_virtual(times(seed)) for seed in (3, 3, 4))
    assert first == again != other
    quick = [seconds for seconds in first if seconds < 0.5]
    assert min(quick) > 0.019
    assert max(quick) < 0.061
    assert 0 < len(first) - len(quick) < 30
