"""What the API's doors cost: listing a hundred thousand models, checking credentials, and a good client's wait beside bad ones.

The server runs in a process of its own over a gateway without a node behind it, but with a node's list of models over signed cards in an
archive; the clients run in this one: latencies are those of HTTP on loopback. Bad clients: 2,000 connections that never finish their head,
streams that nobody reads, heads without end over and over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.bars import Bar
from node.model_index import ModelQuery

MODELS = 100_000
HALF_OPEN = 2_000
UNREAD = 64
ROUNDS = 5
QUERIES = (
    "search=llama&category=text-generation&sort=popularity&page=100",
    "search=kind3&sort=created_at",
    "category=feature-extraction&framework=safetensors&sort=size&order=asc",
    "min_parameters=1000000&sort=name&page=25&limit=20",
)


async def serve() -> None:
    """The child: a keyed server over an index, whose port and a token it prints."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from bench.many_cards import Kept, envelopes
    from node.accounts.accounts import Accounts
    from node.accounts.journal import Journal
    from node.gateway import ModelInfo
    from node.http.access import Access
    from node.http.app import HttpServer
    from node.http.settings import HttpSettings
    from tests.node.accounts.world import PASSWORD, FakeSwarm
    from tests.support.fake_gateway import FakeGateway

    class Listed(FakeGateway):
        async def page(self, query: ModelQuery) -> tuple[list[ModelInfo], int]:
            return await kept.list.page(query)

    kept = Kept()
    kept.take(envelopes(MODELS))
    await kept.fill()
    kept.compare()
    with tempfile.TemporaryDirectory() as folder:
        key = Ed25519PrivateKey.generate()
        swarm = FakeSwarm()
        accounts, journal = Accounts(Path(folder), key, swarm.of(_peer(key))), Journal(Path(folder), key)
        await journal.open()
        await accounts.open()
        user = await accounts.users.register("ann", "a@example.org", PASSWORD, "unlimited")
        token = accounts.sessions.token(user, bytes(16), accounts.home, ["inference", "models:read"], None, 3_600)
        gateway = Listed(words=["x" * 10_000] * 2_000)
        access = Access(accounts, journal, lambda who: {})
        server = HttpServer(gateway, HttpSettings(port=0, open=False, local=False), access)
        await server.start()
        print(json.dumps({"port": server.port, "token": token, **await _checks(accounts, token), **kept.figures}), flush=True)
        await asyncio.Event().wait()


def _peer(key: Any) -> Any:
    from protocol.signing import peer_of

    return peer_of(key)


async def _checks(accounts: Any, token: str) -> dict[str, float]:
    """Milliseconds of a token that was seen before, and of one that wasn't."""
    from node.accounts.authenticate import Shown

    async def body() -> bytes:
        return b""

    shown = Shown(f"Bearer {token}", "GET", "/", "192.0.2.1", body)
    fresh = []
    for _ in range(200):
        accounts.authenticator._checked.clear()
        began = time.perf_counter()
        await accounts.authenticator.caller(shown)
        fresh.append(time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(2_000):
        await accounts.authenticator.caller(shown)
    return {"token_first_ms": _p50(fresh), "token_ms": round((time.perf_counter() - began) / 2, 4)}


def _p50(seconds: list[float]) -> float:
    return round(sorted(seconds)[len(seconds) // 2] * 1000, 4)


def run() -> dict[str, Any]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8_192), hard))
    child = subprocess.Popen([sys.executable, "-m", "bench.doors", "serve"], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        return {**told, **asyncio.run(_measure(told["port"], told["token"])), "token": None}
    finally:
        child.terminate()
        child.wait(10)


async def _measure(port: int, token: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session:
        listing = await _listing(session)
        alone = await _latency(session)
        found: dict[str, Any] = {"list_p50_ms": listing, "alone_ms": alone}
        for name, bad in (("half_open", _half_open), ("unread", _unread), ("header_flood", _flood)):
            async with bad(port, token):
                found[f"beside_{name}"] = round(await _latency(session) / alone, 2)
        return found


async def _listing(session: aiohttp.ClientSession) -> float:
    took = []
    for number in range(ROUNDS * 8):
        began = time.perf_counter()
        async with session.get(f"/api/v1/models?{QUERIES[number % len(QUERIES)]}") as reply:
            assert reply.status == 200, await reply.text()
            await reply.read()
        took.append(time.perf_counter() - began)
    return _p50(took)


async def _latency(session: aiohttp.ClientSession) -> float:
    """Milliseconds, the best of a few medians: what others do on the machine isn't the server's."""
    medians = []
    for _ in range(ROUNDS):
        took = []
        for _ in range(100):
            began = time.perf_counter()
            async with session.get("/api/v1/models?limit=1") as reply:
                assert reply.status == 200
                await reply.read()
            took.append(time.perf_counter() - began)
        medians.append(_p50(took))
    return min(medians)


@asynccontextmanager
async def _half_open(port: int, token: str) -> AsyncIterator[None]:
    writers = []
    for _ in range(HALF_OPEN // 100):
        made = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(100)))
        for _, writer in made:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A: ")
            writers.append(writer)
    yield
    for writer in writers:
        writer.close()


@asynccontextmanager
async def _unread(port: int, token: str) -> AsyncIterator[None]:
    body = b'{"input": {"text": "a"}, "parameters": {"stream": true}}'
    head = (
        "POST /api/v1/models/ann%2Fdemo@1/inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writers = []
    for _ in range(UNREAD):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
        writer.write(head.encode() + body)
        writers.append(writer)
    await asyncio.sleep(1.0)  # until their windows are full
    yield
    for writer in writers:
        writer.close()


@asynccontextmanager
async def _flood(port: int, token: str) -> AsyncIterator[None]:
    lines = b"".join(b"X-%d: aaaaaaaa\r\n" % number for number in range(2_000))

    async def again() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + lines)
                await writer.drain()
                writer.close()
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(again()) for _ in range(8)]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def bars(found: dict[str, Any]) -> list[Bar]:
    times = [
        ("half_open", f"{HALF_OPEN} half-open connections"),
        ("unread", f"{UNREAD} streams nobody reads"),
        ("header_flood", "header floods"),
    ]
    memory = (found["archive_bytes"] + found["index_bytes"]) / 2**20
    return [
        Bar(f"list of {MODELS} models, filtered, sorted, p50", "≤ 20 ms", f"{found['list_p50_ms']:.2f} ms"),
        Bar(f"memory of {MODELS} models: cards {found['archive_bytes'] / 2**20:.0f} MiB, index the rest", "shown", f"{memory:.0f} MiB"),
        Bar(f"comparing an archive of {MODELS} cards with a peer's, one bucket apart", "shown", f"{found['compare_ms']:.2f} ms"),
        Bar("token check, seen before", "≤ 0.5 ms", f"{found['token_ms']:.4f} ms"),
        Bar("token check, the first time", "≤ 0.5 ms", f"{found['token_first_ms']:.4f} ms"),
        *(Bar(f"a good client's latency beside {what}", "≤ 2 ×", f"{found[f'beside_{name}']} ×") for name, what in times),
    ]


if __name__ == "__main__":
    asyncio.run(serve())
