"""Ollama's paths, for programs that know no others: a small shim over what `/v1` does. Answered only where the owner wants it (`ollama`).

What would change the node (pull, push, create, copy, delete) isn't there: those are the owner's, not HTTP's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aiohttp import web

from node.gateway import Finished, GenerationRequest, Piece
from node.http import ollama_replies as replies
from node.http import ollama_schemas as schemas
from node.http import openai_schemas as chat
from node.http.api_v1 import in_time
from node.http.bodies import read_json
from node.http.context import GATEWAY, METRICS, SETTINGS, STREAM, json_reply
from node.http.errors import timestamp
from node.http.generation import headers_of, route_header
from node.http.openai_ask import PlainReader, Reader, chat_ask
from node.http.openai_chat import Gathered
from node.http.side_by_side import SideBySide, side_by_side
from node.http.stream import LineStream
from node.version import VERSION
from protocol.errors import BadInput

_LATEST = ":latest"


async def version(request: web.Request) -> web.StreamResponse:
    return json_reply(replies.Version(version=VERSION))


async def tags(request: web.Request) -> web.StreamResponse:
    found = await in_time(request, request.app[GATEWAY].models(), "the list of models")
    return json_reply(replies.Tags(models=[replies.listed(info) for info in found]))


async def show(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.ShowRequest, request.app[SETTINGS])
    name = body.model or body.name
    if name is None:
        raise BadInput("model: which one?", details={"param": "model"})
    return json_reply(replies.shown(await in_time(request, request.app[GATEWAY].model(name.removesuffix(_LATEST)), "the model")))


async def running(request: web.Request) -> web.StreamResponse:
    """Models of which stages are loaded here."""
    health = await in_time(request, request.app[GATEWAY].health(), "the node")
    sizes: dict[str, int] = {}
    for stage in health.get("compute_network", {}).get("stages", []):
        model = str(stage["stage"]).partition("[")[0]
        sizes[model] = sizes.get(model, 0) + int(stage["bytes"])
    named = (
        {info.model_id: info.name for info in await in_time(request, request.app[GATEWAY].models(), "the list of models")} if sizes else {}
    )
    models = [(named.get(model) or model, model, size) for model, size in sizes.items()]
    return json_reply(
        replies.Running(models=[replies.RunningModel(name=name, model=name, digest=digest, size=size) for name, digest, size in models])
    )


async def converse(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.ChatRequest, request.app[SETTINGS], unsupported=schemas.UNSUPPORTED)
    ask = chat_ask(_as_chat(body), request.app[SETTINGS].generation_timeout)
    return await _answer(request, body, ask.requests[0], ask.reader(), _message)


async def generate(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.GenerateRequest, request.app[SETTINGS], unsupported=schemas.UNSUPPORTED)
    system = [schemas.Message(role="system", content=body.system)] if body.system else []
    messages = [*system, schemas.Message(role="user", content=body.prompt)]
    like = schemas.ChatRequest(model=body.model, messages=messages, format=body.format, options=body.options)
    wanted = chat_ask(_as_chat(like), request.app[SETTINGS].generation_timeout).requests[0]
    if body.raw:
        wanted = replace(wanted, messages=None, text=body.prompt)
    return await _answer(request, body, wanted, PlainReader(), lambda text, calls: {"response": text})


def _as_chat(body: schemas.ChatRequest) -> chat.ChatRequest:
    options = body.options or schemas.Options()
    return chat.ChatRequest(
        model=body.model.removesuffix(_LATEST),
        messages=[_plain(message, number) for number, message in enumerate(body.messages)],
        tools=body.tools,
        response_format=_format(body.format),
        max_tokens=options.num_predict if (options.num_predict or 0) > 0 else None,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repeat_penalty,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        seed=options.seed,
        stop=options.stop,
    )


def _format(given: schemas.Format | None) -> chat.Format | None:
    if isinstance(given, dict):
        return chat.JsonSchemaFormat(json_schema=chat.NamedSchema(name="format", schema=given))
    return chat.JsonObjectFormat() if given == "json" else None


def _plain(message: schemas.Message, number: int) -> chat.Message:
    if message.role == "tool":
        return chat.ToolMessage(content=message.content, tool_call_id=message.tool_call_id or f"call_{number}", name=message.tool_name)
    if message.role == "assistant":
        calls = [_call(call, at) for at, call in enumerate(message.tool_calls or ())]
        return chat.AssistantMessage(content=message.content, tool_calls=calls or None)
    return chat.SystemMessage(content=message.content) if message.role == "system" else chat.UserMessage(content=message.content)


def _call(call: schemas.MessageCall, number: int) -> chat.MessageCall:
    function = chat.CalledFunction(name=call.function.name, arguments=json.dumps(call.function.arguments))
    return chat.MessageCall(id=call.id or f"call_{number}", function=function)


Part = Callable[[str, list[tuple[str, list[str]]]], dict[str, Any]]
"""New text and whole calls, as the fields that carry them."""


def _message(text: str, calls: list[tuple[str, list[str]]]) -> dict[str, Any]:
    made = [replies.Call(function=replies.Function(name=name, arguments=_arguments("".join(parts)))) for name, parts in calls]
    return {"message": replies.ReplyMessage(content=text, tool_calls=made or None)}


def _arguments(text: str) -> dict[str, Any]:
    """Of a call that broke off there are none."""
    try:
        arguments = json.loads(text)
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


async def _answer(
    request: web.Request, body: schemas.ChatRequest | schemas.GenerateRequest, wanted: GenerationRequest, reader: Reader, part: Part
) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    gathered = Gathered(reader, False)
    async with side_by_side(request.app[GATEWAY], [wanted], request.app[METRICS], settings) as together:
        if body.stream:
            return await _stream(request, body.model, together, gathered, part)
        async for _, event in together.events():
            if isinstance(event, Piece):
                gathered.take(event)
    gathered.end()
    end = together.ends[0]
    return json_reply(replies.last(body.model, end, **part(gathered.text, gathered.calls)), headers_of(together.planned[0], end))


async def _stream(request: web.Request, model: str, together: SideBySide, gathered: Gathered, part: Part) -> web.StreamResponse:
    """Text as it comes, calls when they are whole."""
    planned = together.planned[0]
    stream = LineStream(request, request.app[SETTINGS].write_timeout)
    request[STREAM] = stream
    await stream.open({"X-MF-Route": route_header(planned.kind, planned.route)})
    async for _, event in together.events():
        if isinstance(event, Finished):
            gathered.end()
            if gathered.calls or gathered.text:
                await stream.send(replies.Done(model=model, created_at=timestamp(), done=False, **part(gathered.text, gathered.calls)))
            await stream.send(replies.last(model, event, **part("", [])))
            continue
        gathered.take(event)
        if gathered.text:
            text, gathered.text = gathered.text, ""
            await stream.send(replies.Done(model=model, created_at=timestamp(), done=False, **part(text, [])))
    return await stream.done()


ROUTES = [
    web.get("/api/version", version),
    web.get("/api/tags", tags),
    web.get("/api/ps", running),
    web.post("/api/show", show),
    web.post("/api/chat", converse),
    web.post("/api/generate", generate),
]
