"""`/api/v1`: the product's own API."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from typing import Any, TypeVar
from urllib.parse import urlencode

from aiohttp import web
from msgspec import UNSET

from node.gateway import Finished, GenerationRequest, ModelInfo, Planned
from node.http import replies
from node.http.bodies import model_name, read_json, read_query
from node.http.context import GATEWAY, METRICS, SETTINGS, STARTED, STREAM, json_reply
from node.http.errors import timestamp
from node.http.generation import Reply, generation, headers_of, route_header
from node.http.schemas import InferenceInput, InferenceRequest, NoQuery, PlanQuery, Query
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


def _links(query: Query, pages: int) -> dict[str, str]:
    def link(page: int, rel: str) -> str:
        asked = {"page": page, "limit": query.limit} | ({"search": query.search} if query.search else {})
        return f'</api/v1/models?{urlencode(asked)}>; rel="{rel}"'

    near = [(query.page - 1, "prev")] if 1 < query.page <= pages + 1 else []
    near += [(query.page + 1, "next")] if query.page < pages else []
    return {"Link": ", ".join(link(page, rel) for page, rel in [(1, "first"), *near, (max(1, pages), "last")])}


def _order(info: ModelInfo) -> tuple[bool, str, str]:
    return (info.name is None, info.name or "", info.model_id)


async def list_models(request: web.Request) -> web.StreamResponse:
    query = read_query(request, Query)
    found = sorted(await in_time(request, request.app[GATEWAY].models(query.search), "the list of models"), key=_order)
    pages = -(-len(found) // query.limit)
    first = (query.page - 1) * query.limit
    page = replies.ModelPage(
        models=[replies.model_view(info) for info in found[first : first + query.limit]],
        pagination=replies.Pagination(
            current_page=query.page,
            total_pages=pages,
            total_models=len(found),
            has_next=query.page < pages,
            has_previous=query.page > 1,
        ),
    )
    return success(page, _links(query, pages))


async def one_model(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    info = await in_time(request, request.app[GATEWAY].model(model_name(request)), "the model")
    return success(replies.model_view(info))


async def plan(request: web.Request) -> web.StreamResponse:
    """Where it would run and why; nothing is run."""
    query = read_query(request, PlanQuery)
    return success(await in_time(request, request.app[GATEWAY].plan(model_name(request), query.tokens, query.force), "the plan"))


def _wanted(name: str, body: InferenceRequest, default_timeout: float) -> GenerationRequest:
    given: InferenceInput = body.input
    if (given.text is None) == (given.messages is None):
        raise BadInput("input: give either text or messages", details={"param": "input"})
    return GenerationRequest(
        model=name,
        sampling=sampling(given.temperature, given.top_p, given.seed, given.top_k),
        max_tokens=given.max_tokens,
        messages=None if given.messages is None else [message.plain() for message in given.messages],
        text=given.text,
        stop=tuple(given.stop_sequences or ()),
        timeout=body.parameters.timeout_seconds or default_timeout,
        force=body.parameters.force,
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
    wanted = _wanted(name, body, settings.generation_timeout)
    inference_id = f"inf_{secrets.token_hex(12)}"
    async with generation(request.app[GATEWAY], wanted, request.app[METRICS], settings) as reply:
        if body.parameters.stream:
            return await _stream(request, reply, inference_id, body.parameters.include_metadata)
        text = "".join([piece.text async for piece in reply.pieces()])
    end = reply.end()
    metadata = replies.metadata_of(reply.planned, end) if body.parameters.include_metadata else UNSET
    data = _inference(replies.Inference, (inference_id, text), reply.planned, end, metadata=metadata)
    return success(data, headers_of(reply.planned, end))


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
    own = {"status": "healthy", "uptime_seconds": round(time.monotonic() - request.app[STARTED], 3), "requests_answered": metrics.answered}
    return success({**health, "api_gateway": own})


async def system_swarm(request: web.Request) -> web.StreamResponse:
    """Who is in the swarm, without anyone's addresses: those are the owner's to see."""
    read_query(request, NoQuery)
    status = await in_time(request, request.app[GATEWAY].status(), "the node")
    peers = [{"peer_id": peer.get("peer_id"), "alive": bool(peer.get("alive"))} for peer in status.get("peers", [])]
    alive = sum(peer["alive"] for peer in peers)
    shown = {"peer_id": status.get("peer_id"), "version": status.get("version"), "peers": peers, "peers_alive": alive}
    return success({**shown, "models": status.get("models", [])})


async def live(request: web.Request) -> web.StreamResponse:
    """GET /health: that this process answers, and what its last end-to-end probe saw."""
    health = await in_time(request, request.app[GATEWAY].health(), "the node")
    return json_reply({"status": health.get("status"), "last_probe": health.get("last_probe")})


ROUTES = [
    web.get("/health", live),
    web.get("/api/v1/models", list_models),
    web.post("/api/v1/models/{id:.+}/inference", infer),
    web.get("/api/v1/models/{id:.+}/plan", plan),
    web.get("/api/v1/models/{id:.+}", one_model),
    web.get("/api/v1/system/health", system_health),
    web.get("/api/v1/system/swarm", system_swarm),
]
