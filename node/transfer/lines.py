"""HTTPS lines to other nodes' data planes, for reading shards and for putting them.

A client spends more on moving bytes between buffers than on opening TLS: aiohttp hands out every record as an object of its own, which
is then joined and copied. Here each record is opened straight into the window's buffer. That is worth some lines of
HTTP/1.1 on our own wire: one GET or PUT, a head, a Content-Length. Rejected: blocking sockets in threads, which fight for the interpreter's
lock at every record (100,000 system calls for 256 MiB).

A wait ends when nothing came for `patience` seconds. A line whose waiting was cancelled may only be closed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

from protocol import limits

CONNECT_WITHIN = 3.0
SILENT_AT_MOST = 10.0
IDLE_AT_MOST = 20.0
"""Less than the server's keep-alive, so that a line is seldom taken up just as it is closed."""

UNSENT_AT_MOST = 64 * limits.KIB
MAX_HEAD = 4 * limits.KIB
MAX_IDLE = 512
_HOST = re.compile(r"[A-Za-z0-9.:_-]{1,255}")
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3})(?: [^\r\n]*)?")


Bytes = bytes | bytearray | memoryview


class Broken(Exception):
    """The line can't be used (any more); says why, to follow the peer's name."""


class OtherCertificate(Broken):
    """Somebody else answers at that address."""


class Line(asyncio.BufferedProtocol):
    """One connection; one request at a time. `status` and `left`, the body's bytes still to come, are the last answer's."""

    def __init__(self, base: str, pin: bytes) -> None:
        self.base = base
        self.status = 0
        self.left = 0
        self.idle_since = 0.0
        self.used = False
        self.patience = SILENT_AT_MOST
        self._pin = pin
        self._transport: asyncio.Transport | None = None
        self._head = memoryview(bytearray(MAX_HEAD))
        self._target = self._head
        self._filled = 0
        self._over = b""
        self._keep = True
        self._lost: str | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._unsent: asyncio.Future[None] | None = None
        self._heard: Callable[[int], None] = _unheard
        self._last = 0.0

    @property
    def reusable(self) -> bool:
        return self._keep and self.left == 0 and not self._over and self._lost is None

    async def open(self) -> None:
        """Connects and checks the certificate, before a byte is sent or believed."""
        host, port = _place(self.base)
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                await asyncio.get_running_loop().create_connection(lambda: self, host, port, ssl=_context())
        except TimeoutError:
            raise Broken(f"can't be reached ({self.base}: no answer within {CONNECT_WITHIN:g} s)") from None
        except OSError as error:
            raise Broken(f"can't be reached ({self.base}: {error.strerror or type(error).__name__})") from error
        tls = self._connected().get_extra_info("ssl_object")
        if hashlib.sha256(tls.getpeercert(binary_form=True) or b"").digest() != self._pin:
            self.close()
            raise OtherCertificate(f"{self.base} shows another certificate than the node's record names")

    async def ask(self, path: str, grant: str) -> None:
        """Sends the GET and reads the answer's head."""
        self._request(f"GET {path} HTTP/1.1", grant, "Accept: */*")
        await self._answered()

    async def put(self, path: str, grant: str, length: int, body: AsyncIterator[Bytes]) -> None:
        """Sends the PUT with `length` bytes of `body`, whose pieces may share a buffer, and reads the answer's head. One that comes
        early, a refusal, ends the sending; the line is then good for nothing else."""
        self._request(f"PUT {path} HTTP/1.1", grant, f"Content-Length: {length}")
        transport = self._connected()
        transport.set_write_buffer_limits(high=UNSENT_AT_MOST)
        transport.resume_reading()
        async for piece in body:
            if self._filled or self._lost is not None:
                break
            self._connected().write(piece)
            length -= len(piece)
            if self._unsent is not None:
                await self._unsent
        await self._answered()
        self._keep = self._keep and length == 0

    def _request(self, line: str, grant: str, field: str) -> None:
        host = self.base.partition("://")[2]
        head = f"{line}\r\nHost: {host}\r\nMF-Grant: {grant}\r\n{field}\r\n\r\n"
        self._target, self._filled = self._head, 0
        self._connected().write(head.encode("ascii"))
        self.used = True

    async def _answered(self) -> None:
        while (end := bytes(self._head[: self._filled]).find(b"\r\n\r\n")) < 0:
            if self._filled == MAX_HEAD:
                raise Broken("answered with a head that doesn't end")
            await self._more()
        self._over = bytes(self._head[end + 4 : self._filled])
        self._parse_head(bytes(self._head[:end]))

    async def fill(self, view: memoryview, heard: Callable[[int], None]) -> None:
        """Fills `view` from the body; `heard(count)` at every arrival."""
        if len(view) > self.left:
            raise Broken("closed the connection early")
        done = min(len(self._over), len(view))
        if done:
            view[:done] = self._over[:done]
            self._over = self._over[done:]
            heard(done)
        self._target, self._filled, self._heard = view, done, heard
        try:
            while self._filled < len(view):
                await self._more()
        finally:
            self._target, self._filled, self._heard = self._head, 0, _unheard
        self.left -= len(view)

    async def body(self, most: int) -> bytes:
        """The rest of the body, at most so many bytes."""
        data = bytearray(min(self.left, most))
        await self.fill(memoryview(data), _unheard)
        return bytes(data)

    def close(self) -> None:
        self._lost = self._lost or "was given up"
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # As a protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._target[self._filled :] or _SPARE

    def buffer_updated(self, count: int) -> None:
        if self._filled == len(self._target):
            self._end("sent more than it said")
            self.close()
            return
        self._filled += count
        self._last = time.monotonic()
        self._heard(count)
        if self._target is self._head or self._filled == len(self._target):
            self._wake()

    def pause_writing(self) -> None:
        if self._unsent is None:
            self._unsent = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        unsent, self._unsent = self._unsent, None
        if unsent is not None and not unsent.done():
            unsent.set_result(None)

    def eof_received(self) -> None:
        self._end("closed the connection early")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"broke off: {error}" if error else "closed the connection early")

    def _wake(self) -> None:
        """What was asked for is here: nothing more is taken from the connection until the next question."""
        if self._transport is not None:
            self._transport.pause_reading()
        if self._unsent is not None:
            self.resume_writing()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _end(self, reason: str) -> None:
        self._lost = self._lost or reason
        self.resume_writing()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _more(self) -> None:
        """Until the target is full, or the head has grown."""
        transport, loop = self._connected(), asyncio.get_running_loop()
        self._waiting = loop.create_future()
        before = self._filled
        self._last = time.monotonic()
        watch = loop.call_later(self.patience, self._check_silence)
        transport.resume_reading()
        try:
            await self._waiting
        finally:
            watch.cancel()
            self._waiting = None
        enough = self._filled > before if self._target is self._head else self._filled == len(self._target)
        if self._lost is not None and not enough:
            raise Broken(self._lost)

    def _check_silence(self) -> None:
        left = self._last + self.patience - time.monotonic()
        if self._waiting is None or self._waiting.done():
            return
        if left <= 0:
            self._end(f"sent nothing for {self.patience:g} s")
        else:
            asyncio.get_running_loop().call_later(left, self._check_silence)

    def _connected(self) -> asyncio.Transport:
        if self._transport is None or self._lost is not None:
            raise Broken(self._lost or "was given up")
        return self._transport

    def _parse_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        status = _STATUS.fullmatch(first)
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        length = fields.get(b"content-length", b"")
        if status is None or b"transfer-encoding" in fields or not (length.isdigit() and len(length) <= 15):
            raise Broken("answered with something else than HTTP/1.1 and a length")
        self.status, self.left = int(status[1]), int(length)
        self._keep = fields.get(b"connection", b"").lower() != b"close"
        if len(self._over) > self.left:
            raise Broken("sent more than it said")


def _unheard(count: int) -> None:
    """Nobody counts."""


_SPARE = memoryview(bytearray(1))
"""Where a byte lands that nobody asked for."""


class Lines:
    """Lines kept open between requests."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, bytes], list[Line]] = {}

    def idle(self, base: str, pin: bytes) -> Line | None:
        """One that was used lately."""
        kept = self._idle.get((base, pin), [])
        while kept:
            line = kept.pop()
            if line.reusable and time.monotonic() - line.idle_since < IDLE_AT_MOST:
                return line
            line.close()
        return None

    def keep(self, line: Line, pin: bytes) -> None:
        self._drop_old()
        if not line.reusable or sum(map(len, self._idle.values())) >= MAX_IDLE:
            line.close()
            return
        line.idle_since = time.monotonic()
        self._idle.setdefault((line.base, pin), []).append(line)

    def _drop_old(self) -> None:
        """Closes what was idle too long."""
        now = time.monotonic()
        for key, kept in list(self._idle.items()):
            while kept and now - kept[0].idle_since >= IDLE_AT_MOST:
                kept.pop(0).close()
            if not kept:
                del self._idle[key]

    def close(self) -> None:
        for kept in self._idle.values():
            for line in kept:
                line.close()
        self._idle.clear()


def _place(base: str) -> tuple[str, int]:
    try:
        url = urlsplit(base)
        host, port = url.hostname or "", url.port
    except ValueError:
        host, port = "", None
    if not base.startswith("https://") or not _HOST.fullmatch(host) or port is None or url.path.strip("/") or url.query:
        raise Broken(f"gave an address that isn't https://HOST:PORT: {base[:64]!r}")
    return host, port


@lru_cache(maxsize=1)
def _context() -> ssl.SSLContext:
    """TLS without names or authorities: the certificate itself is pinned."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
