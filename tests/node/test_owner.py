from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.channel import ChannelClosed
from node.cli.owner_client import call_async
from node.owner import Notify, OwnerServer, socket_path
from protocol.errors import BadInput, MfError, NotFound, NotRunning


class Calls:
    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def count(self, params: dict[str, Any], notify: Notify) -> Any:
        for number in range(params["to"]):
            await notify({"event": "progress", "done": number})
        return {"sum": params["to"]}

    async def refuse(self, params: dict[str, Any], notify: Notify) -> Any:
        raise NotFound("no such model", hint="look", details={"candidates": ["a/b"]})

    async def hang(self, params: dict[str, Any], notify: Notify) -> Any:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
async def server(tmp_path: Path, calls: Calls) -> AsyncIterator[OwnerServer]:
    server = OwnerServer(tmp_path, {"count": calls.count, "refuse": calls.refuse, "hang": calls.hang})
    await server.start()
    yield server
    await server.close()


async def test_events_come_in_order_before_the_result(tmp_path: Path, server: OwnerServer) -> None:
    events: list[dict[str, Any]] = []
    assert await call_async(tmp_path, "count", {"to": 50}, events.append, 5) == {"sum": 50}
    assert [event["done"] for event in events] == list(range(50))


async def test_an_error_keeps_its_class_hint_and_details(tmp_path: Path, server: OwnerServer) -> None:
    with pytest.raises(NotFound) as caught:
        await call_async(tmp_path, "refuse", {}, timeout=5)
    assert (caught.value.hint, caught.value.details) == ("look", {"candidates": ["a/b"]})


async def test_an_unknown_method_and_wrong_params_are_refused(tmp_path: Path, server: OwnerServer) -> None:
    with pytest.raises(MfError, match="'dance'"):
        await call_async(tmp_path, "dance", {}, timeout=5)
    with pytest.raises(BadInput, match="map"):
        await call_async(tmp_path, "count", [], timeout=5)  # type: ignore[arg-type]


async def test_who_leaves_cancels_the_work(tmp_path: Path, server: OwnerServer, calls: Calls) -> None:
    client = asyncio.create_task(call_async(tmp_path, "hang", {}))
    await asyncio.wait_for(calls.started.wait(), 5)
    client.cancel()
    await asyncio.wait_for(calls.cancelled.wait(), 5)


async def test_a_server_that_ends_ends_its_calls(tmp_path: Path, server: OwnerServer, calls: Calls) -> None:
    client = asyncio.create_task(call_async(tmp_path, "hang", {}))
    await asyncio.wait_for(calls.started.wait(), 5)
    await server.close()
    with pytest.raises(ChannelClosed):
        await asyncio.wait_for(client, 5)
    assert calls.cancelled.is_set()
    assert not server.path.exists()


async def test_the_socket_is_the_users_alone(server: OwnerServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


async def test_another_user_is_turned_away(tmp_path: Path, server: OwnerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.owner.os.getuid", lambda: 4_242)
    with pytest.raises(ChannelClosed):
        await call_async(tmp_path, "count", {"to": 1}, timeout=5)


async def test_a_long_directory_has_its_socket_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    server = OwnerServer(folder, {"count": Calls().count})
    await server.start()
    try:
        assert len(str(socket_path(folder))) <= 100
        assert await call_async(folder, "count", {"to": 1}, timeout=5) == {"sum": 1}
    finally:
        await server.close()


async def test_a_leftover_socket_is_replaced(tmp_path: Path, server: OwnerServer) -> None:
    again = OwnerServer(tmp_path, {"count": Calls().count})
    await again.start()
    assert await call_async(tmp_path, "count", {"to": 0}, timeout=5) == {"sum": 0}
    await again.close()


async def test_nobody_there_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="mf-node run"):
        await call_async(tmp_path, "count", {"to": 1})
