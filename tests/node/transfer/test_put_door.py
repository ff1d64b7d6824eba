"""Shards put over a connection of any past, by clients of any manners: durable or nothing, and always an answer that says which."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from node.transfer import put_door
from node.transfer.lines import Broken, Line
from protocol import limits
from tests.node.transfer.plane import Coded, grant, trusting
from tests.node.transfer.test_server import SIGNER, TLS, Plane, plane  # noqa: F401
from tests.support.wait import until


@dataclass
class Client:
    """One connection, spoken to by hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> tuple[int, bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].split("\r\n")[0])
        return int(head.split(" ")[1]), await self.reader.readexactly(length)

    def ask(self, method: str, path: str, fields: dict[str, str], body: bytes = b"") -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in ({"Host": "x"} | fields).items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)


@pytest.fixture
async def client(plane: Plane) -> AsyncIterator[Client]:  # noqa: F811
    made = Client(*await asyncio.open_connection("127.0.0.1", int(plane.base.rpartition(":")[2]), ssl=trusting()))
    yield made
    made.writer.transport.abort()


def put(plane: Plane, shard: int, body: bytes | None = None, **fields: str) -> tuple[str, str, dict[str, str], bytes]:  # noqa: F811
    whole = plane.coded.body(shard) if body is None else body
    return "PUT", plane.coded.path(shard), {**grant(SIGNER, plane.coded, "put"), "Content-Length": str(len(whole)), **fields}, whole


async def test_puts_gets_and_blobs_on_one_connection(plane: Plane, client: Client) -> None:  # noqa: F811
    for shard in (0, 1):
        plane.expect(shard)
        client.ask(*put(plane, shard))
        assert await client.answer() == (201, json.dumps({"bytes": plane.coded.size}).encode())
    client.ask("GET", plane.coded.path(1) + "?count=1", grant(SIGNER, plane.coded))
    assert (await client.answer())[0] == 200
    plane.expect(0)
    client.ask(*put(plane, 0))
    assert (await client.answer())[0] == 201
    client.ask("GET", f"/blob/{plane.coded.id.hex()}", {})
    assert await client.answer() == (200, plane.coded.envelope)
    # From now on it is the application's.
    plane.expect(1)
    client.ask(*put(plane, 1))
    assert (await client.answer())[0] == 201
    assert [info.key.shard for info in plane.stored] == [0, 1, 0, 1]


async def test_requests_that_come_at_once_are_answered_in_order(plane: Plane, client: Client) -> None:  # noqa: F811
    plane.expect(0)
    plane.expect(1)
    client.ask(*put(plane, 0))
    client.ask(*put(plane, 1))
    client.ask("GET", plane.coded.path(0) + "?count=1", grant(SIGNER, plane.coded))
    assert [(await client.answer())[0] for _ in range(3)] == [201, 201, 200]


@pytest.mark.parametrize("step", [1, 7, 40_000, 70_001])
async def test_a_put_in_any_cuts(plane: Plane, client: Client, step: int) -> None:  # noqa: F811
    plane.expect(0)
    client.ask(*put(plane, 0)[:3])
    body = plane.coded.body(0)
    first = min(len(body), 300 * step)
    for at in [*range(0, first, step)]:
        client.writer.write(body[at : min(at + step, first)])
        await client.writer.drain()
    client.writer.write(body[first:])
    assert (await client.answer())[0] == 201


async def test_one_that_asks_for_leave_to_go_on_gets_it(plane: Plane, client: Client) -> None:  # noqa: F811
    plane.expect(0)
    client.ask(*put(plane, 0, Expect="100-continue")[:3])
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.writer.write(plane.coded.body(0))
    assert (await client.answer())[0] == 201


@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        ("PUT {path} HTTP/1.1", {}, 400),
        ("PUT {path} HTTP/1.1", {"Content-Length": "-1"}, 400),
        ("PUT {path} HTTP/1.1", {"Content-Length": "9" * 20}, 400),
        ("PUT {path} HTTP/1.1", {"Content-Length": "9" * 15}, 413),
        ("PUT {path} HTTP/1.1", {"Transfer-Encoding": "chunked", "Content-Length": "1"}, 400),
        ("PUT {path}?first=1 HTTP/1.1", {"Content-Length": "1"}, 400),
        ("PUT {path} HTTP/1.0", {"Content-Length": "1"}, 400),
        ("PUT /shard/x/0 HTTP/1.1", {"Content-Length": "1"}, 400),
        ("PUT /shard/" + "a" * 50_000, {}, 400),
    ],
)
async def test_nonsense_is_refused_and_the_connection_ends(
    plane: Plane,  # noqa: F811
    client: Client,
    line: str,
    fields: dict[str, str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(put_door, "LINGER", 0.1)
    plane.expect(0)
    method, _, rest = line.format(path=plane.coded.path(0)).partition(" ")
    lines = "".join(f"{name}: {value}\r\n" for name, value in (grant(SIGNER, plane.coded, "put") | fields).items())
    client.writer.write(f"{method} {rest}\r\n{lines}\r\n".encode())
    got, body = await client.answer()
    assert got == status, body
    assert "message" in json.loads(body)
    assert await client.reader.read() == b""
    assert plane.store.space().used < limits.MIB, "nothing but the envelope"


async def test_silence_in_the_middle_is_refused(plane: Plane, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(put_door, "SILENT_AT_MOST", 0.2)
    plane.expect(0)
    used = plane.store.space().used
    client.ask(*put(plane, 0)[:3])
    client.writer.write(plane.coded.body(0)[:700_000])
    status, body = await client.answer()
    assert (status, b"sent nothing for 0.2 s" in body) == (503, True)
    assert plane.store.space().used == used


async def test_a_server_that_stops_ends_puts_under_way(plane: Plane, client: Client) -> None:  # noqa: F811
    plane.expect(0)
    used = plane.store.space().used
    client.ask(*put(plane, 0)[:3])
    client.writer.write(plane.coded.body(0)[:700_000])
    await until(lambda: plane.store.space().used > used, 5, "it is under way")
    await plane.server.stop()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.answer()
    await until(lambda: plane.store.space().used == used, 5, "its room is given back")
    assert not plane.server._doors


async def sent(line: Line, plane: Plane, body: bytes, **options: Any) -> list[int]:  # noqa: F811
    """The sizes of the pieces that were asked for."""
    asked: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 65_536):
            asked.append(len(body[at : at + 65_536]))
            yield body[at : at + 65_536]

    await line.put(plane.coded.path(0), grant(SIGNER, plane.coded, "put")["MF-Grant"], len(body), pieces())
    return asked


async def line_to(plane: Plane) -> Line:  # noqa: F811
    line = Line(plane.base, TLS)
    await line.open()
    return line


async def test_a_line_puts_and_is_used_again(plane: Plane) -> None:  # noqa: F811
    line = await line_to(plane)
    for _ in range(2):
        plane.expect(0)
        await sent(line, plane, plane.coded.body(0))
        assert (line.status, await line.body(1000)) == (201, json.dumps({"bytes": plane.coded.size}).encode())
        assert line.reusable
    line.close()


async def test_a_refusal_ends_the_sending_early(plane: Plane) -> None:  # noqa: F811
    """Nobody expects the shard: a body of any length isn't sent to its end, and the reason arrives."""
    line = await line_to(plane)
    body = bytes(64 * limits.MIB)
    asked = await sent(line, plane, body)
    assert line.status == 403
    assert b"message" in await line.body(10_000)
    assert sum(asked) < len(body)
    assert not line.reusable
    line.close()


async def test_a_server_that_goes_away_breaks_the_line(plane: Plane) -> None:  # noqa: F811
    line = await line_to(plane)
    plane.coded = Coded(40 * limits.MIB)
    plane.expect(0)
    sending = asyncio.create_task(sent(line, plane, plane.coded.body(0)))
    await until(lambda: plane.server._gate.running == 1, 5, "it is under way")
    await plane.server.stop()
    with pytest.raises(Broken):
        await sending
