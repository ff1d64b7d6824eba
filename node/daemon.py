"""The composition root: the whole node, put together in the order it starts, and taken apart in reverse.

    identity -> transfer process -> network -> directory -> swarm -> what is asked of us -> what we ask -> HTTP and the owner's socket

Constructors do no I/O; everything that opens, listens or spawns is in `start`, everything undone in `stop` within five seconds,
also when it is asked to stop while it starts.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from node.config import NodeConfig
from node.data_dir import DataDir
from node.identity import Identity, load_identity
from protocol.ticket import parse_ticket

if TYPE_CHECKING:
    from node.node import Node

log = logging.getLogger(__name__)
STOP_WITHIN = 4.5


async def run_node(config: NodeConfig, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Runs until SIGTERM or Ctrl-C; `on_ready` gets {"event", "peer_id", "http", "ticket"} after an end-to-end probe,
    and `http_fingerprint` where it has a certificate of its own."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    for ticket in config.join:
        parse_ticket(ticket, time.time())
    data = DataDir(config.data_dir)
    data.open()
    try:
        identity = load_identity(data.path)
        from node.node import Node  # takes a second or two: what can't be used is said before

        await _run(Node(config, identity, data, stopping.set), identity, on_ready, stopping)
    finally:
        data.close()


async def _run(node: Node, identity: Identity, on_ready: Callable[[dict[str, Any]], None], stopping: asyncio.Event) -> None:
    starting = asyncio.create_task(node.start())
    asked = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            shown = {"http_fingerprint": node.http_fingerprint} if node.http_fingerprint else {}
            on_ready({"event": "ready", "peer_id": identity.peer_id, "http": node.http_url, **shown, "ticket": node.ticket()})
            await asked
    finally:
        starting.cancel()
        asked.cancel()
        await asyncio.gather(starting, asked, return_exceptions=True)
        await _within(node.stop(), STOP_WITHIN)


async def _within(work: Awaitable[None], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        log.warning("stopping took over %s s; leaving the rest to the operating system", seconds)
