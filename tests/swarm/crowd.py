"""A crowd at one address, run in a network namespace: `python -m tests.swarm.crowd FOLDER COUNT [MODEL-FOLDER]`.

A keyed node listens on 192.0.2.1. From 192.0.2.2 come COUNT identities that nobody has seen, each with a home of its own that
vouches for it, by turns with a token, with a token narrowed by a key, and with a signed request; they ask by every way that costs
something. Then COUNT registrations, the accounts that came of them, and COUNT made-up keys. At the end somebody at 192.0.2.3 asks once.
Says as JSON what was answered how often.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.accounts.credentials import key_text
from protocol import tokens
from protocol.ids import PeerId, public_from_peer
from protocol.signing import peer_of
from tests.support.own_network import bring_up
from tests.support.processes import Node

NODE, CROWD, OTHER = "192.0.2.1", "192.0.2.2", "192.0.2.3"
AT_ONCE = 4
"""Fewer than an allowance lets through at once, so that only its hour is spent."""
PASSWORD = "correct horse 9"


def _fresh() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def _public(key: Ed25519PrivateKey) -> bytes:
    return public_from_peer(peer_of(key))


def _link(**more: Any) -> tokens.Link:
    now = int(time.time())
    given = {"id": os.urandom(16), "account": _public(_fresh()), "scopes": ["inference"], "issued": now, "expires": now + 600}
    return tokens.Link(**{**given, **more})


def identity(number: int, node: PeerId, path: str, body: bytes) -> str:
    """The `Authorization` of a new identity of a new home."""
    home, key = _fresh(), _fresh()
    if number % 3 == 0:
        return f"Bearer {tokens.token_text([tokens.seal_link(home, _link(audience=node))])}"
    first = _link(holder=_public(key))
    parent = tokens.seal_link(home, first)
    if number % 3 == 1:
        last = _link(account=first.account, audience=node, expires=first.expires)
        return f"Bearer {tokens.token_text([parent, tokens.narrow(key, parent, last)])}"
    return tokens.sign_request(key, node, "POST", path, body, int(time.time()), os.urandom(16), [parent])


def question(number: int, model: str) -> tuple[str, Any]:
    """By turns every way to ask that an allowance pays for."""
    ways = (
        ("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
        ("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1}),
        ("/v1/responses", {"model": model, "input": "a", "max_output_tokens": 1}),
        (f"/api/v1/models/{model}/inference", {"input": {"text": "a", "max_tokens": 1}}),
        (f"/api/v1/models/{model}/inference", {"input": {"text": "a", "max_tokens": 1}, "parameters": {"async": True}}),
        (f"/api/v1/models/{model}/inference/batch", {"inputs": [{"id": "x", "text": "a", "max_tokens": 1}]}),
    )
    return ways[number % len(ways)]


class Crowd:
    def __init__(self, node: Node, session: aiohttp.ClientSession, model: str) -> None:
        self._node = node
        self._session = session
        self._model = model

    async def ask(self, path: str, body: bytes, credential: str | None) -> tuple[str, dict[str, Any]]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": credential} if credential else {})
        async with self._session.post(f"{self._node.url}{path}", data=body, headers=headers) as reply:
            answer = json.loads(await reply.read())
            code = answer["error"]["code"] if reply.status >= 400 else "good"
            told = " with Retry-After" if int(reply.headers.get("Retry-After", 0)) > 0 else ""
            return f"{reply.status} {code}{told}", answer

    async def all(self, count: int, one: Callable[[int], Awaitable[str]]) -> dict[str, int]:
        """How often each answer came to `count` of them."""
        numbers, seen = iter(range(count)), Counter[str]()

        async def line() -> None:
            for number in numbers:
                seen[await one(number)] += 1

        await asyncio.gather(*(line() for _ in range(AT_ONCE)))
        return dict(seen)

    async def identity(self, number: int) -> str:
        path, asked = question(number, self._model)
        body = json.dumps(asked).encode()
        return (await self.ask(path, body, identity(number, PeerId(self._node.peer_id), path, body)))[0]

    async def made_up_key(self, number: int) -> str:
        path, asked = question(number, self._model)
        key = key_text(PeerId(self._node.peer_id), os.urandom(32))
        return (await self.ask(path, json.dumps(asked).encode(), f"Bearer {key}"))[0]

    async def register(self, number: int, keys: list[str]) -> str:
        body = {"username": f"user{number}", "email": f"u{number}@example.org", "password": PASSWORD}
        said, answer = await self.ask("/api/v1/auth/register", json.dumps(body).encode(), None)
        if said.startswith("201"):
            keys.append(answer["data"]["api_key"])
        return said

    async def with_key(self, number: int, keys: list[str]) -> str:
        path, asked = question(number, self._model)
        return (await self.ask(path, json.dumps(asked).encode(), f"Bearer {keys[number % len(keys)]}"))[0]


def resident(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


async def scene(node: Node, count: int, model: str) -> dict[str, Any]:
    def session(address: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0)))

    async with session(CROWD) as at_one_address, session(OTHER) as elsewhere:
        crowd, other = Crowd(node, at_one_address, model), Crowd(node, elsewhere, model)
        warm, began, keys = await other.all(12, other.identity), time.monotonic(), list[str]()
        before = resident(node.pid)
        told: dict[str, Any] = {
            "identities": await crowd.all(count, crowd.identity),
            "registrations": await crowd.all(count, lambda number: crowd.register(number, keys)),
            "accounts": await crowd.all(len(keys), lambda number: crowd.with_key(number, keys)),
            "keys": await crowd.all(count, crowd.made_up_key),
        }
        more = {"warm": warm, "seconds": time.monotonic() - began, "grown": resident(node.pid) - before}
        return {**told, **more, "elsewhere": await other.all(1, other.identity)}


def main(folder: Path, count: int, model: Path | None) -> None:
    bring_up(NODE, CROWD, OTHER)
    node = Node(folder / "node", "--http", f"{NODE}:0", "--http-access", "keyed", "--insecure-http")
    node.start()
    try:
        name = "nothing"
        if model is not None:
            node.cli("publish", str(model), "--name", "crowded", timeout=60.0)
            name = "crowded"
        print(json.dumps(asyncio.run(scene(node, count, name))))
    finally:
        node.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
