"""`/api/v1`'s ways to ask that aren't one question and one answer: async, batch, compare."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from aiohttp import web

from node.gateway import GenerationRequest
from node.http import job_schemas as schemas
from node.http.api_v1 import success, wanted_of
from node.http.bodies import model_name, read_json, read_query
from node.http.consumption import Consumption
from node.http.context import SETTINGS
from node.http.errors import api_shape
from node.http.idempotency import REPLIES
from node.http.inference import Made, inference_of, metadata_of, whole_reply
from node.http.jobs import JOBS
from node.http.metering import LOCAL, METER, Meter, caller
from node.http.model_figures import FIGURES
from node.http.model_replies import moment
from node.http.publishing import PUBLISHING
from node.http.schemas import NoQuery
from protocol.errors import BadInput, MfError


async def state(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    jobs = request.app[JOBS]
    job = jobs.find(request.match_info["inference"])
    shown = {"inference_id": job.id, "status": job.status, "model": job.model, "created_at": moment(job.created)}
    return success({**shown, "result": jobs.result(job), "error": job.error})


async def cancel(request: web.Request) -> web.StreamResponse:
    jobs = request.app[JOBS]
    job = jobs.find(request.match_info["inference"])
    was = job.status
    await jobs.remove(job)
    return success({"inference_id": job.id, "status": "cancelled" if was == "running" else "removed"})


async def batch(request: web.Request) -> web.StreamResponse:
    name = model_name(request)
    body = await read_json(request, schemas.BatchRequest, request.app[SETTINGS])
    ids = [item.id for item in body.inputs]
    if len(set(ids)) != len(ids):
        raise BadInput("inputs: each id once", details={"param": "inputs"})
    wanted = [wanted_of(name, item, body.parameters.timeout_seconds or request.app[SETTINGS].generation_timeout) for item in body.inputs]

    async def make() -> web.StreamResponse:
        done = await _batch(request.app, name, ids, wanted, body.parameters)
        await _tell(request.app, done)
        return success(done)

    return await request.app[REPLIES].answer(request, make)


async def _batch(
    app: web.Application, name: str, ids: list[str], wanted: list[GenerationRequest], parameters: schemas.BatchParameters
) -> schemas.BatchReply:
    meter, spent = METER.get() or Meter(LOCAL), 0.0

    async def one(number: int, turns: asyncio.Semaphore) -> schemas.BatchOutcome:
        nonlocal spent
        async with turns:
            began = time.monotonic()
            try:
                made = await _counted(app, wanted[number], meter, first=number == 0)
            except MfError as error:
                return schemas.BatchOutcome(id=ids[number], status="error", error=_told(error))
            finally:
                spent += time.monotonic() - began
            inference = inference_of(made, f"inf_{secrets.token_hex(12)}", parameters.include_metadata)
            return schemas.BatchOutcome(id=ids[number], status="success", result=inference)

    began = time.monotonic()
    with meter.side_by_side(min(parameters.concurrency, len(ids))) as width:
        turns = asyncio.Semaphore(width)
        results = await _all([one(number, turns) for number in range(len(ids))])
    took = time.monotonic() - began
    good = sum(result.status == "success" for result in results)
    return schemas.BatchReply(
        batch_id=f"batch_{secrets.token_hex(12)}",
        model=name,
        results=results,
        succeeded=good,
        failed=len(results) - good,
        total_execution_time_ms=round(took * 1000, 3),
        parallel_efficiency=round(min(1.0, spent / (took * width)), 3) if took > 0 else None,
    )


async def _tell(app: web.Application, done: schemas.BatchReply) -> None:
    """To the caller's webhooks: that it ended and how, nothing of what was asked or answered."""
    publishing = app.get(PUBLISHING)
    if publishing is not None and caller().claimed:
        told = {"batch_id": done.batch_id, "model": done.model, "succeeded": done.succeeded, "failed": done.failed}
        await publishing.webhooks.tell(caller().who, "batch.finished", told)


async def _all(works: list[Any]) -> list[schemas.BatchOutcome]:
    """In order; when the caller leaves, all of them end."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


async def _counted(app: web.Application, wanted: GenerationRequest, meter: Meter, first: bool, anew: bool = False) -> Made:
    """Each is a request of the allowance; the first was taken when they came in."""
    meter.charge(0 if first else 1)
    return await whole_reply(app, wanted, anew)


def _told(error: MfError) -> dict[str, Any]:
    return dict(api_shape(error, "")["error"])


async def compare(request: web.Request) -> web.StreamResponse:
    """One after another: side by side they would measure each other."""
    body = await read_json(request, schemas.CompareRequest, request.app[SETTINGS])
    timeout = body.parameters.timeout_seconds or request.app[SETTINGS].generation_timeout
    wanted = [wanted_of(name, body.input, timeout) for name in body.models]

    async def make() -> web.StreamResponse:
        meter = METER.get() or Meter(LOCAL)
        results = [await _compared(request.app, one, meter, number == 0) for number, one in enumerate(wanted)]
        return success(schemas.Comparison(comparison_id=f"cmp_{secrets.token_hex(12)}", results=results))

    return await request.app[REPLIES].answer(request, make)


async def _compared(app: web.Application, wanted: GenerationRequest, meter: Meter, first: bool) -> schemas.Compared:
    try:
        async with Consumption() as used:
            made = await _counted(app, wanted, meter, first, anew=True)
    except MfError as error:
        return schemas.Compared(model=wanted.model, status="error", error=_told(error))
    metadata = metadata_of(made)
    first_token = made.end.timings.get("first_token")
    return schemas.Compared(
        model=wanted.model,
        status="success",
        model_id=made.planned.model_id,
        text=made.text if made.labels is None else None,
        labels=made.labels,
        tokens_generated=made.end.completion_tokens,
        tokens_per_second=metadata.tokens_per_second,
        execution_time_ms=metadata.execution_time_ms,
        first_token_ms=None if first_token is None else round(first_token * 1000, 3),
        cpu_seconds=used.cpu_seconds,
        peak_memory_bytes=used.peak_memory,
        network_bytes=used.traffic.sent + used.traffic.received,
        network_bytes_sent=used.traffic.sent,
        network_bytes_received=used.traffic.received,
        network_bytes_of_stages=[
            schemas.StageBytes(peer=peer, first=first, end=end, sent=sent, received=received)
            for (peer, first, end), (sent, received) in used.traffic.stages.items()
        ]
        or None,
        measured_by=app[FIGURES].measurer,
        compute_provider=metadata.compute_provider,
    )


ROUTES = [
    web.get("/api/v1/inference/{inference}", state),
    web.delete("/api/v1/inference/{inference}", cancel),
    web.post("/api/v1/inference/compare", compare),
    web.post("/api/v1/models/{id:.+}/inference/batch", batch),
]
