"""The data plane: shards and blobs over HTTPS, for holders of a grant.

    GET /shard/{encoding}/{j}?first=a&count=c[&leaves=1]   leaf list if asked, then signed windows
    PUT /shard/{encoding}/{j}                              leaf list, then the shard; 201 once durable
    GET /blob/{hex id}                                     a manifest or an encoding, whole

Answers are streamed a window (1 MiB) at a time: one read, hash and signature in the executor while the window before
is being sent. `FileResponse` is eight times slower over TLS. Every wait on a client has a deadline, requests and
connections are counted, and at most two windows a request are in memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.interface import ShardInfo, ShardKey, ShardReader, ShardStore
from node.transfer.admission import ExpectedPuts, Grants, OpenGrant
from node.transfer.finishing import to_the_end
from node.transfer.intake import Shapes, take_in
from node.transfer.windows import body_bytes, signed_window, span_bytes
from protocol import limits
from protocol.encoding import leaf_count
from protocol.errors import BadInput, Busy, MfError, NotFound, TooLarge
from protocol.grants import grant_from_header
from protocol.ids import encoding_from
from protocol.signing import peer_of
from protocol.windows import SIGNATURE

log = logging.getLogger(__name__)

MAX_REQUESTS = 64
MAX_CONNECTIONS = 256
WRITE_TIMEOUT = 20.0
Stored = Callable[[ShardInfo], Awaitable[None]]


def error_response(error: MfError) -> web.Response:
    return web.Response(status=error.status, text=json.dumps(error.to_wire(), default=str), content_type="application/json")


def tls_context(key: bytes, certificate: bytes) -> ssl.SSLContext:
    """TLS 1.2 or newer from PEM; the key is in a file only while OpenSSL reads it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory(prefix="mf-tls-") as folder:
        path = Path(folder) / "pem"
        path.touch(mode=0o600)
        path.write_bytes(key + b"\n" + certificate)
        context.load_cert_chain(path)
    return context


class TransferServer:
    """Serves `store`. `stored` is awaited after a peer's put is durable, before the 201."""

    def __init__(self, store: ShardStore, signer: Ed25519PrivateKey, executor: Executor, expected: ExpectedPuts, stored: Stored) -> None:
        self._store, self._signer, self._executor = store, signer, executor
        self._expected, self._stored = expected, stored
        self._grants = Grants(peer_of(signer), time.monotonic, time.time)
        self._shapes = Shapes(store, executor)
        self._running = 0
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self.write_timeout = WRITE_TIMEOUT
        self.requests = 0

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listens; the port. `Conflict`-like faults of the socket come as OSError to the caller."""
        app = web.Application(middlewares=[self._boundary])
        app.router.add_get("/shard/{encoding}/{shard}", self._get_shard, allow_head=False)
        app.router.add_put("/shard/{encoding}/{shard}", self._put_shard)
        app.router.add_get("/blob/{blob}", self._get_blob, allow_head=False)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=0.5,
            keepalive_timeout=30,
            lingering_time=1,
            read_bufsize=limits.MIB,
        )
        await self._runner.setup()
        self._listener = await asyncio.get_running_loop().create_server(
            self._connection, host, port, ssl=context, ssl_handshake_timeout=10, ssl_shutdown_timeout=1, backlog=256
        )
        return int(self._listener.sockets[0].getsockname()[1])

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server if self._runner is not None else None
        if server is None or len(server.connections) >= MAX_CONNECTIONS:
            return _Refusal()
        return server()

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _boundary(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if self._running >= MAX_REQUESTS:
            return error_response(Busy(f"{MAX_REQUESTS} transfers are running at this node", hint="try again in a moment"))
        self._running += 1
        self.requests += 1
        try:
            return await handler(request)
        except MfError as error:
            response = error_response(error)
        except web.HTTPException as error:
            response = error_response(NotFound("no such path") if error.status == 404 else BadInput(error.reason))
        except ConnectionError:
            raise
        except Exception:  # boundary: one request's fault is answered and logged, the server lives on
            log.exception("a transfer request failed")
            response = error_response(MfError("the request failed at this node"))
        finally:
            self._running -= 1
        if request.can_read_body:
            response.force_close()
        return response

    async def _get_shard(self, request: web.Request) -> web.StreamResponse:
        key = _key(request)
        grant = self._grants.admit(_grant(request), "get", key)
        first, count = _number(request, "first", 0), _number(request, "count", -1)
        listed = request.query.get("leaves") == "1"
        begun = await to_the_end(asyncio.get_running_loop().run_in_executor(self._executor, self._begin, key, first, count, listed))
        if begun is None:
            raise NotFound(f"shard {key.shard} of {request.match_info['encoding']} isn't held here")
        try:
            return await self._send_shard(request, grant, key, begun)
        finally:
            begun.reader.close()

    def _begin(self, key: ShardKey, first: int, count: int, listed: bool) -> _Begun | None:
        """In the executor, at one go: many a shard of a small group is read whole here."""
        reader = self._store.open_shard(key)
        if reader is None:
            return None
        try:
            count = leaf_count(reader.length) - first if count < 0 else count
            size = span_bytes(reader.length, first, count)
            leaves = reader.leaves() if listed else b""
            window = signed_window(reader, self._signer, key, first, min(limits.WINDOW_LEAVES, count), leaves)
            return _Begun(reader, first, count, size, len(leaves), window)
        except BaseException:
            reader.close()
            raise

    async def _send_shard(self, request: web.Request, grant: OpenGrant, key: ShardKey, begun: _Begun) -> web.StreamResponse:
        reader, first, count, size = begun.reader, begun.first, begun.count, begun.size
        self._grants.charge(grant, size)
        left = size
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = begun.listed + body_bytes(reader.length, first, count)
            await response.prepare(request)
            second = first + limits.WINDOW_LEAVES
            async with aclosing(self._windows(reader, key, second, first + count)) as windows:
                await anext(windows)
                await self._send(request, response, begun.window)
                left -= len(begun.window) - begun.listed - SIGNATURE
                async for window in windows:
                    await self._send(request, response, window)
                    left -= len(window) - SIGNATURE
            await response.write_eof()
        finally:
            self._grants.refund(grant, left)
        return response

    async def _windows(self, reader: ShardReader, key: ShardKey, first: int, end: int) -> AsyncGenerator[bytearray, None]:
        """Signed windows from leaf `first` on, each read while the one before is sent; the first thing yielded is empty."""
        loop = asyncio.get_running_loop()

        def begin(at: int) -> asyncio.Future[bytearray]:
            leaves = min(limits.WINDOW_LEAVES, end - at)
            return loop.run_in_executor(self._executor, signed_window, reader, self._signer, key, at, leaves)

        if first >= end:
            yield bytearray()
            return
        coming = begin(first)
        try:
            yield bytearray()
            for at in range(first, end, limits.WINDOW_LEAVES):
                window = await asyncio.shield(coming)
                if at + limits.WINDOW_LEAVES < end:
                    coming = begin(at + limits.WINDOW_LEAVES)
                yield window
        finally:
            # The reader is closed after this: no thread may be in it any more.
            await asyncio.shield(asyncio.wait([coming]))

    async def _send(self, request: web.Request, response: web.StreamResponse, data: bytes | bytearray) -> None:
        """Hands bytes to the connection; one that takes none for `write_timeout` is cut."""
        try:
            async with asyncio.timeout(self.write_timeout):
                await response.write(data)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError(f"the client took nothing for {self.write_timeout} s") from None

    async def _put_shard(self, request: web.Request) -> web.StreamResponse:
        key = _key(request)
        grant = self._grants.admit(_grant(request), "put", key)
        put = self._expected.find(key)
        shape = await self._shapes.of(key.encoding)
        _check_length(request, shape.body_bytes)
        self._grants.charge(grant, shape.shard_bytes)
        try:
            info = await take_in(self._store, self._executor, put, shape, request.content)
        except BaseException:
            self._grants.refund(grant, shape.shard_bytes)
            raise
        self._expected.done(key)
        await self._stored(info)
        return web.json_response({"bytes": info.bytes}, status=201)

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        text = request.match_info["blob"]
        try:
            blob = bytes.fromhex(text) if len(text) == 64 else b""
        except ValueError:
            blob = b""
        if len(blob) != 32:
            raise BadInput("a blob's id is 64 hex digits")
        data = await asyncio.get_running_loop().run_in_executor(self._executor, self._store.get_blob, blob)
        if data is None:
            raise NotFound(f"the blob {text} isn't held here")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = len(data)
        await response.prepare(request)
        view = memoryview(data)
        for at in range(0, len(data), limits.MIB):
            await self._send(request, response, bytes(view[at : at + limits.MIB]))
        await response.write_eof()
        return response


@dataclass(frozen=True)
class _Begun:
    """A shard being read, `size` bytes from leaf `first` on. `window`: the leaf list (`listed` bytes) and the first signed window."""

    reader: ShardReader
    first: int
    count: int
    size: int
    listed: int
    window: bytearray


class _Refusal(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _key(request: web.Request) -> ShardKey:
    text = request.match_info["shard"]
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) < limits.MAX_SHARDS):
        raise BadInput(f"not a shard number below {limits.MAX_SHARDS}: {text[:16]!r}")
    return ShardKey(encoding_from(request.match_info["encoding"]), int(text))


def _grant(request: web.Request) -> bytes:
    return grant_from_header(request.headers.get("MF-Grant", ""))


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadInput(f"{name} is {text[:16]!r}, not a number of leaves")
    return int(text)


def _check_length(request: web.Request, expected: int) -> None:
    length = request.content_length
    if length is None:
        raise BadInput("a put needs a Content-Length")
    if length > expected:
        raise TooLarge(f"the body has {length} bytes, leaf list and shard have {expected}")
    if length != expected:
        raise BadInput(f"the body has {length} bytes, leaf list and shard have {expected}")
