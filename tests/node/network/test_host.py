from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from node.network import libp2p_host
from node.network.bridge import Bridge
from node.network.host import LibP2PNetwork
from protocol.errors import BadInput, Conflict, DeadlineExceeded, Unavailable
from protocol.ids import PeerId
from tests.node.network.conformance import ECHO, NetworkConformance, Pair

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]


def _network(listen: list[str] | None = None) -> LibP2PNetwork:
    return LibP2PNetwork(Ed25519PrivateKey.generate(), listen or LOOPBACK)


class TestLibP2PNetwork(NetworkConformance):
    @pytest.fixture
    async def pair(self) -> AsyncIterator[Pair]:
        pair = Pair(_network(), _network())
        await pair.start()
        yield pair
        await pair.stop()


async def test_a_port_in_use_is_a_conflict_even_where_libp2p_would_share_it() -> None:
    first = _network()
    await first.start()
    second = _network(first.addresses())
    with pytest.raises(Conflict, match="in use"):
        await second.start()
    await second.stop()
    await first.stop()
    again = _network(LOOPBACK)
    await again.start()
    await again.stop()


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:4840", "/ip4/127.0.0.1/udp/1", "/ip4/127.0.0.1/tcp/70000", "/ip4/203.0.113.7/tcp/0", "/dns4/a/tcp/1"]
)
async def test_an_address_this_node_cant_use_is_bad_input(address: str) -> None:
    network = _network([address])
    with pytest.raises(BadInput):
        await network.start()
    await network.stop()


async def test_listening_everywhere_tells_real_addresses() -> None:
    network = _network(["/ip4/0.0.0.0/tcp/0"])
    await network.start()
    assert network.addresses()
    assert not any("0.0.0.0" in address or address.endswith("/tcp/0") for address in network.addresses())
    await network.stop()


async def test_plaintext_libp2p_is_refused() -> None:
    network = _network()
    await network.start()
    pair = create_new_key_pair()
    stranger = new_host(key_pair=pair, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(pair)})

    async def connect() -> str:
        async with background_trio_service(stranger.get_network()):
            target = PeerInfo(ID.from_string(network.peer_id), [Multiaddr(network.addresses()[0])])
            try:
                await stranger.connect(target)
            except Exception as error:  # boundary: whatever libp2p says, it didn't connect
                return type(error).__name__
            return "connected"

    bridge = await Bridge.acquire()
    assert await asyncio.wait_for(bridge.run(connect), 5) != "connected"
    assert network.connected() == []
    await bridge.release()
    await network.stop()


async def test_another_version_of_libp2p_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(libp2p_host.libp2p_yamux, "MAX_MESSAGE_SIZE")
    with pytest.raises(RuntimeError, match="MAX_MESSAGE_SIZE"):
        await _network().start()


_PROCESS = """
    import asyncio, sys
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from node.network.host import LibP2PNetwork

    async def main():
        network = LibP2PNetwork(Ed25519PrivateKey.generate(), ["/ip4/127.0.0.1/tcp/0"])
        async def echo(stream):
            while True:
                await stream.send(await stream.receive(60))
        network.serve("/test/echo/1", echo)
        await network.start()
        print(network.peer_id, network.addresses()[0], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_a_frozen_process_holds_up_nobody_else() -> None:
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", textwrap.dedent(_PROCESS)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        name, address = (await asyncio.to_thread(process.stdout.readline)).split()
        frozen = PeerId(name)
        pair = Pair(_network(), _network())
        await pair.start()
        await pair.a.dial(frozen, [address])
        stream = await pair.a.open(frozen, ECHO)
        await stream.send(b"x")
        assert await stream.receive(3) == b"x"
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            await pair.a.open(frozen, ECHO, timeout=0.3)
        with pytest.raises(Unavailable):  # noqa: PT012
            for _ in range(64):
                await stream.send(bytes(1 << 20), timeout=0.3)
        other = await pair.a.open(pair.b.peer_id, ECHO, timeout=1)
        await other.send(b"quick")
        assert await other.receive(1) == b"quick"
        loop = asyncio.get_running_loop()
        before = loop.time()
        await pair.stop()
        assert loop.time() - before < 4
    finally:
        process.kill()
        process.wait()


async def test_a_stranger_that_speaks_nonsense_is_dropped() -> None:
    network = _network()
    await network.start()
    port = int(network.addresses()[0].rsplit("/", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
    await writer.drain()
    with suppress(ConnectionResetError):
        while await asyncio.wait_for(reader.read(1024), 15):
            pass
    writer.close()
    assert network.connected() == []
    await network.stop()
