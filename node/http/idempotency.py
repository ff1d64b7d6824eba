"""`Idempotency-Key`: the same request sent again, after a connection was lost, is answered again and not run again.

Per caller, method and path, for an hour. The same key with another body is a mistake worth telling, and one whose first request is still
being worked on waits for it nowhere: 409. Failures aren't kept: trying again is what the key is for.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from node.http.kept import Kept
from node.http.metering import caller
from protocol.errors import BadInput, Conflict
from protocol.ids import digest

HEADER = "Idempotency-Key"
REPLIES: web.AppKey[Idempotent] = web.AppKey("idempotent", object)  # type: ignore[arg-type]
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_HASH = 32


class Idempotent:
    def __init__(self) -> None:
        self._kept = Kept(most=32 << 20)
        self._running: set[tuple[str, bytes]] = set()

    async def answer(self, request: web.Request, make: Callable[[], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """`make`'s reply, or the one it gave to the same key before."""
        key = request.headers.get(HEADER)
        if key is None:
            return await make()
        if not _KEY.fullmatch(key):
            raise BadInput("Idempotency-Key has 1 to 128 printable characters without spaces", details={"param": HEADER})
        who = caller().who
        name = digest(f"{request.method} {request.rel_url.raw_path_qs} {key}".encode())
        body = digest(await request.read())
        before = self._kept.get(who, name)
        if before is not None:
            return _again(before, body)
        if (who, name) in self._running:
            raise Conflict("a request with this Idempotency-Key is being worked on", hint="ask again in a moment")
        self._running.add((who, name))
        try:
            reply = await make()
        finally:
            self._running.discard((who, name))
        if isinstance(reply, web.Response) and reply.status < 300 and isinstance(reply.body, bytes):
            self._kept.put(who, name, body + reply.status.to_bytes(2, "big") + reply.body)
        return reply


def _again(before: bytes, body: bytes) -> web.Response:
    if before[:_HASH] != body:
        raise Conflict("this Idempotency-Key came with another body before", hint="a key for each request", details={"param": HEADER})
    status = int.from_bytes(before[_HASH : _HASH + 2], "big")
    return web.Response(status=status, body=before[_HASH + 2 :], content_type="application/json", headers={"Idempotency-Replayed": "true"})
