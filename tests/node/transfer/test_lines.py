"""Lines to servers that answer oddly: a clear end, never wrong bytes; and lines kept open for the next request."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node.transfer import lines
from node.transfer.lines import Broken, Line, Lines, OtherCertificate
from tests.node.transfer.holders import certificate

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


class Server:
    def __init__(self, context: ssl.SSLContext, tls: bytes, *answers: bytes, then_close: bool = True) -> None:
        self.context, self.tls, self.answers, self.then_close = context, tls, list(answers), then_close
        self.asked: list[bytes] = []
        self.base = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while self.answers:
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answers.pop(0))
            if not self.then_close:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@asynccontextmanager
async def serving(folder: Path, *answers: bytes, then_close: bool = True) -> AsyncIterator[Server]:
    server = Server(*certificate(folder), *answers, then_close=then_close)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=server.context)
    server.base = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield server
    listener.close()


async def asked(server: Server) -> Line:
    line = Line(server.base, server.tls)
    await line.open()
    await line.ask("/shard/x/0?first=0&count=1", "grant")
    return line


async def read(line: Line, size: int) -> bytes:
    room = bytearray(size)
    await line.fill(memoryview(room), lambda count: None)
    return bytes(room)


async def test_a_body_comes_in_any_cuts_and_the_line_is_used_again(tmp_path: Path) -> None:
    second = OK + b"abcdefghij"
    async with serving(tmp_path, OK + b"0123456789", second, then_close=False) as server:
        line = await asked(server)
        assert (line.status, await read(line, 3), await read(line, 7)) == (200, b"012", b"3456789")
        assert line.reusable
        kept = Lines()
        kept.keep(line, server.tls)
        again = kept.idle(server.base, server.tls)
        assert again is line
        assert kept.idle(server.base, server.tls) is None
        await again.ask("/shard/x/1?first=0&count=1", "grant")
        assert await read(again, 10) == b"abcdefghij"
        assert server.asked[1].startswith(b"GET /shard/x/1?first=0&count=1 HTTP/1.1\r\n")
        kept.keep(again, server.tls)
        kept.close()
        assert not again.reusable


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 2000,
        OK + b"0123456789 and more",
        b"HTTP/1.1 200 OK\r\nContent-Length",
        b"",
    ],
)
async def test_odd_heads_break_the_line(tmp_path: Path, answer: bytes) -> None:
    async with serving(tmp_path, answer) as server:
        with pytest.raises(Broken):
            await asked(server)


async def test_an_early_end_and_too_much_asked(tmp_path: Path) -> None:
    async with serving(tmp_path, OK + b"0123") as server:
        line = await asked(server)
        with pytest.raises(Broken):
            await read(line, 10)
        assert not line.reusable
        line.close()
    async with serving(tmp_path, OK + b"0123456789", then_close=False) as server:
        line = await asked(server)
        with pytest.raises(Broken, match="early"):
            await read(line, 11)
        line.close()


async def test_silence_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "SILENT_AT_MOST", 0.1)
    async with serving(tmp_path, OK + b"0123", then_close=False) as server:
        line = await asked(server)
        with pytest.raises(Broken, match="sent nothing for"):
            await read(line, 10)
        line.close()


async def test_another_certificate_and_other_addresses_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, OK) as server:
        with pytest.raises(OtherCertificate):
            await Line(server.base, bytes(32)).open()
        assert not server.asked
    for base in ("http://127.0.0.1:1", "https://127.0.0.1", "https://127.0.0.1:99999", "https://a b:1", "https://a:1/x?y", "https://[::1"):
        with pytest.raises(Broken, match="isn't https"):
            await Line(base, bytes(32)).open()


async def test_a_line_closed_meanwhile_is_no_use(tmp_path: Path) -> None:
    async with serving(tmp_path, OK + b"0123456789") as server:
        line = await asked(server)
        assert await read(line, 10) == b"0123456789"
        kept = Lines()
        kept.keep(line, server.tls)
        with pytest.raises(Broken):
            await line.ask("/shard/x/0?first=0&count=1", "grant")
        kept.close()
