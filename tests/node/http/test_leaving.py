"""Clients that leave, stall or wait too long: the work behind them stops, and nobody's text is logged."""

from __future__ import annotations

import asyncio
import logging
import socket

import aiohttp
import msgspec
import pytest

from node.gateway import Event, GenerationRequest, Piece, Planned
from node.http import app
from node.http.app import HttpServer
from node.http.doorman import Doorman
from node.http.settings import HttpSettings
from protocol.errors import Conflict
from tests.node.http.conftest import Site, Start
from tests.support.fake_gateway import ROUTE, FakeGateway

PATH = "/v1/chat/completions"
CANARY = "canary-7f3a"
CHAT = {"model": "ann/demo@1", "messages": [{"role": "user", "content": CANARY}]}
WITHIN = 3.0


async def _leave(site: Site, body: object, *, after: bytes = b"") -> None:
    """Sends a request, waits for `after` in the reply (or that the gateway waits), and closes the connection."""
    raw = msgspec.json.encode(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    async with asyncio.timeout(WITHIN):
        if after:
            await reader.readuntil(after)
        await site.gateway.waiting.wait()
    writer.transport.abort()


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_first_token_stops_the_work(start: Start, stream: bool) -> None:
    site = await start(FakeGateway(hold="plan"))
    await _leave(site, CHAT | {"stream": stream})
    await asyncio.wait_for(site.gateway.closed.wait(), WITHIN)


async def test_leaving_in_mid_stream_stops_the_work(start: Start) -> None:
    site = await start(FakeGateway(hold="words"))
    await _leave(site, CHAT | {"stream": True}, after=b"Par")
    await asyncio.wait_for(site.gateway.closed.wait(), WITHIN)
    assert b'mf_generations_total{kind="pipeline",outcome="cancelled"} 1.0' in (await site.call("GET", "/metrics"))[1]


class Held:
    """An iterator that isn't a generator: nothing closes it but whoever holds it."""

    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway
        self._planned = False

    def __aiter__(self) -> Held:
        return self

    async def __anext__(self) -> Event:
        if not self._planned:
            self._planned = True
            return Planned("mfm1", "here", ROUTE, 1)
        self._gateway.waiting.set()
        await asyncio.Event().wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._gateway.closed.set()


class Holding(FakeGateway):
    def generate(self, request: GenerationRequest) -> Held:  # type: ignore[override]
        return Held(self)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_iterator_is_closed_and_not_left_to_the_collector(start: Start, stream: bool) -> None:
    site = await start(Holding())
    await _leave(site, CHAT | {"stream": stream})
    await asyncio.wait_for(site.gateway.closed.wait(), WITHIN)


class Endless(FakeGateway):
    """Talks for ever, in long words."""

    async def generate(self, request: GenerationRequest):  # type: ignore[no-untyped-def]
        try:
            yield Planned("mfm1", "here", ROUTE, 1)
            while True:
                yield Piece("x" * 65_536, 1)
                await asyncio.sleep(0)
        finally:
            self.closed.set()


async def test_a_client_that_doesnt_read_is_ended(start: Start) -> None:
    site = await start(Endless(), write_timeout=0.2)
    site.gateway.waiting.set()
    raw = msgspec.json.encode(CHAT | {"stream": True})
    with socket.create_connection(("127.0.0.1", site.server.port)) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        held.sendall(head.encode() + raw)
        await asyncio.wait_for(site.gateway.closed.wait(), WITHIN)


@pytest.mark.parametrize("hold", ["plan", "words"])
async def test_a_generation_over_its_time_is_ended(start: Start, hold: str) -> None:
    site = await start(FakeGateway(hold=hold), generation_timeout=0.05, grace=0.05)
    reply, body = await site.post(PATH, CHAT)
    assert (reply.status, body["error"]["code"]) == (503, "deadline_exceeded")
    assert site.gateway.closed.is_set()


async def test_a_body_that_never_comes_is_ended(start: Start) -> None:
    site = await start(body_timeout=0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode())
    line = await asyncio.wait_for(reader.readline(), WITHIN)
    assert b" 503 " in line
    writer.close()


async def test_a_second_head_that_never_ends_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "KEPT_OPEN", 0.2)
    site = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHost:")
    assert await asyncio.wait_for(reader.read(), WITHIN), "the first one is answered, then the connection ends"
    writer.close()


async def test_of_many_idle_connections_the_longest_waiting_goes() -> None:
    class Waiting(asyncio.Protocol):
        def __init__(self) -> None:
            self.transport: Waiting | None = self
            self.ended = False

        def abort(self) -> None:
            self.ended = True

    doorman, waiting = Doorman(idle=2), [Waiting() for _ in range(3)]
    for one in waiting:
        doorman.answered(one)
    assert [one.ended for one in waiting] == [True, False, False]
    waiting[2].transport = None  # it has gone by itself
    doorman.answered(Waiting())
    assert [one.ended for one in waiting] == [True, False, False]
    doorman.heard(waiting[1])
    doorman.answered(Waiting())
    assert [one.ended for one in waiting] == [True, False, False]


async def test_an_unforeseen_error_is_logged_without_its_text(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for late in (False, True):
        wrong = RuntimeError(f"could not parse {CANARY}")
        site = await start(FakeGateway(late=wrong) if late else FakeGateway(early=wrong))
        assert (await site.get(f"/health?q={CANARY}"))[0] == 200
        reply, body = await site.post(PATH, CHAT | {"stream": False})
        assert (reply.status, body["error"]["code"]) == (500, "internal")
        assert reply.headers["X-Request-Id"] in body["error"]["message"]
        assert CANARY not in str(body)
    _, events = await site.events(PATH, CHAT | {"stream": True})
    assert msgspec.json.decode(events[-1][1])["error"]["code"] == "internal"
    logged = [str(record.__dict__) for record in caplog.records]
    assert not [line for line in logged if CANARY in line]
    [first, *_] = [record for record in caplog.records if record.__dict__.get("event") == "http_internal_error"]
    assert first.__dict__["fields"]["kind"] == "RuntimeError"
    assert any("fake_gateway.py" in frame for frame in first.__dict__["fields"]["frames"])


async def test_bytes_that_arent_http_arent_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="node.http.wire")  # also where a test before set the level of `node`
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    writer.write(head.encode() + b"{}" + CANARY.encode() + b"\x00 is what I ask\r\n\r\n")
    replies = await asyncio.wait_for(reader.read(), WITHIN)
    writer.close()
    assert replies.startswith(b"HTTP/1.0 400 ")
    assert "http_connection" in [record.__dict__.get("event") for record in caplog.records]
    logged = [logging.Formatter().format(record) + str(record.__dict__) for record in caplog.records]
    assert not [line for line in logged if CANARY in line]


@pytest.mark.parametrize(
    "path", ["/v1/models/%ff%fe", "/v1/models/\xff\xfe", "/v1/models/%00", "/v1/models/%ed%a0%80", "/v1/models/a%0d%0ab", "/%2e%2e/x"]
)
async def test_hostile_paths_get_a_plain_answer(site: Site, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1"))
    reply = await asyncio.wait_for(reader.read(), WITHIN)
    writer.close()
    assert reply.split(b" ")[1] in (b"400", b"404")


async def test_each_request_is_one_line(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "node.http.app")
    reply, _ = await site.call("GET", "/v1/models", headers={"X-Request-Id": "mine-1"})
    await site.call("GET", "/health", headers={"X-Request-Id": "no good\t"})
    lines = [record.__dict__["fields"] for record in caplog.records if record.__dict__.get("event") == "http_request"]
    assert reply.headers["X-Request-Id"] == "mine-1"
    assert {"method": "GET", "path": "/v1/models", "status": 200, "request_id": "mine-1"}.items() <= lines[0].items()
    assert lines[1]["request_id"].startswith("req_")


async def test_a_port_in_use_is_a_conflict(site: Site) -> None:
    second = HttpServer(FakeGateway(), HttpSettings(port=site.server.port))
    with pytest.raises(Conflict, match="in use"):
        await second.start()
    await second.stop()


async def test_stop_ends_running_streams_quickly(start: Start) -> None:
    site = await start(FakeGateway(hold="words"))
    async with site.session.post(f"{site.server.url}{PATH}", json=CHAT | {"stream": True}) as reply:
        await reply.content.readuntil(b"Par")
        await asyncio.wait_for(site.server.stop(), WITHIN)
        with pytest.raises(aiohttp.ClientPayloadError):
            await reply.read()
    assert site.gateway.closed.is_set()
