"""`/v1`: OpenAI's API, as far as this node honours it. What it doesn't is refused by name, never passed over."""

from __future__ import annotations

import base64
import secrets
import struct
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from msgspec import UNSET

from node.gateway import EmbeddingRequest, GenerationRequest
from node.http import replies
from node.http.api_v1 import in_time, sampling
from node.http.bodies import model_name, read_json
from node.http.context import GATEWAY, METRICS, SETTINGS, STREAM, json_reply
from node.http.generation import Reply, generation, headers_of, route_header
from node.http.schemas import UNSUPPORTED_CHAT, UNSUPPORTED_EMBEDDINGS, ChatRequest, EmbeddingsRequest
from node.http.stream import EventStream
from protocol.errors import BadInput


@dataclass(frozen=True)
class _Naming:
    """What is equal in all chunks of one completion."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def fields(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model, "system_fingerprint": self.system_fingerprint}


def _check(body: ChatRequest) -> None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise BadInput("max_tokens and max_completion_tokens say the same: give one", details={"param": "max_tokens"})
    if body.stream_options is not None and not body.stream:
        raise BadInput("stream_options goes with stream: true alone", details={"param": "stream_options"})
    if body.continue_final_message and body.messages[-1].role != "assistant":
        raise BadInput("continue_final_message wants the assistant's message last", details={"param": "continue_final_message"})


def _wanted(body: ChatRequest, timeout: float) -> GenerationRequest:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return GenerationRequest(
        model=body.model,
        sampling=sampling(body.temperature, body.top_p, body.seed),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        messages=[message.plain() for message in body.messages],
        stop=stop,
        continue_final=body.continue_final_message,
        timeout=timeout,
    )


async def chat(request: web.Request) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    body = await read_json(request, ChatRequest, settings, unsupported=UNSUPPORTED_CHAT)
    _check(body)
    wanted = _wanted(body, settings.generation_timeout)
    async with generation(request.app[GATEWAY], wanted, request.app[METRICS], settings) as reply:
        fingerprint = f"{reply.planned.model_id}-{wanted.precision}"
        naming = _Naming(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), body.model, fingerprint)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return await _stream(request, reply, naming, with_usage)
        text = "".join([piece.text async for piece in reply.pieces()])
    end = reply.end()
    choice = replies.Choice(message=replies.AssistantMessage(content=text), finish_reason=end.reason)
    completion = replies.ChatCompletion(**naming.fields(), choices=[choice], usage=replies.usage_of(end))
    return json_reply(completion, headers_of(reply.planned, end))


async def _stream(request: web.Request, reply: Reply, naming: _Naming, with_usage: bool) -> web.StreamResponse:
    planned = reply.planned
    stream = EventStream(request, request.app[SETTINGS].write_timeout, named=False)
    request[STREAM] = stream
    await stream.open({"X-MF-Route": route_header(planned.kind, planned.route)})
    no_usage = None if with_usage else UNSET

    def chunk(delta: replies.Delta, reason: str | None = None) -> replies.ChatChunk:
        choice = replies.ChunkChoice(delta=delta, finish_reason=reason)
        return replies.ChatChunk(**naming.fields(), choices=[choice], usage=no_usage)

    await stream.send(chunk(replies.Delta(role="assistant", content="")))
    async for piece in reply.pieces():
        await stream.send(chunk(replies.Delta(content=piece.text)))
    end = reply.end()
    last = chunk(replies.Delta(), end.reason)
    if with_usage:
        await stream.send(last)
        last = replies.ChatChunk(**naming.fields(), choices=[], usage=replies.usage_of(end))
    last.mf = replies.trace_of(planned, end)
    await stream.send(last)
    return await stream.done()


MAX_INPUTS = 2_048
"""OpenAI's own bound."""


def _inputs(body: EmbeddingsRequest) -> list[str | list[int]]:
    """One text, one list of token ids, or a list of either, never mixed."""
    given = body.input
    if isinstance(given, str):
        return [given]
    kinds = {type(item) for item in given}
    if len(kinds) != 1:
        raise BadInput("input: texts and token ids don't mix", details={"param": "input"})
    if kinds == {int}:
        return [[item for item in given if isinstance(item, int)]]
    if len(given) > MAX_INPUTS:
        raise BadInput(f"input: {len(given)} inputs, at most {MAX_INPUTS}", details={"param": "input"})
    return [item for item in given if not isinstance(item, int)]


async def embeddings(request: web.Request) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    body = await read_json(request, EmbeddingsRequest, settings, unsupported=UNSUPPORTED_EMBEDDINGS)
    wanted = EmbeddingRequest(body.model, _inputs(body), settings.generation_timeout)
    made = await request.app[GATEWAY].embed(wanted)
    data = [replies.Embedding(index=number, embedding=_vector(row, body.encoding_format)) for number, row in enumerate(made.rows)]
    usage = replies.EmbeddingsUsage(prompt_tokens=made.tokens, total_tokens=made.tokens)
    return json_reply(replies.EmbeddingList(model=body.model, data=data, usage=usage))


def _vector(row: bytes, encoding: str) -> list[float] | str:
    return base64.b64encode(row).decode() if encoding == "base64" else [number for (number,) in struct.iter_unpack("<f", row)]


async def list_models(request: web.Request) -> web.StreamResponse:
    found = await in_time(request, request.app[GATEWAY].models(), "the list of models")
    return json_reply(replies.OpenAIModels(data=[replies.openai_model(info) for info in found]))


async def one_model(request: web.Request) -> web.StreamResponse:
    info = await in_time(request, request.app[GATEWAY].model(model_name(request)), "the model")
    return json_reply(replies.openai_model(info))


ROUTES = [
    web.get("/v1/models", list_models),
    web.get("/v1/models/{id:.+}", one_model),
    web.post("/v1/chat/completions", chat),
    web.post("/v1/embeddings", embeddings),
]
