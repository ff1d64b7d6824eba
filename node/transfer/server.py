"""The data plane: shards and blobs over HTTPS, for holders of a grant.

    GET /shard/{encoding}/{j}?first=a&count=c[&leaves=1]   leaf list if asked, then signed windows
    PUT /shard/{encoding}/{j}                              leaf list, then the shard; 201 once durable
    GET /blob/{hex id}                                     a manifest or an encoding, whole

A connection begins in `door.py`, which answers the first of these itself and gives the second to `put_door.py`. Every wait on a client
has a deadline, requests and connections are counted, and one window a request is in memory, two of a put.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path

from aiohttp import StreamReader, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.store.interface import ShardStore
from node.transfer.admission import ExpectedPuts, Grants
from node.transfer.door import WRITE_TIMEOUT, Door, error_body
from node.transfer.put_door import SILENT_AT_MOST, PutDoor
from node.transfer.receiving import Receiving, Stored
from node.transfer.serving import Bytes, Closable, Gate, ShardRequest, ShardServing, shard_key
from node.transfer.upkeep import Reads
from protocol import limits
from protocol.errors import BadInput, DeadlineExceeded, MfError, NotFound
from protocol.signing import peer_of

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256


def error_response(error: MfError) -> web.Response:
    return web.Response(status=error.status, body=error_body(error), content_type="application/json")


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
        grants = Grants(peer_of(signer), time.monotonic, time.time)
        self._gate = Gate()
        self._serving = ShardServing(store, signer, executor, grants)
        self._receiving = Receiving(store, executor, grants, expected, stored)
        self._doors: set[Closable] = set()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self.write_timeout = WRITE_TIMEOUT

    @property
    def reads(self) -> Reads:
        return self._serving.reads

    @property
    def requests(self) -> int:
        return self._gate.requests

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
        if server is None or len(server.connections) + len(self._doors) >= MAX_CONNECTIONS:
            return _Refusal()
        return self._door(server)

    def _door(self, application: Callable[[], asyncio.Protocol]) -> Door:
        def take_over(transport: asyncio.Transport, begun: bytes) -> None:
            PutDoor(self._receiving, self._gate, lambda: self._door(application), self._doors).take_over(transport, begun)

        door = Door(self._serving, self._gate, application, take_over, self._doors)
        door.write_timeout = self.write_timeout
        return door

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for door in list(self._doors):
            door.close()
        self._serving.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _boundary(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        try:
            with self._gate.entered():
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
        if request.can_read_body:
            response.force_close()
        return response

    async def _get_shard(self, request: web.Request) -> web.StreamResponse:
        """On a connection that began with another request; see `door.py` for all others."""
        out = _Response(request, self.write_timeout)
        path = request.match_info
        await self._serving.serve(ShardRequest.parse(path["encoding"], path["shard"], request.query_string, _grant(request)), out)
        return out.response

    async def _put_shard(self, request: web.Request) -> web.StreamResponse:
        """On a connection that began with another request; see `put_door.py` for all others."""
        key = shard_key(request.match_info["encoding"], request.match_info["shard"])
        info = await self._receiving.take(key, _grant(request), request.content_length, _Body(request.content))
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
        out = _Response(request, self.write_timeout)
        await out.begin(len(data))
        for at in range(0, len(data), limits.MIB):
            await out.send(data[at : at + limits.MIB])
        return out.response


class _Response:
    """The application's way to answer, as an `Out`."""

    def __init__(self, request: web.Request, write_timeout: float) -> None:
        self._request, self._timeout = request, write_timeout
        self.response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})

    async def begin(self, length: int) -> None:
        self.response.content_length = length
        await self.response.prepare(self._request)

    async def send(self, data: Bytes) -> None:
        """Hands bytes to the connection; one that takes none for `write_timeout` is cut."""
        try:
            async with asyncio.timeout(self._timeout):
                await self.response.write(data)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError(f"the client took nothing for {self._timeout} s") from None


class _Body:
    """The application's way to give a request's body, as a `Body`."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader

    async def fill(self, view: memoryview) -> None:
        try:
            async with asyncio.timeout(SILENT_AT_MOST):
                view[:] = await self._reader.readexactly(len(view))
        except TimeoutError:
            raise DeadlineExceeded(f"the client sent too little within {SILENT_AT_MOST:g} s") from None
        except asyncio.IncompleteReadError as error:
            raise BadInput(f"the body ends {len(view) - len(error.partial)} bytes early") from error


class _Refusal(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _grant(request: web.Request) -> str:
    return request.headers.get("MF-Grant", "")
