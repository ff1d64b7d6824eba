"""What the HTTP address costs: its own time on a chat, and what many streams at once take. `python -m bench gateway`.

A real node's process is asked over loopback. Its own time is the client's clock less the engine's, by two engines: one that answers at
once, so that all is the gateway's, and the real one with a small model whole on this node, which tells its own time in each reply
(`total`: plan, tokens and text, as `node/generate.py` has them). Then 500 streams that begin and fall silent are held open
while 100 more are read, a token each 50 ms: every one must come whole, and PSS of the node with all its children is watched.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from bench.bars import Bar
from bench.memory import MIB, Peak
from bootstrap.demo_model import demo_model
from tests.support.processes import Node

IDLE, ACTIVE, ROUNDS = 500, 100, 3
TOKENS = 60
REQUESTS = 300
_PATH = "/v1/chat/completions"
_WITHIN = 60.0


def _body(model: str, tokens: int, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": tokens, "stream": stream}


class Caller:
    """One kept connection, as a client of the API has it."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_WITHIN)

    def ask(self, body: dict[str, Any]) -> tuple[float, float]:
        """Seconds to the last byte of the reply; milliseconds that the engine says it took."""
        data = json.dumps(body)
        began = time.perf_counter()
        self._connection.request("POST", _PATH, data, {"Content-Type": "application/json"})
        reply = self._connection.getresponse()
        read = reply.read()
        seconds = time.perf_counter() - began
        assert reply.status == 200, read[:500]
        if body["stream"]:
            last = json.loads(read.strip().split(b"\n\n")[-2].removeprefix(b"data: "))
            return seconds, float(last["mf"]["timings_ms"]["total"])
        [total] = [part for part in reply.headers["Server-Timing"].split(", ") if part.startswith("total;")]
        return seconds, float(total.partition("dur=")[2])


def own_times(node: Node, model: str, tokens: int, stream: bool, count: int) -> list[float]:
    """Milliseconds of each request that weren't the engine's."""
    caller, body = Caller(node.url), _body(model, tokens, stream)
    for _ in range(20):
        caller.ask(body)
    times = []
    for _ in range(count):
        seconds, engines = caller.ask(body)
        times.append(1000 * seconds - engines)
    return times


async def crowd(node: Node) -> dict[str, Any]:
    """Holds the idle ones while the active ones are read, `ROUNDS` times."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=_WITHIN)
    errors: list[str] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        with Peak(node.pid) as quiet:
            await asyncio.sleep(1)
        with Peak(node.pid) as peak:
            held = await asyncio.gather(*(_begin(session, node.url, errors) for _ in range(IDLE)))
            began = time.monotonic()
            for _ in range(ROUNDS):
                await asyncio.gather(*(_read(session, node.url, errors) for _ in range(ACTIVE)))
            seconds = time.monotonic() - began
            errors += ["an idle stream ended" for reply in held if reply is not None and reply.content.at_eof()]
        for reply in held:
            if reply is not None:
                reply.close()
    rise = peak.bytes - quiet.bytes
    return {"errors": len(errors), "kinds": sorted(set(errors))[:5], "rise_mib": round(rise / MIB), "seconds": seconds / ROUNDS}


async def _begin(session: aiohttp.ClientSession, url: str, errors: list[str]) -> aiohttp.ClientResponse | None:
    try:
        reply = await session.post(url + _PATH, json=_body("idle", TOKENS, True))
        if reply.status != 200 or b"begun" not in await reply.content.readuntil(b"begun"):
            errors.append(f"HTTP {reply.status}")
        return reply
    except (aiohttp.ClientError, TimeoutError) as error:
        errors.append(f"{type(error).__name__}: {error}")
        return None


async def _read(session: aiohttp.ClientSession, url: str, errors: list[str]) -> None:
    try:
        async with session.post(url + _PATH, json=_body("paced", TOKENS, True)) as reply:
            read = await reply.read()
        if reply.status != 200 or read.count(b'"word ') != TOKENS - 1 or not read.endswith(b"data: [DONE]\n\n"):
            errors.append(f"HTTP {reply.status}, {read.count(b'word ')} tokens")
    except (aiohttp.ClientError, TimeoutError) as error:
        errors.append(f"{type(error).__name__}: {error}")


def measure(folder: Path, requests: int) -> dict[str, Any]:
    node = Node(folder / "node", module="bench.paced_node").start()
    try:
        found: dict[str, Any] = {"bench": "gateway", "requests": requests}
        found["instant_ms"] = _spread(own_times(node, "instant", 1, False, requests))
        found["instant_stream_ms"] = _spread(own_times(node, "instant", 16, True, requests))
        found["crowd"] = asyncio.run(crowd(node))
        model = node.cli("publish", str(demo_model()), "--name", "demo", timeout=240.0)["name"]
        found["engine_ms"] = _spread(own_times(node, model, 4, False, requests // 3))
        found["engine_stream_ms"] = _spread(own_times(node, model, 4, True, requests // 3))
        return found
    finally:
        node.kill()


def _spread(times: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(times), 2), "p95": round(statistics.quantiles(times, n=20)[-1], 2)}


def run(requests: int = REQUESTS) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mf-bench-") as folder:
        return measure(Path(folder), requests)


def bars(found: dict[str, Any]) -> list[Bar]:
    ways = {
        "instant_ms": "an engine that answers at once",
        "instant_stream_ms": "the same, 16 tokens streamed",
        "engine_ms": "the engine's own 4 tokens of the demo model",
        "engine_stream_ms": "the same, streamed",
    }
    crowd = found["crowd"]
    return [
        *(Bar(f"gateway's own time on a chat over {what}, p50", "≤ 3 ms", f"{found[name]['p50']} ms") for name, what in ways.items()),
        Bar(f"{IDLE} idle streams and {ACTIVE} read: errors", "0", f"{crowd['errors']}"),
        Bar("the same: rise of PSS", "≤ 200 MiB", f"{crowd['rise_mib']} MiB"),
    ]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
