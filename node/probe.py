"""The end-to-end probe behind "ready" and "healthy": a blob is put into the store and read back
over the own data plane, with its certificate pinned, as a peer would read it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from node.health import Probed, Verdict, compute, storage
from node.stage_room import StageRoom
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from node.worker import Worker
from protocol.errors import MfError

log = logging.getLogger(__name__)
EVERY = 20.0
DEADLINE = 5.0
BLOB = b"mf/probe/1"


@dataclass(frozen=True)
class Outcome:
    """`at` Unix seconds; `fault` says what went wrong."""

    at: float
    passed: bool
    seconds: float
    fault: str | None = None


class Probe:
    def __init__(self, swarm: Swarm, transfer: Transfer, worker: Worker, room: StageRoom, url: Callable[[], str], tls: bytes) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._worker = worker
        self._room = room
        self._url = url
        self._tls = tls
        self.last: Outcome | None = None

    async def run(self) -> None:
        """Probes for ever; ends when cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(EVERY)

    async def once(self) -> Outcome:
        started = time.monotonic()
        fault: str | None = None
        try:
            async with asyncio.timeout(DEADLINE):
                await self._round_trip()
        except TimeoutError:
            fault = f"the store didn't answer within {DEADLINE} s"
        except MfError as error:
            fault = error.message
        if fault:
            log.warning("probe failed: %s", fault, extra={"event": "probe_failed", "fields": {"fault": fault}})
        self.last = Outcome(time.time(), fault is None, round(time.monotonic() - started, 4), fault)
        return self.last

    async def _round_trip(self) -> None:
        blob = await self._transfer.put_blob(BLOB)
        url = f"{self._url()}/blob/{blob.hex()}"
        try:
            async with aiohttp.ClientSession() as session, session.get(url, ssl=aiohttp.Fingerprint(self._tls)) as response:
                back = await response.content.read(2 * len(BLOB))
        except aiohttp.ClientError as error:
            raise MfError(f"the data plane doesn't answer at {self._url()}: {error}") from error
        if back != BLOB:
            raise MfError(f"the data plane at {self._url()} gave back other bytes than were put (status {response.status})")

    async def storage(self) -> tuple[Verdict, dict[str, Any]]:
        """How the store is, and its figures."""
        peers = self._swarm.peers()
        space = await self._transfer.space()
        alive = sum(view.routable for view in peers)
        probed = None if self.last is None else Probed(self.last.at, self.last.passed, self.last.fault)
        verdict = storage(probed, min(space.quota - space.used, space.free), space.quota, len(peers), alive, time.time())
        return verdict, {"peers_known": len(peers), "peers_alive": alive, "quota": space.quota, "used": space.used, "free": space.free}

    def compute(self) -> tuple[Verdict, dict[str, Any]]:
        """How running models is, and its figures."""
        loaded, worker = self._room.loaded(), self._worker
        verdict = compute(worker.running, worker.failures, worker.ended, worker.held_back, self._room.line.full)
        return verdict, {
            "worker": "running" if self._worker.running else "not started",
            "stages_loaded": len(loaded),
            "stages": [{"stage": stage.key, "bytes": stage.bytes} for stage in loaded],
            "sessions": sum(stage.users for stage in loaded),
            "memory": self._room.memory,
            "waiting": len(self._room.line),
        }
