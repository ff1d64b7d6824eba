"""`/api/v1`: the product's own API."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from aiohttp import web
from msgspec import UNSET

from node.gateway import Finished, GenerationRequest, Planned
from node.health import Verdict, gateway, worst
from node.http import replies
from node.http.bodies import model_name, read_json, read_query
from node.http.context import GATEWAY, METRICS, SETTINGS, STARTED, STREAM, json_reply
from node.http.errors import timestamp
from node.http.generation import Reply, generation, headers_of, route_header
from node.http.idempotency import HEADER, REPLIES
from node.http.inference import inference_of, whole_reply
from node.http.jobs import JOBS
from node.http.schemas import InferenceInput, InferenceRequest, NoQuery, PlanQuery
from node.http.stream import EventStream
from protocol.errors import BadInput, DeadlineExceeded
from protocol.messages import Sampling

T = TypeVar("T")
_SEED_RANGE = 2**63


async def in_time(request: web.Request, wait: Awaitable[T], what: str) -> T:
    """`wait` under the deadline of lists and status."""
    seconds = request.app[SETTINGS].list_timeout
    try:
        async with asyncio.timeout(seconds):
            return await wait
    except TimeoutError:
        raise DeadlineExceeded(f"{what} didn't answer within {seconds:g} s", hint="ask again; GET /health says how the node is") from None


def success(data: Any, headers: dict[str, str] | None = None) -> web.Response:
    return json_reply(replies.Success(data=data), headers)


def sampling(temperature: float | None, top_p: float | None, seed: int | None, top_k: int | None = None) -> Sampling:
    """The request's sampling; what isn't given is the node's default (greedy). A negative seed is folded into the range."""
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": None if seed is None else seed % _SEED_RANGE}
    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


async def plan(request: web.Request) -> web.StreamResponse:
    """Where it would run and why; nothing is run."""
    query = read_query(request, PlanQuery)
    return success(await in_time(request, request.app[GATEWAY].plan(model_name(request), query.tokens, query.force), "the plan"))


def wanted_of(name: str, given: InferenceInput, timeout: float, force: bool = False) -> GenerationRequest:
    """The request as the gateway takes it; `BadInput` unless it gives either text or messages."""
    if (given.text is None) == (given.messages is None):
        raise BadInput("input: give either text or messages", details={"param": "input"})
    return GenerationRequest(
        model=name,
        sampling=sampling(given.temperature, given.top_p, given.seed, given.top_k),
        max_tokens=given.max_tokens,
        messages=None if given.messages is None else [message.plain() for message in given.messages],
        text=given.text,
        stop=tuple(given.stop_sequences or ()),
        timeout=timeout,
        force=force,
    )


def _inference(kind: type[replies.Inference], made: tuple[str, str], planned: Planned, end: Finished, **more: Any) -> Any:
    inference_id, text = made
    return kind(
        inference_id=inference_id,
        model_id=planned.model_id,
        result=replies.Result(text=text, tokens_generated=end.completion_tokens, finish_reason=end.reason),
        usage=replies.usage_of(end),
        timestamp=timestamp(),
        **more,
    )


async def infer(request: web.Request) -> web.StreamResponse:
    name = model_name(request)
    settings = request.app[SETTINGS]
    body = await read_json(request, InferenceRequest, settings)
    given = body.parameters
    wanted = wanted_of(name, body.input, given.timeout_seconds or settings.generation_timeout, given.force)
    inference_id = f"inf_{secrets.token_hex(12)}"
    if given.stream:
        if given.run_async or HEADER in request.headers:
            raise BadInput("parameters: a stream goes neither with async nor with an Idempotency-Key", details={"param": "parameters"})
        async with generation(request.app[GATEWAY], wanted, request.app[METRICS], settings) as reply:
            return await _stream(request, reply, inference_id, given.include_metadata)

    async def make() -> web.StreamResponse:
        if given.run_async:
            return _begin(request, wanted, inference_id, given.include_metadata)
        made = await whole_reply(request.app, wanted)
        return success(inference_of(made, inference_id, given.include_metadata), headers_of(made.planned, made.end))

    return await request.app[REPLIES].answer(request, make)


def _begin(request: web.Request, wanted: GenerationRequest, inference_id: str, with_metadata: bool) -> web.Response:
    """202 and where to look: the reply is made while nobody waits on the connection."""
    app = request.app

    async def work() -> Any:
        return inference_of(await whole_reply(app, wanted), inference_id, with_metadata)

    app[JOBS].start(inference_id, wanted.model, work)
    where = f"/api/v1/inference/{inference_id}"
    reply = success({"inference_id": inference_id, "status": "running", "status_url": where}, {"Location": where})
    reply.set_status(202)
    return reply


async def _stream(request: web.Request, reply: Reply, inference_id: str, with_metadata: bool) -> web.StreamResponse:
    planned = reply.planned
    stream = EventStream(request, request.app[SETTINGS].write_timeout, named=True)
    request[STREAM] = stream
    await stream.open({"X-MF-Route": route_header(planned.kind, planned.route)})
    provider = replies.Provider(kind=planned.kind, route=planned.route, replaced=0)
    start = replies.StreamStart(
        inference_id=inference_id,
        model_id=planned.model_id,
        prompt_tokens=planned.prompt_tokens,
        compute_provider=provider,
        timestamp=timestamp(),
    )
    await stream.send(start, "start")
    reply.on_queued = stream.queued
    text = ""
    async for piece in reply.pieces():
        text += piece.text
        await stream.send(replies.StreamToken(text=piece.text, cumulative_text=text, tokens_generated=piece.tokens), "token")
    end = reply.end()
    metadata = replies.metadata_of(planned, end) if with_metadata else UNSET
    mf = replies.trace_of(planned, end)
    await stream.send(_inference(replies.StreamFinish, (inference_id, text), planned, end, metadata=metadata, mf=mf), "finish")
    return await stream.done()


async def system_health(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    health = await in_time(request, request.app[GATEWAY].health(), "the node")
    metrics = request.app[METRICS]
    answered, failed = metrics.lately()
    verdict = gateway(answered, failed)
    own = {
        "status": verdict.status,
        "reason": verdict.reason,
        "uptime_seconds": round(time.monotonic() - request.app[STARTED], 3),
        "requests_answered": metrics.answered,
        "requests_last_minute": answered,
        "failed_last_minute": failed,
    }
    whole = worst((Verdict(str(health["status"]), health.get("reason")), verdict))
    return success({**health, "status": whole.status, "reason": whole.reason, "api_gateway": own})


async def system_swarm(request: web.Request) -> web.StreamResponse:
    """Who is in the swarm and runs which version, who holds which model, and for each group of layers how many more losses it bears.

    Without anyone's addresses: those are the owner's to see.
    """
    read_query(request, NoQuery)
    status = await in_time(request, request.app[GATEWAY].status(), "the node")
    told = ("peer_id", "version")
    peers = [{name: peer.get(name) for name in told} | {"alive": bool(peer.get("alive"))} for peer in status.get("peers", [])]
    alive = sum(peer["alive"] for peer in peers)
    shown = {"peer_id": status.get("peer_id"), "version": status.get("version"), "peers": peers, "peers_alive": alive}
    return success({**shown, "models": status.get("models", [])})


async def live(request: web.Request) -> web.StreamResponse:
    """GET /health: that this process answers, how the node is and why, and what its last end-to-end probe saw."""
    health = await in_time(request, request.app[GATEWAY].health(), "the node")
    verdict = worst((Verdict(str(health["status"]), health.get("reason")), gateway(*request.app[METRICS].lately())))
    return json_reply({"status": verdict.status, "reason": verdict.reason, "last_probe": health.get("last_probe")})


ROUTES = [
    web.get("/health", live),
    web.post("/api/v1/models/{id:.+}/inference", infer),
    web.get("/api/v1/models/{id:.+}/plan", plan),
    web.get("/api/v1/system/health", system_health),
    web.get("/api/v1/system/swarm", system_swarm),
]
