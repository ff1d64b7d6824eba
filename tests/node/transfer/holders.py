"""Small HTTPS servers that hold one shard each and speak the data plane's wire format, honestly or not."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from node.transfer.jobs import Source
from node.transfer.sources import Access, Callbacks, Evidence
from node.transfer.windows import body_bytes
from protocol import limits
from protocol.encoding import leaf_digests
from protocol.errors import Forbidden, Unavailable
from protocol.grants import grant_from_header
from protocol.signing import peer_of, sign_bytes
from protocol.windows import DOMAIN, window_body

ENDLESS = 1 << 40


def certificate(folder: Path) -> tuple[ssl.SSLContext, bytes]:
    """A server context with a fresh self-signed certificate, and its SHA-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "holder")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "holder.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, made.fingerprint(hashes.SHA256())


@dataclass
class Holder:
    """`manner`: honest, lies, lies_in_list, mute, stalls, trickles, dies, endless, random or refuses; `after` windows of honesty.

    endless: the body announces and sends more than the shard has; random: breaks off at any place, now after a bit, now after much.
    """

    encoding: bytes
    shard: int
    content: bytes
    manner: str = "honest"
    after: int = 0
    put: bytes = b""
    asked: int = 0
    url: str = ""
    tls: bytes = b""
    _runner: web.AppRunner | None = None
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.peer = str(peer_of(self.key))
        self._random = Random(self.shard)
        self.leaves = b"".join(leaf_digests(self.content))

    @property
    def source(self) -> Source:
        return Source(peer=self.peer, shard=self.shard)

    async def start(self, context: ssl.SSLContext, tls: bytes) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes([web.get("/shard/{encoding}/{shard}", self._get), web.put("/shard/{encoding}/{shard}", self._take)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"
        self.tls = tls

    async def stop(self) -> None:
        self._open.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        assert grant_from_header(request.headers["MF-Grant"]) == self.peer.encode()
        if self.manner == "refuses":
            return web.json_response(Forbidden("that grant is for another node").to_wire(), status=403)
        if self.manner == "mute":
            await self._open.wait()
        response = web.StreamResponse()
        first, count = int(request.query["first"]), int(request.query["count"])
        leaves = len(self.leaves) if "leaves" in request.query else 0
        response.content_length = leaves + body_bytes(len(self.content), first, count) + (ENDLESS if self.manner == "endless" else 0)
        await response.prepare(request)
        if leaves:
            await response.write(self.leaves[::-1] if self.manner == "lies_in_list" else self.leaves)
        await self._windows(request, response, first, first + count)
        if self.manner == "endless":
            while True:
                await response.write(bytes(limits.LEAF))
                await asyncio.sleep(0)
        await response.write_eof()
        return response

    async def _windows(self, request: web.Request, response: web.StreamResponse, first: int, end: int) -> None:
        for sent, leaf in enumerate(range(first, end, limits.WINDOW_LEAVES)):
            count = min(limits.WINDOW_LEAVES, end - leaf)
            data = bytearray(self.content[leaf * limits.LEAF : (leaf + count) * limits.LEAF])
            manner = self.manner if sent >= self.after else "honest"
            if manner == "lies":
                data[len(data) // 2] ^= 1
            if manner == "dies":
                await response.write(data[: len(data) // 2])
                assert request.transport is not None
                request.transport.abort()
                return
            if manner == "random":
                await response.write(data[: self._random.randrange(len(data))])
                assert request.transport is not None
                (request.transport.abort if self._random.random() < 0.5 else request.transport.close)()
                return
            if manner == "stalls":
                await response.write(data[:1000])
                await self._open.wait()
            digests = b"".join(leaf_digests(data))
            signature = sign_bytes(self.key, DOMAIN, window_body(self.encoding, self.shard, leaf, count, digests))
            await self._send(response, bytes(data) + signature, manner)

    async def _send(self, response: web.StreamResponse, data: bytes, manner: str) -> None:
        if manner != "trickles":
            await response.write(data)
            return
        for at in range(0, len(data), 20_000):
            await response.write(data[at : at + 20_000])
            await asyncio.wait([asyncio.ensure_future(self._open.wait())], timeout=0.1)

    async def _take(self, request: web.Request) -> web.StreamResponse:
        if self.manner == "refuses":
            await request.read()
            return web.json_response(Unavailable("no room for strangers").to_wire(), status=503)
        if self.manner == "stalls":
            await self._open.wait()
        self.put = await request.read()
        return web.Response(status=201)


class Node:
    """The node's end of the callbacks: grants, faults, progress."""

    def __init__(self, holders: list[Holder]) -> None:
        self._holders = {holder.peer: holder for holder in holders}
        self.faults: list[tuple[str, int, Evidence | None]] = []
        self.progress: list[tuple[int, int]] = []
        self.callbacks = Callbacks(self._need_grant, self._leaf_fault, self._progress)

    async def _need_grant(self, peer: str, encoding: bytes, shards: list[int]) -> Access:
        holder = self._holders[peer]
        assert encoding == holder.encoding
        if holder.manner == "no grant":
            raise Forbidden("this node lends nothing")
        return Access(urls=["https://127.0.0.1:1", holder.url], tls=holder.tls, grant=peer.encode())

    async def _leaf_fault(self, peer: str, encoding: bytes, shard: int, reason: str, evidence: Evidence | None) -> None:
        self.faults.append((peer, shard, evidence))

    async def _progress(self, job: str, done: int, total: int) -> None:
        self.progress.append((done, total))
