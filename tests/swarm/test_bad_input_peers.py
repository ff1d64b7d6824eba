"""A peer that speaks nonsense, and strangers at both ports: cut off, named in the log, bounded in memory; honest work goes on."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.host import LibP2PNetwork
from node.network.interface import Stream
from node.network.streams import FrameStream
from protocol import limits, messages
from protocol.errors import MfError
from protocol.framing import pack
from protocol.grants import header_from, open_grant, seal_grant
from protocol.ids import PeerId, encoding_from
from protocol.messages import GRANT_PROTOCOL, GrantReply, GrantRequest, parse_reply
from tests.support.processes import Node, Swarm

pytestmark = pytest.mark.swarm

PROTOCOLS = sorted(value for name, value in vars(messages).items() if name.endswith("_PROTOCOL"))
FRAMES = [b"", b"\x00", b"\x01", os.urandom(10_000), b"\xc1" * 100, b"\xdf\xff\xff\xff\xff", b"\x81\xa1a" * 5_000, b"\x91" * 50_000]
RAW = [b"\xff" * 40, b"\x80" * 10 + b"\x01", (1 << 20).to_bytes(4, "big") * 64, b"\xff\xff\xff\xff\x0f" + bytes(100_000), b"\xe8\x07half"]
MORE_MEMORY = 96 * limits.MIB
UNCHECKED = ssl.create_default_context()
UNCHECKED.check_hostname, UNCHECKED.verify_mode = False, ssl.CERT_NONE


@pytest.fixture
def node(calm: Swarm) -> Node:
    return calm.nodes[1]


@pytest.fixture
async def stranger(node: Node) -> AsyncIterator[LibP2PNetwork]:
    network = LibP2PNetwork(Ed25519PrivateKey.generate(), ["/ip4/127.0.0.1/tcp/0"])
    await network.start()
    await network.dial(PeerId(node.peer_id), addresses(node), 5.0)
    yield network
    await network.stop()


def addresses(node: Node) -> list[str]:
    return list(node.event("network_listening", 1.0)["addresses"])


def port(node: Node) -> int:
    return int(addresses(node)[0].rsplit("/", 1)[1])


def resident(node: Node) -> int:
    with open(f"/proc/{node.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def until_over(stream: Stream) -> None:
    """Reads what the node still says; it ends the stream, answers with refusals, or waits for more: never over 2 s here."""
    try:
        while True:
            await stream.receive(0.3)
    except MfError:
        stream.reset()


async def speak(network: LibP2PNetwork, node: Node, protocol: str) -> None:
    peer = PeerId(node.peer_id)
    for payload in FRAMES:
        stream = await network.open(peer, protocol, 5.0)
        try:
            await stream.send(payload)
            await stream.send(payload)
        except MfError:
            continue  # cut off already
        await until_over(stream)
    for raw in RAW:
        stream = await network.open(peer, protocol, 5.0)
        assert isinstance(stream, FrameStream)
        try:
            await asyncio.wait_for(asyncio.shield(stream.wire.write(raw)), 2.0)
        except MfError:
            continue
        await until_over(stream)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_nonsense_on_every_protocol(node: Node, stranger: LibP2PNetwork, protocol: str) -> None:
    before = resident(node)
    await asyncio.wait_for(speak(stranger, node, protocol), 30.0)
    flood = [await stranger.open(PeerId(node.peer_id), protocol, 5.0) for _ in range(40)]
    for stream in flood:
        assert isinstance(stream, FrameStream)
        await stream.wire.write(b"\xff\xff\x3f" + bytes(10_000))  # a bit of a frame of 1 MiB, then silence
    assert resident(node) - before < MORE_MEMORY
    if protocol != messages.KAD_PROTOCOL:
        node.event("stream_refused", 1.0, peer=stranger.peer_id, protocol=protocol)
    assert node.http("GET", "/api/v1/models/tiny", timeout=2.0)[0] == 200
    for stream in flood:
        stream.reset()
    assert "Traceback" not in node.log.read_text()


async def test_the_log_names_who_spoke_nonsense_and_honest_work_goes_on(node: Node, calm: Swarm, stranger: LibP2PNetwork) -> None:
    stream = await stranger.open(PeerId(node.peer_id), messages.SWARM_PROTOCOL, 5.0)
    assert isinstance(stream, FrameStream)
    await stream.wire.write(b"\xff\xff\xff\xff\x0f" + bytes(1000))
    await asyncio.to_thread(node.event, "stream_refused", 5.0, peer=stranger.peer_id, protocol=messages.SWARM_PROTOCOL)
    alive = {peer["peer_id"]: peer["alive"] for peer in node.cli("status")["peers"]}
    assert all(alive[other.peer_id] for other in calm.nodes if other is not node)
    reply = node.post("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    assert reply["usage"]["completion_tokens"] == 2


async def test_plaintext_is_refused(node: Node) -> None:
    """The other side answers "na" to plaintext, and takes Noise on the same connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port(node))
    say = [b"/multistream/1.0.0\n", b"/plaintext/2.0.0\n", b"/noise\n"]
    said = []
    for line in say:
        writer.write(bytes([len(line)]) + line)
        said.append(await asyncio.wait_for(reader.readline(), 5.0))
    writer.close()
    assert [line[1:] for line in said] == [b"/multistream/1.0.0\n", b"na\n", b"/noise\n"]


async def garbage(at: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", at)
    try:
        writer.write(data)
        await asyncio.wait_for(reader.read(1000), 1.0)
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()


async def test_garbage_at_both_ports(node: Node) -> None:
    """Raw bytes, plain HTTP, half a greeting, connections that say nothing: all at once, and both doors stay open."""
    url, _, reply = await a_grant_of(node)
    transfer = int(url.rsplit(":", 1)[1])
    junk = [os.urandom(65_536), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff", b"\x13/multistream/1.0.0\n" + bytes(99), b""]
    await asyncio.gather(*(garbage(at, data) for at in (transfer, port(node)) for data in junk * 4))
    assert await fetched(url, reply[0], reply[1]) == 200
    assert "Traceback" not in node.log.read_text()


async def a_grant_of(node: Node) -> tuple[str, bytes, tuple[str, dict[str, str]]]:
    """The data plane's address, the grant's bytes, and (path, headers) of a request it admits."""
    holders = node.cli("holdings", "tiny")
    group = next(group for group in holders["groups"])
    shard = next(int(number) for number, who in group["shards"].items() if node.peer_id in who)
    own = LibP2PNetwork(Ed25519PrivateKey.generate(), ["/ip4/127.0.0.1/tcp/0"])
    await own.start()
    try:
        await own.dial(PeerId(node.peer_id), addresses(node), 5.0)
        stream = await own.open(PeerId(node.peer_id), GRANT_PROTOCOL, 5.0)
        await stream.send(pack(GrantRequest(verb="get", encoding=encoding_from(group["encoding"]), shards=[shard])))
        reply = parse_reply(await stream.receive(5.0), GrantReply, "grant")
    finally:
        await own.stop()
    path = f"/shard/{group['encoding']}/{shard}"
    return reply.urls[0], reply.grant, (path, {"MF-Grant": header_from(reply.grant)})


async def fetched(url: str, path: str, headers: dict[str, str], method: str = "GET") -> int:
    async with aiohttp.ClientSession() as session, session.request(method, url + path, headers=headers, ssl=UNCHECKED) as response:
        body = await response.read()
        assert response.status < 400 or json.loads(body)["code"] in ("forbidden", "bad_request", "not_found"), body
        return response.status


async def test_grants_that_dont_admit(node: Node, calm: Swarm) -> None:
    """None, nonsense, signed by another key, of another node, for another shard, for the other verb."""
    url, grant, (path, good) = await a_grant_of(node)
    elsewhere, _, _ = await a_grant_of(calm.nodes[2])
    opened = open_grant(grant, PeerId(node.peer_id), time.time())
    forged = {"MF-Grant": header_from(seal_grant(Ed25519PrivateKey.generate(), opened))}
    encoding, number = path.rsplit("/", 1)
    cases: list[tuple[str, str, dict[str, str], str, tuple[int, ...]]] = [
        (url, path, {}, "GET", (400, 403)),
        (url, path, {"MF-Grant": "!!!"}, "GET", (400, 403)),
        (url, path, {"MF-Grant": "A" * 7000}, "GET", (400, 403)),
        (url, path, forged, "GET", (403,)),
        (elsewhere, path, good, "GET", (403,)),
        (url, f"{encoding}/{int(number) + 1}", good, "GET", (403,)),
        (url, path, good, "PUT", (403,)),
        (url, "/shard/..%2f..%2fetc/0", good, "GET", (400, 404)),
        (url, f"{path}?first=999999&count=5", good, "GET", (400,)),
        (url, path, good, "GET", (200,)),
    ]
    for at, where, headers, method, expected in cases:
        assert await fetched(at, where, headers, method) in expected, (where, headers, method)


async def test_a_grant_used_again_and_again(node: Node) -> None:
    """It moves what it was for, twice over and some slack, and no more."""
    url, grant, (path, headers) = await a_grant_of(node)
    most = open_grant(grant, PeerId(node.peer_id), time.time()).max_bytes
    moved = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=UNCHECKED)) as session:
        while moved <= most:
            async with session.get(url + path, headers=headers) as response:
                moved += len(await response.read())
                if response.status == 403:
                    break
                assert response.status == 200
    assert most / 2 < moved < 1.05 * most  # signatures aren't counted
