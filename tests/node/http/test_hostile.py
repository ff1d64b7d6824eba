"""What a hostile client may try without a credential: half-open connections, floods of headers, unread streams, deep and large bodies."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.http import app as http_app
from node.http.doorman import DOORMAN, Doorman, GuardedRunner
from tests.node.http.conftest import Site, Start
from tests.support.fake_gateway import FakeGateway
from tests.support.wait import until

HALF_OPEN = 2_000
INFER = "/api/v1/models/ann%2Fdemo@1/inference"


@pytest.fixture
def many_descriptors() -> object:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * HALF_OPEN + 1_000), hard))
    yield None
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _latency(site: Site, times: int = 30) -> float:
    """The best of a few medians, so that others on the machine don't count."""
    medians = []
    for _ in range(3):
        took = []
        for _ in range(times):
            began = time.perf_counter()
            assert (await site.get("/health"))[0] == 200
            took.append(time.perf_counter() - began)
        medians.append(sorted(took)[times // 2])
    return min(medians)


async def test_half_open_connections_dont_slow_a_good_client(site: Site, many_descriptors: object) -> None:
    alone = await _latency(site)
    opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def half_open() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        opened.append((reader, writer))

    for _ in range(HALF_OPEN // 100):
        await asyncio.gather(*(half_open() for _ in range(100)))
    beside = await _latency(site)
    print(f"{HALF_OPEN} half-open connections: {alone * 1000:.2f} ms alone, {beside * 1000:.2f} ms beside them, {beside / alone:.2f} times")
    for _, writer in opened:
        writer.close()
    assert beside < 6 * alone


async def test_a_head_that_never_ends_is_cut_off() -> None:
    from aiohttp import web

    doorman = Doorman(within=0.1, most=4)
    runner = GuardedRunner(web.Application(), doorman)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
    for reader, writer in connections:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(5):
                await reader.readexactly(1)
        writer.close()
    await until(lambda: not doorman._silent, 5, "nobody silent is left")
    await runner.cleanup()


async def test_hundreds_of_good_clients_in_one_moment_are_all_answered(site: Site, many_descriptors: object) -> None:
    """More than may be silent at once, all connected before the first of them is read."""

    async def one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return reader, writer

    opened = await asyncio.gather(*(one() for _ in range(600)))
    async with asyncio.timeout(30):
        heads = [await reader.readline() for reader, _ in opened]
    assert {head[:12] for head in heads} == {b"HTTP/1.1 200"}
    for _, writer in opened:
        writer.close()


async def test_of_silent_ones_that_stay_the_oldest_go() -> None:
    class Silent(asyncio.Protocol):
        def __init__(self) -> None:
            self.transport, self.ended = self, False

        def abort(self) -> None:
            self.ended = True

    doorman, made = Doorman(most=3, new=6, grace=0.05), list[Silent]()

    def factory() -> Silent:
        made.append(Silent())
        return made[-1]

    admit = doorman.wrap(factory)
    for _ in range(8):
        admit()
    assert [one.ended for one in made] == [True] * 2 + [False] * 6, "never more than so many"
    await until(lambda: sum(one.ended for one in made) == 5, 5, "the grace to be over")
    assert [one.ended for one in made] == [True] * 5 + [False] * 3


async def test_half_a_head_after_answers_is_cut_off_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun while the connection was idle, whatever there is of it: it lasts no longer than an idle connection does."""
    monkeypatch.setattr(http_app, "KEPT_OPEN", 0.5)
    site = await start()
    for half in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: "):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        await _answered(reader, writer)
        await _answered(reader, writer)
        writer.write(half)
        async with asyncio.timeout(10):
            await reader.read()  # to its end; a broken head may be told of first
        writer.close()
    assert (await site.get("/health"))[0] == 200


async def _answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200")
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r")[0]))


async def test_of_many_kept_connections_the_one_that_waited_longest_goes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    site = await start()
    doorman = site.server._runner.app[DOORMAN]  # type: ignore[union-attr]
    monkeypatch.setattr(doorman, "_most_idle", 3)
    opened = []
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        await _answered(reader, writer)
        writer.write(b"GET /health HTTP/1.1\r\nHost: ")
        opened.append((reader, writer))
    for reader, _ in opened[:2]:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with asyncio.timeout(5):
                await reader.readexactly(1)
    for reader, writer in opened[2:]:
        writer.write(b"localhost\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    for _, writer in opened:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(200_000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741824\r\nContent-Type: application/json\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=["long header", "many headers", "long path", "a gigabyte", "smuggling", "two credentials", "tls to http"],
)
async def test_hostile_heads_are_refused_and_the_next_request_is_answered(site: Site, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    try:
        writer.write(head)
        async with asyncio.timeout(20):
            first = await reader.readline()
    except ConnectionError:
        first = b""
    writer.close()
    assert not first or (b" 4" in first and b"two credentials" not in first) or b"Authorization: Bearer b" in head
    assert not site.gateway.asked
    assert (await site.get("/health"))[0] == 200


async def test_a_body_without_end_is_cut_at_its_bound(site: Site) -> None:
    async def flood() -> AsyncIterator[bytes]:
        for _ in range(1_024):
            yield bytes(1 << 20)

    try:
        reply, _ = await site.call("POST", INFER, data=flood(), headers={"Content-Type": "application/json"})
        assert reply.status == 413
    except OSError:
        pass
    assert not site.gateway.asked


@pytest.mark.parametrize("depth", [1_000, 100_000, 1_000_000])
async def test_deep_json(site: Site, depth: int) -> None:
    body = b'{"input": ' + b"[" * depth + b"]" * depth + b"}"
    reply, _ = await site.call("POST", INFER, data=body, headers={"Content-Type": "application/json"})
    assert reply.status == 400


async def test_a_stream_that_is_never_read_ends(start: Start) -> None:
    site = await start(FakeGateway(words=["x" * 100_000] * 400), write_timeout=0.3)
    _, writer = await asyncio.open_connection("127.0.0.1", site.server.port, limit=1_024)
    body = b'{"input": {"text": "a"}, "parameters": {"stream": true}}'
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(20):
        await site.gateway.closed.wait()
    writer.close()


async def test_gigabytes_take_no_memory(site: Site) -> None:
    """A gigabyte declared, a gigabyte in chunks, a thousand heads that never end: refused, and nothing of them kept."""

    async def flood() -> AsyncIterator[bytes]:
        for _ in range(1_024):
            yield bytes(1 << 20)

    before = _resident()
    for path in (INFER, "/v1/chat/completions"):
        try:
            reply, _ = await site.call("POST", path, data=flood(), headers={"Content-Type": "application/json"})
            assert reply.status == 413
        except OSError:
            pass
    writers = []
    for _ in range(200):
        _, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 4_000) for n in range(20)))
        writers.append(writer)
    assert (await site.get("/health"))[0] == 200
    assert _resident() - before < 96 << 20
    for writer in writers:
        writer.close()


def _resident() -> int:
    """Bytes of this process, test and server together."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
