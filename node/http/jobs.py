"""Inference that goes on after its request was answered: run, asked for, cancelled, forgotten after an hour. Its owner alone sees it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from node.http.errors import api_shape
from node.http.kept import HOUR, Kept
from node.http.metering import METER, caller
from protocol.errors import Busy, Cancelled, MfError, NotFound

log = logging.getLogger(__name__)
MOST, MOST_RUNNING = 4_096, 256


@dataclass
class Job:
    """`status`: running, finished, failed or cancelled; the result lies sealed elsewhere."""

    id: str
    whose: str
    model: str
    created: float
    status: str = "running"
    error: dict[str, Any] | None = None
    ended: float | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Jobs:
    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._results = Kept()

    def start(self, job_id: str, model: str, work: Callable[[], Awaitable[Any]]) -> Job:
        """Begins `work`, whose result is encoded as JSON. It keeps the request's place in the allowance until it ends."""
        self._forget()
        running = sum(job.status == "running" for job in self._jobs.values())
        if running >= MOST_RUNNING or len(self._jobs) >= MOST:
            raise Busy("too many async requests are under way", details={"retry_after": 10})
        job = Job(job_id, caller().who, model, time.time())
        meter = METER.get()
        if meter is not None:
            meter.detach()
        job.task = asyncio.create_task(self._run(job, work), name=f"async {job_id}")
        self._jobs[job_id] = job
        return job

    def find(self, job_id: str) -> Job:
        """The caller's own; `NotFound` for another's too."""
        self._forget()
        job = self._jobs.get(job_id)
        if job is None or job.whose != caller().who:
            raise NotFound("there is no such inference of yours", hint="results are kept for an hour")
        return job

    def result(self, job: Job) -> Any:
        raw = self._results.get(job.whose, job.id.encode())
        return None if raw is None else msgspec.json.decode(raw)

    async def remove(self, job: Job) -> None:
        """Cancels it where it runs, and forgets its result."""
        self._jobs.pop(job.id, None)
        self._results.drop(job.whose, job.id.encode())
        await _ended(job)

    async def close(self) -> None:
        jobs = list(self._jobs.values())
        self._jobs.clear()
        await asyncio.gather(*(_ended(job) for job in jobs))

    async def _run(self, job: Job, work: Callable[[], Awaitable[Any]]) -> None:
        meter = METER.get()
        try:
            self._results.put(job.whose, job.id.encode(), msgspec.json.encode(await work(), enc_hook=str))
            job.status = "finished"
        except MfError as error:
            job.status, job.error = "failed", api_shape(error, job.id)["error"]
        except asyncio.CancelledError:
            job.status, job.error = "cancelled", api_shape(Cancelled("it was cancelled"), job.id)["error"]
            raise
        except Exception as error:  # boundary: said by its kind alone, its text may quote a prompt
            log.error("an async request failed", extra={"event": "async_failed", "fields": {"id": job.id, "kind": type(error).__name__}})
            job.status, job.error = "failed", api_shape(MfError("the node failed at this request"), job.id)["error"]
        finally:
            job.ended = time.time()
            if meter is not None:
                meter.end()

    def _forget(self) -> None:
        late = [job.id for job in self._jobs.values() if job.ended is not None and job.ended < time.time() - HOUR]
        for job_id in late:
            del self._jobs[job_id]


async def _ended(job: Job) -> None:
    if job.task is not None and not job.task.done():
        job.task.cancel()
        await asyncio.wait({job.task}, timeout=5.0)


JOBS: web.AppKey[Jobs] = web.AppKey("jobs", Jobs)
