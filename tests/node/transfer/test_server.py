from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.interface import ShardInfo
from node.store.memory import MemoryStore
from node.transfer import server as server_module
from node.transfer import serving as serving_module
from node.transfer.admission import ExpectedPut, ExpectedPuts
from node.transfer.server import TransferServer, tls_context
from protocol import limits
from protocol.ids import encoding_text
from protocol.signing import peer_of
from tests.node.transfer.plane import MODEL, Coded, certificate, grant, open_windows, trusting
from tests.support.wait import until

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY, CERTIFICATE, TLS = certificate()


@dataclass
class Plane:
    server: TransferServer
    store: MemoryStore
    expected: ExpectedPuts
    session: aiohttp.ClientSession
    base: str
    coded: Coded
    stored: list[ShardInfo] = field(default_factory=list)

    async def get(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        async with self.session.get(self.base + path, headers=headers) as response:
            return response.status, await response.read()

    async def put(self, path: str, headers: dict[str, str], body: object) -> tuple[int, dict[str, object]]:
        async with self.session.put(self.base + path, headers=headers, data=body) as response:
            return response.status, await response.json()

    def keep(self, shard: int) -> None:
        info = ShardInfo(self.coded.key(shard), MODEL, 0, self.coded.size, 0.0, "me")
        writer = self.store.put_shard(info, self.coded.leaves(shard), _root(self.coded, shard))
        writer.write(self.coded.shards[shard])
        writer.commit()

    def expect(self, shard: int) -> None:
        self.store.put_blob(self.coded.envelope)
        self.expected.expect(ExpectedPut(self.coded.key(shard), MODEL, 5, "a peer"))


def _root(coded: Coded, shard: int) -> bytes:
    from protocol.encoding import parse_encoding

    return parse_encoding(coded.envelope)[1].roots[shard]


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    store = MemoryStore(200 * limits.MIB)
    expected = ExpectedPuts(time.monotonic)
    stored: list[ShardInfo] = []

    async def note(info: ShardInfo) -> None:
        stored.append(info)

    with ThreadPoolExecutor(2) as executor:
        server = TransferServer(store, SIGNER, executor, expected, note)
        port = await server.start("127.0.0.1", 0, tls_context(KEY, CERTIFICATE))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting(), limit=0)) as session:
            yield Plane(server, store, expected, session, f"https://127.0.0.1:{port}", Coded(), stored)
        await server.stop()


async def test_a_whole_shard_comes_with_its_leaves_in_signed_windows(plane: Plane) -> None:
    plane.keep(0)
    status, body = await plane.get(plane.coded.path(0) + "?leaves=1&first=0&count=21", grant(SIGNER, plane.coded))
    assert status == 200
    leaves = plane.coded.leaves(0)
    assert body[: len(leaves)] == leaves
    plain = open_windows(body[len(leaves) :], peer_of(SIGNER), plane.coded.id, 0, 0, plane.coded.size)
    assert plain == plane.coded.shards[0]


@pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 16), (3, 17), (20, 1), (5, None)])
async def test_a_range_of_leaves(plane: Plane, first: int, count: int | None) -> None:
    plane.keep(0)
    query = f"?first={first}" + (f"&count={count}" if count else "")
    status, body = await plane.get(plane.coded.path(0) + query, grant(SIGNER, plane.coded))
    expected = plane.coded.shards[0][first * limits.LEAF : (first + (count or 99)) * limits.LEAF]
    assert status == 200
    assert open_windows(body, peer_of(SIGNER), plane.coded.id, 0, first, len(expected)) == expected


async def test_what_is_signed_is_what_is_sent_even_when_it_is_wrong(plane: Plane) -> None:
    plane.keep(0)
    info, leaves, data = plane.store._shards[plane.coded.key(0)]
    rotten = b"x" + data[1:]
    plane.store._shards[plane.coded.key(0)] = (info, leaves, rotten)
    _, body = await plane.get(plane.coded.path(0) + "?count=1", grant(SIGNER, plane.coded))
    assert open_windows(body, peer_of(SIGNER), plane.coded.id, 0, 0, limits.LEAF) == rotten[: limits.LEAF]


@pytest.mark.parametrize("query", ["?first=21", "?count=0", "?first=0&count=22", "?first=-1", "?count=x", "?count=99999999999"])
async def test_leaves_that_are_not_there_are_refused(plane: Plane, query: str) -> None:
    plane.keep(0)
    status, body = await plane.get(plane.coded.path(0) + query, grant(SIGNER, plane.coded))
    assert status == 400, body


async def test_only_a_fitting_grant_opens(plane: Plane) -> None:
    plane.keep(0)
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    for status, headers in [
        (400, {}),
        (400, {"MF-Grant": "!"}),
        (403, grant(other, plane.coded)),
        (403, grant(SIGNER, plane.coded, verb="put")),
        (403, grant(SIGNER, plane.coded, shards=[1])),
        (403, grant(SIGNER, plane.coded, encoding=bytes(32))),
        (403, grant(SIGNER, plane.coded, issued=int(time.time()) - 61)),
        (403, grant(SIGNER, plane.coded, max_bytes=limits.LEAF)),
        (404, grant(SIGNER, plane.coded)),
    ]:
        path = plane.coded.path(1 if status == 404 else 0)
        got, body = await plane.get(path, headers)
        assert got == status, body
        assert b'"code"' in body


async def test_a_grants_bytes_are_counted_over_all_its_ranges(plane: Plane) -> None:
    plane.keep(0)
    header = grant(SIGNER, plane.coded, max_bytes=3 * limits.LEAF)
    assert [(await plane.get(plane.coded.path(0) + f"?first={at}&count=1", header))[0] for at in range(4)] == [200, 200, 200, 403]


async def test_a_nonce_opens_one_grant(plane: Plane) -> None:
    plane.keep(0)
    one, two = (grant(SIGNER, plane.coded, nonce=bytes(16), max_bytes=size) for size in (10**7, 10**8))
    assert (await plane.get(plane.coded.path(0), one))[0] == 200
    assert (await plane.get(plane.coded.path(0), two))[0] == 403
    assert (await plane.get(plane.coded.path(0), one))[0] == 200


async def test_a_put_is_stored_and_told_once_durable(plane: Plane) -> None:
    plane.expect(1)
    status, answer = await plane.put(plane.coded.path(1), grant(SIGNER, plane.coded, "put"), plane.coded.body(1))
    assert (status, answer) == (201, {"bytes": plane.coded.size})
    [info] = plane.stored
    assert (info.key, info.model, info.group, info.owner) == (plane.coded.key(1), MODEL, 5, "a peer")
    assert plane.store.has(plane.coded.key(1))


async def test_a_put_that_is_wrong_leaves_nothing(plane: Plane) -> None:
    plane.expect(0)
    used = plane.store.space().used
    good = plane.coded.body(0)
    for status, body in [
        (400, good[:-1]),
        (413, good + b"x"),
        (400, good[:-1] + bytes([good[-1] ^ 1])),
        (400, b"\0" + good[1:]),
        (400, plane.coded.body(1)),
    ]:
        got, answer = await plane.put(plane.coded.path(0), grant(SIGNER, plane.coded, "put"), body)
        assert got == status, answer
        assert plane.store.space().used == used
    assert not plane.store.has(plane.coded.key(0))
    assert plane.stored == []


async def test_a_put_nobody_expects_or_beyond_the_quota_is_refused(plane: Plane) -> None:
    header = grant(SIGNER, plane.coded, "put")
    assert (await plane.put(plane.coded.path(0), header, plane.coded.body(0)))[0] == 403
    plane.expected.expect(ExpectedPut(plane.coded.key(0), MODEL, 0, "a peer"))
    assert (await plane.put(plane.coded.path(0), header, plane.coded.body(0)))[0] == 404
    plane.expect(0)
    plane.store.put_blob(bytes(60 * limits.MIB))
    plane.store._room._quota = 60 * limits.MIB + 1000
    status, answer = await plane.put(plane.coded.path(0), header, plane.coded.body(0))
    assert (status, answer["code"]) == (507, "storage_full")


async def test_a_client_that_leaves_in_the_middle_of_a_put_leaves_nothing(plane: Plane) -> None:
    plane.expect(0)
    before = plane.store.space().used
    body = plane.coded.body(0)
    _reader, writer = await asyncio.open_connection("127.0.0.1", int(plane.base.rpartition(":")[2]), ssl=trusting())
    header = grant(SIGNER, plane.coded, "put")["MF-Grant"]
    writer.write(f"PUT {plane.coded.path(0)} HTTP/1.1\r\nHost: x\r\nMF-Grant: {header}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    writer.write(body[:500_000])
    await until(lambda: plane.store.space().used > before, 5, "room is reserved")
    writer.transport.abort()
    await until(lambda: plane.store.space().used == before, 5, "the room is given back")
    assert not plane.store.has(plane.coded.key(0))


async def test_a_client_that_never_reads_is_cut(plane: Plane) -> None:
    plane.coded = Coded(40 * limits.MIB)
    plane.keep(0)
    plane.server.write_timeout = 0.2
    _reader, writer = await asyncio.open_connection("127.0.0.1", int(plane.base.rpartition(":")[2]), ssl=trusting(), limit=1024)
    header = grant(SIGNER, plane.coded)["MF-Grant"]
    writer.write(f"GET {plane.coded.path(0)} HTTP/1.1\r\nHost: x\r\nMF-Grant: {header}\r\n\r\n".encode())
    await until(lambda: plane.server._gate.running == 1, 5, "the request runs")
    await until(lambda: plane.server._gate.running == 0, 10, "the request was cut")
    writer.transport.abort()


async def test_requests_are_counted(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "MAX_REQUESTS", 0)
    status, body = await plane.get(plane.coded.path(0), grant(SIGNER, plane.coded))
    assert (status, b"busy" in body) == (429, True)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 0)
    with pytest.raises(aiohttp.ClientConnectionError):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as fresh, fresh.get(plane.base):
            pass


async def test_blobs(plane: Plane) -> None:
    blob = plane.store.put_blob(bytes(3 * limits.MIB + 1))
    assert await plane.get(f"/blob/{blob.hex()}", {}) == (200, bytes(3 * limits.MIB + 1))
    assert (await plane.get(f"/blob/{bytes(32).hex()}", {}))[0] == 404
    for bad in ("xyz", "zz" * 32, "%2e%2e"):
        assert (await plane.get(f"/blob/{bad}", {}))[0] in (400, 404)


async def test_nonsense_paths_are_json_errors(plane: Plane) -> None:
    name = encoding_text(plane.coded.id)
    for path, status in [
        ("/", 404),
        ("/shard/mfe1x/0", 400),
        (f"/shard/{name}/256", 400),
        (f"/shard/{name}/-1", 400),
        (f"/shard/{name}/٣", 400),
    ]:
        got, body = await plane.get(path, grant(SIGNER, plane.coded))
        assert (got, body[:1]) == (status, b"{"), path


async def test_old_tls_is_refused(plane: Plane) -> None:
    assert tls_context(KEY, CERTIFICATE).minimum_version == ssl.TLSVersion.TLSv1_2
