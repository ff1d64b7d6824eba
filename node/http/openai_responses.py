"""`/v1/responses`, without memory: a request brings its conversation along, and nothing of it stays.

It is a chat in other clothes, so its request becomes a chat's; only what comes out is told otherwise: a list of items, each with its own
events while it is streamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from node.gateway import Finished, Piece
from node.http import openai_schemas as chat
from node.http import responses_schemas as schemas
from node.http.bodies import read_json
from node.http.context import GATEWAY, METRICS, SETTINGS, json_reply
from node.http.generation import headers_of
from node.http.openai_ask import ChatAsk, chat_ask, check_stream
from node.http.openai_common import Naming, naming, open_stream
from node.http.openai_replies import Response, ResponseUsage
from node.http.replies import trace_of
from node.http.response_items import Items
from node.http.side_by_side import SideBySide, side_by_side
from protocol.errors import BadInput, MfError


async def responses(request: web.Request) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    body = await read_json(request, schemas.ResponsesRequest, settings, unsupported=schemas.UNSUPPORTED_RESPONSES)
    check_stream(body.stream, body.stream_options, chunks=False)
    ask = chat_ask(as_chat(body), settings.generation_timeout)
    async with side_by_side(request.app[GATEWAY], ask.requests, request.app[METRICS], settings) as together:
        named = naming("resp", body.model, together.planned[0])
        items = Items(ask.reader())
        response = _begun(body, named)
        if body.stream:
            return await _stream(request, response, ask, together, items)
        async for _, event in together.events():
            if isinstance(event, Piece):
                items.take(event)
    end = together.ends[0]
    items.finish(end.reason)
    _complete(response, items, together, end)
    return json_reply(response, headers_of(together.planned[0], end))


def as_chat(body: schemas.ResponsesRequest) -> chat.ChatRequest:
    """The same request in a chat's words; `BadInput` names what doesn't fit."""
    given = [schemas.InputItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    messages = [message for number, item in enumerate(given) for message in [_message(item, f"input[{number}]")]]
    if body.instructions is not None:
        messages.insert(0, chat.SystemMessage(content=body.instructions))
    choice = body.tool_choice
    return chat.ChatRequest(
        model=body.model,
        messages=_joined(messages),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=_logprobs(body) or None,
        top_logprobs=body.top_logprobs if _logprobs(body) else None,
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_choice(choice) if isinstance(choice, schemas.ResponsesChoice) else choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text.format if body.text else None),
    )


def _logprobs(body: schemas.ResponsesRequest) -> bool:
    return bool(body.include) or bool(body.top_logprobs)


def _tool(tool: schemas.ResponsesTool) -> chat.Tool:
    function = chat.Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
    return chat.Tool(type="function", function=function)


def _choice(choice: schemas.ResponsesChoice) -> chat.ChosenTool:
    return chat.ChosenTool(type="function", function=chat.ChosenFunction(name=choice.name))


def _format(given: schemas.PlainText | schemas.SomeJson | schemas.SchemaJson | None) -> chat.Format | None:
    if isinstance(given, schemas.SchemaJson):
        return chat.JsonSchemaFormat(json_schema=chat.NamedSchema(name=given.name, schema=given.schema))
    return chat.JsonObjectFormat() if isinstance(given, schemas.SomeJson) else None


_ROLES: dict[str, type[chat.SystemMessage | chat.DeveloperMessage | chat.UserMessage | chat.AssistantMessage]] = {
    "system": chat.SystemMessage,
    "developer": chat.DeveloperMessage,
    "user": chat.UserMessage,
    "assistant": chat.AssistantMessage,
}
_FIELDS = {
    "message": frozenset({"role", "content"}),
    "function_call": frozenset({"call_id", "name", "arguments"}),
    "function_call_output": frozenset({"call_id", "output"}),
}


def _message(item: schemas.InputItem, where: str) -> chat.Message:
    wanted = _FIELDS[item.type]
    for name in sorted(frozenset().union(*_FIELDS.values())):
        if (getattr(item, name) is not None) != (name in wanted):
            what = "is missing" if name in wanted else "doesn't belong there"
            raise BadInput(f"{where}.{name}: it {what} in an item of type {item.type}", details={"param": f"{where}.{name}"})
    if item.type == "function_call":
        function = chat.CalledFunction(name=item.name or "", arguments=item.arguments or "")
        return chat.AssistantMessage(tool_calls=[chat.MessageCall(id=item.call_id or "", function=function)])
    if item.type == "function_call_output":
        return chat.ToolMessage(content=_text(item.output), tool_call_id=item.call_id or "")
    kind = _ROLES[item.role or "user"]
    return kind(content=_text(item.content))


def _text(content: str | list[schemas.InputText] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _joined(messages: Sequence[chat.Message]) -> list[chat.Message]:
    """A reply's text and calls are items of their own here, and one message to a model's template."""
    joined: list[chat.Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        if isinstance(message, chat.AssistantMessage) and message.tool_calls and isinstance(before, chat.AssistantMessage):
            calls = [*(before.tool_calls or ()), *message.tool_calls]
            joined[-1] = chat.AssistantMessage(content=before.content, tool_calls=calls)
        else:
            joined.append(message)
    return joined


def _begun(body: schemas.ResponsesRequest, named: Naming) -> Response:
    given = body.text.format if body.text else None
    return Response(
        id=named.id.replace("-", "_"),
        created_at=named.created,
        model=named.model,
        system_fingerprint=named.system_fingerprint,
        status="in_progress",
        output=[],
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_logprobs=body.top_logprobs or 0,
        tools=[msgspec.to_builtins(tool) for tool in body.tools or ()],
        tool_choice="auto" if body.tool_choice is None else msgspec.to_builtins(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        text={"format": {"type": "text"} if given is None else _as_given(given)},
        metadata=body.metadata or {},
        user=body.user,
    )


def _as_given(given: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(given).items() if value is not None}


def _complete(response: Response, items: Items, together: SideBySide, end: Finished) -> None:
    response.status = "completed" if end.reason == "stop" else "incomplete"
    response.incomplete_details = None if end.reason == "stop" else {"reason": "max_output_tokens"}
    response.output = items.output
    total = end.prompt_tokens + end.completion_tokens
    response.usage = ResponseUsage(input_tokens=end.prompt_tokens, output_tokens=end.completion_tokens, total_tokens=total)
    response.mf = trace_of(together.planned[0], end)


async def _stream(request: web.Request, response: Response, ask: ChatAsk, together: SideBySide, items: Items) -> web.StreamResponse:
    stream = await open_stream(request, together.planned[0], named=True)
    number = 0

    async def send(kind: str, **fields: Any) -> None:
        nonlocal number
        await stream.send({"type": kind, "sequence_number": number, **fields}, kind)
        number += 1

    await send("response.created", response=response)
    await send("response.in_progress", response=response)
    try:
        async for _, event in together.events():
            for kind, fields in items.take(event) if isinstance(event, Piece) else items.finish(event.reason):
                await send(kind, **fields)
    except MfError as error:
        response.status, response.output = "failed", items.output
        response.error = {"code": "server_error", "message": error.message}
        await send("response.failed", response=response)
        raise
    _complete(response, items, together, together.ends[0])
    await send(f"response.{response.status}", response=response)
    return await stream.done()
